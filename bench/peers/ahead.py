"""Ahead: where a peer wins, in words: the first section of the page. Pure.

summary -> **ahead** -> page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from bench import report
from bench.peers import summary, wording
from bench.peers.figures import Result
from bench.peers.summary import Line, StartLine, StartRatio

APART = 2
"""So many cells of a model are named one by one; of more the range of their medians is, and the cells stand below."""
COLD = "Cold start, seconds, theirs against ours, and theirs / ours of starts in pairs"
VERSION = "A new version's first prediction, seconds, theirs against ours, and theirs / ours"


class Won(msgspec.Struct):
    """One figure, by peer."""

    figure: str
    said: dict[str, list[str]] = {}
    """What to say of each peer that is ahead somewhere, a model after the other."""
    behind: dict[str, list[str]] = {}
    """The cells of which a range is said."""


def ahead(result: Result, found: Sequence[Line]) -> str:
    """Where a peer wins: first, and in words. One paragraph a figure, one line of it a peer."""
    every = (
        _won("Requests per CPU second, ours / theirs", found, _ahead_per_cpu_s),
        _won("p99 at equal load, theirs / ours", found, _ahead_p99),
        _quicker(COLD, result, _ahead_cold),
        _quicker(VERSION, result, _ahead_version),
        _won("Memory, theirs / ours", found, _ahead_memory),
    )
    parts = [_paragraph(result, won.figure, won.said) for won in every if won.said]
    parts.append(_untold(result, is_any=bool(parts)))
    behind = [_paragraph(result, won.figure, won.behind) for won in every if won.behind]
    if behind:
        parts += ["<details><summary>The cells behind these ranges</summary>", *behind, "</details>"]
    return "\n\n".join(["### Where a peer is ahead", *(part for part in parts if part)])


def _paragraph(result: Result, figure: str, by_peer: dict[str, list[str]]) -> str:
    rows = [f"* {result.title(peer)}: {'; '.join(said)}" for peer, said in by_peer.items()]
    return "\n".join([f"**{figure}**", "", *rows])


def _untold(result: Result, *, is_any: bool) -> str:
    """Of how much the run does not know who is ahead."""
    every = summary.verdicts(result.found)
    untold = sum(one not in ("ours", "theirs") for one in every)
    if not every:
        return "Nothing was measured."
    if not untold:
        return "" if is_any else "In nothing that this run measured."
    if is_any:
        return f"Of {untold} of {len(every)} figures this run cannot tell who is ahead."
    return f"Nowhere that this run could tell; of {untold} of {len(every)} figures it could not."


def _ahead_per_cpu_s(line: Line) -> report.Interval | None:
    return line.per_cpu_s if line.verdict == "theirs" else None


def _ahead_p99(line: Line) -> report.Interval | None:
    its = line.latency
    return its.p99 if its is not None and its.verdict == "theirs" else None


def _ahead_memory(line: Line) -> report.Interval | None:
    return line.memory if line.memory_verdict == "theirs" else None


def _ahead_cold(
    one: StartRatio, theirs: StartLine, ours: StartLine
) -> tuple[report.Interval, float, float] | None:
    return (one.cold, theirs.cold_s, ours.cold_s) if one.cold and one.cold_verdict == "theirs" else None


def _ahead_version(
    one: StartRatio, theirs: StartLine, ours: StartLine
) -> tuple[report.Interval, float, float] | None:
    its, mine = theirs.version_s, ours.version_s
    if one.version is None or its is None or mine is None or one.version_verdict != "theirs":
        return None
    return one.version, its, mine


def _won(figure: str, found: Sequence[Line], ratio_of: Callable[[Line], report.Interval | None]) -> Won:
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in found:
        groups.setdefault((line.peer, line.cell.model), []).append(line)
    out = Won(figure)
    for (peer, model), lines in groups.items():
        its = [(line, ratio) for line in lines if (ratio := ratio_of(line)) is not None]
        cells = [f"{line.cell.text()} {wording.ratio(ratio)}" for line, ratio in its]
        if len(its) > APART:
            low, high = (pick(ratio.median for _, ratio in its) for pick in (min, max))
            digits = wording.digits(low, high)
            of = f"in {len(its)} of {len(lines)} cells"
            out.said.setdefault(peer, []).append(f"{model} {low:.{digits}f} to {high:.{digits}f} {of}")
            out.behind.setdefault(peer, []).extend(cells)
        elif cells:
            out.said.setdefault(peer, []).extend(cells)
    return out


def _quicker(
    figure: str, result: Result,
    ahead_of: Callable[[StartRatio, StartLine, StartLine], tuple[report.Interval, float, float] | None],
) -> Won:  # fmt: skip
    out = Won(figure)
    for one, theirs, ours in _both_sides(result):
        seen = ahead_of(one, theirs, ours)
        if seen is not None:
            ratio, its_s, mine_s = seen
            said = f"{one.model} {its_s:.2f} against {mine_s:.2f}, {wording.ratio(ratio)}"
            out.said.setdefault(one.peer, []).append(said)
    return out


def _both_sides(result: Result) -> Iterator[tuple[StartRatio, StartLine, StartLine]]:
    """Starts of a peer and of ours in the same pair, where both are known."""
    found = summary.starts(result.found)
    for one in summary.start_ratios(result.found):
        its = {
            line.side == one.peer: line for line in found if (line.peer, line.model) == (one.peer, one.model)
        }
        yield one, its[True], its[False]
