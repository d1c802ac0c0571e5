"""`forwarder`: what a record costs on its way from the spool to the topic.

A spool is filled with runs as a worker makes them, then the real forwarder process sends it to a real broker on this
host. What counts is the forwarder's own processor time per record from when it has begun to send; the broker has the
other processor. Runs of 32 requests are those of a busy worker, runs of 4 of one that has time.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from bench import paired, report
from bench.cases import spools
from bench.cases.brokers import acknowledged, local_broker
from bench.cases.case import Bench, Case
from bench.kafka import Broker
from bench.serving import cpu_s
from gateway import config as configuration
from gateway.process import Context

PER_CPU_S_MIN = 100_000
EVENTS = {32: 400_000, 4: 100_000}
"""Of a spool, by the size of runs."""
WAIT_S = 600.0
GATEWAY_ID = "00" * 8
_ROOT = Path(__file__).resolve().parents[2]


class Sent(msgspec.Struct, frozen=True):
    """One spool on its way."""

    events: int
    cpu_s: float
    wall_s: float
    bytes_each: float
    foreign_cpus: float

    @property
    def us(self) -> float:
        """Processor time of a record."""
        return self.cpu_s / self.events * 1e6


def forwarder(bench: Bench) -> Case:
    """A full spool of each kind in each round, to a topic of its own."""
    found: dict[int, list[Sent]] = {size: [] for size in EVENTS}
    with local_broker(bench) as broker:
        kinds = spools.runs(bench.scratch / "rig", tuple(EVENTS))
        for number in range(bench.options.rounds):
            for kind in kinds:
                state_dir = bench.scratch / f"state-{number}-{kind.requests}"
                events = spools.fill(state_dir, kind, EVENTS[kind.requests])
                one = _send(state_dir, broker, events, bench.server_cpus)
                shutil.rmtree(state_dir)
                found[kind.requests].append(one)
                bench.progress(
                    f"round {number + 1}/{bench.options.rounds}: runs of {kind.requests}: {one.us:.2f} us a record"
                )
    busy, idle = found[32], found[4]
    rate = report.interval([one.events / one.cpu_s for one in busy])
    rows = [
        report.at_least("records per second of one processor, runs of 32", rate, PER_CPU_S_MIN, "", 0),
        report.Row("a record, runs of 32", report.interval([one.us for one in busy]).text(2) + " us"),
        report.Row("a record, runs of 4", report.interval([one.us for one in idle]).text(2) + " us"),
        report.Row(
            "records per second, as it went",
            report.interval([one.events / one.wall_s for one in busy]).text(0),
        ),
        report.Row("a record in the topic, compressed", f"{busy[0].bytes_each:.0f} bytes"),
    ]
    return Case(name="forwarder", title="a full spool to a local broker", rows=rows, details=found)


def _send(state_dir: Path, broker: Broker, events: int, cpus: str) -> Sent:
    settings = [
        f"kafka.bootstrap_servers={broker.bootstrap}",
        f"kafka.topic=bench-{state_dir.name}",
        f"kafka.partitions={spools.SOURCES}",
        f"state_dir={state_dir}",
    ]
    loaded, _ = configuration.load(None, settings, {})
    context = Context(
        config=configuration.encode(loaded), models="", state_dir=str(state_dir), gateway_id=GATEWAY_ID
    )
    with (state_dir / "forwarder.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603
            ["taskset", "-c", cpus, sys.executable, "-P", "-m", "gateway.audit.forwarder"],  # noqa: S607
            env={**context.to_env(), "PYTHONPATH": str(_ROOT)}, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        _await(process, state_dir, 1)
        watch = paired.Watch({"forwarder": [process.pid], "broker": [broker.pid or 0]})
        before, cpu, started_s = acknowledged(state_dir), cpu_s(process.pid), time.monotonic()
        _await(process, state_dir, events)
        used_s, took_s = cpu_s(process.pid) - cpu, time.monotonic() - started_s
        status = _status(state_dir)
        return Sent(
            events - before,
            used_s,
            took_s,
            status["sent_bytes"] / status["forwarded_events"],
            watch.stop()[1],
        )
    finally:
        process.kill()
        process.wait()


def _await(process: subprocess.Popen[bytes], state_dir: Path, events: int) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while acknowledged(state_dir) < events:
        if process.poll() is not None or time.monotonic() > deadline_s:
            said = (state_dir / "forwarder.log").read_text().splitlines()[-1:]
            msg = f"the forwarder sent {acknowledged(state_dir)} of {events} records: {said}"
            raise ValueError(msg)
        time.sleep(0.01)


def _status(state_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((state_dir / "forwarder" / "status.json").read_bytes())
    return found
