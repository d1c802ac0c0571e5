"""A shadow's answers against those that left the gateway: what a report says of a pair of versions. Pure.

outputs -> **compare** -> `tidegate shadow report`. Direction counts: turning "no" into "yes" is not the same mistake
as turning "yes" into "no", and a score that moves up is not one that moves down. Counts are exact; summaries of parts
of a log merge into the summary of the whole.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np

from shadow.outputs import NO_CLASS, Judged

WORST = 20
"""So many rows are kept, those whose scores are furthest apart."""
BINS = 4096
"""A histogram spans at most so many bins."""
FINEST = -30
"""log2 of the narrowest bin."""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class Moments(msgspec.Struct):
    """Count, mean and sum of squares about the mean; merges without loss (Chan et al.)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """One finite value."""
        self.merge(Moments(1, value, 0.0))

    def merge(self, other: Moments) -> None:
        """As if the other's values had been added here."""
        if not other.count:
            return
        count = self.count + other.count
        step = other.mean - self.mean
        self.squares += other.squares + step * step * self.count * other.count / count
        self.mean += step * other.count / count
        self.count = count

    @property
    def sd(self) -> float:
        """Standard deviation (of the population); 0 below two values."""
        return math.sqrt(max(self.squares, 0.0) / self.count) if self.count > 1 else 0.0


class Histogram(msgspec.Struct):
    """Counts in bins of one width, a power of two that grows with the span of what is counted.

    Bin k holds [k, k + 1) widths. The width is the narrowest that lets all values lie within `BINS` bins, so it does
    not depend on their order, and coarser bins are unions of finer ones: merging is exact.
    """

    log2_width: int = FINEST
    bins: dict[int, int] = {}
    lowest: float = math.inf
    highest: float = -math.inf

    def add(self, value: float, count: int = 1) -> None:
        """Count a finite value."""
        self.lowest = min(self.lowest, value)
        self.highest = max(self.highest, value)
        self._fit()
        index = self._bin(value)
        self.bins[index] = self.bins.get(index, 0) + count

    def merge(self, other: Histogram) -> None:
        """As if the other's values had been counted here."""
        if not other.bins:
            return
        self.lowest = min(self.lowest, other.lowest)
        self.highest = max(self.highest, other.highest)
        self._fit(other.log2_width)
        shift = self.log2_width - other.log2_width
        for index, count in other.bins.items():
            self.bins[index >> shift] = self.bins.get(index >> shift, 0) + count

    def quantile(self, share: float) -> float:
        """The middle of the bin where that share of the values is reached; NaN when nothing was counted."""
        left = share * sum(self.bins.values())
        for index in sorted(self.bins):
            left -= self.bins[index]
            if left <= 0:
                middle = math.ldexp(index + 0.5, self.log2_width)
                return min(max(middle, self.lowest), self.highest)
        return math.nan

    def _bin(self, value: float) -> int:
        index = math.floor(math.ldexp(value, -self.log2_width))
        # A negative value may be too small to stay one.
        return -1 if value < 0 and not index else index

    def _fit(self, log2_width: int = FINEST) -> None:
        # The last keeps what follows within a float's range.
        largest = max(abs(self.lowest), abs(self.highest))
        wanted = max(self.log2_width, log2_width, math.frexp(largest)[1] - 1000)
        while math.ldexp(self.highest, -wanted) - math.ldexp(self.lowest, -wanted) > BINS - 1:
            wanted += 1
        if wanted == self.log2_width:
            return
        finer, shift = self.bins, wanted - self.log2_width
        self.bins, self.log2_width = {}, wanted
        for index, count in finer.items():
            self.bins[index >> shift] = self.bins.get(index >> shift, 0) + count


class Worst(msgspec.Struct, frozen=True):
    """One row whose scores are far apart."""

    prediction_id: str
    row: int
    primary: float
    shadow: float

    @property
    def shift(self) -> float:
        """Shadow less primary."""
        return self.shadow - self.primary


