"""What the Starlette door answers: plain responses, JSON, errors in our one shape, and replies of the core.

handlers -> **outgoing** -> transport; errors of the admin listener too. Fields are written as the fast door
writes them, so that both give equal bytes.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from starlette.responses import Response

from gateway.api.compression import COMPRESS_MIN_BYTES, compressed
from gateway.api.heads import traceresponse
from gateway.api.problems import reply_of


class FutureSink:
    """A reply on its way to a waiting coroutine."""

    def __init__(self, traceparent: str | None = None) -> None:
        self.disconnected = False
        self.traceparent = traceparent
        self.accepts: str | None = None
        """The coding that a large reply is sent in."""
        self.held_back_s = 0.0
        """So long its answer waits: its client is over its limit."""
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Response] = self._loop.create_future()

    def reply(self, status: int, fields: bytes, body: bytes) -> None:
        """Called once by the core; skipped when the waiter is gone."""
        if self.accepts is not None and len(body) >= COMPRESS_MIN_BYTES:
            made = self._loop.run_in_executor(None, compressed, self.accepts, fields, body)
            made.add_done_callback(lambda done: self._set(status, *done.result()))
        else:
            self._set(status, fields, body)

    def hold_back(self, seconds: float) -> None:
        """Let the answer wait for so long; nothing more comes from its connection before."""
        self.held_back_s = seconds

    def _set(self, status: int, fields: bytes, body: bytes) -> None:
        if not self.future.done():
            if self.traceparent is not None:
                fields += traceresponse(self.traceparent, fields)
            self.future.set_result(response_of(status, fields, body))


def response_of(status: int, fields: bytes, body: bytes) -> Response:
    """A response with exactly these fields (whole lines) and this body."""
    response = Response(content=body, status_code=status)
    response.raw_headers = [
        (name, value) for name, _, value in (line.partition(b": ") for line in fields.split(b"\r\n") if line)
    ]
    return response


def json_response(content: Any, status: int = 200) -> Response:
    """Plain data as JSON; content type exactly `application/json`, as some clients compare it."""
    body = orjson.dumps(content)
    fields = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
    return response_of(status, fields, body)


def problem_response(exc: Exception) -> Response:
    """An error."""
    return response_of(*reply_of(exc))
