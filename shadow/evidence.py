"""Evidence: folds what one tick holds into the rollouts on trial, canary against the control beside it. Watch stage.

tally -> **evidence** -> decide. Which arms stood beside each other, and at what share, comes from the route of the
revision that the requests name; what they did comes from the tally. A tick that misses records is never folded.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from shadow.bundles import SCORE_MAX
from shadow.detectors.bins import CONTROL_ROWS, ScoreBins
from shadow.detectors.relative import ShiftCounts, ShiftEvidence
from shadow.documents import Arm, Document
from shadow.harm import MICRO, ArmCounts
from shadow.readers import Readers
from shadow.rollouts import RECENT_NS, Recent, Rollout
from shadow.state import WatchState
from shadow.tally import ArmKey, ArmTally, Scored, Tally, VersionKey


class Evidence:
    """Folds ticks into the rollouts of a state.

    Args:
        state: changed in place.

    Threading: one thread.
    """

    def __init__(self, state: WatchState, readers: Readers) -> None:
        self._state = state
        self._readers = readers

    def fold_arms(self, tally: Tally, at_ns: int) -> None:
        """Failures and answers that are not finite, of requests drawn by weight, in the tick of `at_ns`."""
        parts: dict[tuple[int, str], tuple[Rollout, list[ArmCounts]]] = {}
        none = ArmTally()
        arms = self._with_aborted(tally)
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
            rollout.recent.append(Recent(at_ns, both))
        for (_, kind), (rollout, counts_of) in parts.items():
            rollout.evidence[kind].fold_tick(counts_of, self._margin(rollout))
        for rollout in self._state.rollouts.active:
            rollout.recent = [r for r in rollout.recent if at_ns - RECENT_NS < r.at_ns <= at_ns]

    def _with_aborted(self, tally: Tally) -> dict[ArmKey, ArmTally]:
        """The arms, and what died with workers as failed requests of the newest route's arms.

        All that died at once weighs as one request, shared by who had a part in it: it was one event, and whoever is
        the primary of a killed worker has most of it. So deaths from outside fall on arms by weight.
        """
        arms = dict(tally.arms)
        for death, lost in sorted(tally.aborted.items()):
            for model in sorted({name for name, _ in lost}):
                document = self._state.rollouts.latest(model)
                if document is None:
                    continue
                on_trial = {arm.version: arm for arm in (*document.canaries, document.primary)}
                dead = {version: lost[model, version] for version in on_trial if lost[model, version]}
                for version, count in sorted(dead.items()):
                    key = _arm_key(document, on_trial[version])
                    arms[key] = arm = arms[key].copy() if key in arms else ArmTally()
                    weight = MICRO * count // sum(dead.values())
                    arm.requests += weight
                    arm.hit("failed", f"{death}-", weight)
        return arms

    def fold_shift(self, answers: Iterable[Scored]) -> None:
        """Scores of what was answered."""
        by_arm: dict[ArmKey, list[Scored]] = defaultdict(list)
        for each in answers:
            if each.answered.arm is not None:
                by_arm[each.answered.arm].append(each)
        parts: dict[int, tuple[Rollout, list[ShiftCounts]]] = {}
        for rollout, canary_key, control_key, share in self._pairs(by_arm):
            canary, control = by_arm.get(canary_key, []), by_arm.get(control_key, [])
            keyed = {each.answered.unit for each in (*canary, *control) if each.answered.is_keyed}
            if keyed:
                canary, control = _once(rollout.newly_seen(keyed), canary, control)
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

    def fold_wrong(self, arms: dict[ArmKey, ArmTally], due: dict[ArmKey, int]) -> None:
        """Classes that turned out wrong, of predictions whose labels came due.

        Args:
            due: micro-requests that came due, labelled or not.
        """
        parts: dict[int, tuple[Rollout, list[ArmCounts]]] = {}
        none = ArmTally()
        for rollout, canary_key, control_key, share in self._pairs(arms):
            canary, control = arms.get(canary_key, none), arms.get(control_key, none)
            rollout.labelled.canary += canary.requests
            rollout.labelled.control += control.requests
            bad = rollout.newly_bad("wrong", canary.bad.get("wrong", {}), control.bad.get("wrong", {}))
            counts = ArmCounts(share, canary.requests, bad[0], control.requests, bad[1])
            parts.setdefault(id(rollout), (rollout, []))[1].append(counts)
        for rollout, canary_key, control_key, _ in self._pairs(due):
            rollout.labelled.canary_due += due.get(canary_key, 0)
            rollout.labelled.control_due += due.get(control_key, 0)
        for rollout, counts_of in parts.values():
            rollout.evidence["wrong"].fold_tick(counts_of, self._margin(rollout))

    def output(self, rollout: Rollout) -> str:
        """The output whose score is compared."""
        outputs = self._readers.settings(self._control_key(rollout)).outputs
        named = [name for name, output in outputs.items() if output.decision is not None]
        named += [name for name, output in outputs.items() if output.kind != "label"]
        return named[0] if named else "score"

    def _pairs(self, keys: Iterable[ArmKey]) -> Iterator[tuple[Rollout, ArmKey, ArmKey, int]]:
        """Each rollout with its canary's and its control's arm at the weights that the route declares.

        An arm at another weight was drawn while a lease had run out: there was no canary beside it.
        """
        for model, revision in sorted({(key.model, key.revision) for key in keys}):
            document = self._state.rollouts.document(model, revision)
            if document is None or not document.primary.weight_bp:
                continue
            control = _arm_key(document, document.primary)
            for canary in document.canaries:
                rollout = self._state.rollouts.on_trial(document, canary)
                if rollout is not None:
                    share = round(10_000 * canary.weight_bp / (canary.weight_bp + control.weight_bp))
                    yield rollout, _arm_key(document, canary), control, min(max(share, 1), 9_999)

    def _make_bins(self, rollout: Rollout, control: list[Scored]) -> ScoreBins | None:
        reference = self._readers.reference(self._control_key(rollout))
        if reference is not None and _usable(reference.scores).any():
            return _bins_of(ScoreBins.from_reference, reference.scores)
        for each in sorted(control, key=lambda one: (one.answered.at_ns, one.answered.id)):
            left = CONTROL_ROWS - len(rollout.first_scores)
            rollout.first_scores += [float(score) for score in each.scores[_usable(each.scores)][:left]]
        if len(rollout.first_scores) < CONTROL_ROWS:
            return None
        return _bins_of(ScoreBins.from_control, rollout.first_scores)

    def _margin(self, rollout: Rollout) -> float:
        return self._state.settings.policy_of(rollout.model).harm_margin

    def _allowed_sd(self, rollout: Rollout) -> float:
        policy = self._state.settings.policy_of(rollout.model)
        return policy.shift_sd(rollout.version, self.output(rollout))

    def _control_key(self, rollout: Rollout) -> VersionKey:
        tree = self._state.trees.get(rollout.model, {}).get(rollout.control_version, "")
        return VersionKey(rollout.model, rollout.control_version, tree)


def _arm_key(document: Document, arm: Arm) -> ArmKey:
    return ArmKey(document.model, document.revision, arm.name, arm.weight_bp)


def _usable(scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Scores that bins can be made of."""
    return np.abs(scores) < SCORE_MAX


