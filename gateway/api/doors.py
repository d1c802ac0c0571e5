"""Which door a message takes: its head and body as the parser reports them, and the cycle they go to.

connection -> **doors** -> fast -> core. What is recognised (POST .../infer with Content-Length, no content or transfer
coding, at most 256 KiB of it JSON) gets a cycle of the fast door; everything else goes the way of uvicorn's class, to
the Starlette door, within the same limits.
"""

from __future__ import annotations

from typing import Any

import httptools

from gateway.api.askers import NOBODY, Asker, Askers
from gateway.api.connection import Connection
from gateway.api.cycle import FastCycle
from gateway.api.heads import (
    FAST_BODY_MAX_BYTES,
    HEADERS_MAX,
    HEADERS_MAX_BYTES,
    INFER,
    URL_MAX_BYTES,
    make_head,
)
from gateway.api.large import LargeCycle
from gateway.api.leaving import Ending
from gateway.errors import BodyTooLarge, GatewayError, HeadTooLarge, InvalidRequest, UrlTooLong
from gateway.head import Head

TASK_NS = 300_000
"""What a request of the Starlette door takes beside its parsing, in a task of the same turn."""
_LOOKED_AT = frozenset((b"transfer-encoding", b"content-encoding", b"expect", b"upgrade", b"authorization"))
"""All but the last lead to Starlette."""


