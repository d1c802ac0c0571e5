"""Watch: folds the log tick by tick into evidence, label accuracy and decisions. Pure but for the bundles it reads.

tally -> **watch** -> decide. A tick is the set of events between two cuts of the log. Everything that a tick does
depends on that set and on the state before it, never on the order of reading or on a clock of this machine; so a
replay over the same cuts gives the same counts and verdicts, and a sidecar that died goes on where its state was
committed.

What a tick does, in order: routes; scores of what was answered; evidence of each rollout (canary against the control
beside it, by the logged weight); labels that came due; decisions.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import date, timedelta
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gateway.audit.event import Event
from gateway.audit.feed import Hole
from gateway.audit.identity import parse_event_id
from loaders.bundle import BundleSettings
from shadow.decide import Decision, decide
from shadow.detectors.bins import CONTROL_ROWS, ScoreBins
from shadow.detectors.relative import ShiftCounts, ShiftEvidence
from shadow.harm import MICRO, ArmCounts
from shadow.labels import LabelJoin, Matured, Served
from shadow.outputs import OutputReader
from shadow.rollouts import RECENT_NS, Arm, Document, Recent, Rollout, Rollouts
from shadow.state import Accuracy, Settings, WatchState
from shadow.tally import ArmKey, ArmTally, Scored, Tally, VersionKey, scored

DAY_NS = 86_400 * 1_000_000_000
CLOCK_EVENTS = 5
"""So many set the clock."""
SCORE_MAX = 1e100
"""Beyond it a score is none."""


class ReferenceRows(Protocol):
    """What a bundle's reference file says."""

    @property
    def scores(self) -> NDArray[np.float64]:
        """The version's scores on its reference rows."""
        ...


class BundleSource(Protocol):
    """Where bundles are read; see `shadow.bundles`."""

    def settings(self, model: str, version: str, tree_sha256: str) -> BundleSettings | None:
        """bundle.toml of the version with that digest, None when it is not there (any more)."""
        ...

    def reference(self, model: str, version: str, tree_sha256: str) -> ReferenceRows | None:
        """Its reference rows, None when it has none."""
        ...


class Tick(NamedTuple):
    """One tick's own facts. `cuts` is for each (source, epoch) that moved: [first seq, next seq)."""

    number: int
    at_ns: int
    cuts: dict[str, tuple[int, int]]


