"""A change in need: the disk full to the last block, no broker, no sidecar, and the operator takes traffic back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.serving import call
from tests.faults.troubled import Troubled, small_disk, start

LONGEST_S = 2.0
TIMED = """
import sys, time
from click.testing import CliRunner
from gateway.cli import command
for name in ("rollback", "freeze"):  # what they import
    assert CliRunner().invoke(command, ["route", name, "--help"]).exit_code == 0
began = time.monotonic()
try:
    command()
finally:
    print(time.monotonic() - began, file=sys.stderr)
"""
VARIANTS = [
    {"name": "primary", "version": "1", "role": "primary", "weight_bp": 5000},
    {"name": "canary", "version": "2", "role": "canary", "weight_bp": 5000},
]


@pytest.fixture
def troubled(tmp_path: Path) -> Iterator[Troubled]:
    """A gateway with a sidecar, half of the traffic on a canary, and Kafka nowhere."""
    with small_disk(tmp_path / "state") as disk:
        troubled = start(tmp_path, disk, "sidecar.enabled=true")
        try:
            revision = troubled.gateway.admin("GET", "routes/lax").content["revision"]
            body = {"variants": VARIANTS, "reason": "split"}
            split = troubled.gateway.admin("PUT", "routes/lax", body, revision=revision)
            assert split.status == 200, split
            yield troubled
        finally:
            troubled.end()


def fill_quite(troubled: Troubled) -> None:
    """Until nothing is left, the recorder's reserve included, and no record can be kept."""

    def is_full() -> bool:
        troubled.fill()
        stat = os.statvfs(troubled.disk)
        with contextlib.suppress(OSError):
            troubled.ask("lax")
        return stat.f_bavail == 0 and troubled.metric("tidegate_recorder_reserve_bytes") == 0

    troubled.await_true(is_full)
    troubled.await_true(lambda: is_full() and troubled.metric("tidegate_recorder_failing") == 1)


def run(*words: str) -> float:
    """A command in a process of its own, as an operator starts it; how long it took without the start of a Python."""
    given = [sys.executable, "-c", TIMED, *words]
    done = subprocess.run(given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return float(done.stderr.split()[-1])


def versions(troubled: Troubled, count: int = 40) -> set[str]:
    """Who answers."""
    body = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 30], "data": [0.5] * 30}]}
    replies = [call(troubled.gateway.data_url, "POST", "/v2/models/lax/infer", body) for _ in range(count)]
    assert {reply.status for reply in replies} == {200}
    return {reply.content["model_version"] for reply in replies}


def test_urgent_changes_on_a_disk_without_a_block(troubled: Troubled) -> None:
    """Rollback, freeze and stop go through in 2 s, hold in every worker and over the death of control, and are logged
    once there is room, each once and in order."""
    assert versions(troubled) == {"1", "2"}
    fill_quite(troubled)
    # It may be gone already: it has no block to write to either.
    for pid in troubled.gateway.pids("sidecar"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    at = ("--state-dir", str(troubled.disk))
    took_s = [
        run("route", "rollback", "lax", "--variant", "canary", "--reason", "it answers nonsense", *at),
        run("route", "freeze", "lax", "--reason", "until it is understood", *at),
    ]
    assert max(took_s) <= LONGEST_S, took_s
    assert versions(troubled) == {"1"}
    shown = troubled.gateway.admin("GET", "routes/lax").content
    assert (shown["frozen"], shown["latched"]) == (True, ["2"])
    began = time.monotonic()
    body = {"reason": "nobody shall have it"}
    stopped = troubled.gateway.admin("POST", "models/lax/stop", body, revision=shown["revision"])
    took_s.append(time.monotonic() - began)
    assert (stopped.status, stopped.content["logged"], took_s[-1] <= LONGEST_S) == (200, False, True), took_s
    assert troubled.ask("lax").code == "model_stopped"
    troubled.gateway.kill9("control")
    assert troubled.ask("lax").code == "model_stopped"
    troubled.empty()
    troubled.await_true(lambda: troubled.gateway.pids("control") != [] and _control_answers(troubled), 30)
    shown = troubled.gateway.admin("GET", "routes/lax").content
    assert (shown["frozen"], shown["latched"], shown["stopped"]["by"]) == (True, ["2"], "admin")
    troubled.await_true(lambda: troubled.controls()[-3:] == ["rollback", "freeze", "stop"], 30)
    assert troubled.controls().count("rollback") == 1


def _control_answers(troubled: Troubled) -> bool:
    with contextlib.suppress(OSError, json.JSONDecodeError):
        return troubled.gateway.admin("GET", "routes/lax").status == 200
    return False
