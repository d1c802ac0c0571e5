"""Rounds that nobody measured: what summaries and pages are made of in tests."""

from __future__ import annotations

from typing import Any

import msgspec

from bench import report
from bench.peers.figures import (
    About,
    Chosen,
    Closed,
    Found,
    How,
    Measured,
    Open,
    Pair,
    Result,
    Round,
)
from bench.peers.peer import Cell, Setting, Source

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
