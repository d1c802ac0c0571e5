"""A walk over one segment's frames as they stand, each with its place, until the end or the first that is damaged.

For those that check a segment (`chain`, `verify`, `scrub`, `index`); what follows the log reads through
`EpochReader`, which takes a damaged segment for one that ends there.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gateway.audit.frame import ALIGN, HEADER, HEADER_BYTES, PREFIX_BYTES, Frame, padded
from gateway.audit.storage import DISK, Storage

READ_BYTES = 1024 * 1024
_LEAST = HEADER_BYTES - PREFIX_BYTES


class Piece(NamedTuple):
    """One frame of a segment."""

    offset: int
    frame: Frame
    raw: memoryview
    """Its bytes, padding included; valid until the next piece is asked for."""


class Damage(Exception):
    """Bytes of a segment that are no frame.

    Attributes:
        offset: where in the file.
        found: what stands there, in words.
    """

    def __init__(self, offset: int, found: str) -> None:
        super().__init__(f"byte {offset}: {found}")
        self.offset = offset
        self.found = found


def walk(
    path: Path,
    offset: int = 0,
    read_bytes: int = READ_BYTES,
    storage: Storage = DISK,
    *,
    keep_cached: bool = True,
) -> Iterator[Piece]:
    """Frames of a file from a byte on. Memory: `read_bytes`, or the largest frame.

    Args:
        keep_cached: False lets the kernel forget what was read, so that a long read does not push out what others use.

    Raises:
        Damage: the bytes at its offset are no whole, valid frame (up to there all were yielded), or the disk does not
            give them (EIO).
        OSError: the file cannot be read for another reason.
    """
    fd = storage.open(path)
    try:
        size = storage.size(fd)
        buffer = b""
        while offset + len(buffer) < size:
            try:
                more = storage.read(fd, max(read_bytes, _needed(buffer) - len(buffer)), offset + len(buffer))
            except OSError as exc:
                if exc.errno != errno.EIO:
                    raise
                raise Damage(offset, f"bytes that cannot be read: {exc.strerror}") from exc
            if not more:
                return
            if not keep_cached:
                os.posix_fadvise(fd, offset + len(buffer), len(more), os.POSIX_FADV_DONTNEED)
            buffer += more
            at = 0
            view = memoryview(buffer)
            held, left = len(buffer), size - offset
            last = held - HEADER_BYTES
            while at <= last:
                length, crc, first_seq, count = HEADER.unpack_from(buffer, at)
                end = at + PREFIX_BYTES + length
                if length < _LEAST or end > left:
                    raise Damage(offset + at, _bad_length(length, left - at))
                following = (end + ALIGN - 1) & -ALIGN
                if following > held and held < left:
                    break
                if zlib.crc32(view[at + PREFIX_BYTES : end]) != crc:
                    raise Damage(offset + at, f"a frame of {length} bytes whose CRC does not match")
                yield Piece(
                    offset + at, Frame(first_seq, count, buffer[at + HEADER_BYTES : end]), view[at:following]
                )
                at = following
            offset += at
            buffer = buffer[at:]
        if buffer:
            raise Damage(offset, f"{len(buffer)} bytes that are no frame's header")
    finally:
        storage.close(fd)


def _needed(buffer: bytes) -> int:
    """Bytes of the frame that begins the buffer, as far as that is known."""
    if len(buffer) < HEADER_BYTES:
        return HEADER_BYTES
    return padded(PREFIX_BYTES + int.from_bytes(buffer[:4], "little"))


def _bad_length(length: int, left: int) -> str:
    if not length:
        return "zeros"
    return f"a length of {length} where {left} bytes are left"
