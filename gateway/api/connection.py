"""One connection of the data listener and the limits on it, the same for both doors.

What a client sends is parsed in pieces, so that one buffer of many small things cannot hold the loop up; a pipeline
that grows stops the reading; what comes too slowly, too large or malformed is answered where an answer can still be
understood, and the connection ends. An ending connection is closed for writing first and read for a moment longer:
closed outright with bytes unread, the kernel would reset it and the client might never see the answer.

Derives from uvicorn 0.54's HttpToolsProtocol; tests/contracts/test_uvicorn.py holds what is relied on.
"""

from __future__ import annotations

import socket
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.api.crowd import Crowd
from gateway.api.cycle import FastCycle
from gateway.api.flow import Flow
from gateway.api.heads import HEADERS_MAX_BYTES, URL_MAX_BYTES
from gateway.api.problems import raised_in, reply_of
from gateway.errors import GatewayError, HeadTooLarge, InvalidRequest, Overloaded, RequestTimeout

PIECE_BYTES = 16_384
"""What is parsed at once where it is not the inside of a body."""
BYTES_PER_S = 16_384
"""A body, or the taking of answers, that goes slower than this is not waited for beyond its timeout."""
_TCP_CLOSED = (7, 8)  # Linux's CLOSE and CLOSE_WAIT: the other side has closed.
LINGER_S = 2.0
"""How long an ended connection is read, and its bytes thrown away, so that the client sees its last answer."""
CHUNKS_FREE, CHUNK_MIN_BYTES = 1024, 16
"""A chunked body may have so many chunks of any size; beyond, they must have so many bytes on average."""
DISCARD_MAX_BYTES = 262_144
"""A body that was answered before it was here is read on for so long, to keep the connection."""


class Ending:
    """The transport as a Starlette request sees it: its close is our slow one."""

    def __init__(self, door: Connection) -> None:
        self._door = door
        self.write = door.transport.write
        self.is_closing = door.transport.is_closing

    def close(self) -> None:
        """The answer is written, or cannot be made whole."""
        self._door.hang_up()


