"""The fault kit itself: what it injects is what a process meets, at the call named and at no other."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.faults.syscalls import called, fail_at, kill_at, under_strace

WRITES = """
import os
for n in range(4):
    try:
        os.write(1, b"%d" % n)
    except OSError as exc:
        os.write(2, b"%d" % exc.errno)
"""


def run(*prefix: str) -> subprocess.CompletedProcess[str]:
    """Four calls of write under it."""
    command = [*prefix, sys.executable, "-S", "-B", "-c", WRITES]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_a_kill_comes_at_its_call() -> None:
    """The third write is not carried out, and the status is the process's own."""
    done = run(*under_strace(kill_at("write", 3)))
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "01")


def test_an_error_comes_instead_of_its_call() -> None:
    """The second write is refused; what the process calls in its place counts, too."""
    done = run(*under_strace(fail_at("write", "ENOSPC", "2")))
    assert (done.returncode, done.stdout, done.stderr) == (0, "023", "28")


def test_calls_are_listed_with_their_number(tmp_path: Path) -> None:
    """The trace names each call, how many of its kind there were, and what it was given."""
    assert run(*under_strace(trace=tmp_path / "trace", calls="write")).returncode == 0
    found = list(called(tmp_path / "trace"))
    assert [(call, n) for call, n, _ in found] == [("write", n) for n in range(1, 5)]
    assert found[2][2].startswith('1, "2", 1)')
