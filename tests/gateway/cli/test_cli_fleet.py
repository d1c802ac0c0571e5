"""`tidegate fleet` and `upgrade` against a supervisor that is played: what is asked, waited for and answered."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.roster import replace_file
from tests.gateway.cli.conftest import FakeGateway


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


class Restarting:
    """The admin API of a gateway whose supervisor answers a restart with an outcome, or never."""

    def __init__(self, fake: FakeGateway, outcome: str | None) -> None:
        self.restart: dict[str, Any] = {
            "asked": 3, "kind": "restart", "state": "done", "why": None, "replaced": 2, "children": 2,
        }  # fmt: skip
        self._outcome = outcome
        self._asked = False
        fake.on("GET", "/admin/v1/fleet", self._fleet)
        fake.on("POST", "/admin/v1/fleet/restart", self._ask, 202)

    def _fleet(self, seen: Any) -> dict[str, Any]:
        found = {"generation": 1, "workers": [], "supervisor": self._status()}
        if self._asked and self._outcome is not None:
            # Seen from the next look on: a supervisor needs its time, too.
            why = "worker-0: no" if self._outcome == "failed" else None
            self.restart = {**self.restart, "asked": 4, "state": self._outcome, "why": why, "replaced": 1}
        return found

    def _ask(self, seen: Any) -> dict[str, Any]:
        self._asked = True
        return {"asked": True}

    def _status(self) -> dict[str, Any]:
        upgrade = {"state": "none", "why": None}
        return {
            "at_ns": time.time_ns(),
            "pid": 1,
            "children": [],
            "restart": self.restart,
            "upgrade": upgrade,
        }


@pytest.mark.parametrize(("state", "code"), [("done", 0), ("failed", 1)])
def test_a_restart_is_asked_for_and_waited_for(
    run, fake: FakeGateway, state_dir: Path, state: str, code: int
) -> None:
    """The outcome of this request, not of one before; 1 with the reason when something was given up."""
    Restarting(fake, state)
    result = run("fleet", "restart", "--reason", "leaks", "--state-dir", str(state_dir))
    assert result.exit_code == code, result.stderr
    assert [seen.body for seen in fake.seen if seen.method == "POST"] == [{"reason": "leaks"}]
    assert ("1 of 2 workers replaced" in result.stdout) == (code == 0)
    assert ("worker-0: no; it serves on" in result.stderr) == (code == 1)


def test_a_wait_that_takes_too_long_says_so(run, fake: FakeGateway, state_dir: Path) -> None:
    """It goes on without the command."""
    Restarting(fake, None)
    result = run("fleet", "restart", "--timeout", "0.2", "--state-dir", str(state_dir))
    assert result.exit_code == 1
    assert "it goes on" in result.stderr
    result = run("fleet", "restart", "--no-wait", "--state-dir", str(state_dir))
    assert (result.exit_code, result.stdout) == (0, "asked\n")


def test_a_restart_that_goes_on_is_not_taken_for_its_end(run, fake: FakeGateway, state_dir: Path) -> None:
    """Heard, and under way: it is waited for."""
    Restarting(fake, "running")
    result = run("fleet", "restart", "--timeout", "0.3", "--state-dir", str(state_dir))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "not done after 0.3 s" in result.stderr


def test_a_supervisor_that_said_nothing_yet_is_asked_later(run, fake: FakeGateway, state_dir: Path) -> None:
    """In its first second: exit 1, and nothing was asked for."""
    fake.on("GET", "/admin/v1/fleet", {"generation": 1, "workers": [], "supervisor": None})
    result = run("fleet", "restart", "--state-dir", str(state_dir))
    assert result.exit_code == 1
    assert "ask again in a second" in result.stderr
    assert [seen.method for seen in fake.seen] == ["GET"]


@pytest.mark.parametrize(("state", "code"), [("done", 0), ("failed", 1)])
def test_a_restart_for_scripts(run, fake: FakeGateway, state_dir: Path, state: str, code: int) -> None:
    """JSON alone on stdout, whatever came of it."""
    Restarting(fake, state)
    result = run("fleet", "restart", "--json", "--state-dir", str(state_dir))
    assert result.exit_code == code
    assert json.loads(result.stdout)["state"] == state


def test_what_is_shown_for_scripts(run, fake: FakeGateway, state_dir: Path) -> None:
    """The answer as it came."""
    Restarting(fake, None)
    result = run("fleet", "show", "--json", "--state-dir", str(state_dir))
    assert result.exit_code == 0
    assert json.loads(result.stdout)["supervisor"]["restart"]["asked"] == 3


def test_a_pid_of_nobody_is_no_gateway(run, played: Played) -> None:
    """What a gateway of before left, which wrote no roster: it is not said to be running."""
    played.over.set()
    played.thread.join()
    (played.state_dir / "supervisor" / "status.json").unlink()
    gone = subprocess.Popen(["true"])
    gone.wait()
    replace_file(played.state_dir / "endpoints.json", {"data_url": "", "admin_url": "", "pid": gone.pid})
    result = run("upgrade", "--state-dir", str(played.state_dir))
    assert result.exit_code == 3
    assert "no gateway runs in the state directory" in result.stderr


def test_what_is_shown(run, fake: FakeGateway, state_dir: Path) -> None:
    """Every process; a worker's state is its own word for it, and what was given up is told."""
    played = Restarting(fake, None)
    played.restart = {**played.restart, "state": "failed", "why": "worker-0: no"}
    children = [
        {
            "name": name,
            "pid": pid,
            "up_s": up_s,
            "wanted": wanted,
            "starts": 2,
            "last_exit": -9,
            "crash_looping": loops,
        }
        for name, pid, up_s, wanted, loops in (
            ("recorder", 5, 7300.0, True, False),
            ("control", None, None, True, True),
            ("worker-2", 7, 3.0, True, False),
            ("mirror", None, None, False, False),
        )
    ]
    status = {**played._status(), "children": children}
    worker = {"worker": 2, "pid": 7, "state": "draining", "inflight": 1}
    fake.on("GET", "/admin/v1/fleet", {"generation": 1, "workers": [worker], "supervisor": status})
    result = run("fleet", "show", "--state-dir", str(state_dir))
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines() if line.strip()]
    by_name = {line[0]: line for line in lines}
    assert by_name["recorder"][1:5] == ["5", "runs", "2", "h"]
    assert by_name["control"][1:4] == ["-", "crash", "loop"]
    assert by_name["worker-2"][1:3] == ["7", "draining"]
    assert by_name["mirror"][1:4] == ["-", "not", "wanted"]
    assert "restart failed: worker-0: no" in result.stdout


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


