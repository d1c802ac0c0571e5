"""The last records of the spool, without reading the rest of it.

Consumers read forward through a feed; a person asks for the end, and a spool of 20 GiB must not
be read for that. So this goes backwards over whole segments, source by source. Read-only and
lock-free: what is below `synced` never changes, only retention takes whole files away, which
reads as "not there".
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from gateway.audit.event import Event
from gateway.audit.feed import Feed, Positions
from gateway.audit.frame import expand, scan
from gateway.audit.spool import EpochPath, epochs, segments, synced_seq

READ_EVENTS = 2000
NEWER_READS = 3
"""A log that grows has been read to its end when so many reads hold only what is younger than the command."""


def last(
    spool: Path, count: int, keep: Callable[[Event], bool], since_ns: int | None = None
) -> tuple[list[Event], Positions]:
    """The last `count` events that `keep` accepts, oldest first, and where a feed goes on from.

    Args:
        since_ns: `keep` accepts none before; files that were written last before then are not read.

    Memory: one segment and `count` events a source.
    """
    positions: Positions = {}
    found: list[Event] = []
    by_source: dict[int, list[EpochPath]] = {}
    for epoch in epochs(spool):
        by_source.setdefault(epoch.source, []).append(epoch)
    for of_source in by_source.values():
        wanted = count
        for epoch in reversed(of_source):
            positions[epoch.key] = synced = synced_seq(epoch)
            for _, segment in reversed(segments(epoch)):
                if wanted <= 0 or (since_ns is not None and _written_ns(segment) < since_ns):
                    break
                tail = deque(filter(keep, _events(epoch, segment, synced)), maxlen=wanted)
                found.extend(tail)
                wanted -= len(tail)
    found.sort(key=lambda event: (time_of(event), event.id))
    return found[max(len(found) - count, 0) :], positions


def up_to_now(feed: Feed, wait_ms: int) -> Iterator[Event]:
    """Everything that a feed has up to now; a running gateway's heartbeats would go on for ever.

    Args:
        wait_ms: how long the feed may be silent before its end is reached.
    """
    started_ns = time.time_ns()
    newer = 0
    while newer < NEWER_READS:
        before = feed.positions
        events = feed.read(READ_EVENTS, wait_ms).events
        if feed.positions == before:
            return
        yield from events
        newer = newer + 1 if events and all(time_of(event) > started_ns for event in events) else 0


def time_of(event: Event) -> int:
    """When it happened, epoch ns."""
    at_ns: int = getattr(event, "done_ns", 0) or getattr(event, "at_ns", 0)
    return at_ns


def _written_ns(segment: Path) -> int:
    try:
        return segment.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _events(epoch: EpochPath, segment: Path, synced: int) -> Iterator[Event]:
    try:
        content = segment.read_bytes()
    except FileNotFoundError:
        return
    for _, frame in scan(content, 0, len(content)):
        if frame.first_seq >= synced:
            return
        yield from expand(epoch.source, epoch.epoch, frame)
