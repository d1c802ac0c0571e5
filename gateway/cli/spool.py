"""Looking things up in the spool on disk: one record by its id, the last records, what is there.

Consumers read forward through a feed (`gateway/audit/spool_feed.py`); a person asks for one
record or for the end, and a spool of 20 GiB must not be read for that. So these go to the right
segment by the number in its name. Read-only and lock-free: what is below `synced` never changes,
only retention takes whole files away, which reads as "not there".
"""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from gateway.audit.event import Event
from gateway.audit.feed import Positions
from gateway.audit.frame import expand, scan
from gateway.audit.identity import EventId

_SOURCE = re.compile(r"[0-9a-f]{16}")
_EPOCH = re.compile(r"[0-9a-f]{8}")
_SEGMENT = re.compile(r"[0-9]{20}\.log")


class Closed(msgspec.Struct, frozen=True):
    """`closed` in an epoch's directory: how many numbers it drew and why it ended."""

    next_seq: int
    cause: str


class Epoch(NamedTuple):
    """One epoch's directory."""

    source: int
    epoch: int
    path: Path

    @property
    def key(self) -> str:
        """As in a feed's positions."""
        return f"{self.source:016x}-{self.epoch:08x}"

    @property
    def synced(self) -> int:
        """The first number that is not on disk yet."""
        try:
            return int.from_bytes((self.path / "synced").read_bytes()[:8], sys.byteorder)
        except OSError:
            return 0

    @property
    def closed(self) -> Closed | None:
        """How the epoch ended; None while it lives."""
        try:
            return msgspec.json.decode((self.path / "closed").read_bytes(), type=Closed)
        except (OSError, msgspec.MsgspecError):
            return None

    def segments(self) -> list[tuple[int, Path]]:
        """(first number, file), in order."""
        try:
            names = [path for path in self.path.iterdir() if _SEGMENT.fullmatch(path.name)]
        except OSError:
            return []
        return sorted((int(path.stem), path) for path in names)

    def size_bytes(self) -> int:
        """What its segments take on disk."""
        total = 0
        for _, path in self.segments():
            try:
                total += path.stat().st_size
            except OSError:
                continue
        return total


def epochs(spool: Path) -> list[Epoch]:
    """All epochs of all sources, in order of source and epoch."""
    found: list[Epoch] = []
    for source in _directories(spool, _SOURCE):
        for epoch in _directories(source, _EPOCH):
            found.append(Epoch(int(source.name, 16), int(epoch.name, 16), epoch))
    return found


def find(spool: Path, wanted: EventId) -> Event | None:
    """The event of that id; None when it is not on disk (yet, or any more)."""
    path = spool / f"{wanted.source:016x}" / f"{wanted.epoch:08x}"
    epoch = Epoch(wanted.source, wanted.epoch, path)
    before = [segment for first, segment in epoch.segments() if first <= wanted.seq]
    if not before or wanted.seq >= epoch.synced:
        return None
    content = _content(before[-1])
    for _, frame in scan(content, 0, len(content)):
        if frame.first_seq <= wanted.seq < frame.next_seq:
            return expand(wanted.source, wanted.epoch, frame)[wanted.seq - frame.first_seq]
    return None


def last(spool: Path, count: int, keep: Callable[[Event], bool]) -> tuple[list[Event], Positions]:
    """The last `count` events that `keep` accepts, oldest first, and where a feed goes on from.

    Memory: one segment and `count` events a source.
    """
    positions: Positions = {}
    found: list[Event] = []
    by_source: dict[int, list[Epoch]] = {}
    for epoch in epochs(spool):
        by_source.setdefault(epoch.source, []).append(epoch)
    for of_source in by_source.values():
        wanted = count
        for epoch in reversed(of_source):
            positions[epoch.key] = synced = epoch.synced
            for _, segment in reversed(epoch.segments()):
                if wanted <= 0:
                    break
                tail = deque(filter(keep, _events(epoch, segment, synced)), maxlen=wanted)
                found.extend(tail)
                wanted -= len(tail)
    found.sort(key=lambda event: (time_of(event), event.id))
    return found[max(len(found) - count, 0) :], positions


def time_of(event: Event) -> int:
    """When it happened, epoch ns."""
    done: int = getattr(event, "done_ns", 0) or getattr(event, "at_ns", 0)
    return done


def _events(epoch: Epoch, segment: Path, synced: int) -> Iterator[Event]:
    content = _content(segment)
    for _, frame in scan(content, 0, len(content)):
        if frame.first_seq >= synced:
            return
        yield from expand(epoch.source, epoch.epoch, frame)


def _content(segment: Path) -> bytes:
    try:
        return segment.read_bytes()
    except FileNotFoundError:
        return b""


def _directories(path: Path, pattern: re.Pattern[str]) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if pattern.fullmatch(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return []
