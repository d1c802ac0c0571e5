"""Relative drift: do the canary's outputs differ from the control's on the same traffic? No labels needed.

Stands between binned counts (watch) and the decision (decide). Pure. With s a row's bin score in sd, w the
logged weight of the canary and z whether the row was the canary's,

    D = (s - m) (z - w) / (w (1 - w)) - tolerance

has the mean "canary minus control, minus tolerance" whatever the traffic does, because the draw is
independent of the row: common drift, busy hours and incidents cancel. 1 + lambda D is a bet that stays
above 0, its product over rows an e-process for the null "over the stream, the canary's conditional mean
exceeds the control's by at most the tolerance", and the product depends on counts by version and bin alone
(docs/statistics.md). Half of the stake bets on a rise, half on a fall.

m is the control's mean over earlier ticks: it must not know the rows it centres. It is held within half an
sd, so that the bets of a weight stay the same for as long as the weight does.

A small weight makes D large and forces small bets: lambda is at most 0.95 over the largest fall of D. One
row moves the evidence by no more than a factor of 1.95 up or 20 down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from shadow.detectors.bins import ScoreBins
from shadow.harm import MICRO, TICKS_MIN, mean_wealth

__all__ = ["ScoreBins", "ShiftCounts", "ShiftEvidence", "bet_sizes", "gains"]

DIRECTIONS = (1.0, -1.0)
STAKES = (1.0, 0.4, 0.15, 0.05)
CAP = 0.95
CENTRE_SD = 0.5


class ShiftCounts(msgspec.Struct, frozen=True):
    """Micro-rows by score bin in one tick under one routing weight; a row of m weighs 1,000,000 // m."""

    weight_bp: int
    canary: list[int]
    control: list[int]


class ShiftEvidence(msgspec.Struct):
    """Evidence that one output of the canary shifted against the control's, over one rollout.

    Made over the scores of its bins: `ShiftEvidence(bins.scores)`. Ticks are folded in their order (the
    centre looks back). Cost: about 60 microseconds a fold, whatever the number of rows. Threading: none.
    """

    scores: list[float]
    log_wealth: list[float] = []
    control: list[int] = []
    canary: list[int] = []
    shift_sum: float = 0.0
    shift_weight: float = 0.0
    ticks_with_evidence: int = 0

    def __post_init__(self) -> None:
        self.log_wealth = self.log_wealth or [0.0] * (len(DIRECTIONS) * len(STAKES))
        self.control = self.control or [0] * len(self.scores)
        self.canary = self.canary or [0] * len(self.scores)

    def fold(self, counts: ShiftCounts, tolerance_sd: float) -> None:
        """Add a tick in which one routing weight held.

        Raises:
            ValueError: a weight of 0 or 10,000, a negative tolerance, not one count for each bin.
        """
        self.fold_tick((counts,), tolerance_sd)

    def fold_tick(self, parts: Sequence[ShiftCounts], tolerance_sd: float) -> None:
        """Add one tick whose traffic was drawn under several weights, a part for each.

        Raises:
            ValueError: as `fold`.
        """
        scores = np.asarray(self.scores)
        centre, rows_before = self.centre, sum(self.canary)
        for counts in parts:
            check_counts(counts, len(self.scores), tolerance_sd)
            canary = np.asarray(counts.canary, dtype=np.int64)
            control = np.asarray(counts.control, dtype=np.int64)
            gain = gains(scores, counts.weight_bp, centre, tolerance_sd)
            won = (gain[:, 0] * (canary / MICRO) + gain[:, 1] * (control / MICRO)).sum(axis=1)
            self.log_wealth = [old + float(new) for old, new in zip(self.log_wealth, won, strict=True)]
            self._add_estimate(scores, canary / MICRO, control / MICRO)
            self.canary = [old + new for old, new in zip(self.canary, counts.canary, strict=True)]
            self.control = [old + new for old, new in zip(self.control, counts.control, strict=True)]
        self.ticks_with_evidence += sum(self.canary) > rows_before

    def _add_estimate(self, scores: np.ndarray, canary: np.ndarray, control: np.ndarray) -> None:
        """Add the difference of means within this part, weighed by how well it is known."""
        canary_total, control_total = float(canary.sum()), float(control.sum())
        if canary_total and control_total:
            shift = float((canary * scores).sum()) / canary_total
            shift -= float((control * scores).sum()) / control_total
            weight = canary_total * control_total / (canary_total + control_total)
            self.shift_sum += weight * shift
            self.shift_weight += weight

    @property
    def centre(self) -> float:
        """The control's mean score up to now, held within half an sd; 0 at the start."""
        total = sum(self.control)
        if not total:
            return 0.0
        mean = math.fsum(n * s for n, s in zip(self.control, self.scores, strict=True)) / total
        return min(max(mean, -CENTRE_SD), CENTRE_SD)

    @property
    def evidence(self) -> float:
        """E-value against "differs by at most the tolerance, in either direction"."""
        return mean_wealth(self.log_wealth)

    @property
    def enough(self) -> bool:
        """Whether the evidence is broad enough to act on: rows of the canary in 2 ticks."""
        return self.ticks_with_evidence >= TICKS_MIN

    @property
    def estimate_sd(self) -> float | None:
        """Canary minus control in sd, compared within ticks; None while no tick had rows of both."""
        return self.shift_sum / self.shift_weight if self.shift_weight else None

    @property
    def standard_error_sd(self) -> float | None:
        """Plain standard error of `estimate_sd`, from the spread of the control's scores; for people."""
        total = sum(self.control)
        if not self.shift_weight or not total:
            return None
        mean = math.fsum(n * s for n, s in zip(self.control, self.scores, strict=True)) / total
        spread = math.fsum(n * (s - mean) ** 2 for n, s in zip(self.control, self.scores, strict=True))
        return math.sqrt(spread / total / self.shift_weight)


