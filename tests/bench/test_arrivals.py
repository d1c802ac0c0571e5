"""Arrivals: the laws of the schedules."""

from __future__ import annotations

import numpy as np
import pytest

from bench.arrivals import schedule


def test_poisson_gaps_are_exponential() -> None:
    """Gaps have the mean and the distribution of independent arrivals, and no memory of the gap before."""
    due_ns = schedule("poisson", 1000, 60, seed=3)
    gaps = np.diff(due_ns) / 1e6
    assert len(due_ns) == pytest.approx(60_000, abs=4 * 60_000**0.5)
    ordered = np.sort(gaps)
    expected = 1 - np.exp(-ordered)
    seen = np.arange(1, len(ordered) + 1) / len(ordered)
    assert np.abs(seen - expected).max() < 1.63 / len(ordered) ** 0.5  # Kolmogorov-Smirnov, 1%
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 3.3 / len(gaps) ** 0.5


def test_constant_gaps_are_equal() -> None:
    """Every gap is the same, and two generators are out of step."""
    one, other = (schedule("constant", 250, 4, seed=seed) for seed in (1, 2))
    assert set(np.diff(one)) <= {3_999_999, 4_000_000, 4_000_001}
    assert len(one) in (999, 1000, 1001)
    assert one[0] != other[0]


@pytest.mark.parametrize("law", ["poisson", "constant"])
def test_schedules_repeat_and_end(law) -> None:
    """The same seed gives the same times, ascending, within the time asked for."""
    due_ns = schedule(law, 500, 2, seed=9)
    assert (due_ns == schedule(law, 500, 2, seed=9)).all()
    assert (np.diff(due_ns) >= 0).all()
    assert due_ns[0] >= 0
    assert due_ns[-1] < 2e9


@pytest.mark.parametrize(("rate", "seconds"), [(0, 1), (-1, 1), (1, 0), (float("nan"), 1)])
def test_no_rate_is_refused(rate, seconds) -> None:
    """A rate and a time above zero are needed."""
    with pytest.raises(ValueError, match="above 0"):
        schedule("poisson", rate, seconds)
