"""The supervisor becomes another version: what it hands over, what it takes, and a check that fails."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import gateway
from gateway import handover
from gateway.children import Child, Proc, child_of, plan, worker_of
from gateway.cli.failures import Stop
from gateway.cli.preflight import check_fixed
from gateway.handover import HANDLED, Handed, Target, Upgrade, adopt, environment_for, facts_of
from gateway.process import Context
from tests.gateway.supervising import until


def handed(children: list[Child]) -> Handed:
    """What an image with these children leaves, through JSON as it goes."""
    facts = json.loads(json.dumps(facts_of(children)))
    return Handed(lock_fd=3, children=facts, counts={}, asked=0, upgrade={})


def planned(**settings: Any) -> list[Child]:
    """The plan of the new image for two workers."""
    return plan(2, kafka=settings.get("kafka", False), sidecar=False, data_fd=7, admin_fd=8)


def test_children_keep_their_processes_and_get_the_new_command_lines(tmp_path: Path) -> None:
    """Workers keep their indices, which restarts have moved; deaths and lives go on being counted."""
    olds = [child_of("recorder", "old.recorder"), child_of("control", "old.control")]
    olds += [worker_of(2, 7), worker_of(0, 7)]
    for number, child in enumerate(olds):
        child.process, child.lives, child.started_s = Proc(100 + number), 3, 50.0
        child.deaths.append(4.5)
    olds[3].ending_s, olds[3].stack_fd = 49.0, 12
    found, strays = adopt(planned(), handed(olds), 7)
    by_name = {c.name: c for c in found}
    assert strays == []
    assert {n for n, c in by_name.items() if c.process is not None} == {
        "recorder",
        "control",
        "worker-2",
        "worker-0",
    }
    recorder = by_name["recorder"]
    assert recorder.process is not None
    assert (recorder.process.pid, recorder.lives, list(recorder.deaths)) == (100, 3, [4.5])
    assert recorder.argv[-1] == "gateway.audit.recorder"
    assert by_name["worker-2"].argv[-2:] == ["--index", "2"]
    assert [(c.ending_s, c.stack_fd) for c in (by_name["worker-0"], recorder)] == [(49.0, 12), (None, -1)]


def test_one_in_back_off_starts_with_the_new_code_and_can_refuse() -> None:
    """A child that was down at the moment is no first life: its refusal does not stop the gateway."""
    control = child_of("control", "old.control")
    control.lives, control.failures = 0, 2
    found, _ = adopt(planned(), handed([control]), 7)
    (adopted,) = [c for c in found if c.role == "control"]
    assert adopted.process is None
    assert (adopted.lives, adopted.failures) == (1, 2)


def test_roles_that_are_new_start_and_roles_that_are_gone_end() -> None:
    """The configuration may have got, or lost, a section."""
    forwarder = child_of("forwarder", "old.forwarder")
    forwarder.process = Proc(100)
    found, _ = adopt(planned(), handed([forwarder]), 7)
    (gone,) = [c for c in found if c.role == "forwarder"]
    assert not gone.wanted
    found, _ = adopt(planned(kafka=True), handed([]), 7)
    (new,) = [c for c in found if c.role == "forwarder"]
    assert new.wanted
    assert (new.process, new.lives) == (None, 0)


def test_the_announcer_is_let_end() -> None:
    """It is no role; it must not be taken for one that is gone from the plan."""
    announcer = child_of("announce", "gateway.announce")
    announcer.process = Proc(100)
    found, strays = adopt(planned(), handed([announcer]), 7)
    assert [c.role for c in strays] == ["announce"]
    assert all(c.role != "announce" for c in found)


@pytest.mark.parametrize(
    ("before", "old", "new", "after"),
    [
        ("/old", "/old", "/new", "/new"),
        ("/a:/old:/b", "/old", "/new", "/new:/a:/b"),
        ("/a", "", "/new", "/new:/a"),
        ("/old", "/old", "", None),
        (None, "", "", None),
        ("/a::/b", "/old", "", "/a:/b"),
        ("", "/old", "", None),
    ],
)
def test_packages_are_looked_for_where_the_new_ones_are(
    monkeypatch: pytest.MonkeyPatch, before: str | None, old: str, new: str, after: str | None
) -> None:
    """The directory of the old ones goes, what an operator added stays."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if before is not None:
        monkeypatch.setenv("PYTHONPATH", before)
    context = Context(config="{}", models="/m", state_dir="/s", code_path=old)
    assert environment_for(context, new).get("PYTHONPATH") == after


