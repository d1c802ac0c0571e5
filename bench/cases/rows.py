"""`rows32`: what a row costs when 32 come in one request, as JSON and as binary tensors, against one row a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from bench import paired, report
from bench.cases.case import MLP, WARM_UP_S, Bench, Case, Served, checked_row
from bench.paired import Sample
from bench.requests import Target

JSON_MIN = 5.0
BINARY_MIN = 2.0


def rows32(bench: Bench) -> Case:
    """All three kinds of request against the same worker, in turn."""
    options, models = bench.options, bench.mlp()
    model_file = models / "mlp" / "1" / "model.onnx"
    with bench.gateway(models) as gateway:
        kinds = {
            "single": Served(bench, gateway, Target("mlp", (MLP,)), model_file),
            "json": Served(bench, gateway, Target("mlp", (MLP,), rows=32), model_file),
            "binary": Served(bench, gateway, Target("mlp", (MLP,), rows=32, form="binary"), model_file),
        }
        for kind in kinds.values():
            kind.run(min(WARM_UP_S, options.seconds))
        sides: dict[str, Callable[[], Sample]] = {
            name: partial(kind.run, options.seconds)
            for name, kind in kinds.items()  # type: ignore[misc]
        }
        pairs = paired.rounds(sides, options.rounds, bench.progress)
        checked = checked_row(kinds.values())

    def per_cpu(side: str) -> Callable[[Mapping[str, Sample]], float]:
        return lambda pair: pair[side].rows_per_cpu_s

    absolute = ", ".join(f"{name} {paired.median(pairs, name, 'rows_per_cpu_s'):,.0f}" for name in kinds)
    rows = [
        report.at_least(
            "32 rows as JSON / one row as JSON, rows per CPU second",
            paired.ratio(pairs, per_cpu("json"), per_cpu("single")), JSON_MIN,
        ),
        report.at_least(
            "32 rows binary / 32 rows as JSON", paired.ratio(pairs, per_cpu("binary"), per_cpu("json")), BINARY_MIN
        ),
        report.at_least(
            "32 rows binary / one row as JSON", paired.ratio(pairs, per_cpu("binary"), per_cpu("single")), JSON_MIN
        ),
        report.Row("rows per CPU second of the worker", absolute),
        paired.busy_row(pairs),
        checked,
    ]  # fmt: skip
    return Case(
        name="rows32", title="32 rows a request, one worker, 32 connections", rows=rows, details=pairs
    )
