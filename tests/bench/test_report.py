"""Report: medians, their intervals, and the machine's facts."""

from __future__ import annotations

import random

import pytest

from bench import report


def test_eleven_rounds_give_the_second_and_the_tenth() -> None:
    """With 11 values the sign test's interval of at least 95% is [2nd, 10th]."""
    found = report.interval([float(i) for i in range(1, 12)])
    assert (found.median, found.low, found.high) == (6.0, 2.0, 10.0)
    assert found.coverage == pytest.approx(1 - 2 * 12 / 2**11)


def test_few_values_give_their_whole_range() -> None:
    """Below six values the range is all that can be said, and its coverage says so."""
    found = report.interval([3.0, 1.0, 2.0])
    assert (found.median, found.low, found.high) == (2.0, 1.0, 3.0)
    assert found.coverage == pytest.approx(0.75)


def test_no_values_are_refused() -> None:
    """There is no median of nothing."""
    with pytest.raises(ValueError, match="at least one round"):
        report.interval([])


def test_interval_holds_the_median_as_often_as_it_says() -> None:
    """Over many draws the true median lies inside as often as `coverage` says, less noise."""
    rng = random.Random(5)
    inside = 0
    for _ in range(2_000):
        found = report.interval([rng.expovariate(1.0) for _ in range(11)])
        inside += found.low <= 0.6931471805599453 <= found.high
    assert inside / 2_000 > 0.975


def test_machine_names_processor_and_packages_only() -> None:
    """The facts beside a figure hold no host name and no path."""
    facts = report.machine(["msgspec"])
    assert facts.cpus >= 1
    assert set(facts.packages) == {"msgspec"}
    assert "/" not in facts.kernel
