"""A shadow's answers against the primary's: directions, shifts, and summaries that merge."""

from __future__ import annotations

import math
import random

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadow.compare import BINS, WORST, Comparison, Histogram, Moments
from shadow.outputs import NO_CLASS, Judged


def judged(scores: list[float], classes: list[int] | None = None, finite: list[bool] | None = None) -> Judged:
    """Rows as an OutputReader would give them."""
    return Judged(
        np.asarray(scores, np.float64),
        None if classes is None else np.asarray(classes, np.int64),
        np.asarray(np.isfinite(scores) if finite is None else finite),
    )


def test_flips_keep_their_direction():
    """0 -> 1 and 1 -> 0 are counted apart; a row without a class on either side is none."""
    found = Comparison()
    found.add("a", judged([0.1] * 5, [0, 0, 1, 1, NO_CLASS]), judged([0.1] * 5, [1, 1, 0, 1, 1]))
    assert found.flips == {0: {1: 2}, 1: {0: 1}}
    assert (found.decided, found.flipped) == (4, 3)
    assert found.summary()["flips"] == [
        {"from": 0, "to": 1, "rows": 2, "share": 0.5},
        {"from": 1, "to": 0, "rows": 1, "share": 0.25},
    ]


def test_a_regression_has_shifts_and_no_flips():
    """Shadow less primary, in units and in the primary's standard deviations."""
    found = Comparison()
    found.add("a", judged([1.0, 3.0]), judged([2.0, 4.0]))
    score = found.summary()["score"]
    assert (found.decided, found.flips) == (0, {})
    assert (score["mean"], score["sd"], score["primary_sd"], score["mean_in_sd"]) == (1.0, 0.0, 1.0, 1.0)
    assert score["quantiles"]["0.5"] == pytest.approx(1.0, abs=1e-6)


def test_rows_that_are_not_finite_are_counted_and_shift_nothing():
    """On either side, and on both."""
    found = Comparison()
    nan = math.nan
    found.add("a", judged([nan, 0.5, nan, 0.5]), judged([0.5, nan, nan, 0.75]))
    assert found.summary()["nonfinite"] == {"primary": 2, "shadow": 2, "both": 1}
    assert (found.shift.count, found.shift.mean) == (1, 0.25)


def test_what_was_not_compared_is_counted_by_reason():
    """Requests add up: pairs, failures, skips, and records that cannot be judged."""
    found = Comparison()
    found.add("a", judged([0.5]), judged([0.5]))
    found.add_failed("inference_failed")
    found.add_skipped("hash")
    found.add_skipped("hash")
    found.add_unjudged("by hash only")
    assert found.requests == 5
    assert found.summary()["skipped"] == {"hash": 2}


def test_answers_of_unequal_rows_are_refused():
    """They are not answers to the same request."""
    with pytest.raises(ValueError, match="1 rows, the shadow 2"):
        Comparison().add("a", judged([0.5]), judged([0.5, 0.5]))


def test_the_worst_rows_are_kept_with_their_ids():
    """The largest shifts in either direction, the largest first; equal answers are none."""
    found = Comparison()
    shifts = [(-1) ** i * i / 100 for i in range(50)]
    random.Random(3).shuffle(shifts)
    for i, shift in enumerate(shifts):
        found.add(f"id{i}", judged([0.0, 0.0]), judged([0.0, shift]))
    assert len(found.worst) == WORST
    assert [abs(w.shift) for w in found.worst] == [i / 100 for i in range(49, 29, -1)]
    first = found.worst[0]
    assert (first.prediction_id, first.row) == (f"id{shifts.index(first.shift)}", 1)


VALUES = st.lists(st.floats(allow_nan=False, allow_infinity=False, width=64), min_size=1, max_size=40)


@given(VALUES, st.integers(0, 40))
def test_histograms_merge_exactly_in_any_order(values: list[float], cut: int):
    """Bins of parts, merged, are the bins of the whole; few bins whatever the span."""
    whole, parts = Histogram(), [Histogram(), Histogram()]
    for value in values:
        whole.add(value)
    for i, value in enumerate(reversed(values)):
        parts[i >= cut].add(value)
    parts[0].merge(parts[1])
    assert parts[0] == whole
    assert sum(whole.bins.values()) == len(values)
    assert max(whole.bins) - min(whole.bins) <= BINS


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]))
def test_a_quantile_is_within_a_bin(values: list[float], share: float):
    """Of the true one: the value at that share of the sorted rows."""
    found = Histogram()
    for value in values:
        found.add(value)
    true = sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]
    assert abs(found.quantile(share) - true) <= math.ldexp(1.0, found.log2_width)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40), st.integers(0, 40))
def test_moments_merge(values: list[float], cut: int):
    """Mean and deviation of parts, merged, are NumPy's of the whole."""
    parts = [Moments(), Moments()]
    for i, value in enumerate(values):
        parts[i >= cut].add(value)
    parts[0].merge(parts[1])
    assert parts[0].count == len(values)
    assert parts[0].mean == pytest.approx(np.mean(values), abs=1e-9)
    assert parts[0].sd == pytest.approx(np.std(values), rel=1e-6, abs=1e-6)


def test_summaries_of_parts_merge_into_the_whole():
    """Counts to the last one, also through JSON."""
    draw = random.Random(7)
    whole, parts = Comparison(), [Comparison(), Comparison(), Comparison()]
    for i in range(200):
        pair = [
            judged([draw.random() for _ in range(2)], [draw.randrange(3) for _ in range(2)]) for _ in range(2)
        ]
        for found in (whole, parts[i % 3]):
            found.add(f"id{i}", *pair)
            if i % 10 == 0:
                found.add_failed(f"code{i % 20}")
                found.add_skipped("hash")
    merged = Comparison()
    for part in parts:
        merged.merge(msgspec.json.decode(msgspec.json.encode(part), type=Comparison))
    assert merged.flips == whole.flips
    assert merged.worst == whole.worst
    assert merged.shifts == whole.shifts
    assert merged.failed == whole.failed
    assert (merged.pairs, merged.rows, merged.requests) == (whole.pairs, whole.rows, whole.requests)
    assert merged.shift.mean == pytest.approx(whole.shift.mean)
