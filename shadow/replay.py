"""Replay: fold the log again by the cuts that stand in it, and see whether the same is decided.

log -> runner -> watch -> compare with what the log says was decided. The stored decisions are ignored until the end.
The same over the spool and over Kafka, on any host that has log and bundles; reports rest on it too, so that what a
person reads is a fold of the log and not a process's word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gateway.audit.event import EpochOpen, Event, Verdict
from gateway.audit.feed import Feed
from gateway.audit.identity import parse_event_id
from gateway.errors import LogIncomplete
from shadow.decide import Decision
from shadow.readers import BundleSource
from shadow.runner import Runner
from shadow.state import WatchState
from shadow.store import Store
from shadow.verdicts import Stored, gateway_sources, stored_ticks
from shadow.watch import Watch

TOLERANCE = 1e-9
"""Of evidence on another machine; counts and verdicts are equal everywhere."""


class Compared(NamedTuple):
    """A decision of the log beside the one made anew; either may be missing."""

    tick: int
    event: str | None
    stored: Decision | None
    made: Decision | None

    @property
    def differs(self) -> str | None:
        """What is not the same, None when nothing."""
        if self.stored is None:
            return "not in the log"
        if self.made is None:
            return "not made again"
        for name in self.stored.__struct_fields__:
            old, new = getattr(self.stored, name), getattr(self.made, name)
            if name == "evidence":
                if old.keys() != new.keys() or not all(
                    math.isclose(old[key], new[key], rel_tol=TOLERANCE) for key in old
                ):
                    return f"evidence: {old} in the log, {new} made again"
            elif old != new:
                return f"{name}: {old!r} in the log, {new!r} made again"
        return None


class Replayed(NamedTuple):
    """What a replay came to."""

    state: WatchState
    ticks: int
    decisions: list[Compared]


class Source(NamedTuple):
    """Where to replay from: how a feed is opened at the log's start, and how long silence is not its end."""

    open_feed: Callable[[], Feed]
    quiet_ms: int


def replay(
    source: Source,
    gateway_id: str,
    stored: Sequence[Stored],
    bundles: BundleSource,
    progress: Callable[[int], object] = lambda ticks: None,
) -> Replayed:
    """Fold every stored tick from the log's start.

    Args:
        progress: called with the number of ticks done.

    Raises:
        LogIncomplete: the log does not reach a tick's cut.
    """
    store = Store()
    watch = Watch(bundles, store.join)
    feed = source.open_feed()
    runner = Runner(feed, watch, {}, gateway_sources(gateway_id))
    compared: list[Compared] = []
    try:
        for done, one in enumerate(stored, start=1):
            made = fold(watch, runner, one, source.quiet_ms)
            if not (watch.state.complete or one.missing or watch.left_out):
                msg = f"records of tick {one.tick.number} are gone from the log: it cannot be folded again"
                raise LogIncomplete(msg)
            compared += _paired(one, made)
            progress(done)
    finally:
        feed.close()
        store.close()
    return Replayed(watch.state, len(stored), compared)


def fold(
    watch: Watch, runner: Runner, stored: Stored, wait_ms: int, *, gone_is_missing: bool = False
) -> list[Decision]:
    """Make a tick of the log again: by its settings, to its cuts.

    Args:
        gone_is_missing: what the log does not hold makes the tick incomplete, and is no error. Nor is it where a topic
            said that it holds no more.

    Raises:
        LogIncomplete: the log does not reach them.
    """
    if stored.settings is not None:
        watch.use(stored.settings)
    found = runner.read_to(stored.tick.cuts, wait_ms)
    if not found and (gone_is_missing or runner.has_skipped):
        runner.give_up(stored.tick.cuts)
    elif not found:
        msg = (
            f"the log ends before the cuts of tick {stored.tick.number}: it is not all there (yet);"
            " name the state directory or topic that the tick was made from"
        )
        raise LogIncomplete(msg)
    runner.close()
    if not watch.tally.missing:
        # What a reader lacked then and has now was no evidence, and is none.
        watch.tally.missing += stored.missing
    return watch.close(stored.tick, runner.fate, stored.left_out)


def read_verdicts(feed: Feed, gateway_id: str | None, quiet_ms: int) -> tuple[str, list[Verdict]]:
    """The verdicts of one gateway's sidecars in a whole log (a topic), and the gateway's id.

    Args:
        gateway_id: None takes the only one that has a sidecar in the log.

    Raises:
        LogIncomplete: none, or several to choose from.
    """
    verdicts: list[Verdict] = []
    opened: dict[str, set[int]] = {}
    while any(delivery := feed.read(5000, quiet_ms)):
        for event in delivery.events:
            if isinstance(event, Verdict):
                verdicts.append(event)
            elif isinstance(event, EpochOpen) and event.role == "sidecar":
                opened.setdefault(event.gateway_id, set()).add(_source(event))
    if gateway_id is None:
        if len(opened) != 1:
            names = ", ".join(sorted(opened)) or "none"
            msg = f"expected one gateway with a sidecar in the log, found {names}; name it with --gateway"
            raise LogIncomplete(msg)
        gateway_id = next(iter(opened))
    sources = gateway_sources(gateway_id)
    return gateway_id, [event for event in verdicts if _source(event) in sources]


def stored_of(verdicts: Sequence[Verdict]) -> list[Stored]:
    """Ticks of the log.

    Raises:
        LogIncomplete: there is none, the first ones are gone, or what stands there cannot be read.
    """
    try:
        stored = stored_ticks(verdicts)
    except ValueError as exc:
        raise LogIncomplete(str(exc)) from exc
    numbers = [one.tick.number for one in stored]
    if not numbers:
        msg = "the log holds no tick of a sidecar: start the gateway with sidecar.enabled = true"
        raise LogIncomplete(msg)
    if numbers != list(range(1, len(numbers) + 1)):
        msg = f"ticks 1 to {numbers[-1]} are not all in the log ({len(numbers)} are): older records are gone"
        raise LogIncomplete(msg)
    return stored


def _paired(stored: Stored, made: Sequence[Decision]) -> list[Compared]:
    anew = {(each.model, each.rollout, each.cause): each for each in made}
    pairs = []
    for event_id, decision in stored.decisions:
        key = (decision.model, decision.rollout, decision.cause)
        pairs.append(Compared(stored.tick.number, event_id, decision, anew.pop(key, None)))
    pairs += [Compared(stored.tick.number, None, None, each) for each in anew.values()]
    return pairs


def _source(event: Event) -> int:
    return parse_event_id(event.id).source
