"""Workers replaced behind nginx and HAProxy: clients that keep connections and never ask twice lose nothing."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.serving import Gateway
from bench.steady import Steady, SteadyPlan, SteadyReport
from tests.e2e.onnx_models import write_linear
from tests.e2e.proxies import PROXIES, Proxy
from tests.faults.test_rolling import another_version, cli

LAME_S = 1.0
BODY = json.dumps(
    {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
).encode()


Act = Callable[[Gateway], None]


def behind(
    directory: Path, kinds: Sequence[str], requests: int, acts: Sequence[Act]
) -> dict[str, SteadyReport]:
    """Steady clients through proxies while the gateway is acted upon, spread over the load; what became of requests."""
    write_linear(directory / "models")
    settings = (f"data.lame_duck_s={LAME_S}", "data.request_timeout_ms=30000", "sidecar.enabled=false")
    gateway = Gateway(directory / "models", directory / "state", workers=2, settings=settings)
    plan = SteadyPlan(
        path="/v2/models/linear/infer",
        body=BODY,
        requests=1 << 40,
        thinks_s=(0.0, 0.01, 0.2, LAME_S / 2),
        clients=2,
        lame_duck_s=LAME_S,
    )
    with gateway, ExitStack() as stack:
        all_steady: dict[str, Steady] = {}
        for kind in kinds:
            proxy = stack.enter_context(Proxy(kind, directory / kind, gateway.data_url))
            all_steady[kind] = Steady(proxy.url, plan).start()
        try:
            for number, act in enumerate(acts):
                for steady in all_steady.values():
                    steady.await_sent((number + 1) * requests // (len(acts) + 2), 600)
                act(gateway)
            for steady in all_steady.values():
                steady.await_sent(requests, 600)
        finally:
            for steady in all_steady.values():
                steady.stop()
        return {kind: steady.join(60) for kind, steady in all_steady.items()}


def one_by_one(gateway: Gateway) -> None:
    """SIGTERM to each worker, the next once the one before has a successor that serves."""
    for pid in gateway.pids("worker"):
        os.kill(pid, signal.SIGTERM)
        gateway.await_successor("worker", pid)
        deadline = time.monotonic() + 30
        while {w["state"] for w in gateway.admin("GET", "fleet").content["workers"]} != {"serving"}:
            assert time.monotonic() < deadline, gateway.said()
            time.sleep(0.05)


def lost(report: SteadyReport) -> str:
    """What was lost, in words; empty: nothing."""
    if not report.failed and not report.idle_resets and report.answered == report.sent:
        return ""
    return f"{report.failures_by_kind}, idle resets {report.idle_resets}: {report.first_failures}"


def restarted(gateway: Gateway) -> None:
    """A rolling restart, as an operator asks for it."""
    done = cli(gateway, "fleet", "restart")
    assert done.returncode == 0, done.stderr + gateway.said()


def upgraded_to(code: Path) -> Act:
    """An upgrade to another version."""

    def act(gateway: Gateway) -> None:
        done = cli(gateway, "upgrade", code=code)
        assert done.returncode == 0, done.stderr + gateway.said()

    return act


def test_replaced_workers_lose_no_request(tmp_path: Path) -> None:
    """Each of two workers ends and comes again under load: every request has its answer."""
    reports = behind(tmp_path, PROXIES, 1000, [one_by_one])
    assert {kind: lost(report) for kind, report in reports.items()} == dict.fromkeys(PROXIES, "")
    assert min(report.sent for report in reports.values()) >= 1000


@pytest.mark.prove
@pytest.mark.parametrize("kind", PROXIES)
def test_restarts_and_upgrades_lose_none_of_a_hundred_thousand(tmp_path: Path, kind: str) -> None:
    """Ten rolling restarts and three upgrades."""
    upgrades = [upgraded_to(another_version(tmp_path / f"0.1.{n}", f"0.1.{n}")) for n in (1, 2, 3)]
    report = behind(tmp_path, [kind], 100_000, [*[restarted] * 10, *upgrades])[kind]
    print(
        f"{kind}: {report.sent} sent, {report.failed} failed, {report.idle_resets} idle resets, {report.seconds:.0f} s"
    )
    assert lost(report) == ""
    assert report.sent >= 100_000
