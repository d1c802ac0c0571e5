"""The last records of the spool, without reading the rest of it.

Consumers read forward through a feed; a person asks for the end, and a spool of 20 GiB must not
be read for that. So this goes backwards over whole segments, source by source. Read-only and
lock-free: what is below `synced` never changes, only retention takes whole files away, which
reads as "not there".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from gateway.audit.event import Event
from gateway.audit.feed import Positions
from gateway.audit.frame import expand, scan
from gateway.audit.spool import EpochPath, epochs, segments, synced_seq


def last(spool: Path, count: int, keep: Callable[[Event], bool]) -> tuple[list[Event], Positions]:
    """The last `count` events that `keep` accepts, oldest first, and where a feed goes on from.

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
                if wanted <= 0:
                    break
                tail = deque(filter(keep, _events(epoch, segment, synced)), maxlen=wanted)
                found.extend(tail)
                wanted -= len(tail)
    found.sort(key=lambda event: (time_of(event), event.id))
    return found[max(len(found) - count, 0) :], positions


def time_of(event: Event) -> int:
    """When it happened, epoch ns."""
    at_ns: int = getattr(event, "done_ns", 0) or getattr(event, "at_ns", 0)
    return at_ns


def _events(epoch: EpochPath, segment: Path, synced: int) -> Iterator[Event]:
    try:
        content = segment.read_bytes()
    except FileNotFoundError:
        return
    for _, frame in scan(content, 0, len(content)):
        if frame.first_seq >= synced:
            return
        yield from expand(epoch.source, epoch.epoch, frame)
