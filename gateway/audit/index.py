"""The sparse index of a segment: where in it a number stands, so that a look-up reads 256 KiB and not 64 MiB.

    spool/<source>/<epoch>/<first seq, 20 digits>.idx    "TGIDX\\0\\0\\1", (seq u64, byte u64) each, CRC-32 u32

Written by the recorder when a segment is full (`gateway/audit/chain.py`), or made by the first reader that misses it.
It is a hint and nothing else: what it says is looked at before it is believed, and without it a segment is read from
its beginning.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

from gateway.audit.frame import Frame
from gateway.audit.spool import EpochPath, segment_name, segments, synced_seq
from gateway.audit.storage import DISK, Storage, write_all
from gateway.audit.walk import Damage, Piece, walk

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

    def write(self, epoch: EpochPath, segment_seq: int, storage: Storage = DISK) -> None:
        """Write the index of a segment; where that cannot be, there is none.

        Not synced: a torn one is not believed. A temporary name, since readers may look at any time.
        """
        body = _MAGIC + bytes(self._entries)
        path = epoch.path / segment_name(segment_seq)
        temporary = path.with_suffix(f"{SUFFIX}.{os.getpid()}")
        with contextlib.suppress(OSError):
            fd = storage.create(temporary)
            try:
                write_all(storage, fd, body + zlib.crc32(body).to_bytes(_CRC_BYTES, "little"))
            finally:
                storage.close(fd)
            storage.rename(temporary, path.with_suffix(SUFFIX))


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


class Sought:
    """What a look-up met on its way.

    Attributes:
        damage: the segment that is damaged before the number, and where; None where all could be read.
    """

    def __init__(self) -> None:
        self.damage: tuple[Path, Damage] | None = None


def frame_of(epoch: EpochPath, seq: int, sought: Sought | None = None) -> Frame | None:
    """The frame that holds a number, or the first behind it where none does; None when there is none on disk.

    Cost: about 1 ms; the newest segment, which has no index yet, is read from its beginning.
    """
    limit = synced_seq(epoch)
    if seq >= limit:
        return None
    listed = segments(epoch)
    begin = max(bisect_right([first_seq for first_seq, _ in listed], seq) - 1, 0)
    for at in range(begin, len(listed)):
        full = at + 1 < len(listed)
        end_seq = min(listed[at + 1][0], limit) if full else limit
        try:
            for piece in _from(epoch, *listed[at], seq, full=full):
                if piece.frame.first_seq >= end_seq:
                    break
                if piece.frame.next_seq > seq:
                    return piece.frame
        except Damage as exc:
            if sought is not None and sought.damage is None:
                sought.damage = (listed[at][1], exc)
        except FileNotFoundError:
            # Retention took it a moment ago.
            continue
    return None


def _from(epoch: EpochPath, segment_seq: int, path: Path, seq: int, *, full: bool) -> Iterator[Piece]:
    """Frames of a segment from a little before a number on."""
    if full and seq > segment_seq:
        found = read_index(path)
        if found is None:
            found = _make(epoch, segment_seq, path)
        place = bisect_right(found, (seq, 1 << 64)) - 1
        if place >= 0 and _is_there(path, *found[place]):
            return walk(path, found[place][1], STEP_BYTES)
    return walk(path)


def _is_there(path: Path, first_seq: int, offset: int) -> bool:
    """Whether an index says the truth: a whole frame of that number at that byte."""
    try:
        piece = next(walk(path, offset, STEP_BYTES), None)
    except Damage:
        return False
    return piece is not None and piece.frame.first_seq == first_seq


def _make(epoch: EpochPath, segment_seq: int, path: Path) -> list[tuple[int, int]]:
    """Index a segment that has none, and keep what is found for the next look-up."""
    builder = IndexBuilder()
    with contextlib.suppress(Damage):
        for piece in walk(path):
            builder.add(piece.frame.first_seq, len(piece.raw))
    builder.write(epoch, segment_seq)
    return builder.entries
