"""The fast door: the common inference POST from parser callback to transport write.

uvicorn takes this protocol class in `http=`. What it recognises (POST …/infer with Content-Length, no
content or transfer coding, at most 256 KiB) makes no ASGI scope, task or coroutine; everything else goes
the way of the parent class, to the Starlette door. One request is in flight per connection: pipelined
ones wait in the parent's queue with reading paused, so answers keep their order.

The head of a connection's last fast request is kept, in two parts around the digits of Content-Length: a
buffer that repeats both parts and carries exactly the body that its own digits say needs no parsing. A
head is kept only when one whole message was the buffer and its body stood at the end verbatim; after 8
misses in a row the connection gives up.

Derives from uvicorn 0.54's HttpToolsProtocol; tests/contracts/test_uvicorn.py holds what is relied on.
"""

from __future__ import annotations

import re
import time
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.api.cycle import FastCycle
from gateway.api.heads import (
    FAST_BODY_MAX_BYTES,
    HEADERS_MAX,
    HEADERS_MAX_BYTES,
    INFER,
    URL_MAX_BYTES,
    make_head,
)
from gateway.api.problems import reply_of
from gateway.core import Core
from gateway.errors import GatewayError

_MISSES_MAX = 8
BODY_MIN_BYTES_PER_S = 16_384
"""A body that comes slower than this is not waited for beyond its timeout."""
_SLOW_HEADERS = frozenset(
    (b"transfer-encoding", b"content-encoding", b"expect", b"upgrade", b"authorization")
)
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,6})(?=\r\n)", re.IGNORECASE)
_now = time.perf_counter_ns


