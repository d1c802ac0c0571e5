"""What the machine has, told without running anything."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from gateway import doctor


def test_everything_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """No check fails without saying what to do, and tools are never required for serving."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    absent = [check for check in doctor.checks() if not check.ok]
    assert {"java", "mvn", "docker", "kcat", "strace", "nginx", "haproxy", "wrk", "chromium"} <= {
        c.name for c in absent
    }
    assert [c.name for c in absent if not c.how_to_get or c.required] == []


def test_runs_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking is not running."""
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started a program"))
    found = {check.name: check for check in doctor.checks()}
    assert found["python"].ok
    assert found["onnxruntime"].ok
    assert found["onnxruntime"].required
