"""kill -9 of real processes: owners, the recorder, both; what was published is on disk afterwards."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from gateway.audit.event import EpochClose
from gateway.audit.identity import source_of
from gateway.audit.verify import status
from tests.gateway.audit.sim import GATEWAY_ID, Log, until

APPENDER = str(Path(__file__).with_name("appender.py"))


def appender(
    log: Log, ring_bytes: int = 65536, limit: int = 10**9, role: str = "worker"
) -> subprocess.Popen[bytes]:
    """A child that appends."""
    return log.child(APPENDER, str(log.state_dir), str(log.ring_dir), str(ring_bytes), str(limit), role)


def published(log: Log, child: subprocess.Popen[bytes]) -> int:
    """The last value that an appender is known to have published; -1 before the first."""
    lines = log.output(child).split("\n")
    return int(lines[-2]) if len(lines) > 1 else -1


def kill9(child: subprocess.Popen[bytes]) -> None:
    """SIGKILL, and wait."""
    child.send_signal(signal.SIGKILL)
    child.wait()


def draining(log: Log, recorder: subprocess.Popen[bytes]) -> None:
    """Wait until it has recovered."""
    until(lambda: "draining" in log.output(recorder))


def ended(log: Log, recorder: subprocess.Popen[bytes]) -> None:
    """SIGTERM drains all there is; the log adds up."""
    draining(log, recorder)
    recorder.send_signal(signal.SIGTERM)
    assert recorder.wait(20) == 0, log.output(recorder)
    assert log.rings() == []
    report = log.verify()
    assert report.ok, report
    assert all(epoch.closed for epoch in report.epochs)


def values_per_epoch(log: Log) -> list[list[int]]:
    """Labels on disk, an epoch each, in order."""
    by_epoch: dict[str, list[int]] = {}
    for event in log.read():
        if hasattr(event, "labels"):
            by_epoch.setdefault(event.id[:25], []).append(event.labels[0]["value"])
    return [by_epoch[key] for key in sorted(by_epoch)]


def test_an_owner_is_killed(log: Log):
    """Everything that an owner published before kill -9 is on disk, in order, each once."""
    recorder = log.real_recorder()
    children = []
    for _ in range(3):
        child = appender(log)
        children.append(child)
        until(lambda child=child: published(log, child) > 200)
        kill9(child)
    ended(log, recorder)
    found = values_per_epoch(log)
    assert len(found) == len(children)
    for values, child in zip(found, children, strict=True):
        assert values == list(range(len(values)))
        assert len(values) > published(log, child)


def test_a_ring_that_came_just_before_the_end_is_drained(log: Log):
    """A recorder that stood still while an owner came and went is told to stop: it looks once more before it ends."""
    recorder = log.real_recorder()
    draining(log, recorder)
    recorder.send_signal(signal.SIGSTOP)
    assert appender(log, limit=100).wait(20) == 0
    recorder.send_signal(signal.SIGTERM)
    recorder.send_signal(signal.SIGCONT)
    ended(log, recorder)
    assert values_per_epoch(log) == [list(range(100))]


@pytest.mark.parametrize("role", ["sidecar", "mirror"])
def test_those_who_follow_the_log_are_sources_like_workers(log: Log, role: str):
    """Killed, two of a role at once and a successor: all is on disk, the recorder tells each epoch's end."""
    recorder = log.real_recorder()
    pair = [appender(log, role=role) for _ in range(2)]
    for child in pair:
        until(lambda child=child: published(log, child) > 100)
    for child in pair:
        kill9(child)
    successor = appender(log, limit=100, role=role)
    assert successor.wait(20) == 0
    ended(log, recorder)
    children = (*pair, successor)
    assert sorted(map(len, values_per_epoch(log)))[0] == 100
    assert all(values == list(range(len(values))) for values in values_per_epoch(log))
    assert sum(map(len, values_per_epoch(log))) >= sum(published(log, child) + 1 for child in children)
    epochs = [epoch for epoch in log.verify().epochs if epoch.role == role]
    assert sorted(epoch.closed for epoch in epochs) == ["closed", "owner_died", "owner_died"]
    indices = {source_of(GATEWAY_ID, role, index): index for index in range(3)}
    assert sorted(indices[int(epoch.source, 16)] for epoch in epochs) == [0, 0, 1]
    told = {(e.source, e.epoch) for e in log.read() if isinstance(e, EpochClose) and e.cause == "owner_died"}
    assert told == {(e.source, e.epoch) for e in epochs if e.closed == "owner_died"}
    assert {s.source for s in status(log.spool, log.ring_dir)} >= {e.source for e in epochs}


def test_the_recorder_is_killed_again_and_again(log: Log):
    """While an owner appends, recorders die at any point; nothing published is lost or doubled."""
    child = appender(log)
    for round_ in range(5):
        recorder = log.real_recorder()
        draining(log, recorder)
        before = published(log, child)
        until(lambda before=before: published(log, child) > before + 100)
        time.sleep(0.003 * round_)
        kill9(recorder)
    recorder = log.real_recorder()
    kill9(child)
    ended(log, recorder)
    (values,) = values_per_epoch(log)
    assert values == list(range(len(values)))
    assert len(values) > published(log, child)


def test_all_are_killed_with_a_full_ring(log: Log):
    """The ring is full, then everything dies: what was published is there, what was refused is a gap."""
    recorder = log.real_recorder()
    draining(log, recorder)
    child = appender(log)
    until(lambda: published(log, child) > 0)
    recorder.send_signal(signal.SIGSTOP)
    last, looks = -2, 0
    # Not once only: on a busy machine it may have no processor for a moment.
    while looks < 10:
        looks = looks + 1 if published(log, child) == last else 0
        last = published(log, child)
        time.sleep(0.1)
    kill9(recorder)
    kill9(child)
    ended(log, log.real_recorder())
    (values,) = values_per_epoch(log)
    assert values == list(range(len(values)))
    assert len(values) > published(log, child)
    worker = next(epoch for epoch in log.verify().epochs if epoch.role == "worker")
    assert "ring_full" in {cause for _, _, cause in worker.gaps}


def test_two_recorders_do_not_drain_at_once(log: Log):
    """The second touches nothing before the first is gone."""
    first = log.real_recorder()
    child = appender(log, limit=50)
    until(lambda: len(log.labels()) == 50)
    second = log.real_recorder()
    child.wait()
    time.sleep(0.2)
    assert second.poll() is None
    assert len([e for e in log.verify().epochs if e.role == "recorder"]) == 1
    kill9(first)
    ended(log, second)
