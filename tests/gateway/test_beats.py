"""Whose heartbeats stopped, in virtual time: who is asked for stacks, who is killed, and who is left alone."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import pytest

from gateway import fleet as words_of
from gateway import heartbeats as module
from gateway.children import Child, worker_of
from gateway.fleet import Fleet
from gateway.heartbeats import CHECK_S, DUMP_S, PAUSED_S, STALL_S, Heartbeats
from tests.gateway.played import Played, signals


class Watched:
    """Two workers that serve and beat as the test has it, and a clock that it moves."""

    def __init__(self, path: Path) -> None:
        self.now_s = 1000.0
        self.fleet = Fleet.create(path, 2)
        self.children = [worker_of(index, 7) for index in range(2)]
        for child in self.children:
            child.process = Played(100 + (child.index or 0))
            self.beat(child)

    def monotonic(self) -> float:
        """In place of time's."""
        return self.now_s

    def beat(self, child: Child) -> None:
        """As its loop does."""
        assert child.process is not None
        words = self.fleet.worker(child.index or 0)
        words[words_of.PID], words[words_of.STATE] = child.process.pid, words_of.SERVING
        words[words_of.HEARTBEAT_NS] = int(self.now_s * 1e9)

    def go_on(self, beats: Heartbeats, seconds: float, *beating: Child) -> None:
        """Looks at the supervisor's pace."""
        for _ in range(round(seconds / CHECK_S)):
            self.now_s += CHECK_S
            for child in beating:
                self.beat(child)
            beats.check(self.children)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Its clock is the module's."""
    made = Watched(tmp_path / "fleet")
    monkeypatch.setattr(module, "time", made)
    return made


def test_who_beats_is_left_alone_and_who_does_not_is_killed_in_time(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    """After a long quiet time, too: within five seconds of the last beat, told once, and nobody else is touched."""
    hung, well = watched.children
    beats = Heartbeats(watched.fleet)
    watched.go_on(beats, 60, hung, well)
    assert (hung.dumped_s, well.dumped_s) == (None, None)
    last_s = watched.now_s
    watched.go_on(beats, STALL_S, well)
    assert hung.dumped_s is None
    watched.go_on(beats, CHECK_S, well)
    assert hung.dumped_s is not None
    assert signals(hung) == []
    asked_s = watched.now_s
    while not signals(hung):
        watched.go_on(beats, CHECK_S, well)
        assert watched.now_s <= last_s + 5.0
    assert watched.now_s > asked_s + DUMP_S
    assert signals(hung) == [signal.SIGKILL]
    (told,) = [vars(r) for r in caplog.records if r.message == "worker_stalled"]
    assert (told["child"], told["for_s"]) == ("worker-0", round(watched.now_s - last_s, 1))
    assert (well.dumped_s, signals(well)) == (None, [])


def test_one_that_ended_after_it_was_asked_is_not_told_of(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    """Its end is the supervisor's to tell."""
    hung, well = watched.children
    beats = Heartbeats(watched.fleet)
    watched.go_on(beats, STALL_S + CHECK_S, well)
    assert hung.dumped_s is not None
    assert hung.process is not None
    hung.process.returncode = 1
    watched.go_on(beats, 1, well)
    assert signals(hung) == []
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("found", ["another process's", "none"])
def test_beats_that_are_not_its_own_say_nothing(watched: Watched, found: str) -> None:
    """A worker that has just started on the block of one that died: its own first beat is waited for."""
    fresh, well = watched.children
    beats = Heartbeats(watched.fleet)
    if found == "none":
        watched.fleet.worker(0)[words_of.HEARTBEAT_NS] = 0
    else:
        fresh.process = Played(999)
    watched.go_on(beats, 60, well)
    assert (fresh.dumped_s, signals(fresh)) == (None, [])


def test_one_in_back_off_has_no_beats(watched: Watched) -> None:
    """Nor has a role that is no worker."""
    down, well = watched.children
    down.process = None
    watched.children.append(Child(role="control", argv=[], process=Played(7)))
    beats = Heartbeats(watched.fleet)
    watched.go_on(beats, 60, well)
    assert all(child.dumped_s is None for child in watched.children)


def test_after_a_pause_of_ours_each_has_time_to_beat_again(watched: Watched) -> None:
    """The whole container stood still: what is old by then is no evidence, what stays old is."""
    hung, well = watched.children
    beats = Heartbeats(watched.fleet)
    watched.now_s += PAUSED_S + 60
    watched.go_on(beats, STALL_S - CHECK_S, well)
    assert hung.dumped_s is None
    watched.go_on(beats, 3 * CHECK_S, well)
    assert hung.dumped_s is not None
    assert well.dumped_s is None
