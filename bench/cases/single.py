"""`single`, `single-128`, `varying-heads`: CPU per single-row JSON request, in units of nginx's static reply.

Everything is on: the log with its recorder, deadlines, limits, routing, metrics. Beside nginx stand two more partners
that say what is left to win: a bare loop (the same parser and event loop answering a constant) and ONNX Runtime in a
plain loop over batches of as many rows as there are connections.
"""

from __future__ import annotations

from functools import partial

import msgspec

from bench import paired, report
from bench.cases.case import MLP, WARM_UP_S, Bench, Case, Served, checked_row, one_reply
from bench.paired import Load, Pairs, Sample, memory_mb
from bench.partners import Bare, Raw
from bench.requests import Target

RECORDER_MORE = 0.3
"""What the goal allows the recorder, in units of nginx's reply."""
RAW_S = 0.5


def single(bench: Bench) -> Case:
    """At 32 connections, or as many as the options say."""
    bound = 3.6 if bench.options.varying_heads else 2.6 if bench.options.connections >= 128 else 3.0
    return _measure(bench, "single", bound)


def single_128(bench: Bench) -> Case:
    """At 128 connections: runs are larger, and cost less a row."""
    bench.options = msgspec.structs.replace(bench.options, connections=128)
    return _measure(bench, "single-128", 2.6)


def varying_heads(bench: Bench) -> Case:
    """Every head differs: trace and request ids, as behind a proxy."""
    bench.options = msgspec.structs.replace(bench.options, varying_heads=True)
    return _measure(bench, "varying-heads", 3.6)


def _measure(bench: Bench, name: str, bound: float) -> Case:
    options, models = bench.options, bench.mlp()
    model_file = models / "mlp" / "1" / "model.onnx"
    with bench.gateway(models) as gateway:
        ours = Served(bench, gateway, Target("mlp", (MLP,)), model_file)
        reply = one_reply(gateway, ours.requests)
        (bench.scratch / "reply").write_bytes(reply)
        nginx = bench.nginx(reply)
        try:
            with (
                Bare(bench.scratch / "reply", bench.server_cpus) as bare,
                Raw(model_file, options.connections, bench.server_cpus) as raw,
            ):

                def constant(url: str, pid: int) -> Load:
                    return Load(ours.wrk, url, {"server": [pid]}, connections=options.connections)

                loads = {
                    "nginx": constant(nginx.url, nginx.worker_pid).run,
                    "worker": ours.run,
                    "bare loop": constant(bare.url, bare.pid).run,
                }
                for load in loads.values():
                    load(min(WARM_UP_S, options.seconds))
                raw_side = {"onnxruntime": lambda: _raw(raw)}
                sides = {key: partial(load, options.seconds) for key, load in loads.items()} | raw_side
                pairs = paired.rounds(sides, options.rounds, bench.progress)
                memory = memory_mb(gateway.pids("worker")[0])["VmRSS"]
        finally:
            nginx.stop()
        checked = checked_row([ours])
    return Case(
        name=name,
        title=_title(bench),
        rows=[*_rows(pairs, bound, memory), checked],
        details=pairs,
    )


def _raw(raw: Raw) -> Sample:
    ran = raw.run(RAW_S)
    return Sample(server_us=ran.cpu_s / ran.rows * 1e6, rows=ran.rows, server_s=ran.cpu_s)


def _title(bench: Bench) -> str:
    heads = ", every head of its own" if bench.options.varying_heads else ""
    return f"one worker, one row as JSON, {bench.options.connections} connections{heads}"


def _rows(pairs: Pairs, bound: float, memory: float) -> list[report.Row]:
    def units(top: str, more: float = 0.0) -> report.Interval:
        return paired.ratio(
            pairs,
            lambda pair: pair[top].server_us + more * pair[top].recorder_us,
            lambda pair: pair["nginx"].server_us,
        )

    def us(side: str, what: str = "server_us") -> float:
        return paired.median(pairs, side, what)

    saturated = f"p50 {us('worker', 'p50_us') / 1e3:.2f} ms, p99 {us('worker', 'p99_us') / 1e3:.2f} ms"
    return [
        report.at_most("worker CPU per request / nginx's static reply", units("worker"), bound),
        report.at_most("with the recorder", units("worker", 1.0), round(bound + RECORDER_MORE, 1)),
        report.Row(
            "bare loop / nginx's static reply", f"{units('bare loop')} x", interval=units("bare loop")
        ),
        report.Row("ONNX Runtime alone, a row / nginx's static reply", f"{units('onnxruntime')} x"),
        report.Row(
            "CPU per request",
            f"nginx {us('nginx'):.2f} us, bare loop {us('bare loop'):.2f} us, worker {us('worker'):.2f} us,"
            f" recorder {us('worker', 'recorder_us'):.2f} us, supervisor, control, sidecar"
            f" {us('worker', 'others_us'):.2f} us",
        ),
        report.Row(
            "throughput",
            f"{us('worker', 'per_second'):,.0f} requests/s (nginx {us('nginx', 'per_second'):,.0f})",
        ),
        report.Row("latency at saturation", f"{saturated} (nginx p99 {us('nginx', 'p99_us') / 1e3:.2f} ms)"),
        report.Row("worker resident memory", f"{memory:.0f} MB"),
        paired.busy_row(pairs),
    ]
