"""Processes by number, and when a child is said to die again and again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings

import pytest

from gateway.children import CRASH_LOOP, UNKNOWN_EXIT, Child, Proc, cause_of, worker_of
from tests.gateway.supervising import proc_status, until


def started(code: str) -> Proc:
    """A process that runs a line of Python."""
    return Proc.start([sys.executable, "-S", "-c", code], dict(os.environ))


@pytest.mark.parametrize("code", [0, 1, 2, 255])
def test_exit_codes_are_the_childs(code: int) -> None:
    """What it ended with, as often as one asks."""
    proc = started(f"raise SystemExit({code})")
    assert [proc.wait(10), proc.poll(), proc.returncode] == [code] * 3


def test_a_signal_is_a_negative_code() -> None:
    """As subprocess says it."""
    proc = started("import time; time.sleep(60)")
    assert proc.poll() is None
    proc.kill()
    assert proc.wait(10) == -signal.SIGKILL


def test_a_process_that_another_object_started_is_waited_for() -> None:
    """By number alone: what a new image of the supervisor has of children that the image before started."""
    first = started("import time; time.sleep(60)")
    adopted = Proc(first.pid)
    assert adopted.poll() is None
    adopted.send_signal(signal.SIGTERM)
    assert adopted.wait(10) == -signal.SIGTERM
    # Who comes second cannot know how it ended, and says that.
    assert first.wait(1) == UNKNOWN_EXIT


def test_a_process_that_ended_gets_no_signal() -> None:
    """Its number may be another's by then."""
    proc = started("pass")
    proc.wait(10)
    proc.send_signal(signal.SIGKILL)


def test_wait_gives_up() -> None:
    """After the time that was named."""
    proc = started("import time; time.sleep(60)")
    with pytest.raises(TimeoutError, match=f"process {proc.pid} still runs after 0.05 s"):
        proc.wait(0.05)
    proc.kill()
    proc.wait(10)


def test_nobody_complains_that_the_object_was_left() -> None:
    """subprocess warns of objects that go before their process does."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        proc = started("pass")
        subprocess._cleanup()  # type: ignore[attr-defined]
        assert proc.wait(10) == 0


def test_a_child_has_a_group_of_its_own_and_sigusr1_blocked() -> None:
    """Ctrl-C does not reach it, and it cannot be ended by a request for its stacks before it takes such."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    proc = started("import time; time.sleep(60)")
    until("group", lambda: os.getpgid(proc.pid) == proc.pid)
    assert int(proc_status(proc.pid, "SigBlk"), 16) == 1 << (signal.SIGUSR1 - 1)
    proc.send_signal(signal.SIGUSR1)
    assert proc.poll() is None
    proc.kill()
    proc.wait(10)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before


def test_five_deaths_in_a_minute_are_a_crash_loop() -> None:
    """Four are not, nor five over a longer time."""
    child = Child(role="control", argv=[])
    most, within_s = CRASH_LOOP
    for n in range(most - 1):
        child.deaths.append(float(n))
    assert not child.is_crash_looping(10.0)
    child.deaths.append(10.0)
    assert child.is_crash_looping(10.0)
    assert child.is_crash_looping(within_s)
    assert not child.is_crash_looping(within_s + 0.1)


def test_causes() -> None:
    """Why it ended, in one word."""
    assert [cause_of(c, stalled=False) for c in (1, 0, -9, 2, 4)] == [
        "exit",
        "exit",
        "signal",
        "refused",
        "refused",
    ]
    assert cause_of(-9, stalled=True) == "stall"


def test_a_successor_knows_whom_it_follows() -> None:
    """It is told whose versions it must have ready."""
    old = worker_of(0, 7)
    assert worker_of(2, 7, replaces=old).argv[-4:] == ["--index", "2", "--after", "0"]
