"""Figures: their verdicts, their page, and the slope of memory."""

from __future__ import annotations

import math
import os
import random

import pytest

from bench import limits, report
from bench.cases.case import Case, Options
from bench.cases.memory import Look, slope_percent_per_h
from gateway.errors import ConfigInvalid

PAGE = f"# Page\n\nbefore\n\n{limits.BEGIN}\nold words\n{limits.END}\n\nafter\n"


def result(*cases: Case) -> limits.Result:
    """A run of cases."""
    return limits.Result(
        at="2026-01-02", commit="", machine=report.machine(["msgspec"]), options=Options(), cases=list(cases)
    )


def case(name: str, value: float) -> Case:
    """A case with one figure."""
    found = report.Interval(value, value, value, 0.95)
    return Case(name=name, title=f"title of {name}", rows=[report.at_most("figure", found, 2.0)])


def test_verdicts_follow_the_median() -> None:
    """At most and at least hold the median against the bound; a goal that cannot be told is undecided."""
    found = report.interval([1.0, 2.0, 3.0])
    assert report.at_most("x", found, 2.0).met is True
    assert report.at_most("x", found, 1.9).met is False
    assert report.at_least("x", found, 2.1).met is False
    assert report.Row("x", "1", "< 2").verdict == "undecided"
    assert report.Row("x", "1").verdict == ""


def test_figures_are_put_between_the_markers() -> None:
    """The block is replaced, the rest of the page stays; a case measured again replaces its own section alone."""
    page = limits.written(PAGE, result(case("stalls", 1.0), case("single", 1.0)))
    assert page.startswith("# Page\n\nbefore\n\n" + limits.BEGIN)
    assert page.endswith(limits.END + "\n\nafter\n")
    assert "old words" not in page
    assert page.index("### `single`: title of single") < page.index("### `stalls`")
    again = limits.written(page, result(case("single", 5.0)))
    assert "5.00 [5.00, 5.00] x | <= 2 x | **missed**" in again
    assert again.count("### `") == 2
    assert limits.written(again, result(case("single", 1.0))) == page


def test_a_page_without_markers_is_refused_before_the_run() -> None:
    """Nothing is measured for a page that has no place for it."""
    with pytest.raises(ConfigInvalid, match="no place for figures"):
        limits.demand_markers("# Page\n")


def test_a_case_that_cannot_be_measured_does_not_end_the_others(monkeypatch) -> None:
    """Of several cases one says why it has no figure and the next goes on; alone it raises."""

    def broken(bench):
        raise ValueError("request r-1: output Y is wrong")

    monkeypatch.setattr(limits, "CASES", {"a": broken, "b": lambda bench: case("b", 1.0)})
    mine = min(os.sched_getaffinity(0))
    options = Options(server_cpu=mine, generator_cpu=mine)
    found = limits.measure(["a", "b"], options)
    assert [row.measured for row in found.cases[0].rows] == ["request r-1: output Y is wrong"]
    assert found.cases[1].rows[0].met is True
    assert not found.met
    with pytest.raises(ValueError, match="r-1"):
        limits.measure(["a"], options)
    with pytest.raises(ConfigInvalid, match="--generator-cpu 4096"):
        limits.measure(["b"], Options(server_cpu=mine, generator_cpu=4096))


def test_slope_finds_a_leak_and_forgives_a_spike() -> None:
    """2% an hour is found through noise and a spike; without growth the interval holds zero."""
    rng = random.Random(3)
    for grows in (0.0, 2.0):
        per_h = grows / (1 + grows / 200)  # of the median
        looks = [Look(t, 100 + grows * t / 3600 + rng.gauss(0, 0.05), 0.0) for t in range(0, 3600, 5)]
        looks[100] = Look(looks[100].at_s, 400.0, 0.0)
        found = slope_percent_per_h(looks)
        assert found.low <= per_h <= found.high
        assert abs(found.median - per_h) < 0.1
        assert found.high - found.low < 1.5


def test_slope_of_a_stair_is_unsure() -> None:
    """One step in the middle of a flat watch is few levels: the interval is wide, not a sure leak."""
    looks = [Look(t, 100.0 if t < 300 else 100.5, 0.0) for t in range(600)]
    found = slope_percent_per_h(looks)
    assert found.low <= 1.0
    assert slope_percent_per_h(looks[:2]).high == math.inf
