"""Summary: what the rounds of a comparison say. Pure.

A figure is the median of the rounds' ratios with its sign-test interval. Where the interval holds both answers, or
others took more of the processors than a figure bears, the summary says that it cannot tell, and names no winner; nor
is a side ahead of whose requests too many failed, or in a cell that a wrong answer ended.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from bench import outcome, report
from bench.peers.figures import Found, Measured, Open, Round, Start
from bench.peers.peer import Cell
from bench.peers.verdicts import Shares, Verdict, ratio, verdict

P999_REQUESTS_MIN = 1000
"""Of fewer requests there is no p99.9."""


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Of one side at the offered rate, milliseconds: medians of the rounds; p99.9 of all rounds together.

    None where nothing was answered.
    """

    p50: float | None
    p99: float | None
    p999: float | None
    """None: too few requests have one."""
    requests: int


class LatencyLine(msgspec.Struct, frozen=True, kw_only=True):
    """Both sides at the same offered rate."""

    offered_per_second: float
    opens: int
    """Open loops of either side."""
    p99: report.Interval | None
    """Theirs / ours; None: a side has none in one of the loops."""
    verdict: Verdict
    ours_ms: Latency
    theirs_ms: Latency
    failed: Shares
    """In open loops."""
    ours_late: int
    """Open loops in which the generator was late."""
    theirs_late: int


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One cell against one peer. Ratios above 1 are in our favour."""

    peer: str
    cell: Cell
    rounds: int
    per_cpu_s: report.Interval | None
    """Ours / theirs; None: a side answered nothing in one of the rounds."""
    ours_per_cpu_s: float
    theirs_per_cpu_s: float
    verdict: Verdict
    latency: LatencyLine | None
    """None: no round had an open loop."""
    ours_errors: int
    theirs_errors: int
    failed: Shares
    """In closed loops or in open ones, whichever is more."""
    memory: report.Interval | None
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
    """The most of one start."""


class StartRatio(msgspec.Struct, frozen=True, kw_only=True):
    """Starts of a peer against ours, in pairs. Ratios above 1 are in our favour."""

    peer: str
    model: str
    starts: int
    """Of either side."""
    cold: report.Interval | None
    """Theirs / ours."""
    cold_verdict: Verdict
    versions: int
    version: report.Interval | None
    """Theirs / ours."""
    version_verdict: Verdict


def lines(found: Found) -> list[Line]:
    """One line for each peer and cell, in the order in which they were measured."""
    groups: dict[tuple[str, Cell], list[Round]] = {}
    for one in found.rounds:
        groups.setdefault((one.peer, one.cell), []).append(one)
    wrong = wrongs(found)
    return [
        _line(peer, cell, rounds, wrong=(peer, cell.text()) in wrong)
        for (peer, cell), rounds in groups.items()
    ]


def wrongs(found: Found) -> set[tuple[str, str]]:
    """Cells that a wrong answer ended, by peer and text."""
    return {(one.peer, one.what) for one in found.failed if one.is_wrong}


def _line(peer: str, cell: Cell, rounds: Sequence[Round], *, wrong: bool) -> Line:
    ours, theirs = [one.ours for one in rounds], [one.theirs for one in rounds]
    foreign = _median([max(one.ours.closed.foreign_cpus, one.theirs.closed.foreign_cpus) for one in rounds])
    failed = Shares(_failed_share(ours), _failed_share(theirs))
    per_cpu_s = ratio([one.closed.per_cpu_s for one in ours], [one.closed.per_cpu_s for one in theirs])
    memory = ratio([one.memory_bytes for one in theirs], [one.memory_bytes for one in ours])
    return Line(
        peer=peer,
        cell=cell,
        rounds=len(rounds),
        per_cpu_s=per_cpu_s,
        ours_per_cpu_s=_median([one.closed.per_cpu_s for one in ours]),
        theirs_per_cpu_s=_median([one.closed.per_cpu_s for one in theirs]),
        verdict=verdict(per_cpu_s, len(rounds), foreign, failed=failed, wrong=wrong),
        latency=_latency_line(rounds, foreign, wrong=wrong),
        ours_errors=_errors(ours),
        theirs_errors=_errors(theirs),
        failed=failed,
        memory=memory,
        ours_memory_mb=_median([one.memory_bytes for one in ours]) / 2**20,
        theirs_memory_mb=_median([one.memory_bytes for one in theirs]) / 2**20,
        memory_verdict=verdict(memory, len(rounds), failed=failed, wrong=wrong),
        foreign_cpus=foreign,
    )


def _latency_line(rounds: Sequence[Round], foreign_cpus: float, *, wrong: bool) -> LatencyLine | None:
    pairs = [(one.ours.open, one.theirs.open) for one in rounds if one.ours.open and one.theirs.open]
    if not pairs:
        return None
    ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    p99 = ratio([_p99_ms(one) for one in theirs], [_p99_ms(one) for one in ours])
    late = [sum(one.generator_limited for one in side) for side in (ours, theirs)]
    failed = Shares(_open_failed_share(ours), _open_failed_share(theirs))
    return LatencyLine(
        offered_per_second=_median([one.offered_per_second for one in ours]),
        opens=len(pairs),
        p99=p99,
        verdict=verdict(
            p99, len(pairs), _open_foreign_cpus(pairs, foreign_cpus), failed=failed,
            late=2 * max(late) > len(pairs), wrong=wrong,
        ),
        ours_ms=_latency(ours),
        theirs_ms=_latency(theirs),
        failed=failed,
        ours_late=late[0],
        theirs_late=late[1],
    )  # fmt: skip


def _p99_ms(one: Open) -> float | None:
    # Older results have 0 where nothing was answered.
    return one.p99_ms or None


def _open_foreign_cpus(pairs: Sequence[tuple[Open, Open]], closed: float) -> float:
    """Of open loops; as of the closed ones beside them in older results, which do not have it."""
    found = [max(one.foreign_cpus or 0.0 for one in pair) for pair in pairs if None not in
             [one.foreign_cpus for one in pair]]  # fmt: skip
    return _median(found) if found else closed


def agreement(first: Found, second: Found) -> list[report.Row]:
    """Of two runs, each cell that both have: whether the intervals of the ratio overlap."""
    theirs = {(line.peer, line.cell): line.per_cpu_s for line in lines(second)}
    out = []
    for line in lines(first):
        mine, other = line.per_cpu_s, theirs.get((line.peer, line.cell))
        if (line.peer, line.cell) in theirs:
            met = bool(mine and other and mine.low <= other.high and other.low <= mine.high)
            name = f"{line.peer}, {line.cell.text()}"
            said = f"{mine or 'no figure'} and {other or 'no figure'}"
            out.append(report.Row(name, said, "intervals overlap", met))
    return out


def starts(found: Found) -> list[StartLine]:
    """One line for each peer, model and side: medians, and the most polls that were refused."""
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


def start_ratios(found: Found) -> list[StartRatio]:
    """One for each peer and model that both sides were started with."""
    pairs: dict[tuple[str, str], dict[int, dict[bool, Start]]] = {}
    for one in found.starts:
        numbers = pairs.setdefault((one.peer, one.model), {})
        numbers.setdefault(one.number, {})[one.side == one.peer] = one
    out = []
    for (peer, model), numbers in pairs.items():
        both = [(pair[True], pair[False]) for pair in numbers.values() if len(pair) == 2]
        if not both:
            continue
        versions = [pair for pair in both if None not in (pair[0].version_s, pair[1].version_s)]
        cold = ratio([theirs.cold_s for theirs, _ in both], [ours.cold_s for _, ours in both])
        version = ratio(
            [theirs.version_s for theirs, _ in versions], [ours.version_s for _, ours in versions]
        )
        out.append(
            StartRatio(
                peer=peer, model=model, starts=len(both), cold=cold, cold_verdict=verdict(cold, len(both)),
                versions=len(versions), version=version, version_verdict=verdict(version, len(versions)),
            )
        )  # fmt: skip
    return out


def verdicts(found: Found) -> list[Verdict]:
    """Of every figure that two sides have."""
    out: list[Verdict] = []
    for line in lines(found):
        out += [line.verdict, line.memory_verdict]
        out += [line.latency.verdict] if line.latency is not None else []
    for one in start_ratios(found):
        out += [one.cold_verdict]
        out += [one.version_verdict] if one.versions else []
    return out


def _median(values: Sequence[float]) -> float:
    return report.interval(values).median


def _errors(sides: Sequence[Measured]) -> int:
    return sum(one.closed.errors + (sum(one.open.errors.values()) if one.open else 0) for one in sides)


def _failed_share(sides: Sequence[Measured]) -> float:
    errors = sum(one.closed.errors for one in sides)
    closed = errors / (errors + sum(one.closed.requests for one in sides)) if errors else 0.0
    return max(closed, _open_failed_share([one.open for one in sides if one.open]))


def _open_failed_share(loops: Sequence[Open]) -> float:
    errors = sum(sum(one.errors.values()) for one in loops)
    return errors / sum(one.requests for one in loops) if errors else 0.0


def _latency(loops: Sequence[Open]) -> Latency:
    requests = sum(one.requests if one.timed is None else one.timed for one in loops)
    slowest = [took for one in loops for took in one.slowest_ms]
    p50s = [one.p50_ms for one in loops if one.p50_ms]
    p99s = [one.p99_ms for one in loops if one.p99_ms]
    return Latency(
        p50=_median(p50s) if p50s else None,
        p99=_median(p99s) if p99s else None,
        p999=outcome.p999_ms(slowest, requests) if p99s and requests >= P999_REQUESTS_MIN else None,
        requests=requests,
    )
