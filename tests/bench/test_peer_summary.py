"""What rounds say: who is ahead, who cannot tell, and what a reader sees first."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from bench import report
from bench.outcome import latency, p999_ms
from bench.peers import calibration, choosing, page, summary, wording
from bench.peers.ahead import COLD, VERSION
from bench.peers.choosing import chosen
from bench.peers.figures import (
    About,
    Chosen,
    Closed,
    Failed,
    Found,
    How,
    Measured,
    Open,
    Pair,
    Result,
    Round,
    Start,
    Tried,
)
from bench.peers.peer import Cell, Setting, Source
from gateway.errors import ConfigInvalid

CELL = Cell("mlp", "json", 1, True)


def measured(per_cpu_s: float, *, p99_ms: float = 2.0, foreign: float = 0.0, mb: int = 100) -> Measured:
    """One side of a round."""
    closed = Closed(
        requests=int(per_cpu_s), errors=0, cpu_s=1.0, per_second=per_cpu_s, p50_ms=1.0, foreign_cpus=foreign,
        checked=3,
    )  # fmt: skip
    opened = Open(
        offered_per_second=10, requests=1000, errors={}, p50_ms=1.0, p99_ms=p99_ms, p999_ms=p99_ms,
        slowest_ms=[9.0, *[p99_ms] * 9], generator_limited=False, checked=2,
    )  # fmt: skip
    return Measured(closed=closed, open=opened, memory_bytes=mb << 20)


def found(ours: float, theirs: float, *, rounds: int = 11, foreign: float = 0.0, **more: float) -> Found:
    """Rounds with a little spread."""
    out = Found()
    for number in range(rounds):
        spread = 1 + (number % 3 - 1) * 0.01
        out.rounds.append(
            Round(peer="litserve", cell=CELL, number=number, ours=measured(ours * spread, foreign=foreign),
                  theirs=measured(theirs, **more))  # type: ignore[arg-type]
        )  # fmt: skip
    return out


def changed(seen: Found, side: str, *, closed: dict[str, Any] | None = None, **opened: Any) -> Found:
    """The same rounds with other values in one side's closed and open loops."""
    for number, one in enumerate(seen.rounds):
        its: Measured = getattr(one, side)
        assert its.open is not None
        other = msgspec.structs.replace(
            its,
            closed=msgspec.structs.replace(its.closed, **closed or {}),
            open=msgspec.structs.replace(its.open, **opened),
        )
        seen.rounds[number] = msgspec.structs.replace(one, **{side: other})
    return seen


def over_cells(count: int, behind: int = 0) -> Found:
    """Cells of one model in which ours has a half, a third, a quarter of theirs, and some in which ours is ahead."""
    out = Found()
    for number in range(count + behind):
        cell = Cell("mlp", "json", number + 1, True)
        theirs = 100 * (number + 2) if number < count else 10
        out.rounds += [msgspec.structs.replace(one, cell=cell) for one in found(100, theirs).rounds]
    return out


def result(seen: Found) -> Result:
    """A run with one peer."""
    setting = Chosen(setting=Setting(2, False), reason="900 requests per CPU second")
    seen.pairs.append(Pair(peer="litserve", model="mlp", theirs=setting, ours=setting))
    source = Source("workers like processors", "LitServer", "https://lightning.ai/docs")
    about = About(title="LitServe", version="0.2", audit="a Logger", forms=["json"], sources=[source])
    return Result(
        at="2026-01-01", commit="abc", command="tidegate bench peers", machine=report.machine(), how=How(),
        quick=False, pinned=False, peers={"litserve": about}, found=seen,
    )  # fmt: skip


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


def test_a_page_says_first_where_a_peer_is_ahead() -> None:
    """Before any table; figures of ours come after it."""
    text = page.markdown(result(found(100, 200)))
    first, _, rest = text.partition("### Requests per CPU second")
    assert (
        "**Requests per CPU second, ours / theirs**\n\n* LitServe: mlp, json, 1 row, audit on 0.50" in first
    )
    assert "(theirs ahead)" in rest
    better = page.markdown(result(found(6000, 100, p99_ms=4.0, mb=200)))
    assert "### Where a peer is ahead\n\nIn nothing that this run measured.\n\n### Goals" in better


def test_many_cells_of_a_model_in_which_a_peer_is_ahead_are_one_range() -> None:
    """Two are named, of more the range of their medians is, and of how many."""
    first = page.markdown(result(over_cells(2))).partition("### Requests per CPU second")[0]
    assert "* LitServe: mlp, json, 1 row, audit on 0.50" in first
    assert "; mlp, json, 2 rows, audit on 0.33" in first
    first = page.markdown(result(over_cells(3, behind=1))).partition("### Requests per CPU second")[0]
    assert "* LitServe: mlp 0.25 to 0.50 in 3 of 4 cells" in first
    shown, _, behind = first.partition("<details>")
    assert "mlp, json, 3 rows, audit on 0.25" not in shown
    for cell in ("1 row, audit on 0.50 [", "2 rows, audit on 0.33 [", "3 rows, audit on 0.25 ["):
        assert f"mlp, json, {cell}" in behind


