"""Watch: folds the log tick by tick into evidence, label accuracy and decisions. Pure but for the bundles it reads.

tally -> **watch** -> decide. A tick is the set of events between two cuts of the log. Everything that a tick does
depends on that set and on the state before it, never on the order of reading or on a clock of this machine; so a
replay over the same cuts gives the same counts and verdicts, and a sidecar that died goes on where its state was
committed.

What a tick does, in order: routes; scores of what was answered; evidence of each rollout (canary against the control
beside it, by the logged weight); labels that came due; decisions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import date, timedelta
from functools import lru_cache

import numpy as np

from gateway.audit.event import Event
from gateway.audit.feed import Hole
from gateway.audit.identity import parse_event_id
from shadow.decide import Decision, decide
from shadow.evidence import Evidence
from shadow.harm import MICRO
from shadow.labels import LabelJoin, Matured, Served
from shadow.readers import BundleSource, Readers
from shadow.rollouts import Rollouts
from shadow.state import Accuracy, Settings, Tick, WatchState
from shadow.tally import ArmKey, ArmTally, Scored, Tally, VersionKey, scored

DAY_NS = 86_400 * 1_000_000_000
CLOCK_EVENTS = 5
"""So many set the clock."""


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

    def close(self, tick: Tick, fate: Callable[[str], str | None]) -> list[Decision]:
        """End the open tick: fold it and decide.

        Args:
            fate: of a label whose prediction does not wait (`Runner.fate`).
        """
        tally, state = self._tally, self.state
        self._tally = self._fresh_tally()
        state.tick = tick.number
        self._set_clock(tally.times)
        for kind, count in sorted(tally.counts.items()):
            state.counts[kind] = state.counts.get(kind, 0) + count
        for event in sorted(tally.controls, key=lambda each: _order(each.id)):
            state.rollouts.apply(event)
        answers = list(self._read(tally))
        state.complete = not tally.missing
        if state.complete:
            self._evidence.fold_arms(tally, tick.at_ns)
            self._evidence.fold_shift(answers)
        else:
            state.incomplete_ticks += 1
        outcomes = self._join.serve(list(self._served(answers)))
        outcomes += self._label(tally, fate)
        for outcome, count in sorted(outcomes.items()):
            state.labels[outcome] = state.labels.get(outcome, 0) + count
        self._mature()
        return self._decide(tick)

    def _set_clock(self, times: list[int]) -> None:
        """The median of what came, once that is enough: no single event moves the clock, and what was wrong for a
        moment is right again with the next ones."""
        state, waiting = self.state, sorted([*self.state.times, *times])
        is_enough = len(waiting) >= CLOCK_EVENTS
        if waiting and (is_enough or not state.clock_ns):
            state.clock_ns = waiting[(len(waiting) - 1) // 2]
        state.times = [] if is_enough else waiting

    # --- answers ---------------------------------------------------------------------------

    def _read(self, tally: Tally) -> Iterator[tuple[VersionKey, Scored]]:
        for key in sorted(tally.answered):
            answered = tally.answered[key]
            self.state.trees.setdefault(key.model, {})[key.version] = key.tree_sha256
            read = 0
            for each in scored(answered, self._readers.outputs(key)):
                read += 1
                yield key, each
            self.state.unread_scores += len(answered) - read

    def _served(self, answers: Iterable[tuple[VersionKey, Scored]]) -> Iterator[Served]:
        """Predictions that labels are declared for; their time is the clock's where they name none."""
        for key, each in answers:
            labels = self._readers.settings(key).labels
            if labels is None:
                continue
            is_class = labels.kind == "class"
            predicted = each.classes if is_class else each.scores
            if predicted is None:
                continue
            answered = each.answered
            at_ns = answered.at_ns or self.state.clock_ns
            yield Served(
                id=answered.id,
                due_ns=at_ns + labels.maturity_s * 1_000_000_000,
                at_ns=at_ns,
                model=key.model,
                version=key.version,
                revision=answered.revision,
                assigned=answered.arm.assigned if answered.arm else None,
                weight_bp=answered.arm.weight_bp if answered.arm else None,
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
        for matured in self._join.mature(self.state.clock_ns):
            served, judged = matured.served, self._account(matured)
            if judged is not None and served.assigned is not None and served.weight_bp is not None:
                key = ArmKey(served.model, served.revision, served.assigned, served.weight_bp)
                weight = MICRO // len(matured.labels)
                tally = arms.setdefault(key, ArmTally())
                tally.requests += weight * judged[0]
                if judged[1]:
                    tally.hit("wrong", served.unit, weight * judged[1])
        if self.state.complete:
            self._evidence.fold_wrong(arms)

    def _account(self, matured: Matured) -> tuple[int, int] | None:
        """Count into the week's accuracy; of classes the rows that are labelled and those that are wrong."""
        served, labels = matured
        weeks = self.state.accuracy.setdefault(served.model, {}).setdefault(served.version, {})
        week = weeks.setdefault(week_of(served.at_ns), Accuracy())
        rows, said = len(labels), served.predicted
        unlabelled = np.isnan(labels)
        missing = int(np.count_nonzero(unlabelled))
        week.rows += rows
        week.unlabelled += missing
        if missing == rows:
            return None
        if missing:
            labels, said = labels[~unlabelled], said[~unlabelled]
        if not served.is_class:
            week.absolute_error += float(np.abs(labels - said).sum())
            return None
        wrong = int(np.count_nonzero(labels != said))
        week.wrong += wrong
        return rows - missing, wrong

    # --- decisions -------------------------------------------------------------------------

    def _decide(self, tick: Tick) -> list[Decision]:
        made: list[Decision] = []
        for rollout in self.state.rollouts.active:
            document = self.state.rollouts.latest(rollout.model)
            if document is not None:
                policy = self.state.settings.policy_of(rollout.model)
                made += decide(rollout, document, policy, tick.number, self._evidence.output(rollout))
        return made


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
