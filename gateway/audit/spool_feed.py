"""The spool as a feed: what consumers on this host read. See `gateway.audit.feed` for the guarantees."""

from __future__ import annotations

import time
from pathlib import Path

from gateway.audit.event import Event
from gateway.audit.feed import Delivery, HighWater, Hole, Positions
from gateway.audit.frame import Frame, expand
from gateway.audit.identity import EventId
from gateway.audit.spool import EpochPath, epoch_path, epochs, read_epoch, synced_seq

_POLL_S = 0.01


class SpoolFeed:
    """Reads every source of a spool, epoch by epoch.

    Args:
        spool: the spool's directory.
        positions: where to go on; None begins with the oldest record there is.
    """

    def __init__(self, spool: Path, positions: Positions | None = None) -> None:
        self._spool = spool
        self._marks = HighWater(positions)

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
        """Whole frames, for consumers that work on columns; moves the positions like `read`."""
        taken: list[tuple[EpochPath, Frame]] = []
        for epoch in epochs(self._spool):
            at = self._marks.positions.get(epoch.key, 0)
            if synced_seq(epoch) <= at:
                continue
            for frame in read_epoch(epoch, at):
                taken.append((epoch, frame))
                self._marks.positions[epoch.key] = frame.next_seq
                if len(taken) >= max_frames:
                    return taken
        return taken

    def close(self) -> None:
        """Nothing is held open."""

    def _read_now(self, max_events: int) -> Delivery:
        events: list[Event] = []
        holes: list[Hole] = []
        for epoch in epochs(self._spool):
            at = self._marks.positions.get(epoch.key, 0)
            if synced_seq(epoch) <= at:
                continue
            for frame in read_epoch(epoch, at):
                for offset, event in enumerate(expand(epoch.source, epoch.epoch, frame)):
                    new, hole = self._marks.admit(epoch.source, epoch.epoch, frame.first_seq + offset)
                    if hole is not None:
                        holes.append(hole)
                    if new:
                        events.append(event)
                if len(events) >= max_events:
                    return Delivery(events, holes)
        return Delivery(events, holes)


def find(spool: Path, event_id: EventId) -> Event | None:
    """One event by its id, or None when the spool does not hold it (any more, or yet)."""
    epoch = epoch_path(spool, event_id.source, event_id.epoch)
    for frame in read_epoch(epoch, event_id.seq):
        if frame.first_seq <= event_id.seq < frame.next_seq:
            return expand(event_id.source, event_id.epoch, frame)[event_id.seq - frame.first_seq]
        if frame.first_seq > event_id.seq:
            break
    return None