@pytest.mark.parametrize("wanted", [True, False])
def test_a_mirror_is_wanted_as_it_was(wanted: bool) -> None:
    """Until the fleet's word is read again: else an upgrade would end one that runs, or start one that nobody needs."""
    mirror = child_of("mirror", "old.mirror")
    mirror.wanted = wanted
    found, _ = adopt(planned(), handed([mirror]), 7)
    (adopted,) = [c for c in found if c.role == "mirror"]
    assert adopted.wanted is wanted


def test_the_next_image_finds_all_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its program, its own environment and systemd's, the file with the facts and every descriptor, with signals held
    back until it takes them."""
    fd = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    seen: list[Any] = []

    def execve(program: str, argv: list[str], environment: dict[str, str]) -> None:
        facts = int(environment[handover.VARIABLE])
        content = json.loads(os.pread(facts, 1 << 20, 0))
        inherited = os.get_inheritable(facts), os.get_inheritable(fd)
        held = set(HANDLED) <= signal.pthread_sigmask(signal.SIG_BLOCK, set())
        seen.extend((program, argv, environment, content, inherited, held))
        raise OSError(7, "too long")

    monkeypatch.setattr(os, "execve", execve)
    left = handed([child_of("control", "x")])._replace(lock_fd=fd)
    context = Context(config="{}", models="/m", state_dir="/s")
    why = handover.become(Target("/new/python", {"A": "1"}, context), left, [fd, -1], {"NOTIFY_SOCKET": "/n"})
    assert why == "/new/python cannot be run: too long"
    program, argv, environment, content, inherited, held = seen
    assert (program, argv) == ("/new/python", ["/new/python", "-P", "-m", "gateway.supervisor"])
    assert environment == {"A": "1", "NOTIFY_SOCKET": "/n", handover.VARIABLE: environment[handover.VARIABLE]}
    assert Handed(**content) == left
    assert (inherited, held) == ((True, True), True)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(int(environment[handover.VARIABLE]))
    os.close(fd)


def test_an_exec_that_fails_leaves_all_as_it_was(tmp_path: Path) -> None:
    """Why is told; signals are taken as before, and nothing is inheritable that was not."""
    fd = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    target = Target("/nonexistent/python", {}, Context(config="{}", models="/m", state_dir="/s"))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    why = handover.become(target, handed([]), [fd, -1], {})
    assert why == "/nonexistent/python cannot be run: No such file or directory"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before
    assert not before & set(HANDLED)
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_what_is_left_is_taken_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Through a file in memory whose number stands in the environment; no child sees it."""
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(lock, True)
    left = handed([child_of("control", "x")])._replace(lock_fd=lock, asked=3)
    fd = os.memfd_create("test")
    os.write(fd, json.dumps(left._asdict()).encode())
    monkeypatch.setenv(handover.VARIABLE, str(fd))
    assert handover.take() == left
    assert not os.get_inheritable(lock)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert handover.VARIABLE not in os.environ
    assert handover.take() is None
    os.close(lock)


@pytest.fixture
def upgrade(tmp_path: Path) -> Upgrade:
    """Of a gateway that keeps its state in tmp_path."""
    (tmp_path / "supervisor").mkdir()
    return Upgrade(Context(config="{}", models="/m", state_dir=str(tmp_path), directory=str(tmp_path)))


def after_check(upgrade: Upgrade, tmp_path: Path, script: str) -> Target | None:
    """Ask for a program that stands in for the new code's check; what becomes of it."""
    path = tmp_path / "python"
    path.write_text(f"#!{sys.executable} -S\n{script}\n")
    path.chmod(0o700)
    request = {"id": "a", "python": str(path), "code_path": "/new"}
    (tmp_path / "supervisor" / handover.REQUEST).write_text(json.dumps(request))
    upgrade.ask(1000.0)
    assert not (tmp_path / "supervisor" / handover.REQUEST).exists()
    found: list[Target | None] = []
    until("check", lambda: found.append(upgrade.advance(1000.0)) or not upgrade.runs)
    return found[-1]


