"""`memory`: what a worker holds, and whether that grows under load.

The resident memory without the ring and other shared pages, looked at each second under a closed loop. The slope is
Theil and Sen's (median of the slopes of all pairs of looks), which a few odd looks do not move; its interval is Sen's,
widened for the looks' dependence, and where it holds the goal the run was too short to say.
"""

from __future__ import annotations

import math
import threading
import time

import msgspec
import numpy as np

from bench import report
from bench.cases.case import MLP, WARM_UP_S, Bench, Case, Served, checked_row
from bench.paired import memory_mb, quiet
from bench.requests import Target

WORKER_MB_MAX = 120.0
SLOPE_MAX = 1.0
LOOK_S = 1.0
WARM_UP_SHARE = 0.25
"""Of the time, before the looks that count: buffers grow to their size."""
PIECE_S = 60.0
DECIDED_S = 300.0
"""A shorter watch shows how buffers fill, and says nothing of hours."""


class Look(msgspec.Struct, frozen=True):
    """Resident memory at a time."""

    at_s: float
    own_mb: float
    shared_mb: float


def memory(bench: Bench) -> Case:
    """A load of `--memory-seconds`, in pieces of a minute."""
    options, models = bench.options, bench.mlp()
    model_file = models / "mlp" / "1" / "model.onnx"
    looks: list[Look] = []
    with bench.gateway(models) as gateway:
        served = Served(bench, gateway, Target("mlp", (MLP,)), model_file)
        served.run(WARM_UP_S)
        worker = gateway.pids("worker")[0]
        idle = _look(worker, 0.0)
        over = threading.Event()
        watcher = threading.Thread(target=_watch, args=(worker, looks, over))
        watcher.start()
        foreign, requests, left_s = [], 0, options.memory_s
        try:
            while left_s > 0:
                sample = served.run(min(PIECE_S, max(left_s, 1)))
                left_s -= PIECE_S
                foreign.append(sample.foreign_cpus)
                requests += sample.requests
                bench.progress(
                    f"{options.memory_s - max(left_s, 0):.0f}/{options.memory_s:.0f} s: {looks[-1].own_mb:.1f} MB"
                )
        finally:
            over.set()
            watcher.join()
        checked = checked_row([served])
    counted = looks[int(len(looks) * WARM_UP_SHARE) :]
    slope = slope_percent_per_h(counted)
    decided = _decided(slope, options.memory_s)
    peak = max(look.own_mb for look in looks)
    rows = [
        report.Row(
            "a worker's resident memory without ring", f"{peak:.1f} MB (after the warm-up {idle.own_mb:.1f} MB)",
            f"<= {WORKER_MB_MAX:.0f} MB plus models", peak <= WORKER_MB_MAX + model_file.stat().st_size / 1e6,
        ),
        report.Row("its slope under load", slope.text(2) + " %/h", f"< {SLOPE_MAX:g} %/h", decided, slope),
        report.Row("ring and other shared pages", f"{looks[-1].shared_mb:.1f} MB"),
        report.Row("load", f"{requests:,} requests in {options.memory_s:g} s"),
        quiet(report.interval(foreign).median),
        checked,
    ]  # fmt: skip
    return Case(name="memory", title="memory of one worker under saturation", rows=rows, details=looks)


def _decided(slope: report.Interval, watched_s: float) -> bool | None:
    if watched_s < DECIDED_S:
        return None
    if slope.high < SLOPE_MAX:
        return True
    return False if slope.low > SLOPE_MAX else None


def _look(pid: int, at_s: float) -> Look:
    kinds = memory_mb(pid)
    return Look(at_s, kinds["RssAnon"] + kinds["RssFile"], kinds["RssShmem"])


def _watch(pid: int, looks: list[Look], over: threading.Event) -> None:
    started = time.monotonic()
    while True:
        looks.append(_look(pid, time.monotonic() - started))
        if over.wait(LOOK_S):
            return


def slope_percent_per_h(looks: list[Look]) -> report.Interval:
    """Theil and Sen's slope of a worker's own memory, in percent of its median per hour, with its 95% interval.

    Memory is a staircase: a look says again what the look before said. The interval takes the count of distinct
    levels (at least 3) for the count of independent looks. Fewer than 3 looks give an interval of everything.
    """
    at = np.array([look.at_s for look in looks])
    own = np.array([look.own_mb for look in looks])
    if len(at) < 3:
        return report.Interval(0.0, -math.inf, math.inf, 0.0)
    # At most 600 looks: their pairs are 180,000.
    step = -(-len(at) // 600)
    at, own = at[::step], own[::step]
    first, second = np.triu_indices(len(at), 1)
    slopes = np.sort((own[second] - own[first]) / (at[second] - at[first]))
    n = len(at)
    independent = max(3, len(np.unique(own)))
    spread = 1.96 * math.sqrt(n * (n - 1) * (2 * n + 5) / 18) * math.sqrt(n / independent)
    low = int(max(0, (len(slopes) - spread) / 2))
    high = int(min(len(slopes) - 1, (len(slopes) + spread) / 2))
    scale = 3600 / float(np.median(own)) * 100
    return report.Interval(
        float(np.median(slopes)) * scale, float(slopes[low]) * scale, float(slopes[high]) * scale, 0.95
    )
