"""A supervisor in the test's own process, over children that are a line of Python each."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import gateway.config
from gateway.children import Child
from gateway.handover import HANDLED
from gateway.process import Context
from gateway.supervisor import Supervisor

ROOT = Path(__file__).parents[2]
WITHIN_S = 60.0


def until(what: str, holds: Callable[[], bool], within_s: float = WITHIN_S) -> None:
    """Poll until it holds."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def stub(role: str, code: str, index: int | None = None) -> Child:
    """A child that runs a line of Python."""
    return Child(role=role, argv=[sys.executable, "-S", "-c", code], index=index)


SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    """A supervisor in this process, with no children yet; signals are put back behind it."""
    (tmp_path / "models").mkdir()
    config = gateway.config.load(
        overrides=["data.port=0", "admin.port=0", "audit.ring=state_dir"], environ={}
    )[0]
    made = Supervisor(
        Context(
            config=gateway.config.encode(config),
            models=str(tmp_path / "models"),
            state_dir=str(tmp_path / "state"),
        )
    )
    made.children = []
    kept = {n: signal.getsignal(n) for n in (*HANDLED, signal.SIGCHLD, signal.SIGPIPE)}
    yield made
    signal.set_wakeup_fd(-1)
    for number, handler in kept.items():
        signal.signal(number, handler)
    for child in made.children:
        if child.process is not None and child.process.poll() is None:
            child.process.kill()
            child.process.wait()
    made.close()


def run_until(supervisor: Supervisor, holds: Callable[[], bool]) -> int:
    """Run it; SIGTERM to ourselves when the condition holds. One that does not hold in time is a failure."""
    held: list[bool] = []

    def watch() -> None:
        deadline = time.monotonic() + WITHIN_S
        while not (held and held[-1]) and time.monotonic() < deadline:
            time.sleep(0.01)
            held.append(holds())
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        code = supervisor.run()
    finally:
        watcher.join()
    assert held[-1], f"not within {WITHIN_S:g} s"
    return code


def is_deaf(child: Child) -> bool:
    """Whether it runs and ignores SIGTERM."""
    process = child.process
    ignored = 0 if process is None else int(proc_status(process.pid, "SigIgn"), 16)
    return bool(ignored & 1 << (signal.SIGTERM - 1))


def proc_status(pid: int, name: str) -> str:
    """A line of /proc/PID/status."""
    text = Path(f"/proc/{pid}/status").read_text()
    return next(line.split()[1] for line in text.splitlines() if line.startswith(name))
