"""Limits: processor time per request of one worker, in units of nginx's static reply.

Wall-clock figures of a shared machine say more about its neighbours than about us. Processor time
per request, as a ratio to a partner that runs beside it and takes the same requests, repeats. Each
round loads nginx and the gateway in turn, which of them first alternates; the figure is the median
of the rounds' ratios. Both are pinned to one processor, the generator to another. Everything is on:
the log with its recorder, deadlines, limits, routing, metrics.
"""

from __future__ import annotations

import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

import loaders  # noqa: F401  (turns ONNX Runtime's telemetry off before it is imported)
from bench import report
from bench.load import Round, Target, Wrk, body, random_row, write_requests
from bench.serving import Gateway, Nginx, busy_s, call, cpu_s

SPOT_CHECKS = 200
TOLERANCE = 1e-5
WARM_UP_S = 2.0
FOREIGN_CPUS_MAX = 0.2
SETTLE_S = 0.1
"""After a load, until the recorder has drained what the worker appended."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure."""

    seconds: float = 3.0
    rounds: int = 11
    connections: int = 32
    door: Literal["fast", "starlette"] = "fast"
    varying_heads: bool = False
    server_cpu: int = 0
    generator_cpu: int = 1
    settings: tuple[str, ...] = ()
    """Further texts of `--set`."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One load of one server."""

    worker_us: float
    """Processor time of the worker per request."""
    recorder_us: float
    others_us: float
    """Supervisor, control and sidecar."""
    foreign_cpus: float
    """Processors that others took meanwhile: above about 0.2 the machine is too busy for a figure."""
    per_second: float
    p50_us: int
    p99_us: int


class Pair(msgspec.Struct, frozen=True):
    """A round: both servers, one after the other."""

    nginx: Sample
    ours: Sample


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The figure and all that it was made of."""

    options: Options
    machine: report.Machine
    worker: report.Interval
    """Worker / nginx."""
    with_recorder: report.Interval
    """(Worker + recorder) / nginx."""
    nginx_us: float
    worker_us: float
    recorder_us: float
    others_us: float
    foreign_cpus: float
    per_second: float
    nginx_per_second: float
    p50_ms: float
    p99_ms: float
    nginx_p99_ms: float
    worker_rss_mb: float
    checked: int
    """Replies compared with ONNX Runtime in this run, all equal within 1e-5."""
    rounds: tuple[Pair, ...]


def measure(
    options: Options, models: Path, target: Target, progress: Callable[[str], None] = lambda _: None
) -> Limits:
    """Run the rounds.

    Args:
        models: a repository that holds `target.model` with version 1.
        progress: gets one line per round.

    Raises:
        ConfigInvalid: nginx, wrk or taskset is missing.
        ValueError: a reply was wrong, or a request failed: then there is no figure.
    """
    with tempfile.TemporaryDirectory(prefix="tidegate-limits-") as name:
        scratch = Path(name)
        requests_file = scratch / "requests"
        write_requests(requests_file, target, varying_heads=options.varying_heads)
        wrk = Wrk(scratch, requests_file, options.generator_cpu)
        gateway = Gateway(
            models,
            scratch / "state",
            settings=(f"data.door={options.door}", *options.settings),
            cpus=str(options.server_cpu),
        )
        with gateway:
            reply = msgspec.json.encode(_one_reply(gateway, target)).decode()
            nginx = Nginx(scratch / "nginx", reply, str(options.server_cpu))
            try:
                return _rounds(options, gateway, nginx, wrk, target, progress)
            finally:
                nginx.stop()


def _rounds(
    options: Options,
    gateway: Gateway,
    nginx: Nginx,
    wrk: Wrk,
    target: Target,
    progress: Callable[[str], None],
) -> Limits:
    worker, recorder = gateway.pids("worker")[0], gateway.pids("recorder")[0]
    others = [gateway.pid, *gateway.pids("control"), *gateway.pids("sidecar")]

    def load_nginx(seconds: float) -> Sample:
        return _load(wrk, nginx.url, options.connections, seconds, nginx.worker_pid)

    def load_ours(seconds: float) -> Sample:
        return _load(wrk, gateway.data_url, options.connections, seconds, worker, recorder, others)

    load_nginx(WARM_UP_S)
    load_ours(WARM_UP_S)
    pairs: list[Pair] = []
    for i in range(options.rounds):
        if i % 2:
            ours = load_ours(options.seconds)
            pair = Pair(load_nginx(options.seconds), ours)
        else:
            theirs = load_nginx(options.seconds)
            pair = Pair(theirs, load_ours(options.seconds))
        pairs.append(pair)
        progress(
            f"round {i + 1}/{options.rounds}: nginx {pair.nginx.worker_us:.2f} us,"
            f" worker {pair.ours.worker_us:.2f} us,"
            f" {pair.ours.worker_us / pair.nginx.worker_us:.2f} x"
        )
    checked = spot_check(gateway.data_url, gateway.models, target)
    return _summary(options, pairs, checked, _rss_mb(worker))


def _load(
    wrk: Wrk,
    url: str,
    connections: int,
    seconds: float,
    worker: int,
    recorder: int | None = None,
    others: list[int] | None = None,
) -> Sample:
    watched = [worker, *([recorder] if recorder else []), *(others or [])]
    before = {pid: cpu_s(pid) for pid in watched}
    busy, ended, started = busy_s(), _ended_children_s(), time.monotonic()
    seen = wrk.run(url, connections=connections, seconds=seconds)
    time.sleep(SETTLE_S)
    spent = {pid: cpu_s(pid) - before[pid] for pid in watched}
    wall_s = time.monotonic() - started
    foreign_s = busy_s() - busy - (_ended_children_s() - ended) - sum(spent.values())
    _demand_clean(seen)
    each = 1e6 / seen.requests
    return Sample(
        worker_us=spent[worker] * each,
        recorder_us=spent[recorder] * each if recorder else 0.0,
        others_us=sum(spent[pid] for pid in others or []) * each,
        foreign_cpus=max(0.0, foreign_s / wall_s),
        per_second=seen.per_second,
        p50_us=seen.p50_us,
        p99_us=seen.p99_us,
    )


def _ended_children_s() -> float:
    """Processor time of children that ended and were waited for: wrk's runs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _demand_clean(seen: Round) -> None:
    if seen.requests == 0 or seen.status_errors or seen.socket_errors:
        msg = (
            f"not a clean load: {seen.requests} requests, {seen.status_errors} not 2xx,"
            f" {seen.socket_errors} socket errors; expected only 2xx"
        )
        raise ValueError(msg)


