"""`append`: what the log and the metrics cost of a request, in units of nginx's static reply.

The log cannot be taken out of the path to be weighed, and the difference of two loads would drown in their spread. So
`bench profile` times those parts alone, over the very runs of 32 that it makes, on the servers' processor; nginx is
loaded in the same round.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from bench import paired, report
from bench.cases.case import MLP, Bench, Case
from bench.paired import Load, Sample
from bench.requests import Target

APPEND_MAX = 0.25
_ROOT = Path(__file__).resolve().parents[2]


def append(bench: Bench) -> Case:
    """The profile and nginx in turn."""
    options = bench.options
    wrk = bench.wrk(bench.requests(Target("mlp", (MLP,))))
    nginx = bench.nginx(b'{"model_name":"mlp","model_version":"1","outputs":[]}')
    try:
        load = Load(wrk, nginx.url, {"server": [nginx.worker_pid]}, connections=options.connections)
        load.run(1)
        parts: dict[str, list[float]] = {}
        sides: dict[str, Callable[[], Sample]] = {
            "nginx": lambda: load.run(options.seconds),
            "append": lambda: _profiled(bench.server_cpus, parts),
        }
        pairs = paired.rounds(sides, options.rounds, bench.progress)
    finally:
        nginx.stop()
    cost = paired.ratio(pairs, lambda p: p["append"].server_us, lambda p: p["nginx"].server_us)
    each = "; ".join(f"{what} {report.interval(values).median:.2f} us" for what, values in parts.items())
    rows = [
        report.at_most("append and metrics / nginx's static reply", cost, APPEND_MAX),
        report.Row("of which", each),
        report.Row("nginx's static reply", f"{paired.median(pairs, 'nginx', 'server_us'):.2f} us"),
        paired.busy_row(pairs),
    ]
    return Case(name="append", title="append and metrics, runs of 32", rows=rows, details=pairs)


def _profiled(cpus: str, parts: dict[str, list[float]]) -> Sample:
    done = subprocess.run(  # noqa: S603
        ["taskset", "-c", cpus, sys.executable, "-m", "bench.cli", "profile", "--json"],
        capture_output=True, check=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(_ROOT), "ORT_DISABLE_TELEMETRY": "1"},
    )  # fmt: skip
    found = {
        part["what"]: part["us"]
        for part in msgspec.json.decode(done.stdout)["parts"]
        if part["stage"] == "append"
    }
    for what, us in found.items():
        parts.setdefault(what, []).append(us)
    return Sample(server_us=sum(found.values()))