def test_cells_whose_logs_are_not_alike_are_marked() -> None:
    """A peer without a log beside ours that is on, and one that logs whole what we log by digest; no other cell is."""
    image = Cell("squeezenet", "binary", 1, True)
    for peer, audit, cell, mark in (
        ("triton", "trace", image, "²"),
        ("triton", "trace", msgspec.structs.replace(image, audit=False), ""),
        ("triton", "trace", CELL, ""),
        ("bentoml", "monitor", image, ""),
        ("mlserver", "", CELL, "¹"),
        ("mlserver", "", msgspec.structs.replace(CELL, audit=False), ""),
    ):
        seen = result(found(6000, 100))
        seen.found.rounds[:] = [
            msgspec.structs.replace(one, peer=peer, cell=cell) for one in seen.found.rounds
        ]
        seen.peers[peer] = msgspec.structs.replace(seen.peers["litserve"], audit=audit)
        text = page.markdown(seen)
        space = f" {mark}" if mark else ""
        assert f"{space}; 6,000 / 100 |" in text
        assert f" at 10/s{space} |" in text
        assert text.count("Logs are not alike: ") == (2 if mark else 0)


def test_a_ratio_near_one_has_three_decimals() -> None:
    """0.998 is not 1.00, and a range has two ends."""
    assert wording.ratio(report.Interval(0.998, 0.9, 1.2, 0.75)) == "0.998 [0.900, 1.200]"
    assert wording.ratio(report.Interval(0.5, 0.4, 0.6, 0.75)) == "0.50 [0.40, 0.60]"
    assert wording.ratio(report.Interval(45.61, 40.0, 50.0, 0.75)) == "45.6 [40.0, 50.0]"
    seen = Found()
    for rows, theirs in ((1, 104), (2, 105), (3, 120)):
        cell = Cell("mlp", "json", rows, True)
        seen.rounds += [msgspec.structs.replace(one, cell=cell) for one in found(100, theirs).rounds]
    assert "* LitServe: mlp 0.833 to 0.962 in 3 of 3 cells" in page.markdown(result(seen))


def test_what_a_run_cannot_tell_is_no_win_of_ours() -> None:
    """Where nobody is seen ahead, it is said of how many figures; so it is where a peer is."""
    busy = page.markdown(result(found(6000, 100, foreign=0.5)))
    assert "Nowhere that this run could tell; of 3 of 3 figures it could not." in busy
    assert "Of 2 of 3 figures this run cannot tell who is ahead." in page.markdown(result(found(100, 200)))
    assert "### Where a peer is ahead\n\nNothing was measured." in page.markdown(result(Found()))


def started(ours_s: list[float], theirs_s: list[float], **both: Any) -> Found:
    """Starts of both sides in pairs."""
    seen = found(6000, 100)
    for side, took_s in (("tidegate", ours_s), ("litserve", theirs_s)):
        for number, cold_s in enumerate(took_s):
            one = Start(peer="litserve", side=side, model="mlp", number=number, cold_s=cold_s, version_s=None)
            seen.starts.append(msgspec.structs.replace(one, **both))
    return seen


def test_a_quicker_cold_start_of_a_peer_is_said_first() -> None:
    """Starts count as much as rates, with the interval of their ratios."""
    text = page.markdown(result(started([2.0, 2.2, 2.1], [1.0, 1.1, 1.3])))
    first = text.partition("### Requests per CPU second")[0]
    assert f"**{COLD}**\n\n* LitServe: mlp 1.10 against 2.10, 0.50 [0.50, 0.62]" in first
    assert "| LitServe | mlp | theirs | 3 | 1.10 | 0.50 [0.50, 0.62] **(theirs ahead)** | – | – |  |" in text


@pytest.mark.parametrize("theirs_s", [[1.0, 1.1], [1.0, 1.1, 2.3]])
def test_starts_name_no_winner_on_less_than_rounds_do(theirs_s: list[float]) -> None:
    """Two, or three of which one is ours: nobody is ahead, whatever the medians are."""
    text = page.markdown(result(started([2.0, 2.2, 2.1], theirs_s)))
    assert COLD not in text
    assert "(too wide to tell) | – | – |  |" in text


