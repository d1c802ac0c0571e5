"""Recovery: what a starting recorder finds on disk, and what it cuts.

With a ring of this boot: everything from the frame at the ring's `synced` on is cut, torn or not (it may be in the page
cache and nowhere else), and is written again from the ring. Without one: the log ends at the first bad
length or CRC. Only the end of an epoch is looked at: what stands before it was on disk before the last
segment began, and damage there is `audit verify`'s to find, not a reason to drop what follows. Cutting is
idempotent; a kill at any point leaves a state from which it cuts the same.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple

from gateway.audit.event import EpochClose
from gateway.audit.frame import HEADER_BYTES, Events, Frame, decode_payload, padded, scan
from gateway.audit.spool import EpochPath, segments
from gateway.audit.storage import DISK, Storage, write_all
from gateway.errors import FrameCorrupt


class Tail(NamedTuple):
    """How an epoch's segments end after a cut."""

    next_seq: int | None
    """The first number after the last whole frame; None where no frame is left."""
    payload: bytes | None
    """That frame's."""
    mtime_ns: int
    """When its segment was last written; 0 where there is none."""


def cut(epoch: EpochPath, from_seq: int | None, storage: Storage = DISK) -> Tail:
    """Cut the end of an epoch's segments; what stays is on disk afterwards.

    Args:
        from_seq: the first number that must not stay; None keeps every whole frame.
    """
    listed = segments(epoch, storage)
    while from_seq is not None and listed and listed[-1][0] >= from_seq:
        _remove(listed.pop()[1], storage)
    while listed:
        path = listed.pop()[1]
        mtime_ns = storage.facts(path).mtime_ns
        last = _cut_segment(path, from_seq, storage)
        if last is not None:
            return Tail(last.next_seq, last.payload, mtime_ns)
    return Tail(None, None, 0)


def closes(epoch: EpochPath, payload: bytes | None) -> bool:
    """Whether a frame's content ends with the epoch's own `epoch_close`.

    The recorder's frames hold those of others, too: a last event of that type is not enough.
    """
    if payload is None:
        return False
    try:
        content = decode_payload(payload)
    except FrameCorrupt:
        return False
    if not isinstance(content, Events) or not content.events:
        return False
    last = content.events[-1]
    return isinstance(last, EpochClose) and f"{last.source}-{last.epoch:08x}" == epoch.key


def _cut_segment(path: Path, from_seq: int | None, storage: Storage) -> Frame | None:
    """Cut one segment; returns its last frame, or None when none is left (the file is gone then)."""
    content = storage.content(path)
    end = 0
    last: Frame | None = None
    again = False
    for offset, frame in scan(content, 0, len(content)):
        again = from_seq is not None and frame.first_seq >= from_seq
        if again:
            break
        end = offset + padded(HEADER_BYTES + len(frame.payload))
        last = frame
    if not again and content[end:].strip(b"\0"):
        # Not to be written again from a ring: kept for a person to look at, out of readers' sight.
        with contextlib.suppress(OSError):
            _keep_aside(path.with_suffix(".cut"), content[end:], storage)
    if last is None:
        _remove(path, storage)
        return None
    fd = storage.open(path, write=True)
    try:
        if end < len(content):
            storage.truncate(fd, end)
        storage.sync(fd)
    finally:
        storage.close(fd)
    return last


def _remove(path: Path, storage: Storage) -> None:
    storage.unlink(path)
    # Before anything in front of it goes: a segment that a power loss brings back must not stand behind a hole.
    storage.sync_directory(path.parent)


def _keep_aside(path: Path, content: bytes, storage: Storage) -> None:
    fd = storage.create(path)
    try:
        write_all(storage, fd, content)
    finally:
        storage.close(fd)
