"""The runner: from a feed to whole ticks. Between the log and the watch.

A tick is a cut of the log: for every (source, epoch) the numbers below which all belongs to it or to an earlier one.
Live, a cut is wherever reading stands when it is time. In recovery and in a replay the cuts are given, by the ticks
that stand in the log; what has been read beyond one waits for the next. Either way the watch sees the same sets.

State and position are one: the caller commits the watch's state together with `cut`, so that no event is counted
twice or left out, whatever dies when.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Protocol

from gateway.audit.event import Event
from gateway.audit.feed import Feed, Hole, Positions
from gateway.audit.identity import EventId, parse_event_id

READ_EVENTS = 2000
Cuts = dict[str, tuple[int, int]]
"""For each (source, epoch) that moved in a tick: [first seq, next seq)."""


class Taker(Protocol):
    """What events are handed to: the watch."""

    def take(self, event: Event) -> None:
        """An event of the open tick."""
        ...

    def take_hole(self, hole: Hole) -> None:
        """Numbers of the open tick that the log does not hold."""
        ...


class Runner:
    """Hands a feed's events to a taker, up to a cut.

    Args:
        feed: opened at `cut` or before it; what is below the cut is dropped.
        cut: where the last tick ended, by epoch key.
        sources: whose events count; a topic may hold those of other gateways.

    Threading: one thread, as the feed. Memory: what was read beyond a given cut.
    """

    def __init__(self, feed: Feed, taker: Taker, cut: Positions, sources: Collection[int]) -> None:
        self._feed = feed
        self._taker = taker
        self._sources = sources
        self.cut: Positions = dict(cut)
        """Behind all that was handed over in closed ticks."""
        self._at: Positions = dict(cut)
        self._ahead: deque[tuple[EventId, Event | Hole]] = deque()

    @property
    def is_ahead(self) -> bool:
        """Whether events beyond the last cut are held: the feed's own positions are then ahead of `cut`."""
        return bool(self._ahead)

    @property
    def feed_positions(self) -> Positions:
        """The feed's own positions, for a feed that keeps more than event numbers (Kafka's offsets)."""
        return self._feed.positions

    def read(self, wait_ms: int = 0, max_events: int = READ_EVENTS) -> int:
        """Hand over what is new; returns how much. For a tick whose cut is wherever reading stands."""
        found = 0
        while self._ahead:
            self._hand(*self._ahead.popleft())
            found += 1
        for which, item in self._delivered(wait_ms, max_events):
            self._hand(which, item)
            found += 1
        return found

    def read_to(self, cuts: Cuts, wait_ms: int) -> bool:
        """Hand over what is below the given cut, and keep what is above; False when the log ended before it.

        Args:
            wait_ms: how long a feed that yields nothing is waited for.
        """
        ends = {key: end for key, (_, end) in cuts.items()}
        held = deque(self._ahead)
        self._ahead.clear()
        while held:
            self._sort(*held.popleft(), ends)
        while any(self._at.get(key, 0) < end and not self._passed(key, end) for key, end in ends.items()):
            items = self._delivered(wait_ms, READ_EVENTS)
            if not items:
                return False
            for which, item in items:
                self._sort(which, item, ends)
        # Numbers at the end of a cut may be a hole that only a later event shows.
        for key, end in ends.items():
            self._at[key] = max(self._at.get(key, 0), end)
        return True

    def give_up(self, cuts: Cuts) -> None:
        """What is below the given cut and was not found is taken as missing: the log holds it no more."""
        for key, (_, end) in cuts.items():
            at = self._at.get(key, 0)
            if at < end:
                source, _, epoch = key.partition("-")
                self._taker.take_hole(Hole(int(source, 16), int(epoch, 16), at, end - 1))
                self._at[key] = end

    def close(self) -> Cuts:
        """End the tick at what was handed over; returns what it covers."""
        cuts = {
            key: (self.cut.get(key, 0), end) for key, end in self._at.items() if end > self.cut.get(key, 0)
        }
        self.cut = dict(self._at)
        return cuts

    def fate(self, event_id: str) -> str | None:
        """What a label is whose prediction does not wait: `late` behind it, `unknown` where it is none of this log's;
        None while the prediction may still be read."""
        try:
            which = parse_event_id(event_id)
        except ValueError:
            return "unknown"
        if which.source not in self._sources:
            return "unknown"
        return "late" if which.seq < self._at.get(_key(which), 0) else None

    def _passed(self, key: str, end: int) -> bool:
        return any(_key(which) == key and which.seq >= end for which, _ in self._ahead)

    def _delivered(self, wait_ms: int, max_events: int) -> list[tuple[EventId, Event | Hole]]:
        delivery = self._feed.read(max_events, wait_ms)
        items: list[tuple[EventId, Event | Hole]] = [
            (EventId(hole.source, hole.epoch, hole.to_seq), hole) for hole in delivery.holes
        ]
        items += [(parse_event_id(event.id), event) for event in delivery.events]
        return items

    def _sort(self, which: EventId, item: Event | Hole, ends: dict[str, int]) -> None:
        if which.seq < ends.get(_key(which), self.cut.get(_key(which), 0)):
            self._hand(which, item)
        else:
            self._ahead.append((which, item))

    def _hand(self, which: EventId, item: Event | Hole) -> None:
        if which.source not in self._sources:
            return
        key = _key(which)
        if which.seq < self.cut.get(key, 0):
            # Counted already: the feed was opened before the cut, since its own place was ahead of it at the commit.
            return
        self._at[key] = max(self._at.get(key, 0), which.seq + 1)
        if isinstance(item, Hole):
            self._taker.take_hole(item)
        else:
            self._taker.take(item)


def _key(which: EventId) -> str:
    return f"{which.source:016x}-{which.epoch:08x}"