def test_polls_refused_are_the_most_of_one_start() -> None:
    """The table says so."""
    seen = started([2.0] * 3, [1.0] * 3, version_s=0.5)
    seen.starts[-1] = msgspec.structs.replace(seen.starts[-1], refused=7, version_s=0.4)
    text = page.markdown(result(seen))
    assert "polls refused meanwhile, at most" in text
    assert "| LitServe | mlp | theirs | 3 | 1.00 | 0.50 [0.50, 0.50] **(theirs ahead)** | 0.50 | 7 |" in text
    assert VERSION not in text


def test_what_could_not_be_measured_stands_there_with_its_last_lines() -> None:
    """Never dropped."""
    seen = found(6000, 100)
    seen.failed.append(
        Failed(peer="litserve", what="install", why="its environment cannot be made", last_lines="E: no")
    )
    text = page.markdown(result(seen))
    assert "**LitServe**, install: its environment cannot be made" in text
    seen.failed += [
        Failed(peer="litserve", what="mlp", why="it broke", side=side) for side in ("tidegate", "litserve")
    ]
    text = page.markdown(result(seen))
    assert "**LitServe**, mlp (ours failed): it broke" in text
    assert "**LitServe**, mlp (theirs failed): it broke" in text
    assert "```\nE: no\n```" in text


def test_a_page_has_settings_with_reasons_and_sources() -> None:
    """And the machine and the command."""
    text = page.markdown(result(found(6000, 100)))
    assert "2 workers, batching off | 900 requests per CPU second" in text
    assert "workers like processors ([LitServer](https://lightning.ai/docs))" in text
    assert "`tidegate bench peers`" in text
    assert "5 replies" not in text
    assert f"{11 * 2 * 5:,} replies compared with ONNX Runtime" in text


def test_goals_are_not_those_of_a_pinned_run() -> None:
    """They hold for each side at its best."""
    at_best = result(found(5000, 100))
    assert page.goals(at_best)
    pinned = msgspec.structs.replace(at_best, pinned=True)
    assert page.goals(pinned) == []
    assert "### Goals" not in page.markdown(pinned)


def test_goals_are_met_missed_or_undecided() -> None:
    """60 times LitServe; a busy machine decides nothing."""
    assert [row.met for row in page.goals(result(found(6100, 100)))] == [True]
    assert [row.met for row in page.goals(result(found(5000, 100)))] == [False]
    assert [row.met for row in page.goals(result(found(5000, 100, foreign=0.5)))] == [None]


def test_a_goal_inside_the_interval_is_not_met() -> None:
    """The median is 60.3, the interval begins below 60; missed is missed."""
    assert [row.met for row in page.goals(result(found(6030, 100)))] == [None]
    assert [row.met for row in page.goals(result(found(5970, 100)))] == [False]


def test_a_page_has_both_sides_own_figures_and_every_failed_request() -> None:
    """A ratio alone cannot be held against another run; a cell that is no headline hides no error."""
    seen = found(6000, 100)
    text = page.markdown(result(seen))
    assert "; 6,000 / 100 |" in text
    other = msgspec.structs.replace(CELL, rows=64)
    for one in found(6000, 100, rounds=3).rounds:
        closed = msgspec.structs.replace(one.theirs.closed, errors=2)
        theirs = msgspec.structs.replace(one.theirs, closed=closed)
        seen.rounds.append(msgspec.structs.replace(one, cell=other, theirs=theirs))
    assert "* LitServe, mlp, json, 64 rows, audit on: 0 / 6 failed" in page.markdown(result(seen))


def test_two_runs_agree_where_their_intervals_overlap() -> None:
    """Cells that both have."""
    assert [row.met for row in summary.agreement(found(6000, 100), found(6050, 100))] == [True]
    assert [row.met for row in summary.agreement(found(6000, 100), found(7000, 100))] == [False]
    assert summary.agreement(found(6000, 100), Found()) == []


def test_a_page_without_markers_is_refused_and_the_rest_of_one_stays() -> None:
    """Between its markers only."""
    with pytest.raises(ConfigInvalid, match="peers: begin"):
        page.written("# nothing", result(found(6000, 100)))
    text = page.written(
        "# top\n<!-- peers: begin -->\nold\n<!-- peers: end -->\nend", result(found(6000, 100))
    )
    assert text.startswith("# top\n<!-- peers: begin -->\n\n### ")
    assert text.endswith("<!-- peers: end -->\nend")
    assert "\nold\n" not in text


def test_the_best_setting_is_chosen_among_those_that_answered_everything() -> None:
    """And its reason has the figures of the others."""
    tried = [
        Tried(setting=Setting(1, True), per_cpu_s=900.0),
        Tried(setting=Setting(2, True), per_cpu_s=950.0),
        Tried(setting=Setting(4, True), per_cpu_s=2000.0, why_not="7 of 90 requests failed"),
    ]
    best = chosen(tried)
    assert best.setting == Setting(2, True)
    assert best.reason == (
        "950 requests per CPU second; 1 worker, batching on: 900; 4 workers, batching on: 7 of 90 requests failed"
    )


