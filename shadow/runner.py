"""The runner: from a feed to whole ticks. Between the log and the watch.

A tick is a cut of the log: for every (source, epoch) the numbers below which all belongs to it or to an earlier one.
Live, a cut is wherever reading stands when it is time. In recovery and in a replay the cuts are given, by the ticks
that stand in the log; what has been read beyond one waits for the next. Either way the watch sees the same sets.

Write access to the log is trusted: whoever may write to the spool or the topic may say anything in any source's name.
Records of other gateways are dropped, and what cannot be read is told and left out; no more is promised.

State and position are one: the caller commits the watch's state together with `cut`, so that no event is counted
twice or left out, whatever dies when.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple, Protocol

from gateway.audit.event import EpochClose, EpochOpen, Event, Prediction
from gateway.audit.feed import Feed, Hole, Positions, Skipped
from gateway.audit.identity import parse_event_id

READ_EVENTS = 500
"""At most in one turn: what they hold is held at once."""
Cuts = dict[str, tuple[int, int]]
"""For each (source, epoch) that moved in a tick: [first seq, next seq)."""
_Item = tuple[str, int, Event | Hole]
"""(epoch key, seq, what): of a hole its last number."""
_KEY_CHARS = 25


class Taker(Protocol):
    """What events are handed to: the watch."""

    def take(self, event: Event) -> None:
        """An event of the open tick."""
        ...

    def take_hole(self, hole: Hole) -> None:
        """Numbers of the open tick that the log does not hold."""
        ...

    def take_skipped(self, skipped: Skipped) -> None:
        """Records that are gone from a topic, whichever they were."""
        ...


class Clock(NamedTuple):
    """Two clocks: epoch ns of this host, which may be set, and seconds that only run on. Tests give others."""

    wall_ns: Callable[[], int] = lambda: time.time_ns()
    steady_s: Callable[[], float] = lambda: time.monotonic()


class Runner:
    """Hands a feed's events to a taker, up to a cut.

    Args:
        feed: opened at `cut` or before it; what is below the cut is dropped.
        cut: where the last tick ended, by epoch key.
        sources: whose events count; a topic may hold those of other gateways.
        present: of these, whose records tell how far behind reading is; None for all.

    Threading: one thread, as the feed. Memory: what was read beyond a given cut.
    """

    def __init__(
        self,
        feed: Feed,
        taker: Taker,
        cut: Positions,
        sources: Collection[int],
        present: Collection[int] | None = None,
        clock: Clock = Clock(),  # noqa: B008
    ) -> None:
        self._feed = feed
        self._taker = taker
        self._clock = clock
        self._sources = frozenset(f"{source:016x}" for source in sources)
        self._present = self._sources if present is None else frozenset(f"{s:016x}" for s in present)
        self.cut: Positions = dict(cut)
        """Behind all that was handed over in closed ticks."""
        self._at: Positions = dict(cut)
        self._ahead: dict[str, deque[_Item]] = {}
        """What was read beyond the last cut, in order within each epoch."""
        self._newest_s: dict[str, float] = {}
        """By living source: when its newest record that was read was made, on this process's steady clock."""
        self.has_skipped = False
        """Whether the feed went on behind records that are gone: what a given cut lacks then never comes."""

    @property
    def is_ahead(self) -> bool:
        """Whether events beyond the last cut are held: the feed's own positions are then ahead of `cut`."""
        return bool(self._ahead)

    @property
    def feed_positions(self) -> Positions:
        """The feed's own positions, for a feed that keeps more than event numbers (Kafka's offsets)."""
        return self._feed.positions

    @property
    def stale_s(self) -> float:
        """How far reading is behind the present, where it is furthest: infinite before anything was read.

        Idle sources write each second, so a source that stands still is as stale as one that is read too slowly. One
        whose epoch was closed is left out. A clock that is set ahead shows until the next record; one that is set
        back makes records from before look like now.
        """
        return self._clock.steady_s() - min(self._newest_s.values(), default=-math.inf)

    def read(self, wait_ms: int = 0, max_events: int = READ_EVENTS) -> int:
        """Hand over what is new; returns how much. For a tick whose cut is wherever reading stands."""
        _, items = self._delivered(wait_ms, max_events)
        items = [*(item for waiting in self._ahead.values() for item in waiting), *items]
        self._ahead.clear()
        for item in items:
            self._hand(item)
        return len(items)

    def read_to(self, cuts: Cuts, wait_ms: int) -> bool:
        """Hand over what is below the given cut, and keep what is above; False when the log ended before it.

        Args:
            wait_ms: how long a feed that yields nothing is waited for.
        """
        ends = {key: end for key, (_, end) in cuts.items()}
        self._release(ends)
        while any(self._at.get(key, 0) < end and key not in self._ahead for key, end in ends.items()):
            is_over, items = self._delivered(wait_ms, READ_EVENTS)
            if is_over:
                return False
            for item in items:
                self._ahead.setdefault(item[0], deque()).append(item)
            self._release(ends)
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
        if event_id[:16] not in self._sources:
            return "unknown"
        return "late" if which.seq < self._at.get(event_id[:_KEY_CHARS], 0) else None

    def _delivered(self, wait_ms: int, max_events: int) -> tuple[bool, list[_Item]]:
        """Whether the feed yields nothing at all, and what is of our sources."""
        delivery = self._feed.read(max_events, wait_ms)
        for skipped in delivery.skipped:
            self.has_skipped = True
            self._taker.take_skipped(skipped)
        items: list[_Item] = [
            (event.id[:_KEY_CHARS], int(event.id[_KEY_CHARS + 1 :], 16), event)
            for event in delivery.events
            if event.id[:16] in self._sources
        ]
        self._note_ages(delivery.events)
        holes = [
            (f"{hole.source:016x}-{hole.epoch:08x}", hole.to_seq, hole)
            for hole in delivery.holes
            if f"{hole.source:016x}" in self._sources
        ]
        if holes:
            # A hole before the event that shows it.
            items = sorted([*items, *holes], key=lambda item: item[:2])
        return not (delivery.events or delivery.holes or delivery.skipped), items

    def _note_ages(self, events: Iterable[Event]) -> None:
        newest_ns: dict[str, int] = {}
        closed: set[str] = set()
        for event in events:
            source = event.id[:16]
            if source in self._present:
                newest_ns[source] = event.done_ns if isinstance(event, Prediction) else event.at_ns
            if isinstance(event, EpochClose):
                # By its owner, or by the recorder for one that died.
                closed.add(event.source)
            elif isinstance(event, EpochOpen):
                closed.discard(source)
        now_ns, now_s = self._clock.wall_ns(), self._clock.steady_s()
        for source, at_ns in newest_ns.items():
            made_s = now_s - max(now_ns - at_ns, 0) / 1e9
            self._newest_s[source] = max(self._newest_s.get(source, -math.inf), made_s)
        for source in closed:
            self._newest_s.pop(source, None)

    def _release(self, ends: dict[str, int]) -> None:
        """Hand over what is held below the cut."""
        for key in [key for key in ends if key in self._ahead]:
            waiting = self._ahead[key]
            while waiting and waiting[0][1] < ends[key]:
                self._hand(waiting.popleft())
            found = waiting[0][2] if waiting else None
            if isinstance(found, Hole) and found.from_seq < ends[key]:
                # What went missing since these ticks were made: a part to each.
                _, last, _ = waiting.popleft()
                self._hand((key, ends[key] - 1, found._replace(to_seq=ends[key] - 1)))
                waiting.appendleft((key, last, found._replace(from_seq=ends[key])))
            if not waiting:
                del self._ahead[key]

    def _hand(self, item: _Item) -> None:
        key, seq, found = item
        if seq < self._at.get(key, 0):
            # A feed that was opened before the cut.
            return
        self._at[key] = seq + 1
        if isinstance(found, Hole):
            self._taker.take_hole(found)
        else:
            self._taker.take(found)
