"""Beside: what mirror and sidecar cost the worker that they follow.

One gateway with a shadow of all its traffic. Rounds with mirror and sidecar at work alternate with rounds in which both
are stopped (SIGSTOP), so that the same worker is compared with itself. What piles up while they are stopped is there
when they go on: they are never idle in their rounds, which is the worst case. Nothing is pinned: they compete with
worker and generator for every processor, as on a real host.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from bench import report
from bench.models import write_mlp
from bench.requests import Requests, Target
from bench.serving import Gateway, cpu_s
from bench.wrk import Wrk
from gateway.errors import ConfigInvalid

WORKER_MAX = 1.03
DELAY_MAX = 1.10
WARM_UP_S = 2.0
SETTLE_S = 0.3
START_S = 20.0


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure."""

    seconds: float = 3.0
    rounds: int = 11
    connections: int = 32


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One load."""

    worker_us: float
    """Processor time of the worker per request."""
    delay_us: float
    """Time per request that the worker was ready and waited for a processor."""
    followers_cpus: float
    """Processors that mirror and sidecar took."""
    per_second: float


class Pair(msgspec.Struct, frozen=True):
    """A round: followers at work, and stopped."""

    on: Sample
    off: Sample


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """The figure and what it was made of."""

    options: Options
    machine: report.Machine
    worker: report.Interval
    """Worker CPU per request, on / off."""
    delay: report.Interval
    """Run-queue delay per request, on / off."""
    per_second: report.Interval
    followers_cpus: float
    mirrored: int
    """Answers that the shadow gave by the end."""
    rounds: tuple[Pair, ...]


def measure(options: Options, target: Target, progress: Callable[[str], None] = lambda _: None) -> Beside:
    """Run the rounds.

    Raises:
        ConfigInvalid: wrk is missing.
        ValueError: a request failed: then there is no figure.
        TimeoutError: mirror or sidecar did not start.
    """
    with tempfile.TemporaryDirectory(prefix="tidegate-beside-") as name:
        scratch = Path(name)
        models = scratch / "models"
        for version in ("1", "2"):
            write_mlp(models, version, seed=int(version))
        requests_file = scratch / "requests"
        Requests(target).write(requests_file)
        wrk = Wrk(scratch, requests_file, None)
        with Gateway(models, scratch / "state", settings=("sidecar.tick_s=1",)) as gateway:
            _shadow(gateway, target.model)
            followers = _await_followers(gateway)
            pairs = _rounds(options, wrk, gateway, followers, progress)
        return _summary(options, pairs, _mirrored(scratch / "state" / "spool"))


def _shadow(gateway: Gateway, model: str) -> None:
    """All traffic to version 2, and version 1 as the shadow of all of it."""
    route = gateway.admin("GET", f"routes/{model}").content
    variants = [
        {"name": "primary", "version": "2", "role": "primary", "weight_bp": 10_000},
        {"name": "beside", "version": "1", "role": "shadow", "sample_bp": 10_000},
    ]
    body = {"variants": variants, "reason": "measured"}
    reply = gateway.admin("PUT", f"routes/{model}", body, revision=route["revision"])
    if reply.status != 200:
        msg = f"the route was not set: {reply.status} {reply.content}"
        raise ConfigInvalid(msg)


def _await_followers(gateway: Gateway) -> list[int]:
    deadline = time.monotonic() + START_S
    while True:
        found = [*gateway.pids("mirror"), *gateway.pids("sidecar")]
        if len(found) == 2:
            return found
        if time.monotonic() > deadline:
            msg = f"mirror and sidecar did not both start within {START_S:g} s: {gateway.said()}"
            raise TimeoutError(msg)
        time.sleep(0.1)


def _rounds(
    options: Options, wrk: Wrk, gateway: Gateway, followers: Sequence[int], progress: Callable[[str], None]
) -> list[Pair]:
    worker = gateway.pids("worker")[0]

    def load(number: int) -> Sample:
        for pid in followers:
            os.kill(pid, number)
        time.sleep(SETTLE_S)
        return _load(wrk, gateway.data_url, options, worker, followers)

    pairs: list[Pair] = []
    try:
        wrk.run(gateway.data_url, connections=options.connections, seconds=WARM_UP_S)
        for i in range(options.rounds):
            first = load(signal.SIGCONT if i % 2 else signal.SIGSTOP)
            second = load(signal.SIGSTOP if i % 2 else signal.SIGCONT)
            pair = Pair(first, second) if i % 2 else Pair(second, first)
            pairs.append(pair)
            progress(
                f"round {i + 1}/{options.rounds}: worker {pair.on.worker_us:.2f} us beside,"
                f" {pair.off.worker_us:.2f} us alone, {pair.on.worker_us / pair.off.worker_us:.3f} x"
            )
    finally:
        for pid in followers:
            os.kill(pid, signal.SIGCONT)
    return pairs


def _load(wrk: Wrk, url: str, options: Options, worker: int, followers: Sequence[int]) -> Sample:
    before_s, waited_ns = cpu_s(worker), _delay_ns(worker)
    followed_s, started = sum(map(cpu_s, followers)), time.monotonic()
    seen = wrk.run(url, connections=options.connections, seconds=options.seconds)
    if seen.requests == 0 or seen.status_errors or seen.socket_errors:
        msg = f"not a clean load: {seen.requests} requests, {seen.status_errors} not 2xx, {seen.socket_errors} lost"
        raise ValueError(msg)
    wall_s = time.monotonic() - started
    return Sample(
        worker_us=(cpu_s(worker) - before_s) * 1e6 / seen.requests,
        delay_us=(_delay_ns(worker) - waited_ns) / 1e3 / seen.requests,
        followers_cpus=(sum(map(cpu_s, followers)) - followed_s) / wall_s,
        per_second=seen.per_second,
    )


def _delay_ns(pid: int) -> int:
    """Time that the main thread stood in the run queue (schedstat's second field)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])


def _mirrored(spool: Path) -> int:
    from gateway.audit.event import Shadow
    from gateway.audit.spool_feed import SpoolFeed

    feed, found = SpoolFeed(spool), 0
    while events := feed.read(5000, 0).events:
        found += sum(isinstance(event, Shadow) and event.kind == "done" for event in events)
    return found


def _summary(options: Options, pairs: list[Pair], mirrored: int) -> Beside:
    return Beside(
        options=options,
        machine=report.machine(),
        worker=report.interval([p.on.worker_us / p.off.worker_us for p in pairs]),
        delay=report.interval([p.on.delay_us / max(p.off.delay_us, 1e-3) for p in pairs]),
        per_second=report.interval([p.on.per_second / p.off.per_second for p in pairs]),
        followers_cpus=report.interval([p.on.followers_cpus for p in pairs]).median,
        mirrored=mirrored,
        rounds=tuple(pairs),
    )


def rows(beside: Beside) -> list[report.Row]:
    """The table of a result."""
    return [
        report.Row(
            "worker CPU per request, on / off",
            f"{_three(beside.worker)} x",
            f"<= {WORKER_MAX:.2f} x",
            beside.worker.median <= WORKER_MAX,
        ),
        report.Row(
            "its wait for a processor, on / off",
            f"{_three(beside.delay)} x",
            f"<= {DELAY_MAX:.2f} x",
            beside.delay.median <= DELAY_MAX,
        ),
        report.Row("throughput, on / off", f"{_three(beside.per_second)} x"),
        report.Row("processors that mirror and sidecar took", f"{beside.followers_cpus:.2f}"),
        report.Row("answers mirrored", f"{beside.mirrored:,}", "> 0", beside.mirrored > 0),
    ]


def _three(interval: report.Interval) -> str:
    return f"{interval.median:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
