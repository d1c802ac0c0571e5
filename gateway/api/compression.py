"""Replies compressed: only where the client asked for it, and only large ones.

core -> **compression** -> doors. Common clients offer gzip with every request without need of it, and to compress costs
more than to send on a local network: so small replies go as they are. Runs on a thread, never on the loop.
"""

from __future__ import annotations

import re
import zlib

COMPRESS_MIN_BYTES = 16_384
"""Smaller bodies are never compressed."""
ACCEPT_MAX_BYTES = 1024
"""A longer Accept-Encoding is not read: it is taken apart on the loop."""
_LEVEL = 1
"""zlib's fastest: replies are numbers, which the others hardly make smaller."""
_WINDOW_BITS = {"gzip": 31, "deflate": 15}
_LENGTH = re.compile(rb"(?<!-)content-length: [0-9]+\r\n")
"""The body's; that of a binary reply's JSON, inference-header-content-length, counts uncompressed bytes."""


def accepted(value: bytes) -> str | None:
    """The coding to answer with, of those that an Accept-Encoding names: gzip, else deflate, else none."""
    if len(value) > ACCEPT_MAX_BYTES:
        return None
    named: dict[str, bool] = {}
    for part in value.decode("latin-1").lower().split(","):
        coding, _, weight = part.partition(";")
        named[coding.strip()] = re.fullmatch(r"q=0(\.0*)?", weight.strip()) is None
    return next((coding for coding in _WINDOW_BITS if named.get(coding)), None)


def compressed(coding: str, fields: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Fields and body of a reply in this coding. Cost: about 10 ms a MB; releases the GIL."""
    deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS[coding])
    body = deflate.compress(body) + deflate.flush()
    length = b"content-length: %d\r\ncontent-encoding: %b\r\nvary: accept-encoding\r\n" % (
        len(body),
        coding.encode(),
    )
    return _LENGTH.sub(length, fields, count=1), body
