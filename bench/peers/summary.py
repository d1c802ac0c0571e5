"""Summary: what the rounds of a comparison say. Pure.

A figure is the median of the rounds' ratios with its sign-test interval. Where the interval holds both answers, or
others took more of the processors than a figure bears, the summary says that it cannot tell, and names no winner.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from bench import report
from bench.peers.figures import Found, Measured, Open, Round, Start
from bench.peers.peer import Cell
from bench.peers.verdicts import Verdict, verdict

P999_REQUESTS_MIN = 1000
"""Of fewer requests there is no p99.9."""


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Of one side at the offered rate, milliseconds: medians of the rounds; p99.9 of all rounds together."""

    p50: float
    p99: float
    p999: float | None
    """None: too few requests have one."""
    requests: int


class LatencyLine(msgspec.Struct, frozen=True, kw_only=True):
    """Both sides at the same offered rate."""

    offered_per_second: float
    opens: int
    """Open loops of either side."""
    p99: report.Interval
    """Theirs / ours."""
    verdict: Verdict
    ours_ms: Latency
    theirs_ms: Latency
    generator_limited: bool


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One cell against one peer. Ratios above 1 are in our favour."""

    peer: str
    cell: Cell
    rounds: int
    per_cpu_s: report.Interval
    """Ours / theirs."""
    ours_per_cpu_s: float
    theirs_per_cpu_s: float
    verdict: Verdict
    latency: LatencyLine | None
    """None: no round had an open loop."""
    ours_errors: int
    theirs_errors: int
    memory: report.Interval
    """Theirs / ours."""
    ours_memory_mb: float
    theirs_memory_mb: float
    memory_verdict: Verdict
    foreign_cpus: float


class StartLine(msgspec.Struct, frozen=True, kw_only=True):
    """Starts of one side."""

    peer: str
    side: str
    model: str
    rounds: int
    cold_s: float
    version_s: float | None
    refused: int


def lines(found: Found) -> list[Line]:
    """One line for each peer and cell, in the order in which they were measured."""
    groups: dict[tuple[str, Cell], list[Round]] = {}
    for one in found.rounds:
        groups.setdefault((one.peer, one.cell), []).append(one)
    return [_line(peer, cell, rounds) for (peer, cell), rounds in groups.items()]


def _line(peer: str, cell: Cell, rounds: Sequence[Round]) -> Line:
    ours, theirs = [one.ours for one in rounds], [one.theirs for one in rounds]
    foreign = _median([max(one.ours.closed.foreign_cpus, one.theirs.closed.foreign_cpus) for one in rounds])
    per_cpu_s = _ratio([one.closed.per_cpu_s for one in ours], [one.closed.per_cpu_s for one in theirs])
    memory = _ratio([one.memory_bytes for one in theirs], [one.memory_bytes for one in ours])
    return Line(
        peer=peer,
        cell=cell,
        rounds=len(rounds),
        per_cpu_s=per_cpu_s,
        ours_per_cpu_s=_median([one.closed.per_cpu_s for one in ours]),
        theirs_per_cpu_s=_median([one.closed.per_cpu_s for one in theirs]),
        verdict=verdict(per_cpu_s, len(rounds), foreign),
        latency=_latency_line(rounds, foreign),
        ours_errors=_errors(ours),
        theirs_errors=_errors(theirs),
        memory=memory,
        ours_memory_mb=_median([one.memory_bytes for one in ours]) / 2**20,
        theirs_memory_mb=_median([one.memory_bytes for one in theirs]) / 2**20,
        memory_verdict=verdict(memory, len(rounds)),
        foreign_cpus=foreign,
    )


def _latency_line(rounds: Sequence[Round], foreign_cpus: float) -> LatencyLine | None:
    pairs = [(one.ours.open, one.theirs.open) for one in rounds if one.ours.open and one.theirs.open]
    if not pairs:
        return None
    ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    p99 = _ratio([one.p99_ms for one in theirs], [one.p99_ms for one in ours])
    return LatencyLine(
        offered_per_second=_median([one.offered_per_second for one in ours]),
        opens=len(pairs),
        p99=p99,
        verdict=verdict(p99, len(pairs), foreign_cpus),
        ours_ms=_latency(ours),
        theirs_ms=_latency(theirs),
        generator_limited=any(one.generator_limited for one in (*ours, *theirs)),
    )


def agreement(first: Found, second: Found) -> list[report.Row]:
    """Of two runs, each cell that both have: whether the intervals of the ratio overlap."""
    theirs = {(line.peer, line.cell): line.per_cpu_s for line in lines(second)}
    out = []
    for line in lines(first):
        mine, other = line.per_cpu_s, theirs.get((line.peer, line.cell))
        if other is not None:
            met = mine.low <= other.high and other.low <= mine.high
            name = f"{line.peer}, {line.cell.text()}"
            out.append(report.Row(name, f"{mine} and {other}", "intervals overlap", met))
    return out


def starts(found: Found) -> list[StartLine]:
    """One line for each peer, model and side: medians."""
    groups: dict[tuple[str, str, str], list[Start]] = {}
    for one in found.starts:
        groups.setdefault((one.peer, one.model, one.side), []).append(one)
    out = []
    for (peer, model, side), its in groups.items():
        versions = [one.version_s for one in its if one.version_s is not None]
        out.append(
            StartLine(
                peer=peer, side=side, model=model, rounds=len(its), cold_s=_median([one.cold_s for one in its]),
                version_s=_median(versions) if versions else None, refused=max(one.refused for one in its),
            )
        )  # fmt: skip
    return out


def _median(values: Sequence[float]) -> float:
    return report.interval(values).median


def _ratio(top: Sequence[float], bottom: Sequence[float]) -> report.Interval:
    return report.interval([a / b if b else float("inf") for a, b in zip(top, bottom, strict=True)])


def _errors(sides: Sequence[Measured]) -> int:
    return sum(one.closed.errors + (sum(one.open.errors.values()) if one.open else 0) for one in sides)


def _latency(loops: Sequence[Open]) -> Latency:
    requests = sum(one.requests for one in loops)
    slowest = sorted((took for one in loops for took in one.slowest_ms), reverse=True)
    place = min(round(requests * 0.001), len(slowest) - 1)
    return Latency(
        p50=_median([one.p50_ms for one in loops]),
        p99=_median([one.p99_ms for one in loops]),
        p999=slowest[place] if slowest and requests >= P999_REQUESTS_MIN else None,
        requests=requests,
    )
