"""One keep-alive connection to a gateway: bytes of a request out, a reply in.

replay -> **wire**. It knows when a request was certainly not taken (nothing was written) and when that cannot be
known (it was written, no reply came): the caller must never send the latter again.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple
from urllib.parse import urlsplit

import httptools

PREDICTION_ID = b"x-prediction-id"


class Lost(Exception):
    """A request was written and no whole reply came: it may have been taken."""


class Reply(NamedTuple):
    """Status, the prediction's id ("" without one) and the body."""

    status: int
    prediction_id: str
    body: bytes


class Connection(asyncio.Protocol):
    """One request at a time. Belongs to one event loop."""

    def __init__(self) -> None:
        self.usable = False
        """Whether another request may be written."""
        self._parser: httptools.HttpResponseParser
        self._transport: asyncio.Transport
        self._reply: asyncio.Future[Reply] | None = None
        self._id = ""
        self._body = b""

    @classmethod
    async def open(cls, url: str) -> Connection:
        """Connect to the host and port of `url`; raises OSError when nobody listens there."""
        parts = urlsplit(url)
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(cls, parts.hostname, parts.port or 80)
        return made

    async def exchange(self, request: bytes, timeout_s: float) -> Reply:
        """Write a whole request and wait for its reply; the connection must be `usable`.

        Raises:
            Lost: no reply within the time, or the connection ended.
        """
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        timer = asyncio.get_running_loop().call_later(timeout_s, self._fail, f"no reply in {timeout_s:g} s")
        try:
            return await self._reply
        finally:
            timer.cancel()
            if not self._reply.done() or self._reply.cancelled():
                self.close()
            self._reply = None

    def close(self) -> None:
        """End the connection, at once."""
        self.usable = False
        self._transport.abort()

    def _fail(self, why: str) -> None:
        self.close()
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(Lost(why))

    # --- called by the loop and the parser -------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The loop: connected."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no subclass
        self._parser = httptools.HttpResponseParser(self)
        self.usable = True

    def data_received(self, data: bytes) -> None:
        """The loop: bytes came."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._fail(f"no HTTP reply: {exc}")

    def connection_lost(self, exc: Exception | None) -> None:
        """The loop: the connection ended."""
        self._fail(f"the connection ended: {exc or 'closed by the server'}")

    def on_message_begin(self) -> None:
        """The parser: a reply begins."""
        self._id, self._body = "", b""

    def on_header(self, name: bytes, value: bytes) -> None:
        """The parser: a header field."""
        if name.lower() == PREDICTION_ID:
            self._id = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """The parser: a part of the body."""
        self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        """The parser: the reply is whole."""
        status = self._parser.get_status_code()
        if status < 200:
            return
        if not self._parser.should_keep_alive():
            self.usable = False
        if self._reply is None or self._reply.done():
            self.close()
        else:
            self._reply.set_result(Reply(status, self._id, self._body))
