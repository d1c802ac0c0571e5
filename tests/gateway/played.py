"""Children that are played, for rules of the supervisor in virtual time."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway import fleet as words_of
from gateway import rolling as module
from gateway.children import Child, Proc, child_of, worker_of
from gateway.fleet import Fleet
from gateway.rolling import Rolling


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

    def join(self, role: str) -> Child:
        """One of another role, which has lived for a while."""
        child = child_of(role, f"played.{role}")
        self.children.append(child)
        self.start(child)
        self.now_s += 10
        return child

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

    def followed(self) -> Child:
        """A rolling restart is asked for and has begun; returns the first successor."""
        self.rolling.ask(self.children)
        self.advance()
        return self.successor()

    def again(self, child: Child) -> None:
        """It ends, and is started again."""
        self.die(child)
        self.start(child)

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


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with memory for everything."""
    monkeypatch.setattr(module, "room_bytes", lambda: 1 << 40)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """Two workers that serve."""
    return Stage(tmp_path / "fleet", 2)