def test_the_new_codes_context_is_taken_whole(upgrade: Upgrade, tmp_path: Path) -> None:
    """Also fields of it that this version does not know."""
    context = {**asdict(upgrade._context), "version": "9", "of_the_future": 1}
    said = json.dumps({"context": context, "version": "9"})
    target = after_check(upgrade, tmp_path, f"import os; print('noise'); print({said!r})")
    assert target is not None
    assert json.loads(target.environment["TG_CONTEXT"]) == context
    assert target.environment["PYTHONPATH"].startswith("/new")
    assert target.context.version == "9"
    assert upgrade.facts()["to"] == "9"
    assert upgrade.facts()["from"] == gateway.__version__


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ('print(\'{"why": "the reason"}\'); raise SystemExit(1)', "the reason"),
        ("raise SystemExit(0)", "ended with 0: no word"),
        ("raise ValueError('boom')", "ended with 1: ValueError: boom"),
        ("import os; os.kill(os.getpid(), 9)", "ended with -9"),
        ("print('{\"context\": 1}'); raise SystemExit(1)", "ended with 1"),
        ("print('{\"version\": 1}')", "ended with 0"),
        ("print('[1]')", "ended with 0"),
    ],
)
def test_a_check_that_fails_says_why(upgrade: Upgrade, tmp_path: Path, script: str, why: str) -> None:
    """And nothing is to become of it; the next request is heard."""
    assert after_check(upgrade, tmp_path, script) is None
    assert upgrade.facts()["state"] == "failed"
    said = upgrade.facts()["why"]
    assert said == why or f"the new code's check {why}" in said
    assert upgrade.facts()["id"] == "a"


def test_a_check_that_does_not_end_is_ended(upgrade: Upgrade, tmp_path: Path) -> None:
    """After two minutes."""
    path = tmp_path / "python"
    path.write_text("#!/bin/sh\nexec sleep 60\n")
    path.chmod(0o700)
    (tmp_path / "supervisor" / handover.REQUEST).write_text(json.dumps({"python": str(path)}))
    upgrade.ask(1000.0)
    assert upgrade.advance(1000.0 + handover.CHECK_S) is None
    assert upgrade.runs
    until("ended", lambda: upgrade.advance(1000.0 + handover.CHECK_S + 1) is None and not upgrade.runs)
    assert "ended with -9" in upgrade.facts()["why"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "cannot be read"),
        ("[", "cannot be read"),
        ("[]", "/nonexistent/python cannot be run"),
        ('{"python": "/nonexistent/python"}', "/nonexistent/python cannot be run"),
        ('{"python": "/nonexistent/python", "id": 3}', "/nonexistent/python cannot be run"),
    ],
)
def test_requests_of_any_shape(
    upgrade: Upgrade, tmp_path: Path, text: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no JSON is refused; what names no installation is for the present one."""
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    (tmp_path / "supervisor" / handover.REQUEST).write_text(text)
    upgrade.ask(1000.0)
    assert upgrade.facts()["state"] == "failed"
    assert not upgrade.runs
    assert why in upgrade.facts()["why"]


@pytest.mark.parametrize("key", ["workers", "data.port", "admin.host", "audit.ring"])
def test_what_an_upgrade_cannot_change_is_named(key: str) -> None:
    """With both values and what to do."""
    before: dict[str, Any] = {
        "workers": 1,
        "data": {"port": 1},
        "admin": {"host": "h"},
        "audit": {"ring": "memory"},
    }
    after = json.loads(json.dumps(before))
    check_fixed(before, after)
    section, _, name = key.rpartition(".")
    (after[section] if section else after)[name] = 2
    with pytest.raises(
        Stop, match=f"{key} is 2 now and was .* when the gateway started: that needs a restart"
    ):
        check_fixed(before, after)


@pytest.mark.parametrize("mode", [0o662, 0o620])
def test_request_that_another_may_have_written_runs_nothing(
    upgrade: Upgrade, tmp_path: Path, mode: int
) -> None:
    """It names a program, which would run as the gateway's user with all that it holds; told, and taken away."""
    path = tmp_path / "supervisor" / handover.REQUEST
    ran = tmp_path / "ran"
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o700)
    path.write_text(json.dumps({"python": str(program)}))
    path.chmod(mode)
    upgrade.ask(1000.0)
    assert not upgrade.runs
    assert upgrade.facts()["state"] == "failed"
    assert "written by another user" in upgrade.facts()["why"]
    assert not ran.exists()
    assert not path.exists()


def test_request_is_no_link(upgrade: Upgrade, tmp_path: Path) -> None:
    """What it would lead to is not read, and nothing is guessed instead."""
    (tmp_path / "other").write_text(json.dumps({"python": "/other"}))
    (tmp_path / "supervisor" / handover.REQUEST).symlink_to(tmp_path / "other")
    upgrade.ask(1000.0)
    assert not upgrade.runs
    assert "cannot be read" in upgrade.facts()["why"]


def test_a_request_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """No guess is made which installation is meant: root's request, unread, became the running one once more."""
    (tmp_path / "supervisor" / "upgrade.json").mkdir(parents=True)
    upgrade = Upgrade(Context(config="{}", models="/m", state_dir=str(tmp_path)))
    upgrade.ask(0.0)
    assert upgrade.advance(1.0) is None
    assert not upgrade.runs
    facts = upgrade.facts()
    assert facts["state"] == "failed"
    assert "upgrade.json" in str(facts["why"])
