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

import click

from gateway.audit.event import Event, time_of
from gateway.audit.feed import Delivery, Feed, Hole, Positions, Skipped
from gateway.audit.frame import expand
from gateway.audit.identity import id_prefix
from gateway.audit.spool import EpochPath, epochs, segments, synced_seq
from gateway.audit.spool_feed import CLOCK_SLACK_NS
from gateway.audit.walk import Damage, walk
from gateway.cli.plain import lines
from gateway.errors import FrameCorrupt

READ_EVENTS = 2000
HOLES_SHOWN = 10


class Missed:
    """What a reading did not get: a sentence for each kind of it, for people."""

    def __init__(self) -> None:
        self.holes: list[Hole] = []
        self.skipped: list[Skipped] = []

    def note(self, delivery: Delivery) -> None:
        """Holes whose cause no gap record tells, and what a topic has no more."""
        self.holes += [hole for hole in delivery.holes if hole.cause is not None]
        self.skipped += delivery.skipped

    def lines(self) -> list[str]:
        """Sentences; none when nothing is missing."""
        told = [
            f"no longer in the topic: offsets {one.from_offset} to {one.to_offset} of partition {one.partition}"
            for one in self.skipped
        ]
        told += [
            f"not read ({hole.cause}): {hole.to_seq - hole.from_seq + 1} records from"
            f" {id_prefix(hole.source, hole.epoch)}{hole.from_seq:016x} on"
            for hole in self.holes[:HOLES_SHOWN]
        ]
        over = len(self.holes) - HOLES_SHOWN
        return [*told, f"and {over} more such ranges"] if over > 0 else told


def last(
    spool: Path, count: int, keep: Callable[[Event], bool], since_ns: int | None = None
) -> tuple[list[Event], Positions]:
    """The last `count` events that `keep` accepts, oldest first, and where a feed goes on from.

    Args:
        since_ns: `keep` accepts none before; files that were written last before then are not read, with an hour for
            clocks that were set back.

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
                if since_ns is not None and _written_ns(segment) + CLOCK_SLACK_NS < since_ns:
                    break
                tail = deque(filter(keep, _events(epoch, segment, synced)), maxlen=wanted)
                found.extend(tail)
                wanted -= len(tail)
    found.sort(key=lambda event: (time_of(event), event.id))
    return found[max(len(found) - count, 0) :], positions


def up_to_now(feed: Feed, wait_ms: int, missed: Missed | None = None) -> Iterator[list[Event]]:
    """Everything that a feed has up to now, as it is read; a running gateway's heartbeats would go on for ever.

    The end is where the log ends when this begins, in numbers: by their times records need not be in order.

    Args:
        wait_ms: how long the feed may be silent before its end is reached all the same.
        missed: is told what does not come.
    """
    ends = feed.ends()
    while ends:
        before = feed.positions
        delivery = feed.read(READ_EVENTS, wait_ms)
        if missed is not None:
            missed.note(delivery)
        at = feed.positions
        yield delivery.events
        if at == before:
            return
        ends = {key: end for key, end in ends.items() if at.get(key, 0) < end}


def _written_ns(segment: Path) -> int:
    try:
        return segment.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _events(epoch: EpochPath, segment: Path, synced: int) -> Iterator[Event]:
    """A segment's events; what cannot be read is named on stderr, and the rest goes on."""
    at_seq = 0
    try:
        for piece in walk(segment):
            frame = piece.frame
            if frame.first_seq >= synced:
                return
            at_seq = frame.next_seq
            try:
                events = expand(epoch.source, epoch.epoch, frame)
            except FrameCorrupt as exc:
                click.echo(lines(f"tidegate: {epoch.key} number {frame.first_seq}: {exc}"), err=True)
                continue
            yield from events
    except Damage as exc:
        if at_seq < synced:
            click.echo(
                lines(f"tidegate: {segment} is damaged: {exc}; what follows in it is left out"), err=True
            )
    except FileNotFoundError:
        return
