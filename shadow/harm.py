"""Is the canary worse than its control? Evidence that may be looked at after every tick.

Stands between the counts of a tick (watch) and the decision (decide). Pure: no clock, no I/O, no
randomness. Given that something bad happened, which of the two versions did it hit? While the canary is
no worse, that is a coin whose bias is the logged routing weight, whatever else went on: outages, busy
hours and bad inputs that both share cancel. Against that coin stand fixed bets; their mean wealth E is an
e-process, so a healthy canary is ever found guilty at a level c with probability of at most 1/c, however
often one looks and however the weights change (Ville's inequality).

Two nulls, and both must fall, hence the minimum of two e-values:

* relative: the canary is bad at most 1 + margin times as often as the control on the same traffic;
* absolute: the canary is bad in at most one request of 10,000, which nobody would roll back for.

The state is integer counts by routing weight; wealth is worked out from them when asked. Sums of integers
do not depend on the order of ticks or on how traffic fell into them, and neither does the evidence.

Counts are micro-requests: 1,000,000 is one request, a row of an m-row request weighs 1,000,000 // m. Rows
of one request share their fate; with the weight 1/m they bet no more than one request may (Hölder).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec

MICRO = 1_000_000
ALPHA = 0.01
# How a rollout's error is split over its kinds of evidence: act when any share times its E reaches 1/alpha.
OMEGA = {"failed": 0.3, "nonfinite": 0.15, "wrong": 0.25, "shift": 0.3}

RATIOS = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
FLOOR = 1e-4
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
LOG_CAP = 700.0

BAD_REQUESTS_MIN, TICKS_MIN = 5, 2
HARD_UNITS_MIN, HARD_RATIO, HARD_EVIDENCE = 3, 20.0, 10_000.0
# Hard failures may cost a healthy rollout a tenth of alpha on top, over all looks together.
HARD_OMEGA = 0.1
# A wholly bad request of m rows weighs up to m - 1 micro-requests less than one; it still counts as one.
_ROUNDING = MICRO // 100


class ArmCounts(msgspec.Struct, frozen=True):
    """What happened in one tick under one routing weight, for one kind of badness, in micro-requests.

    `weight_bp` is the canary's share of canary + control as it was in the draw, 1 to 9,999.
    """

    weight_bp: int
    canary_requests: int
    canary_bad: int
    control_requests: int
    control_bad: int


class Stratum(msgspec.Struct):
    """Bad micro-requests under one routing weight and one margin."""

    weight_bp: int
    margin: float
    canary_bad: int = 0
    control_bad: int = 0


class Bet(NamedTuple):
    """What one bet gains in log wealth by one bad request of the canary, and of the control."""

    canary: float
    control: float


class HarmEvidence(msgspec.Struct):
    """Evidence of one kind of badness over one rollout; the state is all of it, as plain integers.

    Cost: a fold is a few integer additions; a look at the evidence takes about 10 microseconds for each
    distinct weight. Threading: none.
    """

    strata: list[Stratum] = []
    canary_requests: int = 0
    canary_bad: int = 0
    control_requests: int = 0
    control_bad: int = 0
    ticks_with_evidence: int = 0

    def fold(self, counts: ArmCounts, margin: float) -> None:
        """Add a tick in which one routing weight held; `margin` 0.1 allows the canary 10% more.

        Raises:
            ValueError: a weight of 0 or 10,000, a negative margin or count, more bad than there were.
        """
        self.fold_tick((counts,), margin)

    def fold_tick(self, parts: Iterable[ArmCounts], margin: float) -> None:
        """Add one tick whose traffic was drawn under several weights, a part for each.

        Raises:
            ValueError: as `fold`.
        """
        bad_before = self.canary_bad
        for counts in parts:
            check_counts(counts, margin)
            if counts.canary_bad or counts.control_bad:
                stratum = self._stratum(counts.weight_bp, margin)
                stratum.canary_bad += counts.canary_bad
                stratum.control_bad += counts.control_bad
            self.canary_requests += counts.canary_requests
            self.canary_bad += counts.canary_bad
            self.control_requests += counts.control_requests
            self.control_bad += counts.control_bad
        self.ticks_with_evidence += self.canary_bad > bad_before

    def _stratum(self, weight_bp: int, margin: float) -> Stratum:
        """The stratum of a weight and margin; kept in order, so that sums are made in one order."""
        key = (weight_bp, margin)
        at = bisect_left(self.strata, key, key=lambda stratum: (stratum.weight_bp, stratum.margin))
        if at == len(self.strata) or (self.strata[at].weight_bp, self.strata[at].margin) != key:
            self.strata.insert(at, Stratum(weight_bp, margin))
        return self.strata[at]

    @property
    def relative(self) -> float:
        """E-value against "at most 1 + margin times as often bad as the control" (docs/statistics.md)."""
        logs = [0.0] * len(RATIOS)
        for stratum in self.strata:
            canary, control = stratum.canary_bad / MICRO, stratum.control_bad / MICRO
            for index, bet in enumerate(coin_bets(stratum.weight_bp, stratum.margin)):
                logs[index] += canary * bet.canary + control * bet.control
        return mean_wealth(logs)

    @property
    def absolute(self) -> float:
        """E-value against "bad in at most one request of 10,000" (docs/statistics.md)."""
        bad, good = self.canary_bad / MICRO, (self.canary_requests - self.canary_bad) / MICRO
        return mean_wealth([bad * up + good * down for up, down in rate_bets()])

    @property
    def evidence(self) -> float:
        """E-value against "no worse, or bad too rarely to matter": the smaller of the two."""
        return min(self.relative, self.absolute)

    @property
    def enough(self) -> bool:
        """Whether the counts behind the evidence are broad enough to act on; see `enough`."""
        return enough(self.canary_bad, self.ticks_with_evidence)

    @property
    def ratio(self) -> float | None:
        """How many times as often the canary is bad, None without a bad request of the control.

        Compared at equal routing weight (Mantel-Haenszel with the logged weights), so it stays fair when the weight
        was raised during an incident.
        """
        odds_canary = sum(s.canary_bad * (10_000 - s.weight_bp) for s in self.strata)
        odds_control = sum(s.control_bad * s.weight_bp for s in self.strata)
        return odds_canary / odds_control if odds_control else None


def check_counts(counts: ArmCounts, margin: float) -> None:
    """Refuse counts that cannot be.

    Raises:
        ValueError: a weight of 0 or 10,000, a negative margin or count, more bad than there were.
    """
    if not 1 <= counts.weight_bp <= 9_999:
        raise ValueError(f"weight_bp is {counts.weight_bp}; two versions compare at 1 to 9999 only")
    if not margin >= 0:
        raise ValueError(f"margin is {margin}; expected 0 or more, as 0.1 for 10%")
    if not 0 <= counts.canary_bad <= counts.canary_requests:
        raise ValueError(f"canary: {counts.canary_bad} bad of {counts.canary_requests} micro-requests")
    if not 0 <= counts.control_bad <= counts.control_requests:
        raise ValueError(f"control: {counts.control_bad} bad of {counts.control_requests} micro-requests")


def needed(omega: float, alpha: float = ALPHA) -> float:
    """The e-value that a kind of evidence with the share `omega` of `alpha` has to reach."""
    return 1.0 / (alpha * omega)


def coin(weight_bp: int, margin: float, ratio: float) -> Bet:
    """The bet that the canary is bad `ratio` times as often as the margin allows (docs/statistics.md).

    With w the weight and v = w (1 + margin), a bad request is the canary's with probability of at most
    theta0 = v / (v + 1 - w) under the null, and theta = v r / (v r + 1 - w) if the bet is right; the gain
    is the log of the likelihood ratio.
    """
    weight = weight_bp / 10_000
    allowed = weight * (1 + margin)
    control = -math.log1p(allowed * (ratio - 1) / (allowed + 1 - weight))
    return Bet(math.log(ratio) + control, control)


@lru_cache(maxsize=1024)
def coin_bets(weight_bp: int, margin: float) -> tuple[Bet, ...]:
    """The relative bets at one weight, one for each of RATIOS."""
    return tuple(coin(weight_bp, margin, ratio) for ratio in RATIOS)


@lru_cache(maxsize=1)
def rate_bets() -> tuple[tuple[float, float], ...]:
    """The absolute bets, one for each of RATES: gain by a bad and by a good request of the canary."""
    return tuple((math.log(q / FLOOR), math.log1p(-q) - math.log1p(-FLOOR)) for q in RATES)


def mean_wealth(logs: Sequence[float]) -> float:
    """Mean of exp(log) in log space, at most exp(700): what equal stakes on all bets have become."""
    top = max(logs)
    total = top + math.log(sum(math.exp(log - top) for log in logs)) - math.log(len(logs))
    return math.exp(min(total, LOG_CAP))


def enough(canary_bad: int, ticks_with_evidence: int) -> bool:
    """Whether evidence may roll back: 5 bad requests of the canary, from 2 ticks (docs/statistics.md).

    Not needed for the error rate; it keeps one burst of poisoned requests from moving weights.
    `canary_bad` is in micro-requests.
    """
    return (canary_bad + _ROUNDING) // MICRO >= BAD_REQUESTS_MIN and ticks_with_evidence >= TICKS_MIN


def hard_failure(recent: Sequence[ArmCounts], looks: int = 1, alpha: float = ALPHA) -> bool:
    """Whether the canary plainly fails: `recent` are the ticks of the last 10 s.

    True when at least 3 requests of the canary were bad, at more than 20 times the control's rate on the same
    ticks, and these events alone are c times likelier under "20 times as bad" than under "as bad". That ratio is
    an e-value of its window, so it passes c by chance with probability of at most 1/c; c is 10,000 and grows with
    the number of looks k so that the sum of k (k + 1) / (HARD_OMEGA alpha) over all looks stays within its share
    (a union bound: windows may overlap). For kinds that a healthy version hardly ever shows (failed, nonfinite),
    never for wrong answers. Without a request of the control there is nothing to compare with, and the answer is
    no. `looks`: ticks of this rollout in which a request of the canary was bad, this one included.
    """
    canary_bad = sum(counts.canary_bad for counts in recent)
    control_bad = sum(counts.control_bad for counts in recent)
    canary_requests = sum(counts.canary_requests for counts in recent)
    control_requests = sum(counts.control_requests for counts in recent)
    if (canary_bad + _ROUNDING) // MICRO < HARD_UNITS_MIN or not control_requests:
        return False
    if canary_bad * control_requests <= HARD_RATIO * control_bad * canary_requests:
        return False
    log = 0.0
    for counts in recent:
        bet = coin(counts.weight_bp, 0.0, HARD_RATIO)
        log += counts.canary_bad / MICRO * bet.canary + counts.control_bad / MICRO * bet.control
    return log >= math.log(max(HARD_EVIDENCE, looks * (looks + 1) / (HARD_OMEGA * alpha)))
