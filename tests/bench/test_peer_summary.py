"""What rounds say: who is ahead, and who cannot tell."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fake_rounds import CELL, changed, found, result

from bench.outcome import latency, p999_ms
from bench.peers import page, summary
from bench.peers.figures import (
    Failed,
    Found,
)


def test_the_figure_is_the_median_of_the_rounds_ratios() -> None:
    """With its interval, and who is ahead."""
    (line,) = summary.lines(found(6000, 100))
    assert (line.per_cpu_s.median, line.verdict) == (60.0, "ours")
    assert line.per_cpu_s.low < 60.0 < line.per_cpu_s.high


def test_a_slower_side_of_ours_is_theirs() -> None:
    """No winner is left out because it is not us."""
    (line,) = summary.lines(found(100, 200, p99_ms=1.0, mb=10))
    assert (line.verdict, line.memory_verdict) == ("theirs", "theirs")
    assert line.latency is not None
    assert line.latency.verdict == "theirs"


def test_an_interval_with_both_answers_names_no_winner() -> None:
    """The ratio is 0.99 to 1.01: nobody is ahead."""
    (line,) = summary.lines(found(100, 100))
    assert line.verdict == "cannot tell"


def test_rounds_that_scatter_beyond_a_factor_of_three_name_no_winner() -> None:
    """2 in one round, 20 in the next."""
    wild = found(200, 100, rounds=5)
    wild.rounds += found(2000, 100, rounds=5).rounds
    assert summary.lines(wild)[0].verdict == "cannot tell"


def test_two_rounds_name_no_winner() -> None:
    """Neither of us: of so few an interval says nothing."""
    for ours in (10, 6000):
        (line,) = summary.lines(found(ours, 100, rounds=2))
        assert (line.verdict, line.memory_verdict) == ("cannot tell", "cannot tell")


def test_rounds_that_scatter_below_one_are_a_peers() -> None:
    """0.5 in one round, 0.05 in the next: how far we are behind is open, not that we are."""
    wild = found(50, 100, rounds=5)
    wild.rounds += found(5, 100, rounds=5).rounds
    assert summary.lines(wild)[0].verdict == "theirs"


def test_a_busy_machine_is_called_so() -> None:
    """Above 0.20 processors of others there is no winner, however far the sides are apart."""
    (line,) = summary.lines(found(6000, 100, foreign=0.3))
    assert line.verdict == "busy"
    assert "the machine was busy: too wide to tell" in page.markdown(result(found(6000, 100, foreign=0.3)))


@pytest.mark.parametrize(("side", "p99_ms"), [("ours", 400.0), ("theirs", 0.2)])
def test_a_side_that_refuses_is_ahead_in_no_latency(side: str, p99_ms: float) -> None:
    """Of whose requests more than one of 1,000 failed: the others are quick because of it."""
    for failed, verdict in ((1, side), (2, "failed")):
        seen = changed(found(6000, 100, p99_ms=p99_ms), side, errors={"503": failed})
        line = summary.lines(seen)[0].latency
        assert line is not None
        assert line.verdict == verdict
    assert f"(no verdict: too many failed) (0.20% of {side} failed) at 10/s" in page.markdown(result(seen))


@pytest.mark.parametrize("nothing", [None, 0.0])
@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_who_answers_nothing_is_ahead_in_nothing(side: str, nothing: float | None, tmp_path: Path) -> None:
    """It has no percentiles (0 in older results), no ratio is infinite, and page and plot can be made."""
    seen = changed(
        found(6000, 100), side, closed={"requests": 0, "errors": 99}, errors={"503": 1000}, p50_ms=nothing,
        p99_ms=nothing, p999_ms=nothing, slowest_ms=[], timed=0,
    )  # fmt: skip
    (line,) = summary.lines(seen)
    assert line.latency is not None
    assert (line.latency.p99, line.latency.verdict) == (None, "cannot tell")
    assert line.verdict not in ("ours" if side == "ours" else "theirs", "busy")
    text = page.markdown(result(seen))
    assert not re.search(r"\b(inf|nan)\b", text)
    assert "– / – / –" in text
    page.draw(result(seen), tmp_path / "plot.svg")
    assert [row.met for row in page.goals(result(seen))] == [None]
    assert summary.agreement(seen, seen)[0].met is (side == "ours")


def test_a_side_that_fails_is_ahead_in_nothing_else_either() -> None:
    """Neither requests per CPU second nor memory, and the goal is undecided; the cell says how many failed."""
    seen = changed(found(6100, 100, mb=200), "ours", closed={"errors": 7})
    (line,) = summary.lines(seen)
    assert (line.verdict, line.memory_verdict) == ("failed", "failed")
    assert "(no verdict: too many failed) (0.11% of ours failed)" in page.markdown(result(seen))
    assert [row.met for row in page.goals(result(seen))] == [None]
    seen = changed(found(100, 200, mb=10), "theirs", closed={"errors": 7})
    (line,) = summary.lines(seen)
    assert (line.verdict, line.memory_verdict) == ("failed", "failed")
    few = changed(found(6100, 100), "ours", closed={"errors": 6})
    assert summary.lines(few)[0].verdict == "ours"
    assert [row.met for row in page.goals(result(few))] == [True]


def test_a_cell_with_a_wrong_answer_has_no_verdict() -> None:
    """Whatever its other rounds say; and not all replies were equal."""
    seen = found(6100, 100)
    assert "compared with ONNX Runtime, all equal" in page.markdown(result(seen))
    seen.failed.append(Failed(peer="litserve", side="litserve", what=CELL.text(), why="y is 2", wrong=True))
    other = msgspec.structs.replace(CELL, form="binary", rows=64)
    seen.failed.append(msgspec.structs.replace(seen.failed[0], what=other.text()))
    (line,) = summary.lines(seen)
    assert line.latency is not None
    assert {line.verdict, line.memory_verdict, line.latency.verdict} == {"wrong"}
    text = page.markdown(result(seen))
    assert "(ended by a wrong answer: no verdict); 6,100 / 100" in text
    assert "all equal" not in text
    assert "2 wrong, each of which ended what it was asked in" in text
    assert [row.met for row in page.goals(result(seen))] == [None]


def test_a_result_of_before_says_whose_answer_was_wrong_by_its_words() -> None:
    """It has neither a side nor a mark; a version that did not come is no wrong answer."""
    for why, wrong in (
        ("litserve: output y is 2, ONNX Runtime says 1", True),
        ("version 2 did not answer within 180 s; the last answer was: y is 2, ONNX Runtime says 1", False),
        ("gone", False),
    ):
        assert Failed(peer="litserve", what=CELL.text(), why=why).is_wrong is wrong


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_no_p99_has_a_verdict_where_the_generator_was_late_in_most_loops(side: str) -> None:
    """On either side; in six of eleven, not in five."""
    for late, verdict in ((5, "ours"), (6, "late")):
        seen = found(6000, 100, p99_ms=400.0)
        some = Found(rounds=seen.rounds[:late])
        seen.rounds[:late] = changed(some, side, generator_limited=True).rounds
        line = summary.lines(seen)[0].latency
        assert line is not None
        assert line.verdict == verdict
    text = page.markdown(result(seen))
    counts = "6 of our and 0 of their" if side == "ours" else "0 of our and 6 of their"
    assert (
        f"(no verdict: the generator was late) at 10/s; the generator was late in {counts} 11 loops" in text
    )


def test_a_p99_has_the_busy_guard_of_its_own_loops() -> None:
    """Where they have one; in older results that of the closed loops beside them."""
    seen = changed(found(6000, 100, p99_ms=400.0), "ours", foreign_cpus=0.3)
    seen = changed(seen, "theirs", foreign_cpus=0.0)
    (line,) = summary.lines(seen)
    assert line.latency is not None
    assert (line.verdict, line.latency.verdict) == ("ours", "busy")
    seen = changed(found(6000, 100, p99_ms=400.0, foreign=0.3), "ours", foreign_cpus=0.0)
    its = summary.lines(changed(seen, "theirs", foreign_cpus=0.1))[0].latency
    assert its is not None
    assert its.verdict == "ours"


def test_p999_is_of_all_rounds_together() -> None:
    """One of 1,000 took 9 ms and is the next higher one; of 11,000 the eleventh slowest is, as bench load has it."""
    (line,) = summary.lines(found(6000, 100))
    (few,) = summary.lines(found(6000, 100, rounds=1))
    assert line.latency is not None
    assert few.latency is not None
    assert line.latency.ours_ms.requests == 11_000
    assert line.latency.ours_ms.p999 == few.latency.ours_ms.p999 == 9.0
    took_ns = np.array([9_000_000] * 11 + [2_000_000] * 10_989)
    seen = latency(took_ns)
    assert seen is not None
    assert seen.p999 == p999_ms([9.0] * 11 + [2.0] * 99, 11_000) == 9.0
    assert p999_ms([9.0] * 10 + [2.0] * 100, 11_000) == 2.0


def test_too_few_requests_have_no_p999() -> None:
    """The slowest of 500 is no thousandth of them."""
    seen = found(6000, 100, rounds=1)
    (one,) = seen.rounds
    assert one.ours.open is not None
    few = msgspec.structs.replace(one.ours, open=msgspec.structs.replace(one.ours.open, requests=500))
    seen.rounds[:] = [msgspec.structs.replace(one, ours=few)]
    latency = summary.lines(seen)[0].latency
    assert latency is not None
    assert (latency.ours_ms.p999, latency.theirs_ms.p999) == (None, 9.0)
    assert "1.0 / 2.0 / – against 1.0 / 2.0 / 9.0 at 10/s" in page.markdown(result(seen))


def test_rounds_without_an_open_loop_leave_latency_to_the_others() -> None:
    """Two of eleven have one: their figures are shown and no winner is named; none has one: a dash."""
    seen = found(6000, 100, p99_ms=400.0)
    for number in range(2, 11):
        one = seen.rounds[number]
        ours, theirs = (msgspec.structs.replace(side, open=None) for side in (one.ours, one.theirs))
        seen.rounds[number] = msgspec.structs.replace(one, ours=ours, theirs=theirs)
    (line,) = summary.lines(seen)
    assert line.latency is not None
    assert (line.rounds, line.latency.opens, line.latency.verdict) == (11, 2, "cannot tell")
    assert "1.0 / 2.0 / 9.0 against 1.0 / 400.0 / 400.0 at 10/s |" in page.markdown(result(seen))
    del seen.rounds[:2]
    assert summary.lines(seen)[0].latency is None
    assert "| – |" in page.markdown(result(seen)).partition("### p50")[2]


def test_two_runs_agree_where_their_intervals_overlap() -> None:
    """Cells that both have."""
    assert [row.met for row in summary.agreement(found(6000, 100), found(6050, 100))] == [True]
    assert [row.met for row in summary.agreement(found(6000, 100), found(7000, 100))] == [False]
    assert summary.agreement(found(6000, 100), Found()) == []