def _summary(options: Options, pairs: list[Pair], checked: int, rss_mb: float) -> Limits:
    def median(pick: Callable[[Pair], float]) -> float:
        return report.interval([pick(pair) for pair in pairs]).median

    return Limits(
        options=options,
        machine=report.machine(),
        worker=report.interval([p.ours.worker_us / p.nginx.worker_us for p in pairs]),
        with_recorder=report.interval(
            [(p.ours.worker_us + p.ours.recorder_us) / p.nginx.worker_us for p in pairs]
        ),
        nginx_us=median(lambda p: p.nginx.worker_us),
        worker_us=median(lambda p: p.ours.worker_us),
        recorder_us=median(lambda p: p.ours.recorder_us),
        others_us=median(lambda p: p.ours.others_us),
        foreign_cpus=median(lambda p: max(p.nginx.foreign_cpus, p.ours.foreign_cpus)),
        per_second=median(lambda p: p.ours.per_second),
        nginx_per_second=median(lambda p: p.nginx.per_second),
        p50_ms=median(lambda p: p.ours.p50_us / 1e3),
        p99_ms=median(lambda p: p.ours.p99_us / 1e3),
        nginx_p99_ms=median(lambda p: p.nginx.p99_us / 1e3),
        worker_rss_mb=rss_mb,
        checked=checked,
        rounds=tuple(pairs),
    )


def _one_reply(gateway: Gateway, target: Target) -> object:
    row = msgspec.json.decode(body(target, "r-000000", [0.0] * target.width))
    reply = call(gateway.data_url, "POST", target.path, row)
    if reply.status != 200:
        msg = f"model {target.model} answered {reply.status}: {reply.content}"
        raise ValueError(msg)
    return reply.content


def spot_check(data_url: str, models: Path, target: Target, count: int = SPOT_CHECKS) -> int:
    """Compare `count` replies with ONNX Runtime's own answers to the same rows; returns `count`.

    Raises:
        ValueError: naming the first request whose answer differs by more than 1e-5.
    """
    import numpy as np  # noqa: PLC0415  (only for the check: `bench --help` stays quick)
    import onnxruntime as ort  # noqa: PLC0415

    path = models / target.model / "1" / "model.onnx"
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    rng = random.Random(7)  # noqa: S311
    for i in range(count):
        row = random_row(rng, target.width)
        sent = msgspec.json.decode(body(target, f"c-{i}", row))
        content = call(data_url, "POST", target.path, sent).content
        expected = session.run(names, {target.input_name: np.array([row], np.float32)})
        for output in content["outputs"]:
            mine = np.array(output["data"], np.float64).reshape(output["shape"])
            theirs = expected[names.index(output["name"])]
            if mine.shape != theirs.shape or not np.allclose(mine, theirs, TOLERANCE, TOLERANCE):
                msg = f"request c-{i}: output {output['name']} is {mine}, ONNX Runtime says {theirs}"
                raise ValueError(msg)
    return count


def _rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def goal(options: Options) -> float:
    """The goal that the options answer to, in units of nginx's reply (docs/performance.md)."""
    if options.varying_heads:
        return 3.6
    return 2.6 if options.connections >= 128 else 3.0


def rows(limits: Limits) -> list[report.Row]:
    """The table of a result."""
    bound = goal(limits.options)
    recorder_bound = bound + 0.3
    return [
        report.Row(
            "worker CPU per request / nginx's", f"{limits.worker} x", f"<= {bound:.1f} x",
            limits.worker.median <= bound,
        ),
        report.Row(
            "with the recorder", f"{limits.with_recorder} x", f"<= {recorder_bound:.1f} x",
            limits.with_recorder.median <= recorder_bound,
        ),
        report.Row(
            "CPU per request",
            f"nginx {limits.nginx_us:.2f} us, worker {limits.worker_us:.2f} us, recorder"
            f" {limits.recorder_us:.2f} us, supervisor, control, sidecar {limits.others_us:.2f} us",
        ),
        report.Row(
            "throughput",
            f"{limits.per_second:,.0f} requests/s (nginx {limits.nginx_per_second:,.0f})",
        ),
        report.Row(
            "latency at saturation",
            f"p50 {limits.p50_ms:.2f} ms, p99 {limits.p99_ms:.2f} ms"
            f" (nginx p99 {limits.nginx_p99_ms:.2f} ms)",
        ),
        report.Row(
            "processors that others took meanwhile", f"{limits.foreign_cpus:.2f}", "<= 0.20",
            limits.foreign_cpus <= FOREIGN_CPUS_MAX,
        ),
        report.Row("worker resident memory", f"{limits.worker_rss_mb:.0f} MB"),
        report.Row("replies compared with ONNX Runtime", f"{limits.checked}, all equal"),
    ]  # fmt: skip
