"""`workers2`: what a second worker costs: CPU per request of two workers against one, at equal connections per worker.

Both gateways run side by side and take turns. With two processors both workers share the servers' one: what is measured
is the price of sharing listener, fleet and recorder. Connections are shared out by the kernel; the least and the most
that a worker held stand beside the figure.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from functools import partial

from bench import paired, report
from bench.cases.case import MLP, WARM_UP_S, Bench, Case, Served, checked_row, metric
from bench.paired import Sample
from bench.requests import Target
from bench.serving import Gateway

COST_MAX = 1.1


def workers2(bench: Bench) -> Case:
    """One and two workers in turn."""
    options, models = bench.options, bench.mlp()
    others = sorted(set(range(os.cpu_count() or 1)) - {options.generator_cpu, options.server_cpu})
    if others:
        bench.server_cpus = f"{options.server_cpu},{others[0]}"
    model_file = models / "mlp" / "1" / "model.onnx"
    with contextlib.ExitStack() as stack:
        served: dict[str, Served] = {}
        gateways = {}
        for name, workers in (("one worker", 1), ("two workers", 2)):
            gateway = stack.enter_context(bench.gateway(models, f"state{workers}", workers=workers))
            served[name], gateways[name] = Served(bench, gateway, Target("mlp", (MLP,)), model_file), gateway
        held = _held(served["two workers"], gateways["two workers"], WARM_UP_S)
        served["one worker"].run(min(WARM_UP_S, options.seconds))
        sides: dict[str, Callable[[], Sample]] = {
            name: partial(one.run, options.seconds)
            for name, one in served.items()  # type: ignore[misc]
        }
        pairs = paired.rounds(sides, options.rounds, bench.progress)
        checked = checked_row(served.values())
    cost = paired.ratio(pairs, lambda p: p["two workers"].server_us, lambda p: p["one worker"].server_us)
    each = ", ".join(
        f"{name} {paired.median(pairs, name, 'server_us'):.2f} us at"
        f" {paired.median(pairs, name, 'per_second'):,.0f} requests/s"
        for name in served
    )
    rows = [
        report.at_most("CPU per request, two workers / one", cost, COST_MAX),
        report.Row("CPU per request", each),
        report.Row("connections that each of the two held", ", ".join(f"{count:.0f}" for count in held)),
        paired.busy_row(pairs),
        checked,
    ]
    title = f"two workers against one, {options.connections} connections per worker"
    return Case(name="workers2", title=title, rows=rows, details=pairs)


def _held(served: Served, gateway: Gateway, seconds: float) -> list[float]:
    """Connections by worker, looked at late in a load."""
    found: list[float] = []

    def look() -> None:
        found.extend(
            metric(gateway, "tidegate_worker_connections", worker=str(index))
            for index in range(gateway.workers)
        )

    timer = threading.Timer(0.75 * seconds, look)
    timer.start()
    served.run(seconds)
    timer.join()
    return found