class Watch:
    """Folds events.

    Args:
        join: where predictions wait for labels; committed by the caller together with `state`.

    Threading: one thread. Cost: about 10 us an event to take and 10 to fold, 60 more over the life of one
    that labels are declared for.
    """

    def __init__(self, bundles: BundleSource, join: LabelJoin, state: WatchState | None = None) -> None:
        self.state = state if state is not None else WatchState()
        self._bundles = bundles
        self._join = join
        self._tally = Tally(self.state.settings.clock)
        self._readers: dict[VersionKey, tuple[OutputReader, BundleSettings]] = {}

    def use(self, settings: Settings) -> None:
        """Go by other settings from this tick on; nothing may have been taken for it yet."""
        self.state.settings = settings
        self._tally = Tally(settings.clock)

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
        self._tally = Tally(state.settings.clock)
        state.tick = tick.number
        self._set_clock(tally.times)
        for kind, count in sorted(tally.counts.items()):
            state.counts[kind] = state.counts.get(kind, 0) + count
        for event in sorted(tally.controls, key=lambda each: _order(each.id)):
            state.rollouts.apply(event)
        answers = list(self._read(tally))
        state.complete = not tally.missing
        if state.complete:
            self._fold_arms(tally.arms, tick)
            self._fold_shift(answers)
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

    def _reader(self, key: VersionKey) -> tuple[OutputReader, BundleSettings]:
        made = self._readers.get(key)
        if made is None:
            settings = self._bundles.settings(*key)
            settings = BundleSettings() if settings is None else settings
            made = self._readers[key] = (OutputReader(settings), settings)
        return made

    def _read(self, tally: Tally) -> Iterator[tuple[VersionKey, Scored]]:
        for key in sorted(tally.answered):
            answered = tally.answered[key]
            self.state.trees.setdefault(key.model, {})[key.version] = key.tree_sha256
            read = 0
            for each in scored(answered, self._reader(key)[0]):
                read += 1
                yield key, each
            self.state.unread_scores += len(answered) - read

    def _served(self, answers: Iterable[tuple[VersionKey, Scored]]) -> Iterator[Served]:
        """Predictions that labels are declared for; their time is the clock's where they name none."""
        for key, each in answers:
            labels = self._reader(key)[1].labels
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

    # --- evidence --------------------------------------------------------------------------

    def _pairs(self, keys: Iterable[ArmKey]) -> Iterator[tuple[Rollout, ArmKey, ArmKey, int]]:
        """Each rollout with its canary's and its control's arm at the weights that the route declares.

        An arm at another weight was drawn while a lease had run out: there was no canary beside it.
        """
        for model, revision in sorted({(key.model, key.revision) for key in keys}):
            document = self.state.rollouts.document(model, revision)
            if document is None or not document.primary.weight_bp:
                continue
            control = _arm_key(document, document.primary)
            for canary in document.canaries:
                rollout = self.state.rollouts.on_trial(document, canary)
                if rollout is not None:
                    share = round(10_000 * canary.weight_bp / (canary.weight_bp + control.weight_bp))
                    yield rollout, _arm_key(document, canary), control, min(max(share, 1), 9_999)

    def _fold_arms(self, arms: dict[ArmKey, ArmTally], tick: Tick) -> None:
        parts: dict[tuple[int, str], tuple[Rollout, list[ArmCounts]]] = {}
        none = ArmTally()
        for rollout, canary_key, control_key, share in self._pairs(arms):
            canary, control = arms.get(canary_key, none), arms.get(control_key, none)
            rollout.requests += canary.requests // MICRO
            for kind in ("failed", "nonfinite"):
                bad = rollout.newly_bad(kind, canary.bad.get(kind, {}), control.bad.get(kind, {}))
                counts = ArmCounts(share, canary.requests, bad[0], control.requests, bad[1])
                parts.setdefault((id(rollout), kind), (rollout, []))[1].append(counts)
            bad = rollout.newly_bad(
                "hard",
                *({u: w for of in arm.bad.values() for u, w in of.items()} for arm in (canary, control)),
            )
            both = ArmCounts(share, canary.requests, bad[0], control.requests, bad[1])
            rollout.recent.append(Recent(tick.at_ns, both))
        for (_, kind), (rollout, counts_of) in parts.items():
            rollout.evidence[kind].fold_tick(counts_of, self._margin(rollout))
        for rollout in self.state.rollouts.active:
            rollout.recent = [r for r in rollout.recent if tick.at_ns - RECENT_NS < r.at_ns <= tick.at_ns]

    def _fold_shift(self, answers: list[tuple[VersionKey, Scored]]) -> None:
        by_arm: dict[ArmKey, list[Scored]] = defaultdict(list)
        for _, each in answers:
            if each.answered.arm is not None:
                by_arm[each.answered.arm].append(each)
        parts: dict[int, tuple[Rollout, list[ShiftCounts]]] = {}
        for rollout, canary_key, control_key, share in self._pairs(by_arm):
            canary, control = by_arm.get(canary_key, []), by_arm.get(control_key, [])
            if rollout.bins is None:
                rollout.bins = self._make_bins(rollout, control)
                if rollout.bins is None:
                    continue
                rollout.shift = ShiftEvidence(rollout.bins.scores)
                rollout.first_scores = []
                if rollout.bins.source == "control":
                    # The rows that made the bins prove nothing; those of a reference were there before.
                    continue
            counts = ShiftCounts(share, _binned(rollout.bins, canary), _binned(rollout.bins, control))
            parts.setdefault(id(rollout), (rollout, []))[1].append(counts)
        for rollout, counts_of in parts.values():
            if rollout.shift is not None:
                rollout.shift.fold_tick(counts_of, self._allowed_sd(rollout))

    def _make_bins(self, rollout: Rollout, control: list[Scored]) -> ScoreBins | None:
        tree = self.state.trees.get(rollout.model, {}).get(rollout.control_version, "")
        reference = self._bundles.reference(rollout.model, rollout.control_version, tree)
        if reference is not None and _usable(reference.scores).any():
            return ScoreBins.from_reference(np.asarray(reference.scores, dtype=np.float64))
        for each in sorted(control, key=lambda one: (one.answered.at_ns, one.answered.id)):
            left = CONTROL_ROWS - len(rollout.first_scores)
            rollout.first_scores += [float(score) for score in each.scores[_usable(each.scores)][:left]]
        if len(rollout.first_scores) < CONTROL_ROWS:
            return None
        return ScoreBins.from_control(np.array(rollout.first_scores))

    def _margin(self, rollout: Rollout) -> float:
        return self.state.settings.policy_of(rollout.model).harm_margin

    def _allowed_sd(self, rollout: Rollout) -> float:
        policy = self.state.settings.policy_of(rollout.model)
        return policy.shift_sd(rollout.version, self._output(rollout))

    def _output(self, rollout: Rollout) -> str:
        """The output whose score is compared."""
        tree = self.state.trees.get(rollout.model, {}).get(rollout.control_version, "")
        outputs = self._reader(VersionKey(rollout.model, rollout.control_version, tree))[1].outputs
        named = [name for name, output in outputs.items() if output.decision is not None]
        named += [name for name, output in outputs.items() if output.kind != "label"]
        return named[0] if named else "score"

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
        return not keys or any(self._reader(key)[1].labels is not None for key in keys)

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
        if not self.state.complete:
            return
        parts: dict[int, tuple[Rollout, list[ArmCounts]]] = {}
        none = ArmTally()
        for rollout, canary_key, control_key, share in self._pairs(arms):
            canary, control = arms.get(canary_key, none), arms.get(control_key, none)
            bad = rollout.newly_bad("wrong", canary.bad.get("wrong", {}), control.bad.get("wrong", {}))
            counts = ArmCounts(share, canary.requests, bad[0], control.requests, bad[1])
            parts.setdefault(id(rollout), (rollout, []))[1].append(counts)
        for rollout, counts_of in parts.values():
            rollout.evidence["wrong"].fold_tick(counts_of, self._margin(rollout))

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
                made += decide(rollout, document, policy, tick.number, self._output(rollout))
        return made