class Comparison(msgspec.Struct):
    """Everything known of one version that answered and one shadow; starts at nothing.

    `pairs` are requests that both answered and that could be judged, `rows` their rows. `flips` counts rows by
    primary class, then shadow class, where both have one and they differ; `decided` are the rows where both have one.
    """

    pairs: int = 0
    rows: int = 0
    decided: int = 0
    flips: dict[int, dict[int, int]] = {}
    shift: Moments = msgspec.field(default_factory=Moments)
    """Shadow's score less the primary's, rows where both have one."""
    shifts: Histogram = msgspec.field(default_factory=Histogram)
    primary: Moments = msgspec.field(default_factory=Moments)
    """Scores of the primary in those rows."""
    primary_nonfinite: int = 0
    shadow_nonfinite: int = 0
    both_nonfinite: int = 0
    failed: dict[str, int] = {}
    skipped: dict[str, int] = {}
    unjudged: dict[str, int] = {}
    """Requests that both answered and whose records do not say what is needed, by reason."""
    worst: list[Worst] = []

    def add(self, prediction_id: str, primary: Judged, shadow: Judged) -> None:
        """One request that both answered.

        Raises:
            ValueError: they differ in rows.
        """
        rows = len(primary.scores)
        if len(shadow.scores) != rows:
            msg = f"the primary answered {rows} rows, the shadow {len(shadow.scores)}"
            raise ValueError(msg)
        self.pairs += 1
        self.rows += rows
        self.primary_nonfinite += int((~primary.finite).sum())
        self.shadow_nonfinite += int((~shadow.finite).sum())
        self.both_nonfinite += int((~primary.finite & ~shadow.finite).sum())
        self._add_classes(primary, shadow)
        for row in np.flatnonzero(np.isfinite(primary.scores) & np.isfinite(shadow.scores)).tolist():
            self._add_scores(Worst(prediction_id, row, float(primary.scores[row]), float(shadow.scores[row])))

    def add_failed(self, code: str) -> None:
        """The shadow raised."""
        self.failed[code] = self.failed.get(code, 0) + 1

    def add_skipped(self, code: str) -> None:
        """The shadow was not run."""
        self.skipped[code] = self.skipped.get(code, 0) + 1

    def add_unjudged(self, reason: str) -> None:
        """Both answered, and one of the records cannot be read as a score."""
        self.unjudged[reason] = self.unjudged.get(reason, 0) + 1

    def merge(self, other: Comparison) -> None:
        """As if the other's requests had been added here; no request may be in both."""
        for name in ("pairs", "rows", "decided", "primary_nonfinite", "shadow_nonfinite", "both_nonfinite"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for old, to in other.flips.items():
            _merge_counts(self.flips.setdefault(old, {}), to)
        self.shift.merge(other.shift)
        self.shifts.merge(other.shifts)
        self.primary.merge(other.primary)
        _merge_counts(self.failed, other.failed)
        _merge_counts(self.skipped, other.skipped)
        _merge_counts(self.unjudged, other.unjudged)
        self._keep_worst(other.worst)

    @property
    def flipped(self) -> int:
        """Rows whose class differs, in any direction."""
        return sum(sum(to.values()) for to in self.flips.values())

    @property
    def requests(self) -> int:
        """Requests that the shadow was given, whatever came of it."""
        return self.pairs + sum(sum(d.values()) for d in (self.failed, self.skipped, self.unjudged))

    def summary(self) -> dict[str, Any]:
        """The figures, as plain data for tables and JSON; None where there is nothing to say.

        `*_in_sd` are in standard deviations of the primary's own scores.
        """
        sd = self.primary.sd
        known = self.shift.count > 0
        quantiles = {f"{share:g}": self.shifts.quantile(share) for share in QUANTILES} if known else {}
        return {
            "requests": self.requests,
            "pairs": self.pairs,
            "rows": self.rows,
            "decided": self.decided,
            "flipped": self.flipped,
            "flips": [
                {"from": old, "to": new, "rows": count, "share": count / self.decided}
                for old, to in sorted(self.flips.items())
                for new, count in sorted(to.items())
            ],
            "score": {
                "rows": self.shift.count,
                "primary_sd": sd if known else None,
                "mean": self.shift.mean if known else None,
                "sd": self.shift.sd if known else None,
                "mean_in_sd": self.shift.mean / sd if known and sd else None,
                "sd_in_sd": self.shift.sd / sd if known and sd else None,
                "min": self.shifts.lowest if known else None,
                "max": self.shifts.highest if known else None,
                "quantiles": quantiles,
            },
            "nonfinite": {
                "primary": self.primary_nonfinite,
                "shadow": self.shadow_nonfinite,
                "both": self.both_nonfinite,
            },
            "failed": dict(sorted(self.failed.items())),
            "skipped": dict(sorted(self.skipped.items())),
            "unjudged": dict(sorted(self.unjudged.items())),
            "worst": [
                {
                    "id": w.prediction_id,
                    "row": w.row,
                    "primary": w.primary,
                    "shadow": w.shadow,
                    "shift": w.shift,
                }
                for w in self.worst
            ],
        }

    def _add_classes(self, primary: Judged, shadow: Judged) -> None:
        if primary.classes is None or shadow.classes is None:
            return
        both = (primary.classes != NO_CLASS) & (shadow.classes != NO_CLASS)
        self.decided += int(both.sum())
        differ = both & (primary.classes != shadow.classes)
        for old, new in zip(primary.classes[differ].tolist(), shadow.classes[differ].tolist(), strict=True):
            to = self.flips.setdefault(old, {})
            to[new] = to.get(new, 0) + 1

    def _add_scores(self, row: Worst) -> None:
        if not math.isfinite(row.shift):
            return
        self.primary.add(row.primary)
        self.shift.add(row.shift)
        self.shifts.add(row.shift)
        if row.shift and (len(self.worst) < WORST or abs(row.shift) >= abs(self.worst[-1].shift)):
            self._keep_worst([row])

    def _keep_worst(self, more: list[Worst]) -> None:
        self.worst = sorted([*self.worst, *more], key=_by_distance)[:WORST]


def _by_distance(row: Worst) -> tuple[float, str, int]:
    return -abs(row.shift), row.prediction_id, row.row


def _merge_counts(counts: dict[Any, int], more: dict[Any, int]) -> None:
    for name, count in more.items():
        counts[name] = counts.get(name, 0) + count