class Doors(Connection):
    """A connection whose messages are led to a door."""

    core: Any
    """`gateway.core.Core`; here only who calls is asked of it."""
    takes_fast: bool
    """False: all messages go to Starlette."""
    askers: Askers | None = None
    """Who asks; None: nobody has a name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._buffer: bytes = b""
        self._hosts = 0
        self._slow = False
        self._chunked = False
        self._has_token = False
        self._began_in: bytes | None = None
        """The buffer in which the message began: a head split over two is never kept."""
        self._split_bytes, self._filling = 0, False
        """Held of a small body that came in several buffers; what comes next is the inside of a large one."""

    def _parse(self, data: bytes | memoryview) -> None:
        if not self._filling:
            super()._parse(data)
            return
        size = min(len(data), self._body_left)
        self._sent_bytes += size
        try:
            self.on_body(data[:size])
        except GatewayError as exc:
            self.refuse(exc)
        if not self._body_left and not self._deaf:
            # The parser before it waits for this body still.
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self.on_message_complete()
            if size < len(data) and not self._deaf:
                super()._parse(data[size:])

    def on_message_begin(self) -> None:
        """A message starts somewhere in the buffer."""
        super().on_message_begin()
        self._began_in = self._buffer
        self._hosts = self._split_bytes = 0
        self._slow = self._chunked = self._has_token = False

    def on_url(self, url: bytes) -> None:
        """Part of the target."""
        self.url += url
        if len(self.url) > URL_MAX_BYTES:
            raise UrlTooLong(f"URL of more than {URL_MAX_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; limits are held while they come."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEADERS_MAX_BYTES:
            raise HeadTooLarge(f"header fields of more than {HEADERS_MAX_BYTES} bytes")
        headers = self.headers
        if len(headers) >= HEADERS_MAX:
            raise HeadTooLarge(f"more than {HEADERS_MAX} header fields")
        if not self._in_head:
            # A trailer: what comes behind the body says nothing about it.
            return
        name = name.lower()
        if name == b"host":
            self._hosts += 1
        elif name == b"content-length":
            # The parser takes digits alone, and one such field.
            self._content_bytes = int(value)
        elif name in _LOOKED_AT:
            self._slow = self._slow or name != b"authorization"
            self._has_token = self._has_token or name == b"authorization"
            if name == b"transfer-encoding":
                self._chunked = True
                if value.strip(b" \t").lower() != b"chunked":
                    raise InvalidRequest(
                        f"Transfer-Encoding is {value[:40].decode('latin-1')!r}; expected chunked"
                    )
            elif name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
        headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Choose the door."""
        version = self.parser.get_http_version()
        if self._hosts != 1 and (version != "1.0" or self._hosts):
            raise InvalidRequest(f"found {self._hosts} Host header fields; expected exactly one")
        size = self._content_bytes
        asker = self._asker()
        self.account = asker.account
        fast = (
            self.takes_fast
            and not self._slow
            and 0 <= size <= self.crowd.limits.body_max_bytes
            and version == "1.1"
            and self.parser.get_method() == b"POST"
            and not self.parser.should_upgrade()
            and INFER.fullmatch(self.url)
        )
        if not fast:
            self._to_starlette(size)
            return
        head: Head | GatewayError
        try:
            head = make_head(self.core.caller, self.url, self.headers, asker)
        except GatewayError as exc:
            # Its traceback leads to this frame, which has the cycle.
            head = exc.with_traceback(None)
        if size <= FAST_BODY_MAX_BYTES:
            cycle = FastCycle(self)
        elif type(head) is Head and head.json_bytes is not None and head.json_bytes <= FAST_BODY_MAX_BYTES:
            cycle = LargeCycle(self, head.json_bytes)
            self._filling = True
        else:
            self._to_starlette(size)
            return
        cycle.head = head
        self._in_head = False
        self._body_left = size
        cycle.keep_alive = self.parser.should_keep_alive() and not self._draining
        self._begin(cycle)

    def _asker(self) -> Asker:
        askers = self.askers
        if askers is None or not (askers.counts or self._has_token):
            return NOBODY
        return askers.of(self.client[0] if self.client else "", self.headers)

    def rest(self, seconds: float) -> None:
        """Read nothing of this connection for so long: who is over its limit must not make us busy saying so.

        Not of a proxy's: there are others on it.
        """
        if self.resting or self.askers is None or (self.client and self.askers.is_proxy(self.client[0])):
            return
        self.resting = True
        self.flow.pause_reading()
        self.loop.call_later(seconds, self._rested)

    def _rested(self) -> None:
        self.resting = False
        if self.flow is not None:
            self.flow.resume_reading()

    def _begin(self, cycle: FastCycle) -> None:
        """A message's cycle: its turn is now, or behind what is in flight."""
        existing = self.cycle
        self.cycle = cycle  # type: ignore[assignment]
        if existing is None or existing.response_complete:
            cycle.started = True
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))  # type: ignore[arg-type]

    def on_response_complete(self) -> None:
        """An answer is written: the next that waits."""
        cycle = self._running
        if cycle is not None and cycle.held_bytes:
            self.let_go(cycle.held_bytes)
            cycle.held_bytes = 0
        super().on_response_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """A request's turn has come."""
        self._running = cycle
        if not self.pipeline and self.flow is not None:
            # Nothing waits behind it: on with what came, then with the reading.
            if self.unfed is not None:
                self.feed_soon()
            else:
                self.flow.resume_reading()
        if isinstance(cycle, FastCycle):
            self._take_turn(cycle)
        else:
            super()._start_asgi_task(cycle, app)

    def _take_turn(self, cycle: FastCycle) -> None:
        """The turn of a fast request, or of a refusal, that stood behind others."""
        raise NotImplementedError

    def _to_starlette(self, size: int) -> None:
        most = self.crowd.limits.body_max_bytes
        if size > most:
            raise BodyTooLarge(f"body of {size} bytes; at most {most} are taken")
        self.crowd.spend(TASK_NS)
        self.begin_scope()
        super().on_headers_complete()
        self._in_head = False
        self._body_left = max(size, 0)
        cycle = self.cycle
        cycle.transport = Ending(self)  # type: ignore[assignment]
        cycle.held_bytes = 0  # type: ignore[attr-defined]
        if self._draining or self.parser.should_upgrade():
            cycle.keep_alive = False

    def on_body(self, body: bytes | memoryview) -> None:
        """Part of a body."""
        cycle = self.cycle
        if not isinstance(cycle, FastCycle):
            super().on_body(body)
            return
        self._body_left -= len(body)
        if self._filling:
            self.hold(len(body))
            cycle.take(body)  # type: ignore[attr-defined]
            return
        if self._began_in is self._buffer:
            cycle.body = body if not cycle.body else cycle.body + body
            return
        self.hold(len(body))
        self._split_bytes += len(body)
        if not isinstance(cycle.body, bytearray):
            cycle.body = bytearray(cycle.body)
        cycle.body += body
