"""What an upgrade says of itself, and what it leaves behind: one at a time, told to its end, nothing kept open."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

import gateway
from gateway import handover
from gateway.handover import Target, Upgrade
from gateway.process import Context
from tests.gateway.supervising import until


@pytest.fixture
def upgrade(tmp_path: Path) -> Upgrade:
    """Of a gateway that keeps its state in tmp_path."""
    (tmp_path / "supervisor").mkdir()
    return Upgrade(context_of(tmp_path))


def context_of(state_dir: Path) -> Context:
    """Of the running gateway."""
    return Context(config="{}", models="/m", state_dir=str(state_dir))


def asked(state_dir: Path, script: str, identity: str = "a") -> Path:
    """A request for a program in place of the new code's check; gives the request."""
    program = state_dir / f"python-{identity}"
    program.write_text(f"#!{sys.executable} -S\n{script}\n")
    program.chmod(0o700)
    path = state_dir / "supervisor" / handover.REQUEST
    path.write_text(json.dumps({"id": identity, "python": str(program)}))
    return path


def checked(upgrade: Upgrade) -> Target | None:
    """What the check ends with."""
    found: list[Target | None] = []
    until("check", lambda: found.append(upgrade.advance(1000.0)) or not upgrade.runs)
    return found[-1]


def open_files() -> set[str]:
    """Files in memory that this process has open."""
    links = (os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.islink(entry.path))
    return {link for link in links if "tidegate-preflight" in link}


def test_a_second_request_while_one_is_checked_is_not_heard(
    upgrade: Upgrade, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays for later, and the first one goes on as what it was."""
    asked(tmp_path, "import time; time.sleep(0.2)", "first")
    upgrade.ask(1000.0)
    path = asked(tmp_path, "", "second")
    upgrade.ask(1000.0)
    assert path.exists()
    assert upgrade.facts()["id"] == "first"
    assert [r.message for r in caplog.records] == ["upgrade_already_under_way"]
    assert checked(upgrade) is None


def test_an_image_that_was_made_by_an_upgrade_replaces_and_hears_no_other(tmp_path: Path) -> None:
    """Until all old processes are gone, or some had to stay; it says of which version it is now."""
    (tmp_path / "supervisor").mkdir()
    told = {"id": "a", "state": "checking", "why": None, "from": "0.0.1", "to": "?"}
    upgrade = Upgrade(context_of(tmp_path), told)
    assert upgrade.facts() == {**told, "state": "replacing", "to": gateway.__version__}
    path = asked(tmp_path, "")
    upgrade.ask(1000.0)
    assert path.exists()
    assert not upgrade.runs
    upgrade.replaced("worker-0: its successor did not serve")
    assert (upgrade.facts()["state"], upgrade.facts()["why"]) == (
        "failed",
        "worker-0: its successor did not serve",
    )
    upgrade.replaced(None)
    assert (upgrade.facts()["state"], upgrade.facts()["why"]) == ("done", None)


def test_what_was_said_of_the_last_one_is_over_with_the_next(upgrade: Upgrade, tmp_path: Path) -> None:
    """Whoever waits for theirs must not read of another's."""
    asked(tmp_path, "raise SystemExit(1)", "first")
    upgrade.ask(1000.0)
    checked(upgrade)
    assert upgrade.facts()["state"] == "failed"
    asked(tmp_path, "import time; time.sleep(0.2)", "second")
    upgrade.ask(1000.0)
    facts = upgrade.facts()
    assert (facts["id"], facts["state"], facts["why"], facts["to"]) == ("second", "checking", None, None)
    checked(upgrade)


@pytest.mark.parametrize("passes", [True, False])
def test_a_check_leaves_nothing_open(upgrade: Upgrade, tmp_path: Path, passes: bool) -> None:
    """Each would be inherited by every image to come."""
    said = json.dumps({"context": {"config": "{}", "models": "/m", "state_dir": "/s"}, "version": "9"})
    asked(tmp_path, f"print({said!r})" if passes else "raise SystemExit(1)")
    upgrade.ask(1000.0)
    assert open_files() != set()
    assert (checked(upgrade) is not None) == passes
    assert open_files() == set()


def test_a_program_that_cannot_be_run_leaves_nothing_open(upgrade: Upgrade, tmp_path: Path) -> None:
    """And says so."""
    path = tmp_path / "supervisor" / handover.REQUEST
    path.write_text(json.dumps({"python": "/nonexistent/python"}))
    upgrade.ask(1000.0)
    assert "cannot be run" in upgrade.facts()["why"]
    assert open_files() == set()


def test_a_check_is_told_of_the_running_gateway(upgrade: Upgrade, tmp_path: Path) -> None:
    """All that the supervisor knows of itself: the new code holds its own against that."""
    out = tmp_path / "out"
    asked(tmp_path, f"import os; open({str(out)!r}, 'w').write(os.environ['TG_CONTEXT'])")
    upgrade.ask(1000.0)
    checked(upgrade)
    assert json.loads(out.read_text()) == asdict(context_of(tmp_path))


def test_a_signal_without_a_request_is_for_the_present_installation(
    upgrade: Upgrade, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`systemctl kill -s USR2`: the same program, which may have been replaced meanwhile."""
    monkeypatch.setattr(sys, "executable", "/nonexistent/ours")
    upgrade.ask(1000.0)
    assert upgrade.facts()["why"] == "/nonexistent/ours cannot be run: No such file or directory"


def test_a_request_of_another_user_runs_nothing(
    upgrade: Upgrade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its mode: whoever may write in the directory could ask for a program of theirs."""
    ran = tmp_path / "ran"
    path = asked(tmp_path, f"open({str(ran)!r}, 'w')")
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(handover.os, "geteuid", lambda: 12345)
    upgrade.ask(1000.0)
    assert not upgrade.runs
    assert "written by another user" in upgrade.facts()["why"]
    assert not ran.exists()


def test_a_request_of_an_earlier_life_is_forgotten(tmp_path: Path) -> None:
    """At the start of a gateway; without one there is nothing to forget."""
    (tmp_path / "supervisor").mkdir()
    path = asked(tmp_path, "")
    handover.forget_request(tmp_path)
    assert not path.exists()
    handover.forget_request(tmp_path)
