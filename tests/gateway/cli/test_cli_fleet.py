"""`tidegate fleet` and `upgrade` against a supervisor that is played: what is asked, waited for and answered."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.roster import replace_file


class Played:
    """A supervisor: this process, which notes its signals and answers with a roster."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.signals: list[int] = []
        self.age_s = 0.0
        self._lock = threading.Lock()
        self.restart: dict[str, Any] = {
            "asked": 3,
            "state": "none",
            "why": None,
            "replaced": 0,
            "children": 0,
        }
        self.upgrade: dict[str, Any] = {"id": "", "state": "none", "why": None, "from": "1", "to": None}
        (state_dir / "supervisor").mkdir(parents=True)
        self.write()
        replace_file(state_dir / "endpoints.json", {"data_url": "", "admin_url": "", "pid": os.getpid()})
        self.answer: Callable[[], None] | None = None
        """What becomes of a signal."""
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._go_on)

    def begin(self) -> None:
        """Write the roster again and again, as a supervisor does."""
        self.thread.start()

    def _go_on(self) -> None:
        while not self.over.wait(0.05):
            if self.signals and self.answer is not None:
                self.answer()
                self.answer = None
            self.write()

    def write(self) -> None:
        """The roster as it is now."""
        told = {
            "at_ns": time.time_ns() - int(self.age_s * 1e9),
            "pid": os.getpid(),
            "children": [],
            "restart": self.restart,
            "upgrade": self.upgrade,
        }
        with self._lock:
            replace_file(self.state_dir / "supervisor" / "status.json", told)

    def request(self) -> dict[str, Any]:
        """What an upgrade was asked for."""
        found = json.loads((self.state_dir / "supervisor" / "upgrade.json").read_text())
        assert isinstance(found, dict)
        return found


@pytest.fixture
def played(tmp_path: Path) -> Iterator[Played]:
    """One that takes SIGHUP and SIGUSR2 and does nothing yet."""
    made = Played(tmp_path / "state")
    kept = {n: signal.getsignal(n) for n in (signal.SIGHUP, signal.SIGUSR2)}
    for number in kept:
        signal.signal(number, lambda n, _: made.signals.append(n))
    made.begin()
    yield made
    made.over.set()
    made.thread.join()
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("state", "code"), [("done", 0), ("failed", 1)])
def test_a_restart_is_asked_for_and_waited_for(run, played: Played, state: str, code: int) -> None:
    """The outcome of this request, not of one before; 1 with the reason when something was given up."""
    played.restart["state"] = "done"
    played.write()

    def answer() -> None:
        played.restart = {"asked": 4, "state": state, "why": "worker-0: no", "replaced": 1, "children": 2}

    played.answer = answer
    result = run("fleet", "restart", "--state-dir", str(played.state_dir))
    assert (result.exit_code, played.signals) == (code, [signal.SIGHUP])
    assert ("1 of 2 workers replaced" in result.stdout) == (code == 0)
    assert ("worker-0: no; it serves on" in result.stderr) == (code == 1)


@pytest.mark.parametrize(("state", "code"), [("done", 0), ("failed", 1)])
def test_an_upgrade_names_this_installation(run, played: Played, state: str, code: int) -> None:
    """The interpreter that runs the command, and where its packages are; the outcome is that of this request."""

    def answer() -> None:
        request = played.request()
        played.upgrade = {"id": request["id"], "state": state, "why": "because", "from": "1", "to": "2"}

    played.answer = answer
    result = run("upgrade", "--state-dir", str(played.state_dir))
    request = played.request()
    assert (result.exit_code, played.signals) == (code, [signal.SIGUSR2])
    assert request["python"] == sys.executable
    assert Path(request["code_path"], "gateway", "cli").is_dir() or request["code_path"] == ""
    assert ("upgraded from 1 to 2" in result.stdout) == (code == 0)
    assert ("not upgraded: because" in result.stderr) == (code == 1)


@pytest.mark.parametrize("state", ["checking", "replacing"])
def test_one_upgrade_at_a_time(run, played: Played, state: str) -> None:
    """The second is refused before anything is asked."""
    played.upgrade["state"] = state
    played.write()
    result = run("upgrade", "--state-dir", str(played.state_dir))
    assert (result.exit_code, played.signals) == (1, [])
    assert "under way" in result.stderr


@pytest.mark.parametrize("words", [("fleet", "restart"), ("upgrade",)])
@pytest.mark.parametrize("how", ["none", "old", "other"])
def test_no_gateway_runs_there(run, played: Played, words: tuple[str, ...], how: str) -> None:
    """Exit 3, and no process gets a signal: not whoever has the pid of a gateway that is gone."""
    if how == "old":
        played.age_s = 60.0
        played.write()
    elif how == "other":
        replace_file(played.state_dir / "endpoints.json", {"data_url": "", "admin_url": "", "pid": 1})
    else:
        (played.state_dir / "endpoints.json").unlink()
    result = run(*words, "--state-dir", str(played.state_dir))
    assert (result.exit_code, played.signals) == (3, [])
    assert "no gateway runs in the state directory" in result.stderr


def test_a_wait_that_takes_too_long_says_so(run, played: Played) -> None:
    """It goes on without the command."""
    result = run("fleet", "restart", "--timeout", "0.2", "--state-dir", str(played.state_dir))
    assert result.exit_code == 1
    assert "it goes on" in result.stderr
    result = run("fleet", "restart", "--no-wait", "--state-dir", str(played.state_dir))
    assert (result.exit_code, result.stdout) == (0, "asked\n")
