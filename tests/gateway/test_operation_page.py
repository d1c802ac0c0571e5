"""docs/operation.md is what the supervisor does: each signal of its table is sent, each exit code is seen."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway import children
from gateway.supervisor import Supervisor
from tests.gateway.supervising import ROOT, SLEEP, is_deaf, run_until, stub, until
from tests.gateway.supervising import supervisor as supervisor  # a fixture

PAGE = (ROOT / "docs" / "operation.md").read_text()


def rows(heading: str) -> dict[str, str]:
    """The table under a heading: its first column to its second."""
    section = PAGE.partition(f"## {heading}")[2].partition("\n## ")[0]
    found = re.findall(r"^\| ([A-Z0-9]+|\d) \| (.+) \|$", section, re.MULTILINE)
    return dict(found)


SIGNALS = rows("Signals")
CODES = rows("Exit codes of `tidegate serve`")
DRAINS = ("TERM", "INT", "QUIT")
GOES_ON = ("HUP", "USR1", "USR2", "PIPE")


def test_the_table_has_every_signal_that_is_handled() -> None:
    """No signal is handled and not told, or told and not tried here."""
    assert set(SIGNALS) == {*DRAINS, *GOES_ON}
    assert set(CODES) == {"0", "1", "2"}


@pytest.mark.parametrize("name", DRAINS)
def test_a_signal_that_drains(supervisor: Supervisor, name: str) -> None:
    """One ends the gateway with 0 once its children have ended."""
    recorder = stub("recorder", SLEEP)
    supervisor.children = [recorder]
    sender = _when(lambda: recorder.lives == 1, lambda: os.kill(os.getpid(), getattr(signal, f"SIG{name}")))
    assert supervisor.run() == 0
    sender.join()
    assert recorder.process is not None
    assert recorder.process.returncode == -signal.SIGTERM


def test_a_signal_that_does_not_drain(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """HUP, USR1, USR2 and PIPE do what the table says, and the gateway goes on."""
    caplog.set_level(logging.INFO)
    recorder = stub("recorder", SLEEP)
    supervisor.children = [recorder]
    supervisor.upgrade._context = supervisor.context.with_(directory=str(tmp_path))
    seen: dict[str, Callable[[], bool]] = {
        "PIPE": lambda: True,
        "HUP": lambda: supervisor.rolling.asked == 1 and supervisor.rolling.state == "done",
        "USR1": lambda: any(r.message == "stack" for r in caplog.records),
        "USR2": lambda: supervisor.upgrade.facts()["state"] == "failed",
    }
    assert set(seen) == set(GOES_ON)
    todo = list(seen)
    sent: list[str] = []

    def story() -> bool:
        if recorder.lives == 1 and (not sent or seen[sent[-1]]()):
            if not todo:
                return True
            sent.append(todo.pop(0))
            os.kill(os.getpid(), getattr(signal, f"SIG{sent[-1]}"))
        return False

    assert run_until(supervisor, story) == 0
    assert sent == list(seen)
    assert recorder.lives == 1


def test_code_1_is_for_who_had_to_be_killed(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that does not end in its time is killed, and the exit code says that something may be lost."""
    monkeypatch.setattr(children, "DRAIN_S", 0.2)
    deaf = stub("control", f"import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); {SLEEP}")
    supervisor.children = [deaf]
    assert run_until(supervisor, lambda: is_deaf(deaf)) == 1


def test_code_2_is_for_who_refuses(supervisor: Supervisor) -> None:
    """A child that refuses in its first life ends the gateway."""
    supervisor.children = [stub("recorder", SLEEP), stub("control", "raise SystemExit(2)")]
    assert supervisor.run() == 2


def _when(holds: Callable[[], bool], then: Callable[[], None]) -> threading.Thread:
    """Do something in a thread once it holds."""

    def run() -> None:
        until("condition", holds)
        then()

    thread = threading.Thread(target=run)
    thread.start()
    return thread
