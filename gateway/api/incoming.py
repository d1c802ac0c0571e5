"""What the Starlette door reads: a request's body within limits, inflated when it is compressed.

transport -> **incoming** -> core, handlers. The limit holds before and after inflating: a small body must not become a
large one here.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from gateway.errors import BodyTooLarge, InvalidRequest, Overloaded, RequestCancelled, UnsupportedCoding

_T = TypeVar("_T")

SMALL_BODY_MAX_BYTES = 65_536
"""Of requests that carry a few words of JSON: repository index, load, unload."""
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""zlib's word for each coding; `deflate` is the zlib format, as the standard says."""
JOINED_AT_ONCE_BYTES = 262_144
"""Larger bodies are put together one a turn of the loop."""
INFLATED_AT_ONCE = 4
"""Bodies that a worker inflates at a time; others wait their turn, small as they came."""


class Room:
    """What inflated bodies of one worker may take together, until they are answered: a connection counts only what
    was sent, and deflate makes a thousand bytes of one.

    Threading: the loop thread alone.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._turns = asyncio.Semaphore(INFLATED_AT_ONCE)
        self._large = asyncio.Lock()
        self.held_bytes = 0

    async def inflated(self, body: bytes, coding: str, limit_bytes: int) -> bytes:
        """The body without its coding, counted until it is let go.

        Raises:
            Overloaded: too many are held; and what `inflated` raises.
        """
        async with self._turns:
            self._check(0)
            made = await asyncio.to_thread(inflated, body, coding, limit_bytes)
        self._check(len(made))
        self.held_bytes += len(made)
        return made

    async def in_turn(self, work: Callable[..., _T], *args: Any) -> _T:
        """Work on a large body that takes milliseconds on the loop: one of them a turn, however many are here."""
        async with self._large:
            await asyncio.sleep(0)
            return work(*args)

    def _check(self, more: int) -> None:
        if self.held_bytes + more > self._most_bytes:
            msg = f"inflated bodies of {self.held_bytes} bytes are held, at most {self._most_bytes} are; try again"
            raise Overloaded(msg)


class Held:
    """What one request has of a `Room`."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._bytes = 0

    async def joined(self, chunks: list[bytes], size: int) -> bytes:
        """A body from its parts."""
        if size <= JOINED_AT_ONCE_BYTES:
            return b"".join(chunks)
        return await self._room.in_turn(b"".join, chunks)

    async def inflated(self, body: bytes, coding: str, limit_bytes: int) -> bytes:
        """See `Room`."""
        made = await self._room.inflated(body, coding, limit_bytes)
        self._bytes += len(made)
        return made

    def let_go(self) -> None:
        """The request is answered."""
        self._room.held_bytes -= self._bytes
        self._bytes = 0


async def read_body(request: Request, limit_bytes: int, held: Held | None = None) -> bytes:
    """The whole body, inflated.

    Args:
        held: counts the body if it was inflated; the caller lets it go.

    Raises:
        Overloaded: there is no room.
        BodyTooLarge: more than `limit_bytes`, as sent or inflated.
        UnsupportedCoding: a Content-Encoding that is not decoded, or a body that is not in it.
        RequestCancelled: the client went away.
        Overloaded: the gateway is stopping.
    """
    length = request.headers.get("content-length")
    if length is not None and length.isdigit() and int(length) > limit_bytes:
        msg = f"body of {length} bytes; at most {limit_bytes} are taken"
        raise BodyTooLarge(msg)
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit_bytes:
                msg = f"body of more than {limit_bytes} bytes"
                raise BodyTooLarge(msg)
            chunks.append(chunk)
    except ClientDisconnect as exc:
        msg = "the client went away"
        raise RequestCancelled(msg) from exc
    except asyncio.CancelledError as exc:
        # The server ends and waits no longer.
        msg = "the gateway is stopping, and the body was not there in time; try again shortly"
        raise Overloaded(msg) from exc
    body = b"".join(chunks) if held is None else await held.joined(chunks, size)
    coding = ",".join(request.headers.getlist("content-encoding")).strip().lower()
    if coding in {"", "identity"}:
        return body
    if held is not None:
        return await held.inflated(body, coding, limit_bytes)
    return await asyncio.to_thread(inflated, body, coding, limit_bytes)


async def read_small_json(request: Request, kind: type[Any]) -> Any:
    """A small body as `kind`; an empty one gives its defaults, as clients send none. Unknown fields are passed over.

    Raises:
        InvalidRequest: not JSON, or not of that form; and what `read_body` raises.
    """
    content = await read_body(request, SMALL_BODY_MAX_BYTES)
    if not content.strip():
        return kind()
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        msg = f"request body: {exc}"
        raise InvalidRequest(msg) from exc


def inflated(body: bytes, coding: str, limit_bytes: int) -> bytes:
    """A body without its Content-Encoding, gzip or deflate, once. Cost: about 3 ms a MB; releases the GIL.

    Raises:
        UnsupportedCoding: another coding, several of them, or a body that is not in the one named.
        BodyTooLarge: it inflates to more than `limit_bytes`.
    """
    bits = _WINDOW_BITS.get(coding)
    if bits is None:
        msg = f"Content-Encoding {coding[:40]!r}; expected gzip, deflate or none"
        raise UnsupportedCoding(msg)
    inflate = zlib.decompressobj(bits)
    try:
        out = inflate.decompress(body, limit_bytes + 1)
    except zlib.error as exc:
        form = "in zlib's format, as deflate is here" if bits == 15 else "gzip"
        msg = f"body is not {form} although Content-Encoding is {coding}: {exc}"
        raise UnsupportedCoding(msg) from exc
    if len(out) > limit_bytes:
        msg = f"body inflates to more than {limit_bytes} bytes"
        raise BodyTooLarge(msg)
    if not inflate.eof:
        msg = f"body is cut short: its {coding} stream does not end"
        raise UnsupportedCoding(msg)
    if inflate.unused_data:
        msg = f"{len(inflate.unused_data)} bytes follow the end of the {coding} stream"
        raise UnsupportedCoding(msg)
    return out
