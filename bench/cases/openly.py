"""What the open-loop cases share: capacity first, then a load at a share of it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec

from bench.cases.case import Bench, metric
from bench.load import Plan, pinned_to
from bench.outcome import Outcome
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
    """Saturate a model; its rate of 2xx and its mean batch. A gateway that refuses some is saturated too.

    Raises:
        ValueError: nothing was answered, or connections broke.
    """

    def counted(what: str) -> float:
        return metric(gateway, f"tidegate_{what}_total", model=model)

    wrk.run(gateway.data_url, connections=connections, seconds=1)
    rows, runs = counted("rows"), counted("batches")
    seen = wrk.run(gateway.data_url, connections=connections, seconds=max(1.0, bench.options.seconds))
    rows, runs = counted("rows") - rows, counted("batches") - runs
    ok = seen.requests - seen.status_errors
    if not ok or seen.socket_errors:
        msg = f"no capacity: {seen.requests} requests, {ok} answered, {seen.socket_errors} socket errors"
        raise ValueError(msg)
    return Capacity(ok / (seen.duration_us / 1e6), rows / max(runs, 1), seen.p99_us / 1e3)


def plan(
    bench: Bench, url: str, target: Target, per_second: float, model_file: Path | None, **more: Any
) -> Plan:
    """An open loop of Poisson arrivals."""
    return Plan(
        url=url, target=target, seconds=max(1.0, bench.options.seconds), per_second=per_second,
        model_file=None if model_file is None else str(model_file), **more,
    )  # fmt: skip


def pinned(bench: Bench) -> AbstractContextManager[None]:
    """Run this process on the generator's processor: the open loop's generator is in it."""
    return pinned_to(bench.options.generator_cpu)


def honest_row(seen: list[Outcome]) -> Row:
    """Whether the generator kept to its schedule: else its own lag is in the latencies."""
    late = sum(one.sends_late for one in seen) / max(1, sum(one.requests for one in seen))
    limited = any(one.generator_limited for one in seen)
    return Row("sends over 1 ms late", f"{late:.2%}", "<= 1% of each load", not limited)


def made(bench: Bench, target: Target) -> Requests:
    """The requests of an open loop."""
    return bench.requests(target)
