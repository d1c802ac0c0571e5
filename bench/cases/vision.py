"""`squeezenet`: a heavy model with large binary inputs, against ONNX Runtime alone in a plain loop.

600 KB of FP32 a request: what the gateway adds is moving them. By default inputs that large are logged by their hash
(`audit.capture_max_bytes`); the second gateway keeps them whole instead, which spares the hash and costs a copy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx

from bench import models, paired, report
from bench.cases.case import WARM_UP_S, Bench, Case, Served, checked_row
from bench.paired import Sample
from bench.partners import Raw
from bench.requests import Target, Tensor

HASHED_MIN = 0.90
WHOLE_MIN = 0.95
CONNECTIONS = 4
"""Runs are of one image: more connections only wait longer."""
WHOLE = ("audit.capture_max_bytes=4194304", "audit.ring_bytes=67108864", "audit.max_bytes=2147483648")


def write_squeezenet(repository: Path) -> tuple[Path, Tensor, str]:
    """`squeezenet`; returns its file, its input and its output's name.

    Raises:
        ConfigInvalid: the onnx package has no such file.
    """
    path = models.write_squeezenet(repository)
    graph = onnx.load(path).graph
    weights = {weight.name for weight in graph.initializer}
    (taken,) = (value for value in graph.input if value.name not in weights)
    shape = tuple(size.dim_value for size in taken.type.tensor_type.shape.dim)
    return path, Tensor(taken.name, "FP32", shape), graph.output[0].name


def squeezenet(bench: Bench) -> Case:
    """Both gateways and the plain loop, in turn."""
    options, repository = bench.options, bench.scratch / "models"
    model_file, tensor, _ = write_squeezenet(repository)
    target = Target("squeezenet", (tensor,), form="binary")
    timeout = ("data.request_timeout_ms=30000",)
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(Raw(model_file, 1, bench.server_cpus))
        served = {}
        for name, settings in (("hashed", ()), ("whole", WHOLE)):
            gateway = stack.enter_context(bench.gateway(repository, name, settings=(*timeout, *settings)))
            served[name] = Served(bench, gateway, target, model_file, connections=CONNECTIONS)
        sides: dict[str, Callable[[], Sample]] = {"onnxruntime": lambda: _raw(raw, options.seconds)}
        for name, one in served.items():
            one.run(min(WARM_UP_S, options.seconds))
            sides[name] = partial(one.run, options.seconds)
        pairs = paired.rounds(sides, options.rounds, bench.progress)
        checked = checked_row(served.values())
    return Case(
        name="squeezenet", title="squeezenet, [1,3,224,224] binary, one worker",
        rows=[*_rows(pairs), checked], details=pairs,
    )  # fmt: skip


def _raw(raw: Raw, seconds: float) -> Sample:
    watch = paired.Watch({"server": [raw.pid]})
    ran = raw.run(seconds)
    _, foreign, _ = watch.stop()
    return Sample(
        server_us=ran.cpu_s / ran.rows * 1e6, rows=ran.rows, server_s=ran.cpu_s, foreign_cpus=foreign
    )


def _rows(pairs: paired.Pairs) -> list[report.Row]:
    def against(side: str) -> report.Interval:
        return paired.ratio(
            pairs, lambda pair: pair[side].rows_per_cpu_s, lambda pair: pair["onnxruntime"].rows_per_cpu_s
        )

    each = ", ".join(
        f"{name} {paired.median(pairs, name, 'rows_per_cpu_s'):,.1f}"
        for name in ("onnxruntime", "hashed", "whole")
    )
    return [
        report.at_least(
            "rows per CPU second / ONNX Runtime alone, inputs hashed", against("hashed"), HASHED_MIN, digits=3
        ),
        report.at_least("the same, inputs not hashed", against("whole"), WHOLE_MIN, digits=3),
        report.Row("rows per CPU second", each),
        paired.busy_row(pairs),
    ]
