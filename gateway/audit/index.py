"""The sparse index of a segment: where in it a number stands, so that a look-up reads 256 KiB and not 64 MiB.

    spool/<source>/<epoch>/<first seq, 20 digits>.idx    "TGIDX\\0\\0\\1", (seq u64, byte u64) each, CRC-32 u32

Written by the recorder when a segment is full (`gateway/audit/chain.py`), or made by the first reader that misses it.
It is a hint and nothing else: what it says is looked at before it is believed, and without it a segment is read from
its beginning (`gateway/audit/locate.py`).
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from pathlib import Path

from gateway.audit.storage import DISK, Storage, write_all

SUFFIX = ".idx"
STEP_BYTES = 256 * 1024
_MAGIC = b"TGIDX\0\0\1"
_ENTRY = struct.Struct("<QQ")
_CRC_BYTES = 4


class IndexBuilder:
    """Collects a segment's places, a frame at a time and in order from its first."""

    def __init__(self) -> None:
        self._entries = bytearray()
        self._at = 0
        self._next_at = STEP_BYTES

    def add(self, first_seq: int, size_bytes: int) -> None:
        """The next frame, `size_bytes` in the segment."""
        if self._at >= self._next_at:
            self._entries += _ENTRY.pack(first_seq, self._at)
            self._next_at = self._at + STEP_BYTES
        self._at += size_bytes

    @property
    def entries(self) -> list[tuple[int, int]]:
        """The (seq, byte) pairs so far."""
        return list(_ENTRY.iter_unpack(self._entries))

    def write(self, segment: Path, storage: Storage = DISK) -> None:
        """Write the index of a segment beside it; where that cannot be, there is none.

        Not synced: a torn one is not believed. A temporary name, since readers may look at any time.
        """
        body = _MAGIC + bytes(self._entries)
        temporary = segment.with_suffix(f"{SUFFIX}.{os.getpid()}")
        with contextlib.suppress(OSError):
            fd = storage.create(temporary)
            try:
                write_all(storage, fd, body + zlib.crc32(body).to_bytes(_CRC_BYTES, "little"))
            finally:
                storage.close(fd)
            storage.rename(temporary, segment.with_suffix(SUFFIX))


def read_index(segment: Path) -> list[tuple[int, int]] | None:
    """A segment's (seq, byte) pairs in order; None where there is no index or it is not whole."""
    try:
        content = segment.with_suffix(SUFFIX).read_bytes()
    except OSError:
        return None
    body, crc = content[:-_CRC_BYTES], content[-_CRC_BYTES:]
    entries = len(body) - len(_MAGIC)
    if not body.startswith(_MAGIC) or entries % _ENTRY.size or zlib.crc32(body).to_bytes(4, "little") != crc:
        return None
    found = list(_ENTRY.iter_unpack(body[len(_MAGIC) :]))
    return found if found == sorted(found) else None
