"""Recovery: what a starting recorder finds on disk, and what it cuts.

With a ring: everything from the frame at the ring's `synced` on is cut, torn or not (it may be in the page
cache and nowhere else), and is written again from the ring. Without one: the log ends at the first bad
length or CRC. Cutting is idempotent; a kill at any point leaves a state from which it cuts the same.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from gateway.audit.event import EpochClose
from gateway.audit.frame import Events, decode_payload, scan
from gateway.audit.spool import EpochPath, segments


class Tail(NamedTuple):
    """How an epoch's segments end: the next seq after the last whole frame kept; whether that frame
    closes the epoch; when it was last written."""

    next_seq: int
    closes: bool
    mtime_ns: int


def cut(epoch: EpochPath, from_seq: int | None) -> Tail:
    """Cut an epoch's segments.

    Args:
        from_seq: the first number that must not stay; None keeps every whole frame.
    """
    tail = Tail(0, False, 0)
    broken = False
    for _, path in segments(epoch):
        if broken:
            # Behind a cut nothing can stand: kept for inspection, out of readers' sight.
            path.rename(path.with_suffix(".cut"))
            continue
        content = path.read_bytes()
        end = 0
        last = None
        for offset, frame in scan(content, 0, len(content)):
            if from_seq is not None and frame.first_seq >= from_seq:
                break
            end = offset + _size_at(content, offset)
            last = frame
        if last is not None:
            tail = Tail(last.next_seq, _closes(last.payload), path.stat().st_mtime_ns)
        if end < len(content):
            broken = True
            _truncate(path, end)
    return tail


def _closes(payload: bytes) -> bool:
    content = decode_payload(payload)
    return isinstance(content, Events) and isinstance(content.events[-1], EpochClose)


def _size_at(content: bytes, offset: int) -> int:
    length = int.from_bytes(content[offset : offset + 4], "little")
    return (8 + length + 7) & -8


def _truncate(path: os.PathLike[str], size: int) -> None:
    if size == 0:
        os.unlink(path)
        return
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        os.fsync(fd)
    finally:
        os.close(fd)