class FastProtocol(HttpToolsProtocol):
    """One connection of the data listener. `bind` makes the class that a worker uses."""

    core: Core
    takes_fast: bool
    connections_max: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The kept head: what stands before and behind the digits of its Content-Length.
        self._before: bytes | None = None
        self._before_bytes = 0
        self._behind = b""
        self._head_cycle: FastCycle | None = None
        self._keeps_heads = True
        self._misses = 0
        self._buffer: bytes = b""
        self._messages = 0
        self._head_size = 0
        self._hosts = 0
        self._content_bytes = -1
        self._slow = False
        self._in_head = False
        self._began_in: bytes | None = None
        """The buffer in which the message began: a head split over two is never kept."""
        self._running: FastCycle | None = None
        self._reading = False
        """A message has begun and is not whole."""
        self._active_s = 0.0
        self._body_bytes = 0
        self._draining = False
        self._write_paused_s = 0.0
        self.replied = 0
        """Fast replies; with `_reaped` it tells whether an idle connection was used since the last look."""
        self._reaped = 0
        self._dead = False

    @classmethod
    def bind(cls, core: Core, *, takes_fast: bool, connections_max: int) -> type[FastProtocol]:
        """A class whose connections talk to `core`; with `takes_fast` False all requests go to Starlette, within
        the same limits."""
        bound = {"core": core, "takes_fast": takes_fast, "connections_max": connections_max}
        return type("BoundFastProtocol", (cls,), bound)

    def connection_made(self, transport: Any) -> None:
        """A client; one too many is told so and left."""
        super().connection_made(transport)
        if len(self.connections) > self.connections_max:
            self._refuse(503, "too many connections", code="overloaded")

    # --- bytes in --------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """A buffer from the socket: a repeat of the kept head, or something to parse."""
        received_ns = _now()
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        cycle = self.cycle
        before = self._before
        if (
            before is not None
            and data.startswith(before)
            and (cycle is None or cycle.response_complete)
            and not self._reading
        ):
            start = self._before_bytes
            end = data.find(b"\r", start, start + 7)
            digits = data[start:end]
            if digits.isdigit() and data.startswith(self._behind, end):
                end += len(self._behind)
                size = int(digits)
                if len(data) - end == size <= FAST_BODY_MAX_BYTES:
                    kept = self._head_cycle
                    self.cycle = self._running = kept  # type: ignore[assignment]
                    kept.response_complete = False  # type: ignore[union-attr]
                    self._misses = 0
                    self.core.receive(kept.head, data[end:], kept, received_ns)  # type: ignore[union-attr,arg-type]
                    return
        if before is not None:
            self._misses += 1
            if self._misses >= _MISSES_MAX:
                self._before = self._head_cycle = None
                self._keeps_heads = False
        self._buffer = data
        self._messages = 0
        self._received_ns = received_ns
        if not self._reading:
            self._active_s = self.loop.time()
            self._body_bytes = 0
        elif not self._in_head:
            self._body_bytes += len(data)
        else:
            self._head_size += len(data)
            if self._head_size > HEADERS_MAX_BYTES + URL_MAX_BYTES:
                self._refuse(431, "request head is too large")
                return
        super().data_received(data)
        self._buffer = b""

    def on_message_begin(self) -> None:
        """A message starts somewhere in the buffer."""
        super().on_message_begin()
        self._reading = self._in_head = True
        self._began_in = self._buffer
        self._head_size = 0
        self._hosts = 0
        self._content_bytes = -1
        self._slow = False

    def on_url(self, url: bytes) -> None:
        """Part of the target."""
        super().on_url(url)
        if len(self.url) > URL_MAX_BYTES:
            self._refuse(414, "URL is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; limits are held while they come."""
        name = name.lower()
        self._head_size += len(name) + len(value)
        if self._head_size > HEADERS_MAX_BYTES or len(self.headers) >= HEADERS_MAX:
            self._refuse(431, "request head is too large")
            return
        if name == b"host":
            self._hosts += 1
        elif name == b"content-length" and value.isdigit():
            self._content_bytes = int(value)
        elif name in _SLOW_HEADERS:
            self._slow = True
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Choose the door."""
        self._in_head = False
        if self._dead:
            return
        version = self.parser.get_http_version()
        if self._hosts != 1 and version != "1.0":
            self._refuse(400, "expected exactly one Host header")
            return
        method = self.parser.get_method()
        fast = (
            self.takes_fast
            and method == b"POST"
            and not self._slow
            and 0 <= self._content_bytes <= FAST_BODY_MAX_BYTES
            and version == "1.1"
            and not self.parser.should_upgrade()
            and INFER.fullmatch(self.url)
        )
        if not fast:
            super().on_headers_complete()
            return
        existing = self.cycle
        cycle = FastCycle(self)
        cycle.body = bytearray()
        cycle.keep_alive = self.parser.should_keep_alive() and not self._draining
        try:
            cycle.head = make_head(self.core.caller, self.url, self.headers)
        except GatewayError as exc:
            cycle.head = exc
        self.cycle = cycle  # type: ignore[assignment]
        if existing is None or existing.response_complete:
            cycle.started = True
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))  # type: ignore[arg-type]

    def on_body(self, body: bytes) -> None:
        """Part of a body."""
        if self._dead:
            return
        cycle = self.cycle
        if isinstance(cycle, FastCycle):
            cycle.body += body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """A whole message is here."""
        self._reading = False
        if self._dead:
            return
        self._messages += 1
        cycle = self.cycle
        if not isinstance(cycle, FastCycle):
            super().on_message_complete()
            return
        cycle.more_body = False
        cycle.received_ns = self._received_ns
        if cycle.started:
            self._keep_head(cycle)
            self._submit(cycle)

    def _submit(self, cycle: FastCycle) -> None:
        if self._dead or self.transport.is_closing():
            return
        self._running = cycle
        head, body = cycle.head, bytes(cycle.body)
        if isinstance(head, GatewayError):
            cycle.reply(*reply_of(head))
            return
        self.core.receive(head, body, cycle, cycle.received_ns)

    def _keep_head(self, cycle: FastCycle) -> None:
        """Remember the head if the buffer was this one message and nothing else."""
        buffer = self._buffer
        size = len(buffer) - len(cycle.body)
        if (
            not self._keeps_heads
            or self._began_in is not buffer
            or self._messages != 1
            or not cycle.keep_alive
            or isinstance(cycle.head, GatewayError)
            or size <= 0
            or not buffer.startswith(b"POST ")
            or buffer.find(b"\r\n\r\n") != size - 4
            or buffer[size:] != cycle.body
        ):
            return
        head = buffer[:size]
        lengths = list(_LENGTH.finditer(head))
        if len(lengths) != 1:
            return
        self._before = head[: lengths[0].start(1)]
        self._before_bytes = len(self._before)
        self._behind = head[lengths[0].end(1) :]
        kept = FastCycle(self)
        kept.head = cycle.head
        kept.started, kept.more_body, kept.response_complete = True, False, True
        self._head_cycle = kept

    # --- bytes out -------------------------------------------------------------------------

    def after_reply(self, cycle: FastCycle) -> None:
        """What an answer leaves to do where it was not a plain one: close, or the next that waits."""
        if not cycle.keep_alive:
            self.transport.close()
        else:
            self.on_response_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """A pipelined request's turn has come."""
        if self.pipeline:
            # The parent resumed reading: not while others wait, or a pipeline could grow without end.
            self.flow.pause_reading()
        if not isinstance(cycle, FastCycle):
            super()._start_asgi_task(cycle, app)
            return
        cycle.started = True
        if not cycle.more_body:
            # Not from here: refusals answer at once, and a long pipeline of them would recurse.
            self.loop.call_soon(self._submit, cycle)

    def _refuse(self, status: int, text: str, *, code: str = "invalid_request") -> None:
        """A head that breaks a limit: answered at once, then closed."""
        if self._dead:
            return
        self._dead = True
        body = b'{"error":"%b","code":"%b"}' % (text.encode(), code.encode())
        self.transport.write(
            STATUS_LINE[status]
            + b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            + body
        )
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """What the parser cannot read."""
        self._refuse(400, "malformed HTTP request")

    # --- life ------------------------------------------------------------------------------

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: what it had in flight is not delivered."""
        for cycle in (self.cycle, self._running):
            if isinstance(cycle, FastCycle) and not cycle.response_complete:
                cycle.disconnected = True
        self._dead = True
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read its answers: no more requests are read from it either."""
        super().pause_writing()
        self._write_paused_s = self.loop.time()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        self._write_paused_s = 0.0
        if not self.pipeline:
            self.flow.resume_reading()

    def shutdown(self) -> None:
        """Graceful end: idle connections close now, busy ones after their answer."""
        self._draining = True
        cycle = self.cycle
        if cycle is None or (cycle.response_complete and not self._reading):
            self.transport.close()
        else:
            cycle.keep_alive = False

    def reap(self, now_s: float, header_s: float, body_s: float, idle_s: float) -> None:
        """Close a connection that is too slow or too long idle. Called about once a second."""
        if self._write_paused_s and now_s - self._write_paused_s > body_s:
            self.transport.abort()
            return
        cycle = self.cycle
        if self._reading:
            # A body may take longer the more of it has come: the rate counts, not the size.
            allowed_s = header_s if self._in_head else body_s + self._body_bytes / BODY_MIN_BYTES_PER_S
            if self.flow.read_paused:
                # Our own doing, not the client's.
                self._active_s = now_s
            elif now_s - self._active_s > allowed_s:
                self.transport.close()
            return
        if self.replied != self._reaped or not self._active_s:
            self._reaped = self.replied
            self._active_s = now_s
        elif cycle is None or (isinstance(cycle, FastCycle) and cycle.response_complete):
            if now_s - self._active_s > idle_s:
                self.transport.close()
