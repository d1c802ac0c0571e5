"""The end of a gateway in virtual time: who is told when, who is waited for how long, and who had to be killed."""

from __future__ import annotations

import signal

import pytest

from gateway import ending as module
from gateway.children import DRAIN_S, END_S, SETTLE_S, STOP_ORDER, Child
from gateway.ending import stop_all
from tests.gateway.played import Played


class Ending:
    """Children that end so long after they were told, and a clock that the waiting moves."""

    def __init__(self, **takes_s: float) -> None:
        self.now_s = 1000.0
        self.impatient_from_s = float("inf")
        self.told: list[tuple[float, str, int]] = []
        """When (seconds since the start), whom, and what."""
        self.children = [Child(role=role, argv=[], started_s=0.0) for role in takes_s]
        for child in self.children:
            child.process = Told(self, child, takes_s[child.role])

    def monotonic(self) -> float:
        """In place of time's."""
        return self.now_s

    def wait(self, seconds: float) -> None:
        """Time passes."""
        assert 0 < seconds < 1
        self.now_s += seconds

    def is_impatient(self) -> bool:
        """Whether someone asked twice."""
        return self.now_s >= self.impatient_from_s

    def run(self) -> list[str]:
        """Stop all; whoever waits for ever is a failure."""
        return stop_all(self.children, self.wait, self.is_impatient)

    def whom(self, number: int) -> list[str]:
        """Who was sent a signal, in order."""
        return [name for _, name, sent in self.told if sent == number]


class Told(Played):
    """Ends by SIGTERM after a while, by SIGKILL at once; notes both."""

    def __init__(self, ending: Ending, child: Child, takes_s: float) -> None:
        super().__init__(1)
        self._ending, self._child, self._takes_s = ending, child, takes_s
        self._ends_s = float("inf")

    def poll(self) -> int | None:
        if self.returncode is None and self._ending.now_s >= self._ends_s:
            self.returncode = 0
        return self.returncode

    def send_signal(self, number: int) -> None:
        now_s = self._ending.now_s
        self._ending.told.append((now_s - 1000.0, self._child.name, number))
        if number == signal.SIGKILL:
            self.returncode = -signal.SIGKILL
        else:
            self._ends_s = now_s + self._takes_s


def ending_of(monkeypatch: pytest.MonkeyPatch, **takes_s: float) -> Ending:
    """Its clock is the module's."""
    made = Ending(**takes_s)
    monkeypatch.setattr(module, "time", made)
    return made


def test_each_role_is_told_once_the_one_before_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order in which they stand; nobody is killed."""
    ending = ending_of(monkeypatch, **dict.fromkeys(reversed(STOP_ORDER), 5.0))
    assert ending.run() == []
    assert ending.whom(signal.SIGTERM) == list(STOP_ORDER)
    assert ending.whom(signal.SIGKILL) == []
    times_s = [at_s for at_s, _, _ in ending.told]
    assert all(later - earlier >= 5.0 for earlier, later in zip(times_s, times_s[1:], strict=False))


def test_who_does_not_end_in_time_is_killed_and_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker after its drain; a sidecar sooner, which had nothing to lose and is not named. Said once each."""
    ending = ending_of(monkeypatch, worker=1e9, sidecar=1e9, control=0.0)
    assert ending.run() == ["worker"]
    kills = [(at_s, name) for at_s, name, number in ending.told if number == signal.SIGKILL]
    assert [name for _, name in kills] == ["worker", "sidecar"]
    assert DRAIN_S <= kills[0][0] <= DRAIN_S + 0.2
    assert END_S <= kills[1][0] - kills[0][0] <= END_S + 0.3
    assert ending.whom(signal.SIGTERM) == ["worker", "sidecar", "control"]
    told = [(vars(r)["child"], vars(r)["why"]) for r in caplog.records]
    assert told == [("worker", "it did not end in time"), ("sidecar", "it did not end in time")]


def test_who_is_asked_twice_waits_for_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From the second signal on each is told and killed at once, and the reason is said."""
    ending = ending_of(monkeypatch, worker=1e9, control=1e9, recorder=0.0)
    ending.impatient_from_s = 1003.0
    # One that ends at once is not killed: it was told before it was looked at.
    assert ending.run() == ["worker", "control"]
    assert ending.now_s < 1004.0
    assert ending.whom(signal.SIGTERM) == ["worker", "control", "recorder"]
    assert {vars(r)["why"] for r in caplog.records} == {"a second signal asked for it"}


@pytest.mark.parametrize("impatient", [False, True])
def test_one_that_has_just_started_is_told_once_it_can_take_it(
    monkeypatch: pytest.MonkeyPatch, impatient: bool
) -> None:
    """The recorder in its first second; not for one who asks twice."""
    ending = ending_of(monkeypatch, recorder=0.0)
    ending.children[0].started_s = 999.9
    if impatient:
        ending.impatient_from_s = 1000.2
    ending.run()
    at_s = ending.told[0][0]
    latest = 0.2 if impatient else SETTLE_S["recorder"] - 0.1
    assert latest <= at_s + 1e-9 <= latest + 0.1


def test_one_that_runs_no_more_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor waited for."""
    ending = ending_of(monkeypatch, control=0.0, recorder=0.0)
    ending.children[0].process = None
    assert ending.run() == []
    assert ending.whom(signal.SIGTERM) == ["recorder"]