def test_a_reason_says_that_the_machine_was_busy() -> None:
    """A choice between figures that others disturbed may be another one next time."""
    tried = [
        Tried(setting=Setting(1, True), per_cpu_s=900.0, foreign_cpus=0.02),
        Tried(setting=Setting(2, True), per_cpu_s=500.0, foreign_cpus=0.55),
    ]
    assert "others took up to 0.55 processors meanwhile" in chosen(tried).reason
    assert "others" not in chosen(tried[:1]).reason


def test_of_settings_that_come_near_to_each_other_the_one_with_fewest_workers_is_chosen() -> None:
    """Chance between 930 and 950 is not paid with four times the memory; nor is a server chosen that waits."""
    tried = [
        Tried(setting=Setting(1, True), per_cpu_s=930.0, per_second=900.0),
        Tried(setting=Setting(1, False), per_cpu_s=920.0, per_second=910.0),
        Tried(setting=Setting(4, True), per_cpu_s=950.0, per_second=940.0),
        Tried(setting=Setting(2, True), per_cpu_s=2000.0, per_second=40.0),
    ]
    best = chosen(tried)
    assert best.setting == Setting(1, True)
    assert "4 workers, batching on: 950 (not 5% more, of more workers)" in best.reason
    assert "2 workers, batching on: 2,000 (waits: 40 a second)" in best.reason


def test_what_is_slow_and_busy_does_not_wait() -> None:
    """It answers less than half as many a second as another because a request costs it more: its figure says so."""
    tried = [
        Tried(setting=Setting(1, True), per_cpu_s=900.0, per_second=900.0),
        Tried(setting=Setting(1, False), per_cpu_s=400.0, per_second=390.0),
        Tried(setting=Setting(2, True), per_cpu_s=800.0, per_second=390.0),
    ]
    said = chosen(tried).reason
    assert said.endswith("1 worker, batching off: 400; 2 workers, batching on: 800 (waits: 390 a second)")


def test_a_page_says_reasons_of_before_as_they_would_be_said_now() -> None:
    """From what was tried; what somebody wrote in its place, or for another choice, stands."""
    tried = [
        Tried(setting=Setting(2, True), per_cpu_s=900.0, per_second=900.0),
        Tried(setting=Setting(1, True), per_cpu_s=950.0, per_second=40.0),
    ]
    before = Chosen(
        setting=Setting(2, True), reason="900 requests per CPU second; 1 worker: 950", tried=tried
    )
    seen = result(found(6000, 100))
    seen.found.pairs[:] = [Pair(peer="litserve", model="mlp", theirs=before, ours=before)]
    text = page.markdown(seen)
    assert text.count("900 requests per CPU second; 1 worker, batching on: 950 (waits: 40 a second) |") == 2
    for mine in (
        msgspec.structs.replace(before, reason="by hand"),
        msgspec.structs.replace(before, setting=Setting(4, True)),
        msgspec.structs.replace(before, tried=[]),
    ):
        assert choosing.reason(mine) == mine.reason


def test_committed_settings_have_the_reasons_that_a_calibration_says_now() -> None:
    """Of every class of machine."""
    every = [
        one
        for found in calibration.read(calibration.COMMITTED).classes.values()
        for models in found.peers.values()
        for one in models.values()
    ]
    assert len(every) > 9
    assert [one.reason for one in every if one.reason != choosing.reason(one)] == []


def test_no_path_of_this_machine_gets_into_a_page_and_no_line_breaks_a_table() -> None:
    """What products say, in settings and of failures."""
    place = f"{tempfile.gettempdir()}/tidegate-x/home/app.py"
    said = f"no {place}:\n\nTraceback | {place}"
    tried = [Tried(setting=Setting(1, True), per_cpu_s=9.0), Tried(setting=Setting(2, True), why_not=said)]
    mine = chosen(tried)
    seen = result(found(6000, 100))
    by_hand = msgspec.structs.replace(mine, reason=said)
    seen.found.pairs[:] = [Pair(peer="litserve", model="mlp", theirs=mine, ours=by_hand)]
    seen.found.failed.append(Failed(peer="litserve", what="install", why=said, last_lines=said))
    text = page.markdown(seen)
    assert tempfile.gettempdir() not in text
    assert text.count("| no …/app.py: Traceback / …/app.py |") == 1
    assert "9 requests per CPU second; 2 workers, batching on: no …/app.py: Traceback / …/app.py |" in text
    assert "install: no …/app.py: Traceback | …/app.py" in text