def test_without_control_the_supervisor_speaks(run, played: Played) -> None:
    """What runs is shown although nothing answers at the admin listener; exit 3, and what goes on is said."""
    endpoints = {"data_url": "", "admin_url": "http://127.0.0.1:9", "pid": os.getpid()}
    replace_file(played.state_dir / "endpoints.json", endpoints)
    result = run("fleet", "show", "--state-dir", str(played.state_dir))
    assert result.exit_code == 3
    assert "process" in result.stdout
    assert "Inference goes on" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_version_without_a_roster_is_told_to_be_stopped(run, played: Played) -> None:
    """It runs, and cannot be upgraded: other words than where none runs."""
    played.over.set()
    played.thread.join()
    (played.state_dir / "supervisor" / "status.json").unlink()
    result = run("upgrade", "--state-dir", str(played.state_dir))
    assert result.exit_code == 1
    assert f"pid {os.getpid()}" in result.stderr
    assert "stop it" in result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away: needs root")
def test_what_root_asks_for_can_be_read_by_the_gateway(
    run, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is its user's, not root's: `sudo tidegate upgrade` with the unit of deploy/. Given away before it has
    its name: by name, a link that the user puts there meanwhile would give away any file of root's."""
    os.chown(played.state_dir / "supervisor", 12345, 12346)
    monkeypatch.delattr(os, "chown")
    owners: list[tuple[int, int]] = []

    def answer() -> None:
        found = (played.state_dir / "supervisor" / "upgrade.json").stat()
        owners.append((found.st_uid, found.st_gid))
        played.upgrade = {"id": played.request()["id"], "state": "done", "why": None, "from": "1", "to": "2"}

    played.answer = answer
    assert run("upgrade", "--state-dir", str(played.state_dir)).exit_code == 0
    assert owners == [(12345, 12346)]


def test_of_two_upgrades_at_once_one_is_told_at_once(run, played: Played) -> None:
    """Another's request was heard: no wait of half an hour, and no request is left lying for the next signal."""

    def answer() -> None:
        played.upgrade = {"id": "another", "state": "checking", "why": None, "from": "1", "to": None}

    played.answer = answer
    result = run("upgrade", "--timeout", "20", "--state-dir", str(played.state_dir))
    assert result.exit_code == 1
    assert "another upgrade" in result.stderr
    assert not (played.state_dir / "supervisor" / "upgrade.json").exists()


@pytest.mark.parametrize("state", ["checking", "replacing"])
def test_one_upgrade_at_a_time(run, played: Played, state: str) -> None:
    """The second is refused before anything is asked."""
    played.upgrade["state"] = state
    played.write()
    result = run("upgrade", "--state-dir", str(played.state_dir))
    assert (result.exit_code, played.signals) == (1, [])
    assert "under way" in result.stderr


@pytest.mark.parametrize("how", ["none", "old", "other"])
def test_no_gateway_runs_there(run, played: Played, how: str) -> None:
    """Exit 3, and no process gets a signal: not whoever has the pid of a gateway that is gone."""
    if how == "old":
        played.age_s = 60.0
        played.write()
    elif how == "other":
        replace_file(played.state_dir / "endpoints.json", {"data_url": "", "admin_url": "", "pid": 1})
    else:
        (played.state_dir / "endpoints.json").unlink()
    result = run("upgrade", "--state-dir", str(played.state_dir))
    assert (result.exit_code, played.signals) == (3, [])
    assert "no gateway runs in the state directory" in result.stderr
