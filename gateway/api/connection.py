"""One connection of the data listener and the limits on it, the same for both doors.

What a client sends is parsed in pieces, so that one buffer of many small things cannot hold the loop up; a pipeline
that grows stops the reading. How it ends, by a refusal or a timeout, says gateway.api.leaving; which door a message
takes, gateway.api.doors.

crowd -> leaving -> **connection** -> doors -> fast. Derives from uvicorn 0.54's HttpToolsProtocol;
tests/contracts/test_uvicorn.py holds what is relied on.
"""

from __future__ import annotations

from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl

from gateway.api.flow import Flow
from gateway.api.heads import HEADERS_MAX_BYTES, URL_MAX_BYTES
from gateway.api.leaving import Leaving
from gateway.api.problems import raised_in
from gateway.errors import HeadTooLarge, InvalidRequest, Overloaded

PIECE_BYTES = 16_384
"""What is parsed at once where it is not the inside of a body."""
CHUNKS_FREE, CHUNK_MIN_BYTES = 1024, 16
"""A chunked body may have so many chunks of any size; beyond, they must have so many bytes on average."""
DISCARD_MAX_BYTES = 262_144
"""A body that was answered before it was here is read on for so long, to keep the connection."""


class Connection(Leaving):
    """Bytes in, in bounds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._feeding = False
        self._feed_paused = False
        self._head_bytes = 0
        self._content_bytes = -1
        self._body_left = 0
        self.held_bytes = 0
        self.account = self.held_by = ""
        """Of the message that comes, where somebody is limited; and of the bodies that are held."""
        self._discarded = 0
        self._chunks = self._chunk_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """A client; where there are too many, an idle one makes room or this one is told so and left."""
        super().connection_made(transport)
        self.flow = Flow(self)
        self._active_s = now_s = self.loop.time()
        crowd = self.crowd
        if crowd.lame:
            # It was accepted just before.
            self.go_lame()
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
            Overloaded, RateLimited: all bodies of this worker together, or those of this client, are too large.
        """
        if not self.held_bytes:
            self.held_by = self.account
        self.crowd.hold(size, self.held_by, self.held_bytes)
        self.held_bytes += size

    def let_go(self, size: int) -> None:
        """Bodies of so many bytes, of those that this connection held, are answered or given up."""
        self.crowd.let_go(size, self.held_by)
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

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: what it had in flight is not delivered."""
        self._leave(self._running)
        self._leave(self.cycle)
        self._deaf = self._dead = True
        self.unfed = None
        self.let_go(self.held_bytes)
        super().connection_lost(exc)
