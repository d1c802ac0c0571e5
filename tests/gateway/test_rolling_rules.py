"""A rolling restart's rules in virtual time: who goes when, and what a failure leaves."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import pytest

from gateway import fleet as words_of
from gateway import rolling as module
from gateway.children import Child, Proc, child_of, worker_of
from gateway.fleet import Fleet
from gateway.rolling import SUCCESSOR_S, UP_S, UPGRADE_ROLES, Rolling


class Stage:
    """Children that are played by the test, and a clock that it moves."""

    def __init__(self, path: Path, workers: int, *, one_more: bool = True) -> None:
        self.fleet = Fleet.create(path, workers, 1)
        self.children: list[Child] = []
        self.now_s = 1000.0
        self.pids = 100
        self.refuse_start = False
        self.rolling = Rolling(self.fleet, self.start, data_fd=7, one_more=one_more)
        for index in range(workers):
            child = worker_of(index, 7)
            self.children.append(child)
            self.start(child)
            self.serve(child)
        self.now_s += 100

    def start(self, child: Child) -> None:
        """As the supervisor does."""
        child.started_s = self.now_s
        child.ending_s = None
        if self.refuse_start:
            return
        self.pids += 1
        child.process = Played(self.pids)
        child.lives += 1

    def serve(self, child: Child) -> None:
        """The worker says that it serves."""
        assert child.index is not None
        assert child.process is not None
        words = self.fleet.worker(child.index)
        words[words_of.PID], words[words_of.STATE] = child.process.pid, words_of.SERVING

    def die(self, child: Child, code: int = 0) -> None:
        """It ends; the supervisor takes notice as `_reap` does."""
        child.process = None
        if child.index is not None:
            self.fleet.zero_gauges(child.index)
        if child.replaces is not None:
            self.rolling.successor_died(self.children, child, code)
        elif not child.wanted:
            self.children.remove(child)
        else:
            child.ending_s = None

    def advance(self, seconds: float = 0.25) -> None:
        """Some turns of the supervisor."""
        for _ in range(3):
            self.now_s += seconds / 3
            self.rolling.advance(self.children, self.now_s)

    def successor(self) -> Child:
        """The one that is to take another's place."""
        (found,) = [c for c in self.children if c.replaces is not None]
        return found

    def names(self) -> list[str]:
        """Who there is."""
        return sorted(c.name for c in self.children)


class Played(Proc):
    """A process that only notes its signals."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        self.signals: list[int] = []

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


def signals(child: Child) -> list[int]:
    """What a child was sent."""
    assert isinstance(child.process, Played)
    return child.process.signals


@pytest.fixture(autouse=True)
def _roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "room_bytes", lambda: 1 << 40)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """Two workers that serve."""
    return Stage(tmp_path / "fleet", 2)


def test_every_worker_is_followed_before_it_leaves(stage: Stage) -> None:
    """Never fewer than two serve, never more than three live, and the spare block goes round."""
    olds = list(stage.children)
    stage.rolling.ask(stage.children)
    for old in olds:
        stage.advance()
        new = stage.successor()
        assert new.index not in {c.index for c in stage.children if c is not new}
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


def test_a_successor_that_dies_leaves_the_worker(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is told to leave; those not yet replaced stay, and it is said why."""
    stage.rolling.ask(stage.children)
    stage.advance()
    stage.die(stage.successor(), 2)
    stage.advance()
    assert stage.names() == ["worker-0", "worker-1"]
    assert all(c.wanted and not signals(c) for c in stage.children)
    assert stage.rolling.state == "failed"
    assert stage.rolling.why is not None
    assert stage.rolling.why.startswith("worker-0: its successor ended with 2")
    assert "restart_given_up" in [r.message for r in caplog.records]


def test_a_successor_that_does_not_come_is_given_up(stage: Stage) -> None:
    """After 300 s it is killed, and the block is free again."""
    stage.rolling.ask(stage.children)
    stage.advance()
    new = stage.successor()
    stage.advance(SUCCESSOR_S - 2)
    assert stage.rolling.runs
    stage.advance(3)
    assert stage.rolling.state == "failed"
    assert signals(new) == [signal.SIGKILL]
    stage.die(new, -9)
    assert stage.names() == ["worker-0", "worker-1"]
    # The next one starts anew.
    stage.rolling.ask(stage.children)
    stage.advance()
    assert stage.successor().index == 2


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
    stage.rolling.ask(stage.children)
    stage.advance()
    stage.die(second, -9)
    new = stage.successor()
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


@pytest.mark.parametrize("why", ["plan", "host"])
def test_without_memory_for_one_more_a_worker_leaves_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    """It is told, its next life is waited for, and the log says so."""
    caplog.set_level(logging.INFO)
    stage = Stage(tmp_path / "fleet", 2, one_more=why != "plan")
    if why == "host":
        stage.fleet.worker(1)[words_of.RSS_BYTES] = 1000
        monkeypatch.setattr(module, "room_bytes", lambda: 999)
    stage.rolling.ask(stage.children)
    for child in list(stage.children):
        stage.advance()
        assert signals(child) == [signal.SIGTERM]
        assert child.ending_s is not None
        stage.advance(10)
        stage.die(child)
        stage.advance(10)
        stage.start(child)
        stage.advance(10)
        assert stage.rolling.runs
        stage.serve(child)
        stage.advance()
    assert stage.rolling.state == "done"
    assert stage.names() == ["worker-0", "worker-1"]
    said = [r.message for r in caplog.records]
    assert said.count("worker_leaves_before_its_successor_comes") == 2


def test_an_upgrade_replaces_all_in_order(tmp_path: Path) -> None:
    """The recorder before who appends, control before the workers; each is up before the next goes."""
    stage = Stage(tmp_path / "fleet", 1)
    for role in ("recorder", "control", "forwarder", "sidecar"):
        child = child_of(role, f"played.{role}")
        stage.children.append(child)
        stage.start(child)
    stage.now_s += 10
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
            stage.die(child)
            stage.start(child)
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
    control = child_of("control", "played.control")
    stage.children.append(control)
    stage.start(control)
    stage.now_s += 10
    stage.rolling.ask(stage.children, "upgrade", ("control", "worker"))
    stage.advance()
    stage.die(control)
    stage.start(control)
    stage.advance(2 * UP_S)
    control.last_exit = 1
    stage.die(control)
    stage.start(control)
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
