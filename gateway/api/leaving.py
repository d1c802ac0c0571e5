"""How a connection of the data listener ends: refused, too slow, idle for too long, gone. The same for both doors.

crowd -> **leaving** -> connection -> fast. What comes too slowly, too large or malformed is answered where an answer
can still be understood, and the connection ends. An ending connection is closed for writing first and read for a
moment longer: closed outright with bytes unread, the kernel would reset it and the client might never see the answer.
When the worker stops, its connections are lame (`go_lame`): each is told with its next answer.
"""

from __future__ import annotations

import socket
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.api.crowd import Crowd
from gateway.api.cycle import FastCycle
from gateway.api.problems import reply_of
from gateway.errors import GatewayError, RequestTimeout

BYTES_PER_S = 16_384
"""A body, or the taking of answers, that goes slower than this is not waited for beyond its timeout."""
_TCP_CLOSED = (7, 8)  # Linux's CLOSE and CLOSE_WAIT: the other side has closed.
LINGER_S = 2.0
"""How long an ended connection is read, and its bytes thrown away, so that the client sees its last answer."""


class Ending:
    """The transport as a Starlette request sees it: its close is our slow one."""

    def __init__(self, door: Leaving) -> None:
        self._door = door
        self.write = door.transport.write
        self.is_closing = door.transport.is_closing

    def close(self) -> None:
        """The answer is written, or cannot be made whole."""
        self._door.hang_up()


class Leaving(HttpToolsProtocol):
    """A connection as far as its end goes: refusals, timeouts, and what is left to do when it closes."""

    crowd: Crowd

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.unfed: memoryview | None = None
        """Bytes of a long buffer that are not parsed yet."""
        self._deaf = False
        """Nothing more is parsed."""
        self._dead = False
        """Nothing more is answered."""
        self._reading = False
        """A message has begun and is not whole."""
        self._in_head = False
        self._active_s = 0.0
        self._sent_bytes = 0
        self._running: Any = None
        self._unwritten = 0
        self._write_s = self._leaving_s = 0.0
        self._draining = False
        """Whatever is answered from now on is the last."""
        self.replied = 0
        """Fast replies; with `_reaped` it tells whether an idle connection was used since the last look."""
        self._reaped = 0
        self.resting = False
        """Not read for a moment, since its client is over its limit."""

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

    def go_lame(self) -> None:
        """The worker stops: the next answer says `connection: close`, and the connection goes with it. An idle one
        stays for the request that may be on its way."""
        self._draining = True
        cycle = self.cycle
        if (
            cycle is not None
            and not cycle.response_complete
            and not getattr(cycle, "response_started", False)
        ):
            cycle.keep_alive = False

    def shutdown(self) -> None:
        """The lame-duck time is over: idle connections close now, busy ones after their answer."""
        self.go_lame()
        cycle = self.cycle
        if self._leaving_s:
            self.transport.abort()
        elif not self._reading and self.unfed is None and (cycle is None or cycle.response_complete):
            if not self.transport.is_closing():
                self.crowd.lame_closed += 1
            self.leave_now()

    def leave_now(self) -> None:
        """Close an idle connection."""
        self._deaf = True
        self.transport.close()

    def _leave(self, cycle: Any) -> None:
        # Whoever works for this request: nobody waits for it.
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

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
