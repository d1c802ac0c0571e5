"""Watch: folds the log tick by tick into evidence, label accuracy and decisions. Pure but for the bundles it reads.

tally -> **watch** -> decide. A tick is the set of events between two cuts of the log. Everything that a tick does
depends on that set and on the state before it, never on the order of reading or on a clock of this machine; so a
replay over the same cuts gives the same counts and verdicts, and a sidecar that died goes on where its state was
committed.

What a tick does, in order: routes; scores of what was answered; evidence of each rollout (canary against the control
beside it, by the logged weight); labels that came due; decisions.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import date, timedelta
from functools import lru_cache, partial
from itertools import chain

import msgspec
import numpy as np

from gateway.audit.event import Control, Event
from gateway.audit.feed import Hole, Skipped
from gateway.audit.identity import parse_event_id
from loaders.bundle import LabelSettings
from shadow import ratio
from shadow.decide import Decision, decide
from shadow.evidence import Evidence
from shadow.harm import MICRO
from shadow.labels import LabelJoin, Matured, Served
from shadow.ratio import Alarm, Ratio
from shadow.readers import BundleSource, Readers
from shadow.rollouts import Rollout, Rollouts
from shadow.state import Accuracy, Settings, Tick, WatchState
from shadow.steps import EVERY, LEFT_OUT_MAX, StepBroken, Steps, word
from shadow.tally import Answered, ArmKey, ArmTally, Scored, Tally, VersionKey, scored

log = logging.getLogger("tidegate.sidecar")

DAY_NS = 86_400 * 1_000_000_000
DECISIONS_MAX = 50
"""At one tick, which is one frame of the log; what is left is decided at the next."""
CLOCK_EVENTS = 5
"""So many set the clock."""
GONE_NS = DAY_NS
"""A worker's records that end so long before the others' end for good, though nothing says so."""


class Watch:
    """Folds events.

    Args:
        join: where predictions wait for labels; committed by the caller together with `state`.

    Threading: one thread. Cost: about 10 us an event to take and 10 to fold, 60 more over the life of one
    that labels are declared for.
    """

    def __init__(self, bundles: BundleSource, join: LabelJoin, state: WatchState | None = None) -> None:
        self.state = state if state is not None else WatchState()
        self._readers = Readers(bundles)
        self._evidence = Evidence(self.state, self._readers)
        self._join = join
        self._tally = self._fresh_tally()
        self.left_out: tuple[str, ...] = ()
        """Steps that broke on the last tick."""
        self.alarms: list[Alarm] = []
        """Models of which the last tick showed that traffic is not split as their route says."""

    def use(self, settings: Settings) -> None:
        """Go by other settings from this tick on; nothing may have been taken for it yet."""
        self.state.settings = settings
        self._tally = self._fresh_tally()

    def _fresh_tally(self) -> Tally:
        settings = self.state.settings
        return Tally(settings.clock, settings.trusts_keys)

    @property
    def tally(self) -> Tally:
        """What has been taken since the last cut."""
        return self._tally

    def take(self, event: Event) -> None:
        """Add an event to the open tick."""
        self._tally.take(event)

    def take_hole(self, hole: Hole) -> None:
        """Add missing numbers to the open tick."""
        self._tally.take_hole(hole)

    def take_skipped(self, skipped: Skipped) -> None:
        """Add records that are gone, whichever they were, to the open tick."""
        self._tally.take_skipped(skipped)

    @property
    def lacks_routes(self) -> bool:
        """Whether a prediction was read before the control event of its revision: read on before the cut."""
        rollouts = self.state.rollouts
        unknown = {pair for pair in self._tally.revisions if not rollouts.knows(*pair)}
        if not unknown:
            return False
        fresh = Rollouts()
        for event in self._tally.controls:
            fresh.apply(event)
        return any(not fresh.knows(*pair) for pair in unknown)

    def close(
        self, tick: Tick, fate: Callable[[str], str | None], left_out: Iterable[str] = ()
    ) -> list[Decision]:
        """End the open tick: fold it and decide. A step that breaks on it is left out (see `shadow.steps`), and with
        it the tick's evidence, as if records were missing.

        Args:
            fate: of a label whose prediction does not wait (`Runner.fate`).
            left_out: steps that were left out when the tick was first made.

        Raises:
            sqlite3.Error, OSError, MemoryError: no fault of what the tick holds; it can be made again.
        """
        tally, broken = self._tally, {*left_out}
        self._tally = self._fresh_tally()
        before = msgspec.msgpack.encode(self.state)
        self._join.begin()
        made: list[Decision] | None = None
        while made is None:
            try:
                made = self._fold(tick, tally, fate, broken)
            except StepBroken as exc:
                broken.add(EVERY if len(broken) >= LEFT_OUT_MAX else exc.step)
                facts = {"tick": tick.number, "step": exc.step, "why": repr(exc.__cause__)[:300]}
                log.error("step_left_out", extra=facts, exc_info=exc.__cause__)
                self._join.roll_back()
                kept = msgspec.msgpack.decode(before, type=WatchState)
                for name in kept.__struct_fields__:
                    setattr(self.state, name, getattr(kept, name))
        self._join.end()
        self.left_out = tuple(sorted(broken))
        return made

    def _fold(
        self, tick: Tick, tally: Tally, fate: Callable[[str], str | None], broken: set[str]
    ) -> list[Decision]:
        """One try at a tick, without the steps that are broken."""
        state, steps = self.state, Steps(broken)
        state.tick = tick.number
        state.complete = not tally.missing and not broken
        state.incomplete_ticks += not state.complete
        _count(state.left_out, Counter(word(step) for step in broken))
        _count(state.counts, tally.counts)
        steps.do("clock", None, lambda: self._set_clock(tally.times))
        steps.do("routes", None, lambda: self._apply(tally.controls))
        self.alarms = steps.do("ratio", [], lambda: self._compare_split(tally, tick.at_ns))
        answers: dict[VersionKey, list[Scored]] = {
            key: steps.do(f"read {key.model}/{key.version}", [], partial(self._read, key, answered))
            for key, answered in sorted(tally.answered.items())
        }
        if state.complete:
            steps.do("arms", None, lambda: self._evidence.fold_arms(tally, tick.at_ns))
            steps.do("shift", None, lambda: self._evidence.fold_shift(chain(*answers.values())))
        for key, scored_ in answers.items():
            serve = partial(self._serve, key, scored_)
            outcomes: Counter[str] = steps.do(f"serve {key.model}/{key.version}", Counter(), serve)
            state.not_joined += outcomes.pop("not_joined", 0)
            _count(state.labels, outcomes)
        _count(state.labels, steps.do("label", Counter(), lambda: self._label(tally, fate)))
        steps.do("mature", None, self._mature)
        if steps.leaves_out("mature"):
            self._join.forget_due(state.clock_ns)
        made: list[Decision] = []
        for rollout in state.rollouts.active:
            if len(made) >= DECISIONS_MAX:
                break
            name = f"decide {rollout.model}/{rollout.number}"
            made += steps.do(name, [], partial(self._decide, rollout, tick))
        return made

    def _apply(self, controls: Iterable[Control]) -> None:
        for event in sorted(controls, key=lambda each: _order(each.id)):
            self.state.rollouts.apply(event)

    def _compare_split(self, tally: Tally, at_ns: int) -> list[Alarm]:
        """Hold what was drawn against the weights; where it cannot be, no verdict on that model follows any more."""
        state, alarms = self.state, []
        for event in tally.controls:
            if event.kind == "breaker" and event.model is not None and event.revision is not None:
                document = state.rollouts.document(event.model, event.revision)
                if document is not None:
                    ratio.pause(state.ratios.setdefault(event.model, Ratio()), document)
        lost = {model for death in tally.aborted.values() for model, _ in death}
        read_ns = self._read_until_ns(tally, at_ns)
        for model in sorted({*state.ratios, *tally.draws}):
            found = state.ratios.setdefault(model, Ratio())
            documents = state.rollouts.documents.get(model, {})
            if not state.complete or model in lost:
                ratio.forget(found, at_ns)
                continue
            ratio.hold(found, tally.draws.get(model, {}), documents)
            alarm = ratio.fold(found, model, read_ns, documents)
            if alarm is not None:
                alarms.append(alarm)
                for rollout in state.rollouts.active:
                    rollout.suspended = rollout.suspended or rollout.model == model
        return alarms

    def _read_until_ns(self, tally: Tally, at_ns: int) -> int:
        """The time up to which the log of every worker that draws was read. Whoever has much to catch up on makes its
        ticks long after the records, and what came with the last of them is not read yet."""
        known = self.state.read_ns
        for source, newest_ns in sorted(tally.read_ns.items()):
            if source in known or source in tally.drew:
                known[source] = max(known.get(source, 0), min(newest_ns, at_ns))
        gone_ns = max(known.values(), default=0) - GONE_NS
        found = [ns for ns in known.values() if ns >= gone_ns]
        # Of a closed one what comes next, if anything, is a successor's: known by its first draw.
        self.state.read_ns = {s: ns for s, ns in known.items() if ns >= gone_ns and s not in tally.closed}
        return min(found, default=at_ns)

    def _set_clock(self, times: list[int]) -> None:
        """The median of what came, once that is enough: no single event moves the clock, and what was wrong for a
        moment is right again with the next ones."""
        state, waiting = self.state, sorted([*self.state.times, *times])
        is_enough = len(waiting) >= CLOCK_EVENTS
        if waiting and (is_enough or not state.clock_ns):
            state.clock_ns = waiting[(len(waiting) - 1) // 2]
        state.times = [] if is_enough else waiting

    # --- answers ---------------------------------------------------------------------------

    def _read(self, key: VersionKey, answered: list[Answered]) -> list[Scored]:
        self.state.trees.setdefault(key.model, {})[key.version] = key.tree_sha256
        found = list(scored(answered, self._readers.outputs(key)))
        self.state.unread_scores += len(answered) - len(found)
        return found

    def _serve(self, key: VersionKey, answers: list[Scored]) -> Counter[str]:
        """Let predictions wait that labels are declared for."""
        labels = self._readers.settings(key).labels
        return Counter() if labels is None else self._join.serve(list(self._served(key, labels, answers)))

    def _served(self, key: VersionKey, labels: LabelSettings, answers: list[Scored]) -> Iterator[Served]:
        """Their time is the clock's where they name none. Those of a tick that misses records are judged for accuracy
        and prove nothing: what is missing need not be missing evenly."""
        is_class = labels.kind == "class"
        for each in answers:
            predicted = each.classes if is_class else each.scores
            if predicted is None:
                continue
            answered = each.answered
            at_ns = answered.at_ns or self.state.clock_ns
            arm = answered.arm if self.state.complete else None
            yield Served(
                id=answered.id,
                due_ns=at_ns + labels.maturity_s * 1_000_000_000,
                at_ns=at_ns,
                received_ns=answered.received_ns,
                model=key.model,
                version=key.version,
                revision=answered.revision,
                assigned=arm.assigned if arm else None,
                weight_bp=arm.weight_bp if arm else None,
                unit=answered.unit,
                is_class=is_class,
                predicted=predicted.astype(np.float64),
            )

    # --- labels ----------------------------------------------------------------------------

    def _label(self, tally: Tally, fate: Callable[[str], str | None]) -> Counter[str]:
        declared = {model: self._declares_labels(model) for model in {label.model for label in tally.labels}}
        joined = [label for label in tally.labels if declared[label.model]]
        outcomes = self._join.label(joined, self.state.clock_ns, fate)
        outcomes["undeclared"] += len(tally.labels) - len(joined)
        outcomes["unknown"] += self._join.expire(self.state.clock_ns)
        for outcome in ("wrong_type", "wrong_row"):
            outcomes[outcome] += tally.counts.get(f"label_{outcome}", 0)
        return +outcomes

    def _declares_labels(self, model: str) -> bool:
        """Whether a version that answered declares labels; taken to be so while none has."""
        trees = self.state.trees.get(model, {})
        keys = [VersionKey(model, version, tree) for version, tree in trees.items()]
        return not keys or any(self._readers.settings(key).labels is not None for key in keys)

    def _mature(self) -> None:
        arms: dict[ArmKey, ArmTally] = {}
        due: dict[ArmKey, int] = {}
        for matured in self._join.mature(self.state.clock_ns):
            served, judged = matured.served, self._account(matured)
            if judged is None or served.assigned is None or served.weight_bp is None:
                continue
            key = ArmKey(served.model, served.revision, served.assigned, served.weight_bp)
            weight = MICRO // len(matured.labels)
            due[key] = due.get(key, 0) + weight * len(matured.labels)
            if judged[0]:
                tally = arms.setdefault(key, ArmTally())
                tally.requests += weight * judged[0]
                if judged[1]:
                    tally.hit("wrong", served.unit, weight * judged[1])
        self._evidence.fold_wrong(arms, due)

    def _account(self, matured: Matured) -> tuple[int, int] | None:
        """Count into the week's accuracy; of classes the labelled rows and the wrong ones, None for values."""
        served, labels = matured
        weeks = self.state.accuracy.setdefault(served.model, {}).setdefault(served.version, {})
        week = weeks.setdefault(week_of(served.at_ns), Accuracy())
        rows, said = len(labels), served.predicted
        unlabelled = np.isnan(labels)
        missing = int(np.count_nonzero(unlabelled))
        week.rows += rows
        week.unlabelled += missing
        if missing == rows:
            return (0, 0) if served.is_class else None
        if missing:
            labels, said = labels[~unlabelled], said[~unlabelled]
        if not served.is_class:
            week.absolute_error += float(np.abs(labels - said).sum())
            return None
        wrong = int(np.count_nonzero(labels != said))
        week.wrong += wrong
        return rows - missing, wrong

    # --- decisions -------------------------------------------------------------------------

    def _decide(self, rollout: Rollout, tick: Tick) -> list[Decision]:
        document = self.state.rollouts.latest(rollout.model)
        if document is None:
            return []
        policy = self.state.settings.policy_of(rollout.model)
        return decide(rollout, document, policy, tick.number, self._evidence.output(rollout))


def _count(counts: dict[str, int], more: Counter[str]) -> None:
    for name, count in sorted(more.items()):
        counts[name] = counts.get(name, 0) + count


def week_of(at_ns: int) -> str:
    """The Monday of a time's week, UTC, as a date."""
    return _monday(at_ns // DAY_NS)


@lru_cache(maxsize=1024)
def _monday(day: int) -> str:
    at = date(1970, 1, 1) + timedelta(days=day)
    return (at - timedelta(days=at.weekday())).isoformat()


def _order(event_id: str) -> tuple[int, int]:
    """Control's epochs do not overlap: order by epoch, then number."""
    which = parse_event_id(event_id)
    return which.epoch, which.seq