class Connection(HttpToolsProtocol):
    """Bytes in, in bounds; refusals, timeouts and the end of a connection."""

    crowd: Crowd

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.unfed: memoryview | None = None
        """Bytes of a long buffer that are not parsed yet."""
        self._feeding = False
        self._feed_paused = False
        self._deaf = False
        """Nothing more is parsed."""
        self._dead = False
        """Nothing more is answered."""
        self._reading = False
        """A message has begun and is not whole."""
        self._in_head = False
        self._head_bytes = 0
        self._content_bytes = -1
        self._body_left = 0
        self._active_s = 0.0
        self._sent_bytes = 0
        self.held_bytes = 0
        self._discarded = 0
        self._chunks = self._chunk_bytes = 0
        self._running: Any = None
        self._unwritten = 0
        self._write_s = self._leaving_s = 0.0
        self._draining = False
        self.replied = 0
        """Fast replies; with `_reaped` it tells whether an idle connection was used since the last look."""
        self._reaped = 0

    def connection_made(self, transport: Any) -> None:
        """A client; where there are too many, an idle one makes room or this one is told so and left."""
        super().connection_made(transport)
        self.flow = Flow(self)
        self._active_s = now_s = self.loop.time()
        crowd = self.crowd
        if len(self.connections) > crowd.connections_max and not crowd.make_room(self.connections, now_s):
            crowd.turned_away += 1
            self.refuse(Overloaded(f"too many connections; a worker holds {crowd.connections_max}"))

    # --- bytes in --------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Parse a buffer; what is left of a long one, or of a turn that was long enough, in later turns of the loop."""
        if self._deaf:
            self._discard(len(data))
            if self._leaving_s and self.crowd.is_spent(self.loop):
                self._put_off()
        elif self.crowd.is_spent(self.loop):
            self.unfed = memoryview(data)
            self._put_off()
        elif len(data) <= PIECE_BYTES:
            self._parse(data)
        else:
            self.unfed = memoryview(data)
            self.feed_on()

    def _put_off(self) -> None:
        self._feed_paused = True
        self.flow.pause_reading()
        self.feed_soon()

    def feed_soon(self) -> None:
        """Go on with a long buffer in a later turn of the loop, when it is this connection's."""
        if not self._feeding:
            self._feeding = True
            self.crowd.feed_soon(self)

    def feed_on(self) -> None:
        """Parse what is left of a long buffer: insides of bodies at once, of the rest one piece."""
        self._feeding = False
        parsed = False
        while (view := self.unfed) is not None and not self._deaf:
            if self.pipeline or (parsed and self._body_left <= 0):
                self._feed_paused = True
                self.flow.pause_reading()
                if not self.pipeline:
                    self.feed_soon()
                return
            size = self._body_left
            if size <= 0:
                # Not the inside of a body of known length: whatever it holds is bounded by its size.
                size, parsed = PIECE_BYTES, True
            self.unfed = view[size:] if len(view) > size else None
            self._parse(view[:size])
        self.unfed = None
        if self._feed_paused and not self.transport.is_closing():
            if self._leaving_s:
                self._feed_paused = False
                FlowControl.resume_reading(self.flow)
            elif not self._deaf:
                self._feed_paused = False
                self.flow.resume_reading()

    def _parse(self, data: bytes | memoryview) -> None:
        if self._reading:
            if self._in_head:
                self._head_bytes += len(data)
                if self._head_bytes > HEADERS_MAX_BYTES + URL_MAX_BYTES:
                    self.refuse(HeadTooLarge(f"request head of more than {HEADERS_MAX_BYTES} bytes"))
                    return
            else:
                self._sent_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Not to be had here: answered as if it had not been asked, and then closed.
            self._deaf = True
        except httptools.HttpParserCallbackError as exc:
            self.refuse(raised_in(exc, InvalidRequest("malformed HTTP request: unreadable target")))
        except httptools.HttpParserError as exc:
            self.refuse(InvalidRequest(f"malformed HTTP request: {exc}"))

    def on_message_begin(self) -> None:
        """A message starts somewhere in the buffer."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._reading = self._in_head = True
        self._active_s = self.loop.time()
        self._head_bytes = self._sent_bytes = self._discarded = self._chunks = self._chunk_bytes = 0
        self._content_bytes = -1
        self._body_left = 0

    def begin_scope(self) -> None:
        """What uvicorn makes when a message begins, for a message that goes to the Starlette door."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)

    def hold(self, size: int) -> None:
        """Count bytes of a body that are kept.

        Raises:
            Overloaded: all bodies of this worker together are too large.
        """
        crowd = self.crowd
        if crowd.held_bytes + size > crowd.limits.bodies_max_bytes:
            most = crowd.limits.bodies_max_bytes
            msg = f"bodies of {crowd.held_bytes} bytes are being received, at most {most} are held; try again"
            raise Overloaded(msg)
        crowd.held_bytes += size
        self.held_bytes += size

    def let_go(self, size: int) -> None:
        """Bodies of so many bytes, of those that this connection held, are answered or given up."""
        self.crowd.held_bytes -= size
        self.held_bytes -= size

    def on_body(self, body: bytes | memoryview) -> None:
        """Part of the body of a Starlette request."""
        if self._dead:
            return
        size = len(body)
        if self._content_bytes < 0:
            self._chunks = chunks = self._chunks + 1
            self._chunk_bytes += size
            if chunks > CHUNKS_FREE and self._chunk_bytes < chunks * CHUNK_MIN_BYTES:
                msg = f"{chunks} chunks hold {self._chunk_bytes} bytes; expected {CHUNK_MIN_BYTES} in each"
                raise InvalidRequest(msg)
        self._body_left -= size
        cycle = self.cycle
        if cycle.response_complete:
            self._discarded += size
            if self._discarded > DISCARD_MAX_BYTES:
                self.hang_up()
            return
        self.hold(size)
        cycle.held_bytes += size  # type: ignore[attr-defined]
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._leaving_s and self._discarded > self.crowd.limits.body_max_bytes:
            self.transport.abort()

    # --- the end of a connection -----------------------------------------------------------

    def refuse(self, exc: GatewayError) -> None:
        """A message that breaks a limit or cannot be read: answered in its turn, and the connection ends."""
        if self._deaf:
            return
        self._deaf = True
        self.unfed = None
        cycle = self.cycle
        if self._reading and not self._in_head and cycle is not None:
            # It has a cycle, which is not whole: the refusal takes its place.
            if self.pipeline and self.pipeline[0][0] is cycle:
                self.pipeline[0] = (self._refusal(exc), self.app)  # type: ignore[assignment]
                return
            done, begun = cycle.response_complete, getattr(cycle, "response_started", False)
            self._leave(cycle)
            if done or begun:
                self.hang_up()
                return
        elif cycle is not None and not cycle.response_complete:
            # Behind what is in flight: another's answer must not be this one.
            self.flow.pause_reading()
            self.pipeline.appendleft((self._refusal(exc), self.app))  # type: ignore[arg-type]
            return
        self._last_words(exc)

    def _refusal(self, exc: GatewayError) -> FastCycle:
        cycle = FastCycle(self)
        cycle.head, cycle.more_body, cycle.keep_alive = exc, False, False
        return cycle

    def _last_words(self, exc: GatewayError) -> None:
        if self.transport.is_closing():
            return
        self._dead = True
        status, fields, body = reply_of(exc)
        if b"\r\nconnection: close\r\n" not in fields:
            fields += b"connection: close\r\n"
        self.transport.write(b"".join((STATUS_LINE[status], fields, b"\r\n", body)))
        self.hang_up()

    def hang_up(self) -> None:
        """End the connection so that what was written last arrives: no more is written, and for a moment all that
        comes is thrown away."""
        self._deaf = True
        self.unfed = None
        transport = self.transport
        if transport.is_closing() or self._leaving_s:
            return
        if not self._reading and not self.flow.read_paused and not self._dead:
            # All that was sent was read.
            transport.close()
            return
        self._dead = True
        self._leaving_s = self.loop.time()
        try:
            transport.write_eof()
        except (OSError, RuntimeError):
            transport.abort()
            return
        FlowControl.resume_reading(self.flow)

    def leave_now(self) -> None:
        """Close an idle connection."""
        self._deaf = True
        self.transport.close()

    def _leave(self, cycle: Any) -> None:
        # Whoever works for this request: nobody waits for it.
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: what it had in flight is not delivered."""
        self._leave(self._running)
        self._leave(self.cycle)
        self._deaf = self._dead = True
        self.unfed = None
        self.let_go(self.held_bytes)
        super().connection_lost(exc)

    # --- its clock -------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """The client does not read its answers: no more requests are read from it either."""
        super().pause_writing()
        self._write_s = self.loop.time()
        self._unwritten = self.transport.get_write_buffer_size()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        self._write_s = 0.0
        self.flow.resume_reading()

    def idle_since(self, now_s: float) -> float:
        """When it was last used; `now_s` for one that is in use."""
        cycle = self.cycle
        busy = cycle is not None and not cycle.response_complete
        if self._reading or busy or self.replied != self._reaped or self._deaf or self.unfed is not None:
            return now_s
        return self._active_s

    def reap(self, now_s: float) -> None:
        """End a connection that is too slow or too long idle. Called about once a second."""
        limits = self.crowd.limits
        if self._leaving_s:
            if now_s - self._leaving_s > LINGER_S:
                self.transport.abort()
        elif self.transport.is_closing():
            # Its last answer is not taken, or it would be gone.
            self._leaving_s = now_s - LINGER_S + limits.write_s
        elif self.flow.read_paused and self._left():
            self.transport.abort()
        elif self._write_s:
            self._reap_writing(now_s, limits.write_s)
        elif self._reading:
            self._reap_reading(now_s)
        elif self.replied != self._reaped:
            self._reaped = self.replied
            self._active_s = now_s
        elif self.idle_since(now_s) < now_s - limits.idle_s:
            self.leave_now()

    def _left(self) -> bool:
        # While reading is paused nobody tells.
        sock = self.transport.get_extra_info("socket")
        return sock is not None and sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _TCP_CLOSED

    def _reap_writing(self, now_s: float, write_s: float) -> None:
        unwritten = self.transport.get_write_buffer_size()
        if self._unwritten - unwritten >= BYTES_PER_S * (now_s - self._write_s):
            self._write_s, self._unwritten = now_s, unwritten
        elif now_s - self._write_s > write_s:
            self.crowd.cut("write_timeout")
            self.transport.abort()

    def _reap_reading(self, now_s: float) -> None:
        limits = self.crowd.limits
        if self.flow.read_paused:
            # Our own doing, not the client's.
            self._active_s = now_s
            return
        waited_s = now_s - self._active_s
        if self._in_head:
            if waited_s > limits.header_s:
                self.crowd.cut("request_timeout")
                msg = (
                    f"the request's head was not here after {waited_s:.0f} s; expected {limits.header_s:g} s"
                )
                self.refuse(RequestTimeout(msg))
        elif waited_s > limits.body_s and self._sent_bytes >= BYTES_PER_S * waited_s:
            # A large body takes its time: that it goes on counts, whatever came before.
            self._active_s, self._sent_bytes = now_s, 0
        elif waited_s > limits.body_s:
            self.crowd.cut("request_timeout")
            self.refuse(
                RequestTimeout(
                    f"the request's body was not here after {waited_s:.0f} s; expected {limits.body_s:g} s, "
                    f"or {BYTES_PER_S} bytes a second"
                )
            )
