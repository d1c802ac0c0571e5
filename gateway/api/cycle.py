"""A request on its connection at the fast door: takes the body, then the reply. See `gateway.api.fast`."""

from __future__ import annotations

from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from gateway.api.compression import COMPRESS_MIN_BYTES, compressed
from gateway.api.heads import traceresponse
from gateway.errors import GatewayError
from gateway.head import Head


class _NoEvent:
    """Stands where uvicorn's cycles have an asyncio.Event."""

    def set(self) -> None:
        """Nobody waits."""


class FastCycle:
    """A fast request on its connection: takes the body, then the reply.

    Has the attributes of uvicorn's RequestResponseCycle that the parent protocol reads. A kept head's cycle serves one
    request of its connection after the other: an answer that came twice would be the next one's, so the core answers
    each request once.
    """

    __slots__ = (
        "body",
        "disconnected",
        "door",
        "head",
        "keep_alive",
        "more_body",
        "received_ns",
        "response_complete",
        "started",
    )
    message_event = _NoEvent()
    held_bytes = 0
    """What it holds of its connection's bodies until it is answered: nothing."""
    prelude_of: ClassVar[Any] = None
    prelude: ClassVar[bytes] = b""
    prelude_200: ClassVar[bytes] = b""
    """uvicorn's default headers (the date), joined; made anew when uvicorn makes them anew."""

    def __init__(self, door: Any) -> None:
        self.door = door
        self.disconnected = False
        self.response_complete = False
        self.keep_alive = True
        self.more_body = True
        self.started = False
        self.body: Any = b""
        self.head: Head | GatewayError
        self.received_ns = 0

    def reply(self, status: int, fields: bytes, body: bytes) -> None:
        """Write the answer and let the connection's next request start; called once by the core."""
        if self.response_complete or (
            len(body) >= COMPRESS_MIN_BYTES and self._compresses(status, fields, body)
        ):
            return
        self.response_complete = True
        if self.disconnected:
            return
        door = self.door
        default = door.server_state.default_headers
        if default is not FastCycle.prelude_of:
            FastCycle.make_prelude(default)
        head = self.head
        if type(head) is Head and head.traceparent is not None:
            fields += traceresponse(head.traceparent, fields)
        ending = b"\r\n"
        if status == 413:
            self.keep_alive = False
        elif not self.keep_alive:
            ending = b"connection: close\r\n\r\n"
        door.transport.write(b"".join((STATUS_LINE[status], FastCycle.prelude, fields, ending, body)))
        if self.keep_alive and not door.pipeline:
            door.replied += 1
            return
        door.after_reply(self)

    def hold_back(self, seconds: float) -> None:
        """Take nothing more from its connection for so long."""
        self.door.rest(seconds)

    def reply_whole(self, rest: bytes) -> bool:
        """`reply` of a common 200 whose fields, empty line and body are one piece; False: not like this, nothing is
        written."""
        head, door = self.head, self.door
        if (
            not self.keep_alive
            or self.response_complete
            or len(rest) >= COMPRESS_MIN_BYTES
            or head.traceparent is not None  # type: ignore[union-attr]
            or door.pipeline
        ):
            return False
        default = door.server_state.default_headers
        if default is not FastCycle.prelude_of:
            FastCycle.make_prelude(default)
        self.response_complete = True
        door.replied += 1
        door.transport.write(FastCycle.prelude_200 + rest)
        return True

    @classmethod
    def make_prelude(cls, default: Any) -> None:
        """Join uvicorn's default headers, which change once a second."""
        cls.prelude_of = default
        cls.prelude = b"".join(b"%b: %b\r\n" % pair for pair in default)
        cls.prelude_200 = STATUS_LINE[200] + cls.prelude

    def _compresses(self, status: int, fields: bytes, body: bytes) -> bool:
        """Whether a large reply is compressed first; it is then written from there."""
        head = self.head
        if type(head) is not Head or head.accepts is None or b"content-encoding: " in fields:
            return False
        made = self.door.loop.run_in_executor(None, compressed, head.accepts, fields, body)
        made.add_done_callback(lambda done: self.reply(status, *done.result()))
        return True
