"""The recorder's own process, killed or refused at the calls by which it changes files, from its start to its end."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from gateway.audit.event import Gap
from tests.faults.syscalls import FILE_CALLS, called, fail_at, kill_at, under_strace
from tests.gateway.audit.sim import Log, forget_owner, label, settle, stop, until

LABELS = 44
PAD_BYTES = 20_000
"""A segment of 64 KiB rolls every fourth."""
LIVES = 3
SAMPLE = 32
"""The normal suite takes each 32nd point."""


@pytest.fixture
def place() -> Iterator[Path]:
    """In memory: what survives a kill does not depend on the disk, and syncs take no time."""
    where = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    yield where
    shutil.rmtree(where)


class Life:
    """An owner, and a recorder under strace beside it."""

    def __init__(self, where: Path, prefix: Sequence[str]) -> None:
        self.log = Log(where)
        self.writer = self.log.owner(ring_bytes=1024 * 1024)
        self.published = 0
        self.owner_lives = True
        self.recorder = self.log.real_recorder(prefix)

    def live(self, labels: int = LABELS) -> int:
        """Append, wait until it is acknowledged, on to the end, or until the recorder is dead; its exit status."""
        while self.published < labels:
            assert self.writer.append_events([label(self.published, PAD_BYTES)]) is not None
            self.published += 1
            until(self._acknowledged_or_dead)
            if self.recorder.poll() is not None:
                return self.recorder.wait()
        self.end_owner()
        self.recorder.send_signal(signal.SIGTERM)
        return self.recorder.wait(20)

    def end_owner(self) -> None:
        """The owner ends in order."""
        self.writer.close()
        forget_owner(self.writer)
        self.owner_lives = False

    def _acknowledged_or_dead(self) -> bool:
        ring = self.writer.ring
        return ring.synced == ring.committed or self.recorder.poll() is not None

    def check(self) -> None:
        """What was acknowledged is there; with a new recorder all that was published, once, in order, and no gap."""
        on_disk = self.log.labels()
        assert on_disk == list(range(len(on_disk)))
        assert len(on_disk) >= self.published - 1
        again = self.log.recorder(segment_bytes=65536)
        settle(again)
        if self.owner_lives:
            assert self.writer.ring.synced == self.writer.ring.committed
            self.end_owner()
        stop(again)
        assert self.log.labels() == list(range(self.published))
        assert self.log.rings() == []
        report = self.log.verify()
        assert report.ok, report
        assert all(epoch.closed for epoch in report.epochs)
        assert not [event for event in self.log.read() if isinstance(event, Gap)]


def points(place: Path) -> list[tuple[str, int]]:
    """Every call of a whole life from the first that touches the state directory on, and its number of its kind."""
    # Python compiles what it never ran before: the calls of a first life are not those of others.
    assert Life(place / "first", ()).live(1) == 0
    state_dir = place / "whole"
    life = Life(state_dir, under_strace(trace=place / "trace", calls=FILE_CALLS))
    assert life.live() == 0
    life.check()
    calls = list(called(place / "trace"))
    first = next(i for i, (_, _, arguments) in enumerate(calls) if str(state_dir) in arguments)
    return [(call, n) for call, n, _ in calls[first:]]


def killed_at(place: Path, found: Sequence[tuple[str, int]]) -> int:
    """A life for each point; returns how many recorders were killed: a life may have fewer calls of a kind, and lives
    again where it ended before its point."""
    killed = 0
    for number, (call, n) in enumerate(found):
        for _ in range(LIVES):
            life = Life(place / str(number), under_strace(kill_at(call, n)))
            status = life.live()
            assert status in {0, -signal.SIGKILL}, (call, n, life.log.output(life.recorder))
            life.check()
            shutil.rmtree(place / str(number))
            if status != 0:
                killed += 1
                break
    return killed


def test_a_kill_at_any_call_loses_and_doubles_nothing(place: Path) -> None:
    """kill -9 at a sample of the calls of a life; `make prove` takes each."""
    sample = points(place)[::SAMPLE]
    assert killed_at(place, sample) > len(sample) * 0.9


@pytest.mark.prove
def test_a_kill_at_every_call_loses_and_doubles_nothing(place: Path) -> None:
    """kill -9 at every call of a life: start, drains, rolls, acknowledges, end."""
    found = points(place)
    assert len(found) >= 300
    assert killed_at(place, found) > len(found) * 0.95


@pytest.mark.parametrize(
    ("calls", "error", "when", "event"),
    [
        ("write,fdatasync,fsync", "EINTR", "2+3", None),
        ("fdatasync", "EIO", "8+9", "records_cannot_be_written"),
        ("write", "ENOSPC", "9..13+2", "disk_full"),
        ("fsync", "EIO", "9..11", "records_cannot_be_written"),
        ("rename", "EIO", "3..40", "records_cannot_be_written"),
    ],
)
def test_a_refused_call_is_made_good(
    place: Path, calls: str, error: str, when: str, event: str | None
) -> None:
    """Calls that are interrupted or refused while it drains: everything is there once, the process lives on, and
    what keeps records from the disk is told."""
    life = Life(place / "life", under_strace(fail_at(calls, error, when)))
    assert life.live(30) == 0, life.log.output(life.recorder)
    told = life.log.output(life.recorder)
    found = [each for each in ("records_cannot_be_written", "disk_full") if each in told]
    assert found == ([] if event is None else [event]), told
    life.check()
