"""What a reader of the page sees: first where a peer is ahead, then every figure, and what has none."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from fake_rounds import CELL, found, over_cells, result

from bench import report
from bench.peers import page, wording
from bench.peers.ahead import COLD, VERSION
from bench.peers.figures import (
    Failed,
    Found,
    Start,
)
from bench.peers.peer import Cell
from gateway.errors import ConfigInvalid


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