def check_counts(counts: ShiftCounts, bins: int, tolerance_sd: float) -> None:
    """Refuse counts that cannot be.

    Raises:
        ValueError: a weight of 0 or 10,000, a negative tolerance, not one count for each bin.
    """
    if not 1 <= counts.weight_bp <= 9_999:
        raise ValueError(f"weight_bp is {counts.weight_bp}; two versions compare at 1 to 9999 only")
    if not tolerance_sd >= 0:
        raise ValueError(f"tolerance is {tolerance_sd} sd; expected 0 or more, as 0.05")
    if not len(counts.canary) == len(counts.control) == bins:
        raise ValueError(
            f"{len(counts.canary)} canary and {len(counts.control)} control counts; expected one for each"
            f" of {bins} bins"
        )
    if min(*counts.canary, *counts.control) < 0:
        raise ValueError("a count below 0")


def bet_sizes(scores: np.ndarray, weight_bp: int, tolerance_sd: float, direction: float) -> np.ndarray:
    """The lambdas of one direction at one weight; the largest leaves a twentieth after the worst row.

    They depend on the weight, never on the rows. Shapes: float64 [bins] in, float64 [stakes] out.
    """
    weight = weight_bp / 10_000
    lowest, highest = float((direction * scores).min()), float((direction * scores).max())
    fall = max((CENTRE_SD - lowest) / weight, (CENTRE_SD + highest) / (1 - weight)) + tolerance_sd
    return np.array(STAKES) * (CAP / fall)


def gains(scores: np.ndarray, weight_bp: int, centre: float, tolerance_sd: float) -> np.ndarray:
    """What each bet gains in log wealth by one row of each version in each bin.

    Shapes: float64 [bins] in, float64 [bets, 2, bins] out: bets on a rise before bets on a fall, the
    canary before the control.
    """
    weight = weight_bp / 10_000
    rise = np.stack([(scores - centre) / weight, -(scores - centre) / (1 - weight)])
    tables = []
    for direction in DIRECTIONS:
        sizes = bet_sizes(scores, weight_bp, tolerance_sd, direction)
        tables.append(np.log1p(sizes[:, None, None] * (direction * rise - tolerance_sd)))
    return np.concatenate(tables)