def week_of(at_ns: int) -> str:
    """The Monday of a time's week, UTC, as a date."""
    return _monday(at_ns // DAY_NS)


@lru_cache(maxsize=1024)
def _monday(day: int) -> str:
    at = date(1970, 1, 1) + timedelta(days=day)
    return (at - timedelta(days=at.weekday())).isoformat()


def _arm_key(document: Document, arm: Arm) -> ArmKey:
    return ArmKey(document.model, document.revision, arm.name, arm.weight_bp)


def _order(event_id: str) -> tuple[int, int]:
    """Control's epochs do not overlap: order by epoch, then number."""
    which = parse_event_id(event_id)
    return which.epoch, which.seq


def _usable(scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Scores that bins can be made of."""
    return np.abs(scores) < SCORE_MAX


def _binned(bins: ScoreBins, answers: list[Scored]) -> list[int]:
    """Micro-rows by bin: a request weighs as one whatever its rows, and so do all of a sticky caller in a tick."""
    if not answers:
        return [0] * len(bins.scores)
    requests = Counter(each.answered.unit for each in answers)
    weights = [MICRO // (len(each.scores) * requests[each.answered.unit]) for each in answers]
    row_weights = np.repeat(np.array(weights), [len(each.scores) for each in answers])
    return [int(n) for n in bins.tally(np.concatenate([each.scores for each in answers]), row_weights)]