def _bins_of(
    make: Callable[[NDArray[np.float64]], ScoreBins], scores: Sequence[float] | NDArray[np.float64]
) -> ScoreBins | None:
    """Bins, None where the scores have no unit: there is no evidence of shift then."""
    try:
        with np.errstate(all="ignore"):
            made = make(np.asarray(scores, dtype=np.float64))
    except ValueError:
        return None
    return made if np.isfinite([*made.edges, *made.scores, made.mean, made.sd]).all() else None


def _once(fresh: frozenset[str], *arms: list[Scored]) -> list[list[Scored]]:
    """A routing key was drawn once, however often it comes back: its rows count in the tick that saw it first."""
    return [
        [each for each in arm if not each.answered.is_keyed or each.answered.unit in fresh] for arm in arms
    ]


def _binned(bins: ScoreBins, answers: list[Scored]) -> list[int]:
    """Micro-rows by bin: a request weighs as one whatever its rows, and so do all of a sticky caller in a tick."""
    if not answers:
        return [0] * len(bins.scores)
    requests = Counter(each.answered.unit for each in answers)
    weights = [MICRO // (len(each.scores) * requests[each.answered.unit]) for each in answers]
    row_weights = np.repeat(np.array(weights), [len(each.scores) for each in answers])
    return [int(n) for n in bins.tally(np.concatenate([each.scores for each in answers]), row_weights)]
