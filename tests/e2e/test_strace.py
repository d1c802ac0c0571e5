"""No phoning home: what a whole run connects to and starts, as the kernel saw it."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

import pytest

from bench.serving import Gateway
from gateway.audit.event import Shadow, Verdict
from gateway.audit.spool_feed import SpoolFeed
from tests.e2e.onnx_models import write_linear
from tests.e2e.wire import Wire, infer

_CALL = re.compile(r"\b(connect|execve)\((.*)")


@pytest.fixture
def tracer() -> str:
    """Where strace is. Its absence is a skip on a laptop and a failure under CI."""
    found = shutil.which("strace")
    if found is None:
        why = "strace is not on this machine: install it to see that nothing phones home"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return found


def _traced(tmp_path: Path, tracer: str) -> list[str]:
    """Serve, answer, shadow, watch, drain, all under strace; the calls."""
    write_linear(tmp_path / "models")
    write_linear(tmp_path / "models", version="2", scale=0.5)
    trace = tmp_path / "trace"
    # ONNX Runtime's telemetry is silent under CI: without the variable it would show itself.
    environ = {k: v for k, v in os.environ.items() if k not in {"CI", "ORT_DISABLE_TELEMETRY"}}
    settings = ("sidecar.tick_s=0.5", "policy.linear.ramp=auto")
    gateway = Gateway(tmp_path / "models", tmp_path / "state", workers=2, settings=settings)
    prefix = [tracer, "-f", "-qq", "-s", "256", "-e", "trace=connect,execve", "-o", str(trace)]
    gateway.start(90, prefix=prefix, environ=environ)
    try:
        with Wire(gateway.data_url) as wire:
            for _ in range(20):
                assert wire.exchange(infer("linear", [[1, 2, 3, 4]])).status == 200
        variants = [
            {"name": "primary", "version": "2", "role": "primary", "weight_bp": 9000},
            {"name": "canary", "version": "1", "role": "canary", "weight_bp": 1000},
            {"name": "beside", "version": "1", "role": "shadow", "sample_bp": 10000},
        ]
        revision = gateway.admin("GET", "routes/linear").content["revision"]
        body = {"variants": variants, "reason": "traced"}
        assert gateway.admin("PUT", "routes/linear", body, revision=revision).status == 200
        with Wire(gateway.data_url) as wire:
            for _ in range(20):
                assert wire.exchange(infer("linear", [[1, 2, 3, 4]])).status == 200
        _await_shadow(tmp_path / "state" / "spool")
    finally:
        assert gateway.stop() == 0, gateway.said()
    return trace.read_text(errors="replace").splitlines()


def test_a_run_connects_to_nothing_but_loopback_and_starts_only_python(tmp_path: Path, tracer: str) -> None:
    """Every connect is to loopback or a Unix socket; every program started is this Python."""
    calls = [m for line in _traced(tmp_path, tracer) if (m := _CALL.search(line))]
    connects = [m.group(2) for m in calls if m.group(1) == "connect"]
    foreign = [c for c in connects if not _is_local(c)]
    assert foreign == []
    programs = [m.group(2).split('"')[1] for m in calls if m.group(1) == "execve"]
    assert len(programs) >= 7  # serve, supervisor, two workers, recorder, control, sidecar, mirror
    assert {Path(p).name for p in programs if not re.match(r"python3?(\.\d+)?$", Path(p).name)} == set()


def _await_shadow(spool: Path) -> None:
    """Until mirror and sidecar have both written to the log."""
    # The mirror runs only when no one else does.
    deadline = time.monotonic() + 180
    wanted: set[type] = {Shadow, Verdict}
    while not wanted <= {type(event) for event in SpoolFeed(spool).read(100_000, 0).events}:
        assert time.monotonic() < deadline, "mirror or sidecar wrote nothing"
        time.sleep(0.5)


def _is_local(connect: str) -> bool:
    if "AF_UNIX" in connect:
        # A resolver asks nscd over a Unix socket; that is the machine's own.
        return True
    return "AF_UNSPEC" in connect or 'inet_addr("127.' in connect or '"::1"' in connect
