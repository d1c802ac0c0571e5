"""Rolling restarts and upgrades under keep-alive POSTs that nobody sends twice: what they cost clients is nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.serving import Gateway, call
from bench.steady import Steady, SteadyPlan
from gateway import config, roster
from gateway.audit.event import Prediction
from gateway.audit.spool_feed import SpoolFeed
from gateway.memory import memory_plan
from tests.e2e.onnx_models import write_linear

ROOT = Path(__file__).parents[2]
LAME_DUCK_S = 2.0
"""Clients that think for half of it have the other half to wake on a busy machine."""
PLAN = SteadyPlan(
    path="/v2/models/linear/infer",
    body=json.dumps(
        {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    ).encode(),
    requests=1 << 40,
    thinks_s=(0.005, 0.01, 0.2, LAME_DUCK_S / 2),
    clients=1,
    lame_duck_s=LAME_DUCK_S,
    keeps_ids=True,
)


def cli(gateway: Gateway, *words: str, code: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command of an installation on the gateway's host."""
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", *words, "--state-dir", str(gateway.state_dir)],
        env={**environ, "PYTHONPATH": str(code)},
        cwd=gateway.state_dir.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def another_version(directory: Path, version: str) -> Path:
    """Our packages once more, as another version in a directory of its own."""
    for package in ("gateway", "loaders", "shadow"):
        shutil.copytree(ROOT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = directory / "gateway" / "__init__.py"
    text = path.read_text()
    assert '__version__ = "' in text
    path.write_text(text.partition('__version__ = "')[0] + f'__version__ = "{version}"\n')
    return directory


def status(gateway: Gateway) -> dict[str, Any]:
    """What the supervisor says of itself."""
    return roster.read(gateway.state_dir) or {}


def await_status(
    gateway: Gateway, what: str, holds: Callable[[dict[str, Any]], bool], within_s: float = 60
) -> None:
    """Poll the roster until it holds."""
    deadline = time.monotonic() + within_s
    while not ((found := status(gateway)) and holds(found)):
        assert time.monotonic() < deadline, f"{what}: {found}\n{gateway.said()}"
        time.sleep(0.01)


def logged_ids(state_dir: Path) -> set[str]:
    """Every prediction in the spool."""
    found: set[str] = set()
    feed = SpoolFeed(state_dir / "spool")
    while events := feed.read(10_000, 0).events:
        found.update(e.id for e in events if isinstance(e, Prediction) and e.kind != "refused")
    return found


@pytest.fixture
def linear(tmp_path: Path) -> Iterator[Gateway]:
    """Two workers with a small model, not started yet."""
    write_linear(tmp_path / "models")
    gateway = Gateway(
        tmp_path / "models",
        tmp_path / "state",
        workers=2,
        settings=(f"data.lame_duck_s={LAME_DUCK_S}", "sidecar.enabled=false"),
    )
    try:
        yield gateway
    finally:
        gateway.kill9_all()


def _under_load(
    gateway: Gateway, restarts: int, versions: list[Path], requests: int, asks: SteadyPlan = PLAN
) -> None:
    """Do them all while clients ask, until `requests` were sent; then hold the outcome and the log against the rule."""
    gateway.start(60)
    pid, seen = gateway.pid, set(gateway.pids("worker"))
    steady = Steady(gateway.data_url, asks).start()
    try:
        steady.await_sent(100, 30)
        for _ in range(restarts):
            done = cli(gateway, "fleet", "restart")
            assert done.returncode == 0, done.stderr + gateway.said()
            workers = set(gateway.pids("worker"))
            assert len(workers) == 2
            assert not workers & seen
            seen |= workers
        for code in versions:
            before = {role: gateway.pids(role) for role in ("worker", "recorder", "control")}
            done = cli(gateway, "upgrade", code=code)
            assert done.returncode == 0, done.stderr + gateway.said()
            assert status(gateway)["version"] == code.name
            assert all(not set(gateway.pids(role)) & set(pids) for role, pids in before.items())
        steady.await_sent(requests, 900)
    finally:
        steady.stop()
    report = steady.join(60)
    assert gateway.pid == pid == status(gateway)["pid"]
    shown = f"{report.failures_by_kind} {report.first_failures[:5]}\n{gateway.said()}"
    assert (report.failed, report.idle_resets) == (0, 0), shown
    assert report.answered == report.sent >= requests
    assert report.told > 0
    assert gateway.stop(60) == 0, gateway.said()
    lost = set(report.identities) - logged_ids(gateway.state_dir)
    assert len(set(report.identities)) == report.answered
    assert lost == set()
    print(f"{report.sent} sent, {report.failed} failed, {report.told} told, {report.closed_idle} closed idle,"
          f" slowest {report.slowest_ms:.0f} ms, {report.seconds:.0f} s")  # fmt: skip


def test_a_restart_and_an_upgrade_cost_no_request(linear: Gateway, tmp_path: Path) -> None:
    """0 of 3,000 fail, each answer is in the log, and nobody of before is left but the supervisor's pid."""
    _under_load(linear, 1, [another_version(tmp_path / "0.1.1", "0.1.1")], 3000)


@pytest.mark.prove
def test_ten_restarts_and_three_upgrades_cost_no_request(linear: Gateway, tmp_path: Path) -> None:
    """0 of 100,000 fail."""
    versions = [another_version(tmp_path / f"0.1.{n}", f"0.1.{n}") for n in (1, 2, 3)]
    asks = msgspec.structs.replace(PLAN, clients=3, thinks_s=(0.0, *PLAN.thinks_s))
    _under_load(linear, 10, versions, 100_000, asks)


@pytest.mark.prove
def test_without_memory_for_one_more_no_request_fails_either(tmp_path: Path) -> None:
    """The only worker leaves before its successor comes: who asks meanwhile waits in the listening queue."""
    write_linear(tmp_path / "models")
    needs = memory_plan(config.load(overrides=["workers=1"], environ={})[0]).total(1 << 20)
    gateway = Gateway(
        tmp_path / "models",
        tmp_path / "state",
        settings=(f"data.lame_duck_s={LAME_DUCK_S}", f"session.memory_max_bytes={int(needs / 0.8 * 1.2)}"),
    )
    try:
        gateway.start(60)
        assert "no room for one more worker" in gateway.log.read_text()
        steady = Steady(gateway.data_url, PLAN).start()
        steady.await_sent(100, 30)
        (before,) = gateway.pids("worker")
        done = cli(gateway, "fleet", "restart")
        assert done.returncode == 0, done.stderr + gateway.said()
        (after,) = gateway.pids("worker")
        assert after != before
        steady.await_sent(steady.sent + 100, 30)
        steady.stop()
        report = steady.join(60)
        assert (report.failed, report.idle_resets) == (0, 0), report
        assert "worker_leaves_before_its_successor_comes" in gateway.log.read_text()
        assert gateway.stop(60) == 0, gateway.said()
    finally:
        gateway.kill9_all()


def test_what_cannot_take_over_changes_nothing(linear: Gateway, tmp_path: Path) -> None:
    """A successor without its model, and new code that cannot run: exit 1, why, and all goes on as it was."""
    linear.workers = 1
    linear.start(60)
    before = {role: linear.pids(role) for role in ("worker", "recorder", "control")}

    def still_there(done: subprocess.CompletedProcess[str]) -> str:
        assert done.returncode == 1, done
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert {role: linear.pids(role) for role in before} == before, linear.said()
        reply = call(linear.data_url, "POST", PLAN.path, json.loads(PLAN.body))
        assert reply.status == 200
        return done.stderr

    (model,) = linear.models.glob("linear/*/model.onnx")
    kept = model.rename(tmp_path / "kept")
    told = still_there(cli(linear, "fleet", "restart"))
    assert "worker-0: its successor ended with 2" in told
    assert "linear@1 did not load here" in linear.log.read_text()
    kept.rename(model)

    broken = another_version(tmp_path / "broken", "0.2.0")
    (broken / "gateway" / "worker.py").write_text("import of_what_is_not_installed\n")
    told = still_there(cli(linear, "upgrade", code=broken))
    assert "not upgraded: version 0.2.0: this needs the package of_what_is_not_installed" in told

    assert linear.stop(60) == 0, linear.said()


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("successor", marks=pytest.mark.prove),
        pytest.param("leaving", marks=pytest.mark.prove),
        pytest.param("check", marks=pytest.mark.prove),
        "replacing",
    ],
)
def test_a_supervisor_killed_in_the_middle_starts_again(linear: Gateway, tmp_path: Path, moment: str) -> None:
    """kill -9 in a restart or an upgrade: everybody goes with it, and the next start answers and ends well."""
    linear.workers = 2 if moment == "leaving" else 1
    linear.start(60)
    begun: dict[str, tuple[int, Callable[[dict[str, Any]], bool]]] = {
        "successor": (signal.SIGHUP, lambda s: len(_workers(s)) == 2),
        "leaving": (signal.SIGHUP, lambda s: s["restart"]["replaced"] == 1),
        "check": (signal.SIGUSR2, lambda s: s["upgrade"]["state"] == "checking"),
        "replacing": (signal.SIGUSR2, lambda s: s["upgrade"]["state"] == "replacing"),
    }
    number, holds = begun[moment]
    os.kill(linear.pid, number)
    await_status(linear, moment, holds)
    pids = [child["pid"] for child in status(linear)["children"] if child["pid"]]
    os.kill(linear.pid, signal.SIGKILL)
    linear.kill9_all()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() and _parent(pid) != 1 for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    linear.start(60)
    assert call(linear.data_url, "POST", PLAN.path, json.loads(PLAN.body)).status == 200
    assert status(linear)["upgrade"]["state"] == "none"
    assert linear.stop(60) == 0, linear.said()


def _workers(told: dict[str, Any]) -> list[str]:
    return [child["name"] for child in told["children"] if child["role"] == "worker"]


def _parent(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 1
    return 1 if fields[0] == "Z" else int(fields[1])
