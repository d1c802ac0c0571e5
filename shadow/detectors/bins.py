"""Score bins: from a model's output score to a small integer, and from there to standard deviations.

Stands before the counts of a tick (watch). Bins are fixed before the rows they count, from a version's
reference or from the control's first rows, so that counts of any worker, partition and tick add up. They
set the unit of a shift and nothing else: relative drift compares two versions on the same traffic, and an
old or small reference makes the unit wrong, not the test.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

QUANTILES = 20
CLIP_SD = 4.0
# How many of the control's rows are a fair unit where there is no reference.
CONTROL_ROWS = 1_000
# Outputs that are all alike have no spread; they move when they leave this much of their size.
CONSTANT_SPREAD = 1e-3
_TAILS = (0.005, 0.995)
# Beyond this a square overflows; such an output counts as not finite, its inverse as 0.
_HUGE = 1e100
# A spread below what float32 resolves is rounding, not information: the output is constant.
_RESOLUTION = 1e-6


class ScoreBins(msgspec.Struct, frozen=True):
    """Edges and the score of each bin in sd units: below, the inner bins, above, not a number.

    `edges` has one less than inner bins + 2; `scores` one entry for each bin. The score of a bin is the
    mean of its reference values in standard deviations from the reference's mean, clipped at 4; of a value
    that is not a number it is 0 (that badness has evidence of its own).
    """

    edges: list[float]
    scores: list[float]
    mean: float
    sd: float
    source: str = "reference"

    @classmethod
    def from_reference(cls, scores: np.ndarray) -> ScoreBins:
        """Bins from the scores of a reference: about 20 of equal mass; few distinct values get one each.

        Values that are not finite (or beyond 1e100) are left out. Outliers beyond the 0.5% and 99.5% quantiles count as
        these when the unit is worked out. Same values, same bins, in any order.

        Raises:
            ValueError: no finite value.
        """
        return cls._made(scores, "reference")

    @classmethod
    def from_control(cls, scores: np.ndarray) -> ScoreBins:
        """Bins from the control's first rows, which then may not count as evidence themselves.

        Raises:
            ValueError: no finite value.
        """
        return cls._made(scores, "control")

    @classmethod
    def _made(cls, scores: np.ndarray, source: str) -> ScoreBins:
        values = np.asarray(scores, dtype=np.float64).ravel()
        values = np.sort(values[np.abs(values) < _HUGE])
        if not len(values):
            raise ValueError(f"no finite score among {np.size(scores)}; bins need at least one")
        values[np.abs(values) < 1 / _HUGE] = 0.0
        distinct = np.unique(values)
        inner = values if len(distinct) <= QUANTILES else np.clip(values, *np.quantile(values, _TAILS))
        if inner[0] == inner[-1]:
            inner = values
        mean, sd = float(np.mean(inner)), float(np.std(inner))
        lowest, highest = distinct[0], distinct[-1]
        pad, inner_edges = sd * CONSTANT_SPREAD, cuts(values, distinct)
        if sd <= _RESOLUTION * float(np.abs(inner).max()):
            pad = sd = (abs(mean) or 1.0) * CONSTANT_SPREAD
            lowest, highest, inner_edges = inner[0], inner[-1], inner_edges[:0]
        top = max(highest + pad, np.nextafter(highest, np.inf))
        edges = np.array([lowest - pad, *inner_edges, top])
        found = np.searchsorted(edges, values, side="right")
        mass = np.bincount(found, minlength=len(edges) + 1)[1:-1]
        total = np.bincount(found, weights=inner, minlength=len(edges) + 1)[1:-1]
        inside = total / mass
        per_bin = (np.array([edges[0], *inside, edges[-1], mean]) - mean) / sd
        clipped = np.clip(per_bin, -CLIP_SD, CLIP_SD)
        return cls([float(e) for e in edges], [float(s) for s in clipped], mean, sd, source)

    def bin(self, scores: np.ndarray) -> np.ndarray:
        """The bin of each score. Shapes: float [rows] in, int64 [rows] out.

        Cost: about 50 ns a score, and 10 us a call: bin chunks, not requests.
        """
        found = np.searchsorted(np.asarray(self.edges), scores, side="right")
        return np.where(np.isnan(scores), len(self.scores) - 1, found)

    def tally(self, scores: np.ndarray, micro: int | np.ndarray = 1) -> np.ndarray:
        """How many scores fall into each bin, times the weight of a row: 1,000,000 // rows of its request.

        Exact below 9 billion whole requests a call.
        Shapes: float [rows] in, with one weight for all rows or int64 [rows]; int64 [bins] out.
        """
        found, bins = self.bin(scores), len(self.scores)
        if isinstance(micro, int):
            return np.bincount(found, minlength=bins) * micro
        return np.bincount(found, weights=micro, minlength=bins).astype(np.int64)


def cuts(values: np.ndarray, distinct: np.ndarray) -> np.ndarray:
    """Inner edges, each half-way between two neighbouring values, so that rounding moves no value over one.

    A value that is many quantiles at once (a mass of equal outputs) is cut off on both sides.
    Shapes: both float64, ascending.
    """
    if len(distinct) <= QUANTILES:
        places = np.arange(1, len(distinct))
    else:
        ranks = [math.ceil(len(values) * step / QUANTILES) - 1 for step in range(1, QUANTILES)]
        at = np.searchsorted(distinct, values[ranks])
        again = at[1:][at[1:] == at[:-1]]
        places = np.unique(np.concatenate([at, again + 1]))
        places = places[(places > 0) & (places < len(distinct))]
    below, above = distinct[places - 1], distinct[places]
    middle = below / 2 + above / 2
    return np.where(middle > below, middle, above)
