"""Ahead: where a peer wins, in words: the first section of the page. Pure.

summary -> **ahead** -> page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from bench import report
from bench.peers import summary
from bench.peers.figures import Result
from bench.peers.summary import Line, StartLine

APART = 2
"""So many cells of a model are named one by one; of more the range of their medians is."""


def ahead(result: Result, found: Sequence[Line]) -> str:
    """Where a peer wins: first, and in words. One paragraph a figure, one line of it a peer."""
    figures: tuple[tuple[str, dict[str, list[str]]], ...] = (
        ("Requests per CPU second, ours / theirs", _won(found, _ahead_per_cpu_s)),
        ("p99 at equal load, theirs / ours", _won(found, _ahead_p99)),
        ("Cold start, seconds, theirs against ours", _quicker(result, lambda one: one.cold_s)),
        (
            "A new version's first prediction, seconds, theirs against ours",
            _quicker(result, lambda one: one.version_s),
        ),
        ("Memory, theirs / ours", _won(found, _ahead_memory)),
    )
    texts = []
    for figure, by_peer in figures:
        if by_peer:
            rows = [f"* {result.title(peer)}: {'; '.join(said)}" for peer, said in by_peer.items()]
            texts.append("\n".join([f"**{figure}**", "", *rows]))
    body = "\n\n".join(texts) or "In nothing that this run measured."
    return f"### Where a peer is ahead\n\n{body}"


def _ahead_per_cpu_s(line: Line) -> report.Interval | None:
    return line.per_cpu_s if line.verdict == "theirs" else None


def _ahead_p99(line: Line) -> report.Interval | None:
    its = line.latency
    return its.p99 if its is not None and its.verdict == "theirs" else None


def _ahead_memory(line: Line) -> report.Interval | None:
    return line.memory if line.memory_verdict == "theirs" else None


def _won(found: Sequence[Line], ratio_of: Callable[[Line], report.Interval | None]) -> dict[str, list[str]]:
    """What to say of each peer that is ahead somewhere, a model after the other."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in found:
        groups.setdefault((line.peer, line.cell.model), []).append(line)
    out: dict[str, list[str]] = {}
    for (peer, model), lines in groups.items():
        ahead = [(line, ratio) for line in lines if (ratio := ratio_of(line)) is not None]
        if len(ahead) > APART:
            medians = [ratio.median for _, ratio in ahead]
            said = [f"{model} {min(medians):.2f} to {max(medians):.2f} in {len(ahead)} of {len(lines)} cells"]
        else:
            said = [f"{line.cell.text()} {ratio}" for line, ratio in ahead]
        if said:
            out.setdefault(peer, []).extend(said)
    return out


def _quicker(result: Result, took_s: Callable[[StartLine], float | None]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for theirs, ours in _both_sides(result):
        their_s, our_s = took_s(theirs), took_s(ours)
        if their_s and our_s and their_s < our_s:
            out.setdefault(theirs.peer, []).append(f"{theirs.model} {their_s:.2f} against {our_s:.2f}")
    return out


def _both_sides(result: Result) -> Iterator[tuple[StartLine, StartLine]]:
    """Starts of a peer and of ours in the same pair, where both are known."""
    found = {(one.peer, one.model, one.side): one for one in summary.starts(result.found)}
    for (peer, model, side), theirs in found.items():
        ours = next((one for key, one in found.items() if key[:2] == (peer, model) and key[2] != peer), None)
        if side == peer and ours is not None:
            yield theirs, ours
