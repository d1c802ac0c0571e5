"""What a stage of a rollout can find, and how long that takes; worked out before it starts.

Stands before the ramp: `tidegate rollout power` prints it, and a stage that could find nothing is not worth
its time. Pure. Evidence grows by a known mean per request if the canary is worse in a known way, so it
reaches its threshold, in the median, after about threshold / growth requests (docs/statistics.md). The same
bets as in `harm` and `detectors.relative` are used, tables and all, so a change there is a change here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

import msgspec
import numpy as np

from shadow.detectors.relative import ScoreBins, gains
from shadow.harm import ALPHA, BAD_REQUESTS_MIN, OMEGA, coin_bets, mean_wealth, needed, rate_bets

HARM_RATIOS = (1.5, 2.0, 4.0)
HARM_RATES = (0.01, 1.0)
SHIFTS_SD = (0.1, 0.3, 0.5, 1.0)
_REFERENCE_ROWS = 4_000
# A million seconds at a million requests a second; beyond it the answer is "never".
_MOST_REQUESTS = 1e12


class Stage(msgspec.Struct, frozen=True):
    """A stage to be planned: its traffic, the canary's share, and how rare a false rollback has to be.

    `rate_per_s` counts requests of canary and control together, `omega` is this kind of evidence's share
    of `alpha`, `base_rate` the control's share of bad requests.
    """

    rate_per_s: float
    weight_bp: int
    base_rate: float
    margin: float = 0.10
    tolerance_sd: float = 0.05
    omega: float = OMEGA["failed"]
    shift_omega: float = OMEGA["shift"]
    alpha: float = ALPHA


class Finding(msgspec.Struct, frozen=True):
    """What it takes to find one fault in the median: requests of both versions, minutes; None for never.

    `kind` says what `size` is: "ratio" to the base rate, "rate" of bad requests, "shift" in sd beyond the
    tolerance.
    """

    kind: str
    size: float
    requests: int | None
    minutes: float | None


def plan(stage: Stage) -> list[Finding]:
    """The faults that are worth a line, harm before shifts.

    Cost: about 10 ms.
    """
    found = []
    if stage.base_rate:
        for ratio in HARM_RATIOS:
            rate = min(1.0, stage.base_rate * ratio)
            found.append(_finding("ratio", ratio, harm_requests(stage, rate), stage))
    for rate in HARM_RATES:
        if rate > stage.base_rate * HARM_RATIOS[-1]:
            found.append(_finding("rate", rate, harm_requests(stage, rate), stage))
    for size in SHIFTS_SD:
        found.append(_finding("shift", size, shift_requests(stage, stage.tolerance_sd + size), stage))
    return found


def _finding(kind: str, size: float, requests: float | None, stage: Stage) -> Finding:
    if requests is None:
        return Finding(kind, size, None, None)
    return Finding(kind, size, round(requests), requests / stage.rate_per_s / 60)


def harm_requests(stage: Stage, canary_rate: float) -> float | None:
    """Requests until a canary with this share of bad requests is rolled back, in the median.

    None when it never is: none bad, no more than the margin allows, or too rare to matter. Against
    simulation it errs on the long side: the median there is 0.7 to 1.1 of this.
    """
    weight = stage.weight_bp / 10_000
    if not canary_rate:
        return None
    relative = [
        weight * canary_rate * bet.canary + (1 - weight) * stage.base_rate * bet.control
        for bet in coin_bets(stage.weight_bp, stage.margin)
    ]
    absolute = [weight * (canary_rate * up + (1 - canary_rate) * down) for up, down in rate_bets()]
    threshold = needed(stage.omega, stage.alpha)
    waits = [_reach(relative, threshold), _reach(absolute, threshold)]
    # The median of a sum of n waiting times is about n - 1/3 of them.
    broad = (BAD_REQUESTS_MIN - 1 / 3) / (weight * canary_rate)
    return max(waits[0], waits[1], broad) if waits[0] and waits[1] else None


def shift_requests(stage: Stage, shift_sd: float) -> float | None:
    """Requests until a canary whose normal scores are `shift_sd` higher is found, in the median.

    None for a shift that the tolerance allows. Requests of one row each, or of rows that are all alike.
    """
    weight = stage.weight_bp / 10_000
    bins = _normal_bins()
    gain = gains(np.asarray(bins.scores), stage.weight_bp, 0.0, stage.tolerance_sd)
    canary, control = _masses(bins, shift_sd), _masses(bins, 0.0)
    growth = weight * (gain[:, 0] * canary).sum(axis=1) + (1 - weight) * (gain[:, 1] * control).sum(axis=1)
    return _reach([float(rate) for rate in growth], needed(stage.shift_omega, stage.alpha))


def _reach(growth: list[float], threshold: float) -> float | None:
    """After how many requests the mean wealth of bets that grow at these rates is at the threshold."""
    if max(growth) <= 0:
        return None
    return _first(lambda requests: mean_wealth([rate * requests for rate in growth]) >= threshold)


def _first(reached: Callable[[float], bool]) -> float | None:
    """The least number of requests at which a growing thing has been reached, to a thousandth."""
    high = 1.0
    while not reached(high):
        high *= 2
        if high > _MOST_REQUESTS:
            return None
    low = 0.0
    while high - low > 0.001 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


@lru_cache(maxsize=1)
def _normal_bins() -> ScoreBins:
    """The bins of a normal reference."""
    normal = NormalDist()
    ranks = ((row + 0.5) / _REFERENCE_ROWS for row in range(_REFERENCE_ROWS))
    return ScoreBins.from_reference(np.array([normal.inv_cdf(rank) for rank in ranks]))


def _masses(bins: ScoreBins, shift_sd: float) -> np.ndarray:
    """How much of a shifted normal falls into each bin."""
    shifted = NormalDist(shift_sd)
    below = [0.0, *(shifted.cdf(edge) for edge in bins.edges), 1.0, 1.0]
    return np.diff(below)
