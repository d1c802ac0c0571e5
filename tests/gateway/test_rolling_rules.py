"""A rolling restart's rules in virtual time: who goes when, and what a failure leaves."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from gateway import fleet as words_of
from gateway.rolling import SUCCESSOR_S, UP_S, UPGRADE_ROLES
from tests.gateway.played import Stage, signals
from tests.gateway.played import roomy as roomy  # a fixture
from tests.gateway.played import stage as stage  # a fixture

pytestmark = pytest.mark.usefixtures("roomy")


def test_every_worker_is_followed_before_it_leaves(stage: Stage) -> None:
    """Never fewer than two serve, never more than three live, and the spare block goes round."""
    olds = list(stage.children)
    stage.rolling.ask(stage.children)
    for old in olds:
        stage.advance()
        new = stage.successor()
        assert new.index not in {c.index for c in stage.children if c is not new}
        assert stage.rolling.facts()["at"] == new.name
        stage.advance(100)
        assert old.wanted
        stage.serve(new)
        stage.advance()
        assert not old.wanted
        assert stage.fleet.worker(old.index or 0)[words_of.SPARE] == 1
        assert stage.fleet.worker(new.index or 0)[words_of.SPARE] == 0
        assert "--after" not in new.argv
        # It drains for as long as it takes; nobody else goes meanwhile.
        stage.advance(20)
        assert len(stage.children) == 3
        stage.die(old)
    stage.advance()
    assert stage.rolling.state == "done"
    assert stage.names() == ["worker-0", "worker-2"]
    assert stage.rolling.facts()["replaced"] == 2
    assert [w["worker"] for w in stage.fleet.facts()] == [0, 2]


@pytest.mark.parametrize("missing", ["state", "pid"])
def test_who_only_seems_to_serve_is_waited_for(stage: Stage, missing: str) -> None:
    """What the block says of a process before it, or of its own start, takes nobody's place."""
    new = stage.followed()
    stage.serve(new)
    words = stage.fleet.worker(new.index or 0)
    words[words_of.STATE if missing == "state" else words_of.PID] = words_of.STARTING
    stage.advance(10)
    assert new.replaces is not None
    stage.serve(new)
    stage.advance()
    assert new.replaces is None


