"""The spool as a feed: what consumers on this host read. See `gateway.audit.feed` for the guarantees."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from gateway.audit.event import Event
from gateway.audit.feed import Delivery, HighWater, Positions
from gateway.audit.frame import Frame, expand
from gateway.audit.identity import EventId
from gateway.audit.spool import (
    EpochPath,
    EpochReader,
    closed,
    epoch_path,
    epochs,
    read_epoch,
    synced_seq,
)

_POLL_S = 0.01


class SpoolFeed:
    """Reads every source of a spool, epoch by epoch; sources and epochs may come at any time.

    A reader that retention has overtaken gets what it missed as a hole.

    Args:
        spool: the spool's directory.
        positions: where to go on; None begins with the oldest record there is.
    """

    def __init__(self, spool: Path, positions: Positions | None = None) -> None:
        self._spool = spool
        self._marks = HighWater(positions)
        self._readers: dict[str, EpochReader] = {}
        self._over: set[str] = set()
        """Epochs that ended and were read to their end: not looked at again."""
        self._turn = 0

    @property
    def positions(self) -> Positions:
        """Behind everything returned so far."""
        return dict(self._marks.positions)

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

        A frame whose first_seq is beyond the last one's next_seq stands behind a hole.
        """
        taken: list[tuple[EpochPath, Frame]] = []
        for epoch, frame in self._frames():
            taken.append((epoch, frame))
            self._marks.positions[epoch.key] = frame.next_seq
            if len(taken) >= max_frames:
                break
        return taken

    def close(self) -> None:
        """Nothing is held open."""

    def _read_now(self, max_events: int) -> Delivery:
        delivery = Delivery([], [])
        for epoch, frame in self._frames():
            for offset, event in enumerate(expand(epoch.source, epoch.epoch, frame)):
                new, hole = self._marks.admit(epoch.source, epoch.epoch, frame.first_seq + offset)
                if hole is not None:
                    delivery.holes.append(hole)
                if new:
                    delivery.events.append(event)
            if len(delivery.events) >= max_events:
                break
        return delivery

    def _frames(self) -> Iterator[tuple[EpochPath, Frame]]:
        """What is new, beginning with another source each time: none starves behind a busy one."""
        by_source: dict[int, list[EpochPath]] = {}
        for epoch in epochs(self._spool):
            if epoch.key in self._over:
                continue
            by_source.setdefault(epoch.source, []).append(epoch)
        listed = list(by_source.values())
        self._turn = (self._turn + 1) % max(len(listed), 1)
        for epoch in chain(*listed[self._turn :], *listed[: self._turn]):
            at = self._marks.positions.get(epoch.key, 0)
            # In this order: nothing is synced in an epoch after it is closed.
            if closed(epoch) is not None and synced_seq(epoch) <= at:
                self._over.add(epoch.key)
                self._readers.pop(epoch.key, None)
                continue
            reader = self._readers.get(epoch.key)
            if reader is None:
                reader = self._readers[epoch.key] = EpochReader(epoch)
            for frame in reader.frames(at):
                yield epoch, frame


def find(spool: Path, event_id: EventId) -> Event | None:
    """One event by its id, or None when the spool does not hold it (any more, or yet)."""
    epoch = epoch_path(spool, event_id.source, event_id.epoch)
    for frame in read_epoch(epoch, event_id.seq):
        if frame.first_seq <= event_id.seq < frame.next_seq:
            return expand(event_id.source, event_id.epoch, frame)[event_id.seq - frame.first_seq]
        if frame.first_seq > event_id.seq:
            break
    return None
