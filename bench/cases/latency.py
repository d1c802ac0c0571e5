"""`latency`: what a user waits at half of the capacity, and how large runs are at saturation.

Capacity is what a closed loop gets; half of it comes as Poisson arrivals, whatever the server does, and latency counts
from when a request was due. Rounds are repeated; the figure is the median of their p99.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from bench import load, paired, report
from bench.cases import openly
from bench.cases.case import MLP, Bench, Case, counted_row, roles_of
from bench.cases.vision import write_squeezenet
from bench.outcome import Outcome
from bench.requests import Target

MLP_MS_MAX = 25.0
SQUEEZENET_MS_MAX = 250.0
ROWS_PER_RUN_MIN = 8.0
HALF = 0.5
FEW_TIMES = 5
"""As long: images are so few a second that a p99 needs more of them."""


def latency(bench: Bench) -> Case:
    """The MLP, one row as JSON."""
    models = bench.mlp()
    return _measure(bench, models, models / "mlp" / "1" / "model.onnx", Target("mlp", (MLP,)), MLP_MS_MAX)


def latency_squeezenet(bench: Bench) -> Case:
    """squeezenet, one image as binary."""
    models = bench.scratch / "models"
    model_file, tensor, _ = write_squeezenet(models)
    target = Target("squeezenet", (tensor,), form="binary")
    return _measure(bench, models, model_file, target, SQUEEZENET_MS_MAX)


def _measure(bench: Bench, models: Path, model_file: Path, target: Target, bound_ms: float) -> Case:
    seen: list[Outcome] = []
    foreign: list[float] = []
    mlp = target.model == "mlp"
    connections = bench.options.connections if mlp else 4
    with bench.gateway(models) as gateway, openly.pinned(bench):
        requests = bench.requests(target)
        found = openly.capacity(bench, gateway, bench.wrk(requests), target.model, connections)
        plan = openly.plan(bench, gateway.data_url, target, HALF * found.per_second, model_file)
        if not mlp:
            plan = msgspec.structs.replace(plan, seconds=FEW_TIMES * plan.seconds)
        for number in range(bench.options.rounds):
            watch = paired.Watch(roles_of(gateway))
            one = load.run(plan, requests=requests)
            foreign.append(watch.stop()[1])
            seen.append(one)
            bench.progress(f"round {number + 1}/{bench.options.rounds}: {one.latency_ms}")
    p99 = report.interval([one.latency_ms.p99 for one in seen if one.latency_ms is not None])
    failed = sum(one.requests - one.ok for one in seen)
    rows = [
        report.at_most("p99 at half load, from the due time", p99, bound_ms, " ms"),
        report.Row(
            "p50, p99.9 at half load",
            " ms, ".join(
                report.interval([getattr(one.latency_ms, name) for one in seen]).text(2)
                for name in ("p50", "p999")
            )
            + " ms",
        ),
        report.Row(
            "capacity, closed loop",
            f"{found.per_second:,.0f} requests/s at {connections} connections, p99 {found.p99_ms:.1f} ms",
        ),
    ]
    if mlp:
        met = found.rows_per_run >= ROWS_PER_RUN_MIN
        rows.append(
            report.Row(
                "mean batch at saturation",
                f"{found.rows_per_run:.1f} rows",
                f">= {ROWS_PER_RUN_MIN:g} rows",
                met,
            )
        )
    rows += [
        report.Row("not 2xx", f"{failed} of {sum(one.requests for one in seen):,}", "0", failed == 0),
        openly.honest_row(seen),
        paired.quiet(report.interval(foreign).median),
        counted_row(sum(one.checked for one in seen), sum(one.requests for one in seen)),
    ]
    name = "latency" if mlp else "latency-squeezenet"
    return Case(name=name, title=f"{target.model} at half of its capacity", rows=rows, details=seen)