def test_a_successor_that_dies_leaves_the_worker(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is told to leave; those not yet replaced stay, and it is said why."""
    new = stage.followed()
    new.stack_fd = fd = os.memfd_create("stacks")
    stage.die(new, 2)
    stage.advance()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert stage.names() == ["worker-0", "worker-1"]
    assert all(c.wanted and not signals(c) for c in stage.children)
    assert stage.rolling.state == "failed"
    assert stage.rolling.why is not None
    assert stage.rolling.why.startswith("worker-0: its successor ended with 2")
    assert "restart_given_up" in [r.message for r in caplog.records]


def test_a_successor_that_does_not_come_is_given_up(stage: Stage) -> None:
    """After 300 s it is killed, and the block is free again."""
    new = stage.followed()
    stage.advance(SUCCESSOR_S - 2)
    assert stage.rolling.runs
    stage.advance(3)
    assert stage.rolling.state == "failed"
    assert signals(new) == [signal.SIGKILL]
    stage.die(new, -9)
    assert stage.names() == ["worker-0", "worker-1"]
    # The next one starts anew.
    assert stage.followed().index == 2


def test_a_successor_that_cannot_be_started_is_given_up(stage: Stage) -> None:
    """No process number or memory left: nothing has changed."""
    stage.refuse_start = True
    stage.rolling.ask(stage.children)
    stage.advance()
    assert stage.rolling.state == "failed"
    assert stage.names() == ["worker-0", "worker-1"]


def test_a_worker_that_crashes_meanwhile_changes_nothing(stage: Stage) -> None:
    """The successor takes its place all the same; one that waits for its turn is new already."""
    first, second = stage.children
    new = stage.followed()
    stage.die(second, -9)
    stage.serve(new)
    stage.advance()
    stage.die(first)
    stage.advance()
    assert stage.rolling.state == "done"
    assert not second.runs
    assert second in stage.children


def test_another_that_is_asked_for_meanwhile_follows(stage: Stage) -> None:
    """Those who came early in the first round are older than the second request."""
    stage.rolling.ask(stage.children)
    stage.advance()
    stage.rolling.ask(stage.children)
    for _ in range(4):
        assert stage.rolling.facts()["state"] == "running"
        new = stage.successor()
        stage.serve(new)
        old = new.replaces
        assert old is not None
        stage.advance(2 * UP_S)
        stage.die(old)
        stage.advance(2 * UP_S)
    assert (stage.rolling.state, stage.rolling.asked) == ("done", 2)


def test_one_that_nobody_wants_any_more_is_not_waited_for(tmp_path: Path) -> None:
    """The last shadow went as the mirror was being replaced: the next one's turn comes."""
    stage = Stage(tmp_path / "fleet", 1)
    mirror = stage.join("mirror")
    stage.rolling.ask(stage.children, "upgrade", ("mirror", "worker"))
    stage.advance()
    assert signals(mirror) == [signal.SIGTERM]
    mirror.process, mirror.ending_s, mirror.wanted = None, None, False
    stage.advance(2 * UP_S)
    assert stage.successor().role == "worker"


def test_one_in_back_off_has_nobody_to_replace(stage: Stage) -> None:
    """Whoever starts in its place is new anyway."""
    stage.children[0].process = None
    stage.rolling.ask(stage.children)
    assert stage.rolling.facts()["children"] == 1


def test_an_upgrade_replaces_all_in_order(tmp_path: Path) -> None:
    """The recorder before who appends, control before the workers; each is up before the next goes."""
    stage = Stage(tmp_path / "fleet", 1)
    for role in ("recorder", "control", "forwarder", "sidecar"):
        stage.join(role)
    stage.rolling.ask(stage.children, "upgrade", UPGRADE_ROLES)
    order: list[str] = []
    for _ in range(5):
        stage.advance(2 * UP_S)
        told = [c for c in stage.children if c.ending_s is not None or c.replaces is not None]
        assert len(told) == 1
        order.append(told[0].role)
        child = told[0]
        if child.role == "worker":
            old = child.replaces
            assert old is not None
            stage.serve(child)
            stage.advance()
            stage.die(old)
        else:
            assert signals(child) == [signal.SIGTERM]
            stage.again(child)
            stage.rolling.advance(stage.children, stage.now_s + UP_S / 2)
            assert stage.rolling.facts()["at"] == child.name
    stage.advance(2 * UP_S)
    assert order == ["recorder", "forwarder", "control", "worker", "sidecar"]
    assert stage.rolling.state == "done"


def test_a_restart_that_is_asked_for_in_an_upgrade_comes_after_its_end(tmp_path: Path) -> None:
    """The upgrade is seen to have ended, as what it was; otherwise it would count as under way for ever."""
    stage = Stage(tmp_path / "fleet", 1)
    stage.rolling.ask(stage.children, "upgrade", UPGRADE_ROLES)
    stage.advance(2 * UP_S)
    stage.rolling.ask(stage.children)
    new, old = stage.successor(), stage.children[0]
    stage.serve(new)
    stage.advance()
    stage.die(old)
    seen: list[tuple[str, bool]] = []
    for _ in range(8):
        stage.now_s += UP_S
        stage.rolling.advance(stage.children, stage.now_s)
        seen.append((stage.rolling.kind, stage.rolling.runs))
        assert stage.rolling.facts()["state"] == "running"
    assert ("upgrade", False) in seen
    assert seen[-1] == ("restart", True)


@pytest.mark.parametrize(("lived_s", "state"), [(2.0, "failed"), (60.0, "done")])
def test_who_dies_once_it_was_replaced_is_no_success(tmp_path: Path, lived_s: float, state: str) -> None:
    """A process that counted as up and has ended since; not one that lives well again."""
    stage = Stage(tmp_path / "fleet", 1)
    control = stage.join("control")
    stage.rolling.ask(stage.children, "upgrade", ("control", "worker"))
    stage.advance()
    stage.again(control)
    stage.advance(2 * UP_S)
    control.last_exit = 1
    stage.again(control)
    worker = stage.children[0]
    stage.advance(2 * UP_S)
    stage.serve(stage.successor())
    stage.advance()
    stage.die(worker)
    stage.now_s = control.started_s + lived_s
    stage.rolling.advance(stage.children, stage.now_s)
    stage.rolling.advance(stage.children, stage.now_s)
    assert stage.rolling.state == state
    assert (stage.rolling.why is None) == (state == "done")
    if state == "failed":
        assert "control: it ended with 1" in str(stage.rolling.why)


def test_who_is_gone_at_the_end_is_no_success(tmp_path: Path) -> None:
    """It counted as up once it was replaced, and did not come back."""
    stage = Stage(tmp_path / "fleet", 1)
    control = stage.join("control")
    stage.rolling.ask(stage.children, "upgrade", ("control",))
    stage.advance()
    stage.again(control)
    stage.rolling.advance(stage.children, control.started_s + UP_S + 0.1)
    control.last_exit, control.process = 1, None
    stage.now_s = control.started_s + 60
    stage.advance()
    assert stage.rolling.state == "failed"


def test_one_that_has_just_started_is_not_told_to_end_yet(stage: Stage) -> None:
    """In its first moments SIGTERM would kill it."""
    stage.children[0].started_s = stage.now_s
    stage.rolling.ask(stage.children)
    stage.rolling.advance(stage.children, stage.now_s + UP_S / 2)
    assert stage.names() == ["worker-0", "worker-1"]
    stage.rolling.advance(stage.children, stage.now_s + UP_S)
    assert stage.names() == ["worker-0", "worker-1", "worker-2"]


def test_what_a_successor_lacks(stage: Stage) -> None:
    """Everything that its predecessor has ready must be ready; what failed in it is told, what comes is waited for."""
    fleet = stage.fleet
    for slot, name in enumerate(("a", "b", "c")):
        fleet.take(0, slot, name, "1")
        fleet.slot(0, slot)[words_of.LOAD_STATE] = words_of.READY
    fleet.slot(0, 2)[words_of.LOAD_STATE] = words_of.LOAD_FAILED
    assert fleet.behind(2, 0) == (["a@1", "b@1"], [])
    fleet.take(2, 0, "a", "1")
    fleet.slot(2, 0)[words_of.LOAD_STATE] = words_of.READY
    fleet.take(2, 1, "other", "1")
    fleet.slot(2, 1)[words_of.LOAD_STATE] = words_of.READY
    assert fleet.behind(2, 0) == (["b@1"], [])
    fleet.take(2, 1, "b", "1")
    fleet.slot(2, 1)[words_of.LOAD_STATE] = words_of.LOAD_FAILED
    assert fleet.behind(2, 0) == ([], ["b@1"])
    fleet.zero_gauges(0)
    assert fleet.behind(2, 0) == ([], [])
