"""`loading`: what those who are being served notice of a 100 MB model that loads beside.

Half of the MLP's capacity arrives all the time. In the middle of each round a new version of another model, 100 MB of
weights made on the spot, is shown to the gateway; it is given no traffic. p99 of the requests that were due while it
loaded, in units of the p99 of those due before in the same round.
"""

from __future__ import annotations

import threading
import time

import msgspec
import numpy as np

from bench import load, paired, report
from bench.cases import openly
from bench.cases.case import MLP, Bench, Case, roles_of
from bench.models import write_heavy, write_mlp
from bench.openloop import Records
from bench.outcome import took_ns
from bench.requests import Target
from bench.serving import Gateway

RATIO_MAX = 1.3
MODEL_MB = 100
BEFORE_S = 3.0
LOADS_S_MAX = 30.0
POLL_S = 0.1
START_IN_NS = 500_000_000


class Round(msgspec.Struct, frozen=True):
    """One load of the model."""

    before_ms: float
    while_ms: float
    loaded_in_s: float
    counted: int
    """Requests that were due meanwhile."""
    requests: int
    late: int
    foreign_cpus: float
    ok: bool


def loading(bench: Bench) -> Case:
    """A new version each round."""
    models = bench.mlp()
    write_mlp(models, name="big")
    target = Target("mlp", (MLP,))
    found: list[Round] = []
    with bench.gateway(models) as gateway, openly.pinned(bench):
        requests = bench.requests(target)
        can = openly.capacity(bench, gateway, bench.wrk(requests), "mlp", bench.options.connections)
        # The first one says how long it takes, and how long the rounds must be.
        write_heavy(models, "2", megabytes=MODEL_MB)
        took_s = _load(gateway, "2")
        for number in range(bench.options.rounds):
            version = str(number + 3)
            write_heavy(models, version, megabytes=MODEL_MB, seed=number + 3)
            time.sleep(1.0)
            plan = msgspec.structs.replace(
                openly.plan(bench, gateway.data_url, target, 0.5 * can.per_second, None),
                seconds=BEFORE_S + 2 * took_s + 0.5,
            )
            one = _round(gateway, plan, requests, version)
            found.append(one)
            bench.progress(
                f"round {number + 1}/{bench.options.rounds}: p99 {one.before_ms:.2f} ms before, {one.while_ms:.2f} ms"
                f" while it loaded for {one.loaded_in_s:.2f} s"
            )
    late = sum(one.late for one in found) / sum(one.requests for one in found)
    took, fewest = report.interval([one.loaded_in_s for one in found]), min(one.counted for one in found)
    rows = [
        report.at_most(
            "p99 while a 100 MB model loads / before",
            report.interval([one.while_ms / one.before_ms for one in found]), RATIO_MAX,
        ),
        report.Row("p99 before", report.interval([one.before_ms for one in found]).text(2) + " ms"),
        report.Row("p99 while it loads", report.interval([one.while_ms for one in found]).text(2) + " ms"),
        report.Row("a load takes", f"{took.text(2)} s, {fewest:,} requests at least meanwhile"),
        report.Row("sends over 1 ms late", f"{late:.2%}", "<= 1%", late <= 0.01),
        report.Row("not 2xx", str(sum(not one.ok for one in found)), "0", all(one.ok for one in found)),
        paired.quiet(report.interval([one.foreign_cpus for one in found]).median),
    ]  # fmt: skip
    return Case(name="loading", title="a 100 MB model loads beside half load", rows=rows, details=found)


def _round(gateway: Gateway, plan: load.Plan, requests: load.Requests, version: str) -> Round:
    window: list[int] = []
    start_ns = time.perf_counter_ns() + START_IN_NS

    def beside() -> None:
        time.sleep(BEFORE_S + START_IN_NS / 1e9)
        window.append(time.perf_counter_ns() - start_ns)
        _load(gateway, version)
        window.append(time.perf_counter_ns() - start_ns)

    thread = threading.Thread(target=beside)
    thread.start()
    watch = paired.Watch(roles_of(gateway))
    part = load.generate(plan, requests, start_ns=start_ns)
    foreign = watch.stop()[1]
    thread.join()
    if len(window) < 2:
        msg = f"version {version} did not load within {LOADS_S_MAX:g} s: {gateway.said()}"
        raise TimeoutError(msg)
    records: Records = part.records
    took, due = took_ns(records, part.end_ns) / 1e6, records.due_ns
    meanwhile = (due >= window[0]) & (due < window[1])
    before = (due >= 0.2e9) & (due < window[0])
    return Round(
        before_ms=float(np.percentile(took[before], 99)),
        while_ms=float(np.percentile(took[meanwhile], 99)),
        loaded_in_s=(window[1] - window[0]) / 1e9,
        counted=int(meanwhile.sum()),
        requests=len(due),
        late=int((records.handed_ns - due > 1_000_000).sum()),
        foreign_cpus=foreign,
        ok=bool((records.status == 200).all()),
    )


def _load(gateway: Gateway, version: str) -> float:
    """Show the new version to the gateway and wait until every worker has it; seconds.

    Raises:
        TimeoutError: it did not become ready.
    """
    started = time.monotonic()
    gateway.admin("POST", "models/refresh", {"reason": "measured"})
    while time.monotonic() - started < LOADS_S_MAX:
        versions = gateway.admin("GET", "models/big").content["versions"]
        state = next((v for v in versions if v["version"] == version), {"state": "absent"})
        if state["state"] == "ready":
            return time.monotonic() - started
        if state["state"] == "failed":
            msg = f"version {version} failed to load: {state['reason']}"
            raise ValueError(msg)
        time.sleep(POLL_S)
    msg = f"version {version} was not ready within {LOADS_S_MAX:g} s"
    raise TimeoutError(msg)
