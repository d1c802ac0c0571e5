"""`apply`: how long it takes from a change's snapshot until every worker runs it, idle and under saturation.

Shifts are made one after another over the admin API; each answer says how long the workers took (`applied.ms`, from
the moment that the snapshot was announced). Fifty other models are served beside, for a worker takes up all of a
snapshot. A round is so many shifts; its figure is their p99.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import msgspec
import numpy as np

from bench import report
from bench.cases.case import MLP, Bench, Case, Served
from bench.models import write_mlp
from bench.requests import Target
from bench.serving import Gateway

P99_MAX_MS = 50.0
SHIFTS = 200
"""A round."""
MODELS_BESIDE = 50
SMALL = (30, 8, 2)
READY_S = 180.0
"""Each of the models is tried before it is loaded."""


class Round(msgspec.Struct, frozen=True):
    """Shifts of one round: what each took in the workers, ms."""

    loaded: bool
    took_ms: list[int]
    pending: int
    """Answers of 202: a worker did not run it within 2 s."""

    @property
    def p99_ms(self) -> float:
        """Of the round."""
        return float(np.percentile(self.took_ms, 99))


def apply(bench: Bench) -> Case:
    """Idle and loaded rounds in turn, on as many workers as were asked of the processor: two."""
    models = bench.mlp()
    write_mlp(models, "2", 2)
    for number in range(MODELS_BESIDE):
        write_mlp(models, name=f"beside{number}", widths=SMALL)
    found: list[Round] = []
    gateway = bench.gateway(models, workers=2).start(READY_S)
    try:
        _split(gateway)
        served = Served(bench, gateway, Target("mlp", (MLP,)), Path(models / "mlp" / "1" / "model.onnx"))
        for number in range(bench.options.rounds):
            found.append(_round(gateway, loaded=False))
            found.append(_beside(served, gateway))
            idle, loaded = found[-2:]
            bench.progress(
                f"round {number + 1}/{bench.options.rounds}: p99 {idle.p99_ms:.0f} ms idle,"
                f" {loaded.p99_ms:.0f} ms under load"
            )
    finally:
        gateway.stop()
    return Case(name="apply", title=f"{SHIFTS} shifts a round, two workers", rows=_rows(found), details=found)


def _rows(found: list[Round]) -> list[report.Row]:
    rows = []
    for loaded in (False, True):
        p99 = report.interval([one.p99_ms for one in found if one.loaded is loaded])
        what = "under saturation" if loaded else "idle"
        rows.append(report.at_most(f"snapshot in all workers, p99, {what}", p99, P99_MAX_MS, " ms", 0))
    longest = max(max(one.took_ms) for one in found)
    pending = sum(one.pending for one in found)
    rows.append(
        report.Row("the longest of all", f"{longest} ms of {sum(len(one.took_ms) for one in found):,}")
    )
    rows.append(report.Row("not in all workers within 2 s", str(pending), "0", pending == 0))
    return rows


def _split(gateway: Gateway) -> None:
    variants = [
        {"name": "primary", "version": "1", "role": "primary", "weight_bp": 10_000},
        {"name": "canary", "version": "1", "role": "canary", "weight_bp": 0},
    ]
    deadline = time.monotonic() + READY_S
    body = {"variants": variants, "reason": "to be shifted"}
    while gateway.admin("PUT", "routes/mlp", body, revision=_revision(gateway)).status != 200:
        if time.monotonic() > deadline:
            msg = f"the route could not be split: {gateway.said()}"
            raise TimeoutError(msg)
        time.sleep(0.1)


def _round(gateway: Gateway, *, loaded: bool) -> Round:
    took, pending, revision = [], 0, _revision(gateway)
    for number in range(SHIFTS):
        body = {"weights_bp": {"canary": (number % 100) * 100}, "reason": "apply"}
        reply = gateway.admin("POST", "routes/mlp/shift", body, revision=revision)
        if reply.status not in (200, 202):
            msg = f"shift: {reply.status} {reply.content}"
            raise ValueError(msg)
        pending += reply.status == 202
        took.append(reply.content["applied"]["ms"])
        revision = reply.content["revision"]
    return Round(loaded=loaded, took_ms=took, pending=pending)


def _beside(served: Served, gateway: Gateway) -> Round:
    """Shifts while the load lasts; it is asked for again until they are done."""
    over = threading.Event()

    def load() -> None:
        while not over.is_set():
            served.run(1.0)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        return _round(gateway, loaded=True)
    finally:
        over.set()
        thread.join()


def _revision(gateway: Gateway) -> int:
    revision: int = gateway.admin("GET", "routes/mlp").content["revision"]
    return revision
