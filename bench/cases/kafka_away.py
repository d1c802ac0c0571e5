"""`kafka-away`: does serving notice that the broker is gone, and how fast is what waited sent?

An open loop at a steady rate: first with the broker there, then with it frozen (SIGSTOP: connections stay open, nothing
answers, the worst way to be away), then with it back. Each half is cut into pieces; a piece without the broker is held
against its counterpart with it: the worker's processor time per request, and p99. After that the load goes on until the
forwarder has caught up.

What a request costs depends on how many came with it (147 us at 2.8 a turn, 102 at 15), and a forwarder that takes part
of a processor changes that, whichever processor it is: the open loop's pieces compare turns of unlike size. Each piece
therefore ends with a closed loop, whose turns are as large with the broker as without, and the forwarder on the other
processor than the worker: that is the figure which is held to the goal.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bench import load, paired, report
from bench.cases import openly
from bench.cases.brokers import acknowledged, local_broker
from bench.cases.case import MLP, Bench, Case, counted_row, metric, roles_of
from bench.kafka import Broker
from bench.load import Plan
from bench.outcome import Outcome
from bench.paired import memory_mb
from bench.requests import Requests, Target
from bench.serving import Gateway, cpu_s
from bench.wrk import Wrk

PER_SECOND = 5000
"""Or half of what this machine can."""
PIECES = 11
PIECE_S = (2.0, 10.0)
"""Of a piece with the broker there; one without takes its share of the whole time."""
CLOSED_S = 3.0
CPU_MAX = 1.05
DRAIN_MIN = 3.0
GROWTH_MB_MAX = 64.0
CATCH_UP_S = 600.0


class Cost(NamedTuple):
    """Of a request."""

    worker_us: float
    per_turn: float
    """Requests of a run."""


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of the load."""

    ours: Outcome
    opened: Cost
    closed: Cost
    memory_mb: dict[str, float]
    behind: int
    """Records on disk that are not in the topic, at its end."""
    foreign_cpus: float


def kafka_away(bench: Bench) -> Case:
    """With the broker, without it for `--away-seconds`, with it again."""
    models = bench.mlp()
    target = Target("mlp", (MLP,))
    pieces: dict[str, list[Piece]] = {"there": [], "away": []}
    with local_broker(bench) as broker:
        settings = (
            f"kafka.bootstrap_servers={broker.bootstrap}", "kafka.request_timeout_ms=3000", "kafka.partitions=2",
        )  # fmt: skip
        with bench.gateway(models, settings=settings) as gateway, openly.pinned(bench):
            requests = bench.requests(target)
            wrk = bench.wrk(requests)
            can = openly.capacity(bench, gateway, wrk, "mlp", bench.options.connections)
            rate = min(PER_SECOND, 0.5 * can.per_second)
            _caught_up(gateway)
            plan = openly.plan(
                bench, gateway.data_url, target, rate, models / "mlp" / "1" / "model.onnx",
                connections=512, ready=bench.options.connections,
            )  # fmt: skip
            seconds = max(PIECE_S[0], bench.options.away_s / PIECES)
            plan = msgspec.structs.replace(plan, seconds=min(seconds, PIECE_S[1]))
            for kind, found in pieces.items():
                if kind == "away":
                    broker.freeze()
                    plan = msgspec.structs.replace(plan, seconds=seconds)
                for number in range(PIECES):
                    found.append(_piece(bench, gateway, plan, requests, wrk))
                    bench.progress(
                        f"{kind} {number + 1}/{PIECES}: {found[-1].closed.worker_us:.1f} us, {found[-1].behind} behind"
                    )
            drained = _drain(broker, gateway, plan, requests)
    return Case(
        name="kafka-away", title=f"{rate:,.0f} requests/s, the broker frozen for {PIECES * seconds:.0f} s",
        rows=_rows(pieces, drained, rate), details=[pieces, drained],
    )  # fmt: skip


def _forwarder_on(gateway: Gateway, processor: int) -> None:
    """All its threads."""
    for pid in gateway.pids("forwarder"):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                os.sched_setaffinity(int(thread.name), {processor})


