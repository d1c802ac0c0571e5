"""What the open-loop cases share: capacity first, then a load at a share of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from bench.cases.case import Bench, metric
from bench.load import Plan
from bench.outcome import Outcome
from bench.paired import demand_clean
from bench.report import Row
from bench.requests import Requests, Target
from bench.serving import Gateway
from bench.wrk import Wrk


class Capacity(msgspec.Struct, frozen=True):
    """What a closed loop got out of a gateway."""

    per_second: float
    rows_per_run: float
    p99_ms: float


def capacity(bench: Bench, gateway: Gateway, wrk: Wrk, model: str, connections: int) -> Capacity:
    """Saturate a model; its rate and its mean batch."""

    def counted() -> tuple[float, float]:
        return tuple(metric(gateway, f"tidegate_{what}_total", model=model) for what in ("rows", "batches"))  # type: ignore[return-value]

    seconds = max(1.0, bench.options.seconds)
    demand_clean(wrk.run(gateway.data_url, connections=connections, seconds=1))
    rows, runs = counted()
    seen = wrk.run(gateway.data_url, connections=connections, seconds=seconds)
    demand_clean(seen)
    rows_after, runs_after = counted()
    return Capacity(seen.per_second, (rows_after - rows) / max(runs_after - runs, 1), seen.p99_us / 1e3)


def plan(
    bench: Bench, url: str, target: Target, per_second: float, model_file: Path | None, **more: Any
) -> Plan:
    """An open loop of Poisson arrivals."""
    return Plan(
        url=url, target=target, seconds=max(1.0, bench.options.seconds), per_second=per_second,
        model_file=None if model_file is None else str(model_file), **more,
    )  # fmt: skip


@contextlib.contextmanager
def pinned(bench: Bench) -> Iterator[None]:
    """Run this process on the generator's processor: the open loop's generator is in it."""
    before = os.sched_getaffinity(0)
    if bench.options.generator_cpu in before:
        os.sched_setaffinity(0, {bench.options.generator_cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def honest_row(seen: list[Outcome]) -> Row:
    """Whether the generator kept to its schedule: else its own lag is in the latencies."""
    late = sum(one.sends_late for one in seen) / max(1, sum(one.requests for one in seen))
    limited = any(one.generator_limited for one in seen)
    return Row("sends over 1 ms late", f"{late:.2%}", "<= 1% of each load", not limited)


def made(bench: Bench, target: Target) -> Requests:
    """The requests of an open loop."""
    return bench.requests(target)
