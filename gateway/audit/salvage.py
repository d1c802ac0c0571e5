"""Salvage: what a ring of another boot still adds to its epoch on disk.

Recorder start, beside recovery. With `audit.ring = "state_dir"` a ring's file outlives a power loss, but nothing ever
synced it: each of its pages, the header's too, is as old as the kernel left it. Its marks would have recovery cut
records that were on disk long ago. So here the disk is believed and the ring is not: every whole frame on disk stays,
and of the ring come those frames that are whole and go on, number by number, where the disk ends.

A stale mark may point into the middle of a later frame, where bytes that a client sent could look like a frame. So the
walk must meet the very frame that the disk ends with, or begin right behind it.
"""

from __future__ import annotations

from typing import NamedTuple

from gateway.audit.recovery import cut
from gateway.audit.ring import Ring
from gateway.audit.spool import EpochPath, SegmentWriter, SyncedMark
from gateway.audit.storage import Storage

CHUNK_BYTES = 4 * 1024 * 1024


class Salvaged(NamedTuple):
    """Numbers [from_seq, next_seq) came from the ring."""

    from_seq: int
    next_seq: int


def salvage(ring: Ring, epoch: EpochPath, segment_bytes: int, storage: Storage) -> Salvaged:
    """Put on disk what the ring adds; afterwards the ring is not needed. A kill at any point leaves the same to do.

    Raises:
        OSError: the disk refused.
    """
    storage.make_directory(epoch.path)
    mark = SyncedMark(epoch.path / "synced", storage)
    writer = SegmentWriter(epoch, segment_bytes, storage)
    try:
        tail = cut(epoch, None, storage)
        from_seq = next_seq = mark.next_seq if tail.next_seq is None else tail.next_seq
        chunk: list[bytes] = []
        held, chunk_seq = 0, from_seq
        for following, data in following_frames(ring, from_seq, tail.payload):
            chunk.append(data)
            held += len(data)
            next_seq = following
            if held >= min(CHUNK_BYTES, segment_bytes):
                writer.write(chunk_seq, b"".join(chunk))
                chunk, held, chunk_seq = [], 0, next_seq
        if chunk:
            writer.write(chunk_seq, b"".join(chunk))
        writer.sync()
        mark.store(next_seq)
    finally:
        writer.abandon()
        mark.close()
    return Salvaged(from_seq, next_seq)


def following_frames(ring: Ring, next_seq: int, last_payload: bytes | None) -> list[tuple[int, bytes]]:
    """Frames of a ring that go on where the disk ends: the number behind each, and its bytes.

    Args:
        next_seq: the first number that the disk does not hold.
        last_payload: of the last frame on disk; None where there is none.
    """
    # The start of the ring begins a frame in every lap, whatever the marks say.
    for position in (ring.synced % ring.capacity // 8 * 8, 0):
        found: list[tuple[int, bytes]] = []
        anchored, at = False, None
        for frame, data in ring.standing(position):
            if at is None:
                anchored = frame.first_seq == next_seq
            elif frame.first_seq != at:
                break
            at = frame.next_seq
            if anchored:
                found.append((at, data))
            elif at >= next_seq:
                if at != next_seq or frame.payload != last_payload:
                    break
                anchored = True
        if found:
            return found
    return []