class _Meter:
    """The worker's processor time of requests that are sent while it runs."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._before = self._read()

    def _read(self) -> tuple[float, float, float]:
        return (
            sum(map(cpu_s, self._gateway.pids("worker"))),
            metric(self._gateway, "tidegate_rows_total", model="mlp"),
            metric(self._gateway, "tidegate_batches_total", model="mlp"),
        )

    def stop(self) -> Cost:
        """What it was; a request has one row."""
        used_s, rows, runs = (now - then for now, then in zip(self._read(), self._before, strict=True))
        return Cost(used_s / max(rows, 1) * 1e6, rows / max(runs, 1))


def _piece(bench: Bench, gateway: Gateway, plan: Plan, requests: Requests, wrk: Wrk) -> Piece:
    watch = paired.Watch({**roles_of(gateway), "forwarder": gateway.pids("forwarder")})
    meter = _Meter(gateway)
    ours = load.run(plan, requests=requests)
    opened = meter.stop()
    foreign_cpus = watch.stop()[1]
    _forwarder_on(gateway, bench.options.generator_cpu)
    meter = _Meter(gateway)
    wrk.run(gateway.data_url, connections=bench.options.connections, seconds=CLOSED_S)
    closed = meter.stop()
    _forwarder_on(gateway, bench.options.server_cpu)
    memory = {
        role: sum(memory_mb(pid)["RssAnon"] for pid in gateway.pids(role))
        for role in ("worker", "recorder", "forwarder")
    }
    return Piece(
        ours=ours,
        opened=opened,
        closed=closed,
        memory_mb=memory,
        behind=_behind(gateway),
        foreign_cpus=foreign_cpus,
    )


class Drained(msgspec.Struct, frozen=True):
    """What waited, and how fast it went while more came."""

    waited: int
    seconds: float
    per_second: float
    """Records that the topic took, those that came meanwhile among them."""
    ours: list[Outcome]


def _drain(broker: Broker, gateway: Gateway, plan: Plan, requests: Requests) -> Drained:
    """The load goes on from when the broker is back until nothing waits any more."""
    waited = _behind(gateway)
    broker.thaw()
    # From the first acknowledgement: how long the forwarder holds back after a failure is not its speed.
    first, started_s = acknowledged(gateway.state_dir), time.monotonic()
    while acknowledged(gateway.state_dir) == first and time.monotonic() < started_s + CATCH_UP_S:
        time.sleep(0.01)
    first, started_s = acknowledged(gateway.state_dir), time.monotonic()
    outcomes: list[Outcome] = []
    short = msgspec.structs.replace(plan, seconds=1.0)
    took_s, last = 0.0, first
    while time.monotonic() < started_s + CATCH_UP_S:
        outcomes.append(load.run(short, requests=requests))
        took_s, last = time.monotonic() - started_s, acknowledged(gateway.state_dir)
        if _behind(gateway) < plan.per_second:  # type: ignore[operator]
            break
    return Drained(waited, took_s, (last - first) / max(took_s, 1e-9), outcomes)


def _behind(gateway: Gateway) -> int:
    on_disk = sum(
        int.from_bytes(path.read_bytes()[:8], "little")
        for path in (gateway.state_dir / "spool").glob("*/*/synced")
    )
    return on_disk - acknowledged(gateway.state_dir)


def _caught_up(gateway: Gateway) -> None:
    deadline_s = time.monotonic() + CATCH_UP_S
    while _behind(gateway) > 100:
        if time.monotonic() > deadline_s:
            msg = f"the forwarder does not come to its end: {_behind(gateway)} records wait"
            raise ValueError(msg)
        time.sleep(0.05)


def _rows(pieces: dict[str, list[Piece]], drained: Drained, rate: float) -> list[report.Row]:
    there, away = pieces["there"], pieces["away"]
    closed = [(b.closed, a.closed) for a, b in zip(there, away, strict=True)]
    opened = [(b.opened, a.opened) for a, b in zip(there, away, strict=True)]
    cpu, open_cpu = (
        report.interval([b.worker_us / a.worker_us for b, a in each]) for each in (closed, opened)
    )
    turns, open_turns = (
        report.interval([b.per_turn / a.per_turn for b, a in each]) for each in (closed, opened)
    )
    p99 = [
        (a.ours.latency_ms.p99, b.ours.latency_ms.p99)
        for a, b in zip(there, away, strict=True)
        if a.ours.latency_ms is not None and b.ours.latency_ms is not None
    ]
    every = [*there, *away]
    outcomes = [one.ours for one in every] + drained.ours
    failed = sum(one.requests - one.ok for one in outcomes)
    growth: dict[str, Any] = {
        role: max(one.memory_mb[role] for one in away) - there[-1].memory_mb[role]
        for role in ("worker", "recorder", "forwarder")
    }
    shown = ", ".join(f"{role} {value:+.1f} MB" for role, value in growth.items())
    speed = drained.per_second / rate
    return [
        report.at_most("the worker's CPU per request in a closed loop, away / there", cpu, CPU_MAX),
        report.Row("requests a turn in it, away / there", turns.text(2)),
        report.Row("the worker's CPU per request of the steady load, away / there", open_cpu.text(2)),
        report.Row("requests a turn of it, away / there", open_turns.text(2)),
        report.Row("p99 there", report.interval([a for a, _ in p99]).text(2) + " ms"),
        report.Row("p99 away", report.interval([b for _, b in p99]).text(2) + " ms"),
        report.Row("requests that were not answered", str(failed), "0", failed == 0),
        report.Row(
            "memory while the broker is away", shown, f"<= +{GROWTH_MB_MAX:.0f} MB each",
            max(growth.values()) <= GROWTH_MB_MAX,
        ),
        report.Row(
            "the topic's rate while catching up / the rate of requests",
            f"{speed:.1f} x ({drained.waited:,} records in {drained.seconds:.0f} s, while more came)",
            f">= {DRAIN_MIN:g} x", speed >= DRAIN_MIN,
        ),
        openly.honest_row(outcomes),
        paired.quiet(report.interval([one.foreign_cpus for one in every]).median),
        counted_row(sum(one.checked for one in outcomes), sum(one.ok for one in outcomes)),
    ]  # fmt: skip
