"""Workers replaced behind nginx and HAProxy: clients that keep connections and never ask twice lose nothing."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.serving import Gateway
from bench.steady import Steady, SteadyPlan, SteadyReport
from tests.e2e.onnx_models import write_linear
from tests.e2e.proxies import PROXIES, Proxy

LAME_S = 1.0
BODY = json.dumps(
    {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
).encode()


def behind(
    directory: Path, kind: str, requests: int, replaces: int, replace: Callable[[Gateway], None]
) -> SteadyReport:
    """Steady clients through a proxy while `replace` is called again and again; what became of their requests."""
    write_linear(directory / "models")
    settings = (f"data.lame_duck_s={LAME_S}", "data.request_timeout_ms=30000")
    gateway = Gateway(directory / "models", directory / "state", workers=2, settings=settings)
    plan = SteadyPlan(
        path="/v2/models/linear/infer",
        body=BODY,
        requests=requests,
        thinks_s=(0.0, 0.01, 0.2, LAME_S / 2),
        lame_duck_s=LAME_S,
    )
    with gateway, Proxy(kind, directory / "proxy", gateway.data_url) as proxy:
        steady = Steady(proxy.url, plan).start()
        for turn in range(replaces):
            steady.await_sent((turn + 1) * requests // (replaces + 2), 600)
            replace(gateway)
        return steady.join(600)


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


@pytest.mark.parametrize("kind", PROXIES)
def test_replaced_workers_lose_no_request(tmp_path: Path, kind: str) -> None:
    """Each of two workers ends and comes again under load: every request has its answer."""
    report = behind(tmp_path, kind, 1500, 1, one_by_one)
    assert lost(report) == ""
    assert report.sent == 1500


@pytest.mark.prove
@pytest.mark.parametrize("kind", PROXIES)
def test_ten_rounds_lose_none_of_a_hundred_thousand(tmp_path: Path, kind: str) -> None:
    """The same ten times, 1e5 requests."""
    report = behind(tmp_path, kind, 100_000, 10, one_by_one)
    assert lost(report) == ""
    assert report.sent == 100_000
