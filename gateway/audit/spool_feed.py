"""The spool as a feed: what consumers on this host read. See `gateway.audit.feed` for the guarantees.

Retention is a neighbour that takes files away at any moment. What it took before it was read shows in one of four ways,
each told once: a later event of the epoch; the end of an epoch that is over and gives nothing more; an epoch that was
listed and is no longer there; the recorder's own `gap` of cause `retention`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from gateway.audit.event import Gap
from gateway.audit.feed import RETENTION, UNREADABLE, Delivery, HighWater, Hole, Positions, Unreadable
from gateway.audit.frame import Frame
from gateway.audit.identity import id_prefix
from gateway.audit.legible import Refusal, read_frame
from gateway.audit.spool import (
    EpochPath,
    EpochReader,
    closed,
    epoch_path,
    epochs,
    segments,
    synced_seq,
)

_POLL_S = 0.01
CLOCK_SLACK_NS = 3600 * 1_000_000_000
"""Clocks are set back: a segment may have been written last by so much before the newest event in it, as both say."""


class SpoolFeed:
    """Reads every source of a spool, epoch by epoch; sources and epochs may come at any time.

    A reader that retention has overtaken gets what it missed as a hole.

    Args:
        spool: the spool's directory.
        positions: where to go on; None begins with the oldest record there is.
        since_ns: begin with records of that time in epochs that have no position. By when segments were written last,
            with an hour for clocks that were set back, then by the events' own times, a frame at once.
    """

    def __init__(
        self, spool: Path, positions: Positions | None = None, *, since_ns: int | None = None
    ) -> None:
        self._spool = spool
        self._marks = HighWater(positions, since_ns)
        self._since_ns = since_ns
        self._readers: dict[str, EpochReader] = {}
        self._over: set[str] = set()
        """Epochs that ended and were read to their end: not looked at again."""
        self._ending: dict[str, tuple[EpochPath, int]] = {}
        """Epochs that ended and were not read to their end yet, and the number behind it."""
        self._turn = 0
        self._unreadable = Unreadable()
        self.holes: list[Hole] = []
        """What `read_frames` found gone and no later frame shows; the caller empties it."""
        if since_ns is not None:
            self._begin(since_ns)

    @property
    def positions(self) -> Positions:
        """Behind everything returned so far."""
        return dict(self._marks.positions)

    def ends(self) -> Positions:
        """Behind what is on disk now, of epochs that were not read to there."""
        marks = self._marks.positions
        found = (
            (epoch.key, synced_seq(epoch)) for epoch in epochs(self._spool) if epoch.key not in self._over
        )
        return {key: end for key, end in found if end > marks.get(key, 0)}

    @property
    def unreadable(self) -> int:
        """Records that could not be read."""
        return self._unreadable.count

    def read(self, max_events: int, wait_ms: int) -> Delivery:
        """Events in order within each epoch; a frame is never split, so a few more may come."""
        deadline = time.monotonic() + wait_ms / 1000
        while True:
            delivery = self._read_now(max_events)
            if delivery.events or delivery.holes or time.monotonic() >= deadline:
                return delivery
            time.sleep(_POLL_S)

    def read_frames(self, max_frames: int) -> list[tuple[EpochPath, Frame]]:
        """Whole frames, for consumers that work on columns; moves the positions like `read`.

        A frame whose first_seq is beyond the last one's next_seq stands behind a hole; see also `holes`.
        """
        taken: list[tuple[EpochPath, Frame]] = []
        for epoch, frame in self._frames(self.holes):
            taken.append((epoch, frame))
            self._marks.positions[epoch.key] = frame.next_seq
            if len(taken) >= max_frames:
                break
        return taken

    def close(self) -> None:
        """Nothing is held open."""

    def _read_now(self, max_events: int) -> Delivery:
        delivery = Delivery([], [])
        for epoch, frame in self._frames(delivery.holes):
            self._take(epoch, frame, delivery)
            if len(delivery.events) >= max_events:
                break
        return delivery

    def _take(self, epoch: EpochPath, frame: Frame, delivery: Delivery) -> None:
        """A frame's events that are new."""
        found = read_frame(epoch.source, epoch.epoch, frame, self._since_ns)
        if found is None:
            at = self._marks.positions.get(epoch.key, 0)
            self._marks.positions[epoch.key] = max(at, frame.next_seq)
            return
        for seq, event in enumerate(found, frame.first_seq):
            new, hole = self._marks.admit_id(epoch.key, seq)
            if hole is not None:
                delivery.holes.append(self._caused(epoch, hole))
            if not new:
                continue
            if isinstance(event, Refusal):
                self._unreadable.note(event.what, f"{id_prefix(epoch.source, epoch.epoch)}{seq:016x}")
                if event.is_hole:
                    delivery.holes.append(Hole(epoch.source, epoch.epoch, seq, seq, UNREADABLE))
                continue
            delivery.events.append(event)
            if isinstance(event, Gap) and event.cause == RETENTION:
                self._note_trimmed(event, delivery.holes)
        if len(found) < frame.count:
            at = self._marks.positions.get(epoch.key, 0)
            self._marks.positions[epoch.key] = max(at, frame.next_seq)
            first = frame.first_seq + len(found)
            delivery.holes.append(Hole(epoch.source, epoch.epoch, first, frame.next_seq - 1, UNREADABLE))

    def _frames(self, holes: list[Hole]) -> Iterator[tuple[EpochPath, Frame]]:
        """What is new, beginning with another source each time: none starves behind a busy one.

        Who takes a frame moves the epoch's mark behind it before the next one. What is gone is added to `holes`.
        """
        by_source: dict[int, list[EpochPath]] = {}
        present = epochs(self._spool)
        for epoch in present:
            if epoch.key not in self._over:
                by_source.setdefault(epoch.source, []).append(epoch)
        if self._ending:
            self._note_gone({epoch.key for epoch in present}, holes)
        listed = list(by_source.values())
        self._turn = (self._turn + 1) % max(len(listed), 1)
        for epoch in chain(*listed[self._turn :], *listed[: self._turn]):
            at = self._marks.positions.get(epoch.key, 0)
            # In this order: nothing is synced in an epoch after it is closed.
            end = synced_seq(epoch) if closed(epoch) is not None else None
            if end is not None and end <= at:
                self._end(epoch)
                continue
            if end is not None:
                self._ending[epoch.key] = (epoch, end)
            reader = self._readers.get(epoch.key)
            if reader is None:
                reader = self._readers[epoch.key] = EpochReader(epoch)
            for frame in reader.frames(at):
                yield epoch, frame
            if end is not None:
                # All that an epoch which is over has to give.
                self._lose(epoch, end, "corrupt" if segments(epoch) else RETENTION, holes)
                self._end(epoch)

    def _end(self, epoch: EpochPath) -> None:
        self._over.add(epoch.key)
        self._readers.pop(epoch.key, None)
        self._ending.pop(epoch.key, None)

    def _lose(self, epoch: EpochPath, end: int, cause: str, holes: list[Hole]) -> None:
        """Numbers below `end` that were not read never come."""
        at = self._marks.positions.get(epoch.key, 0)
        if at < end:
            holes.append(Hole(epoch.source, epoch.epoch, at, end - 1, cause))
            self._marks.positions[epoch.key] = end

    def _note_gone(self, present: set[str], holes: list[Hole]) -> None:
        """Epochs that were being read and whose directories are gone."""
        for key in self._ending.keys() - present:
            epoch, end = self._ending[key]
            self._lose(epoch, end, RETENTION, holes)
            self._end(epoch)

    def _note_trimmed(self, gap: Gap, holes: list[Hole]) -> None:
        """The recorder says what it trimmed: told if it was not read, unless what is left of the epoch will show it."""
        try:
            epoch = epoch_path(self._spool, int(gap.source, 16), gap.epoch)
        except ValueError:
            return
        if gap.to_seq is None or (
            epoch.key not in self._marks.positions and self._marks.begins_anywhere(gap.epoch)
        ):
            return
        left = segments(epoch)
        if not left or left[0][0] > gap.to_seq:
            self._lose(epoch, gap.to_seq + 1, RETENTION, holes)

    def _caused(self, epoch: EpochPath, hole: Hole) -> Hole:
        """Before the first segment that there is: retention took it."""
        left = segments(epoch)
        return hole._replace(cause=RETENTION) if left and hole.to_seq < left[0][0] else hole

    def _begin(self, since_ns: int) -> None:
        """Place epochs without a position before the first segment that was written to since then."""
        for epoch in epochs(self._spool):
            if epoch.key in self._marks.positions:
                continue
            listed = segments(epoch)
            later = (
                (index, first_seq)
                for index, (first_seq, path) in enumerate(listed)
                if _written_ns(path) + CLOCK_SLACK_NS >= since_ns
            )
            index, first_seq = next(later, (-1, synced_seq(epoch)))
            if index == 0 and not self._marks.begins_anywhere(epoch.epoch):
                # It began since then: what stood before its first segment is missing.
                continue
            self._marks.positions[epoch.key] = first_seq


def _written_ns(segment: Path) -> int:
    """When a segment was written last; the far future where it is gone, so that what is behind it is read."""
    try:
        return segment.stat().st_mtime_ns
    except FileNotFoundError:
        return 1 << 62
