"""Stalled workers and stacks on request, on children that spin."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path

import pytest

from gateway import fleet as words_of
from gateway import heartbeats, stacks
from gateway.children import Child
from gateway.heartbeats import is_stalled
from gateway.supervisor import Supervisor
from tests.gateway.supervising import ROOT, SLEEP, proc_status, run_until, stub, until
from tests.gateway.supervising import supervisor as supervisor  # a fixture


def test_only_a_starting_or_serving_worker_can_stall() -> None:
    """A start may take longer than a turn of the loop; draining has its own limit."""
    assert is_stalled(words_of.SERVING, 3.6)
    assert not is_stalled(words_of.SERVING, 3.4)
    assert heartbeats.STALL_S + heartbeats.CHECK_S + heartbeats.DUMP_S + heartbeats.CHECK_S <= 4.5
    assert is_stalled(words_of.STARTING, 30.1)
    assert not is_stalled(words_of.STARTING, 29.9)
    assert not is_stalled(words_of.DRAINING, 60)
    assert not is_stalled(words_of.DOWN, 60)


SHOWS = (
    f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    "from gateway import stacks; stacks.show_when_asked(); print(flush=True)\n"
    "def the_one_that_hangs():\n"
    "    while True: pass\n"
    "the_one_that_hangs()"
)
"""A child that spins, and takes SIGUSR1 as ours do."""


def spinning(supervisor: Supervisor, silent_s: float) -> Child:
    """A started worker that spins in Python and whose last beat is so old."""
    worker = stub("worker", SHOWS, index=0)
    supervisor.children = [worker]
    supervisor._start_due()
    process = worker.process
    assert process is not None
    words = supervisor._fleet.worker(0)
    words[words_of.PID], words[words_of.STATE] = process.pid, words_of.SERVING
    words[words_of.HEARTBEAT_NS] = time.monotonic_ns() - int(silent_s * 1e9)
    until(
        "takes the signal",
        lambda: int(proc_status(process.pid, "SigCgt"), 16) & 1 << (signal.SIGUSR1 - 1) != 0,
    )
    return worker


def test_stacks_of_a_stalled_worker_are_in_the_log_and_it_is_killed(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    """One event with every thread's stack, then SIGKILL; its end counts as a stall."""
    worker = spinning(supervisor, 6.0)
    supervisor.heartbeats.check(supervisor.children)
    assert worker.dumped_s is not None
    until("stack", lambda: os.fstat(worker.stack_fd).st_size > 100)
    worker.dumped_s -= heartbeats.DUMP_S + 0.1
    process = worker.process
    assert process is not None
    supervisor.heartbeats.check(supervisor.children)
    assert process.wait(5) == -signal.SIGKILL
    (event,) = (vars(r) for r in caplog.records if r.message == "worker_stalled")
    assert "the_one_that_hangs" in event["stack"]
    assert event["for_s"] >= 6.0
    supervisor._reap()
    assert supervisor._roster.counts["worker"]["stall"] == 1


def test_a_stopped_worker_is_killed_without_a_stack(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    """One stopped from outside cannot say anything, and is not waited for."""
    worker = spinning(supervisor, 6.0)
    process = worker.process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    supervisor.heartbeats.check(supervisor.children)
    assert worker.dumped_s is not None
    worker.dumped_s -= heartbeats.DUMP_S + 0.1
    supervisor.heartbeats.check(supervisor.children)
    assert process.wait(5) == -signal.SIGKILL
    assert [vars(r)["stack"] for r in caplog.records if r.message == "worker_stalled"] == [None]


def test_old_beats_are_no_evidence_after_a_pause(supervisor: Supervisor) -> None:
    """When the whole container stood still, its workers get time to beat again."""
    worker = spinning(supervisor, 60.0)
    supervisor.heartbeats.checked_s -= 60
    supervisor.heartbeats.check(supervisor.children)
    assert worker.dumped_s is None


def test_usr1_logs_the_stacks_of_all_children(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    """An event a child; one that does not take the signal yet is not ended by it."""
    caplog.set_level(logging.INFO)
    supervisor.children = [stub("recorder", SLEEP), stub("control", SHOWS)]
    seen: list[str] = []

    def asked() -> bool:
        control = supervisor.children[1].process
        if (
            not seen
            and control is not None
            and int(proc_status(control.pid, "SigCgt"), 16) & 1 << (signal.SIGUSR1 - 1)
        ):
            seen.append("asked")
            os.kill(os.getpid(), signal.SIGUSR1)
        return sum(r.message == "stack" for r in caplog.records) == 2

    assert run_until(supervisor, asked) == 0
    told = {vars(r)["child"]: vars(r)["stack"] for r in caplog.records if r.message == "stack"}
    assert told["recorder"] is None
    assert "the_one_that_hangs" in told["control"]
    assert [c.lives for c in supervisor.children] == [1, 1]


def test_stacks_are_taken_once(tmp_path: Path) -> None:
    """What was read is gone, and what comes next stands at the start."""
    fd = stacks.make()
    for text in (b"first\n", b"second\n"):
        os.write(fd, text)
        assert stacks.taken(fd) == text.decode().strip()
    assert stacks.taken(fd) == ""
    os.close(fd)
