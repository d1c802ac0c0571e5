"""Where recorder, retention, recovery and verify meet: kills between two of them, and disks that fail one of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.audit.event import EpochClose, Event, Gap
from gateway.audit.scrub import Scrub
from gateway.audit.spool import EpochPath, closed, epoch_path, segments, write_closed
from gateway.audit.storage import Disk
from gateway.audit.verify import verify
from tests.gateway.audit.sim import (
    FailingDisk,
    Killed,
    Log,
    forget_owner,
    forget_recorder,
    label,
    settle,
    stop,
)
from tests.gateway.audit.test_room import upkeep
from tests.gateway.audit.test_spool import KAFKA, retention, write

FAR_S = 4e9


class BadSector(Disk):
    """A disk that cannot read a file any more."""

    def __init__(self) -> None:
        self.bad: Path | None = None
        self._fds: set[int] = set()

    def open(self, path: Path, *, write: bool = False) -> int:
        """open(2)."""
        fd = super().open(path, write=write)
        (self._fds.add if path == self.bad else self._fds.discard)(fd)
        return fd

    def read(self, fd: int, size_bytes: int, offset: int) -> bytes:
        """pread(2), or not."""
        if fd in self._fds:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(fd, size_bytes, offset)

    def content(self, path: Path) -> bytes:
        """read(2), or not."""
        if path == self.bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().content(path)


def refuse(*_: object) -> None:
    """What a bad disk says."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def over(log: Log) -> EpochPath:
    """An epoch of one worker that ended well, with a position of it in the recorder's."""
    writer = log.owner()
    recorder = log.recorder()
    writer.append_events([label(1)])
    settle(recorder)
    writer.close()
    forget_owner(writer)
    stop(recorder)
    return epoch_path(log.spool, writer.source.source, writer.source.epoch)


@pytest.mark.parametrize(
    "content", ["[1]", '{"KEY": 5}', '{"KEY": {"next_seq": "many"}}', '{"KEY": null}', "{", ""]
)
def test_positions_that_are_none_hold_everything_back(tmp_path: Path, content: str):
    """Whatever stands in the forwarder's file, the recorder goes on, and what may not be sent stays."""
    epoch = write(tmp_path / "spool", {0: [0], 1: [1]}, 2)
    positions = tmp_path / "forwarder" / "positions.json"
    positions.parent.mkdir()
    if content:
        positions.write_text(content.replace("KEY", epoch.key))
    else:
        # As good as one that may not be read.
        positions.mkdir()
    held = retention(tmp_path, KAFKA)
    assert held.apply(FAR_S) == []
    assert len(segments(epoch)) == 2


@pytest.mark.parametrize("when", ["emptied", "removed"])
def test_a_kill_before_retention_is_told_is_no_finding(log: Log, monkeypatch, when: str):
    """What went is told before the directory that says so goes: a kill in between tells it in the next life."""
    epoch = over(log)
    (path,) = [path for _, path in segments(epoch)]
    os.utime(path, (1, 1))
    if when == "emptied":
        # Killed with the last segment gone, nothing told and the directory still there.
        path.unlink()
    else:
        upkeep(log, "audit.keep_h=1")
    recorder = log.recorder()
    keeping = upkeep(log, "audit.keep_h=1")
    for _ in range(3):
        keeping._trimmed_s = keeping._look_s = 0.0
        keeping.after_pass(recorder, 0)
    settle(recorder)
    assert not epoch.path.exists()
    gone = [event for event in log.read() if isinstance(event, Gap)]
    assert {(gap.from_seq, gap.to_seq, gap.cause) for gap in gone} == {(0, 2, "retention")}
    report = log.verify()
    assert report.ok
    assert [entry.told for entry in report.gone] == [True]
    stop(recorder)


def test_what_went_before_the_disk_refused_is_told(tmp_path: Path, monkeypatch):
    """A segment that cannot be removed keeps nobody from hearing what was."""
    epoch = write(tmp_path / "spool", {0: [0, 1], 2: [2, 3], 4: [4, 5]}, 6)
    second = segments(epoch)[1][1]
    unlink = Path.unlink

    def refused(path: Path, missing_ok: bool = False) -> None:
        if path == second:
            refuse()
        unlink(path, missing_ok=missing_ok)

    loaded = retention(tmp_path, "audit.keep_h=1")
    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(OSError, match="Input/output"):
        loaded.apply(FAR_S)
    monkeypatch.setattr(Path, "unlink", unlink)
    told = sorted(trim[1:3] for trim in loaded.apply(FAR_S))
    assert (told[0][0], told[-1][1]) == (0, 3)
    assert loaded.apply(FAR_S) == []


def test_a_directory_that_cannot_be_removed_is_named(tmp_path: Path, monkeypatch, caplog):
    """The others go, and what went is told."""
    kept, gone = (epoch_path(tmp_path / "spool", 1, number) for number in (1, 2))
    for epoch in (kept, gone):
        epoch.path.mkdir(parents=True)
        write_closed(epoch, 1, "closed")
    loaded = retention(tmp_path, "audit.keep_h=1")
    assert len(loaded.apply(FAR_S)) == 2
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, to: refuse() if path == kept.path else rename(path, to))
    assert loaded.apply(FAR_S) == []
    assert (kept.path.exists(), gone.path.exists()) == (True, False)
    assert [record.__dict__["directory"] for record in caplog.records] == [str(kept.path)]


@pytest.mark.parametrize("told", [True, False])
def test_an_emptied_epoch_is_gone(log: Log, told: bool):
    """Of an epoch without segments whose directory is still there, a gap of retention must say that it went."""
    epoch = over(log)
    for _, path in segments(epoch):
        path.unlink()
    if told:
        recorder = log.recorder()
        recorder._log([Gap(f"{epoch.source:016x}", epoch.epoch, 0, 2, "retention", at_ns=1)])
        stop(recorder)
    report = log.verify()
    assert report.ok == told
    assert [(gone.key, gone.told) for gone in report.gone] == [(epoch.key, told)]
    assert all(entry.ok for entry in report.epochs)


def test_an_emptied_epoch_whose_end_is_told_no_more_is_no_finding(tmp_path: Path):
    """The gap of a dead owner's last numbers may go with the pass that took their epoch's segments."""
    epoch = write(tmp_path / "spool", {0: [0, 1]}, 2)
    write_closed(epoch, 4, "owner_died")
    assert not verify(tmp_path / "spool").ok
    retention(tmp_path, "audit.keep_h=1").apply(FAR_S)
    assert verify(tmp_path / "spool").ok


def test_an_epoch_that_ends_while_verify_reads_is_no_finding(log: Log, monkeypatch):
    """The recorder tells a death after its own epoch was read, or an end comes between two looks: all is well."""
    writer = log.owner()
    recorder = log.recorder()
    writer.append_events([label(1)])
    settle(recorder)
    seen: list[int] = []

    def die(_: int) -> None:
        if not seen:
            seen.append(1)
            writer.lose(3)
            forget_owner(writer)
            settle(recorder)

    report = verify(log.spool, advance=die)
    assert closed(epoch_path(log.spool, writer.source.source, writer.source.epoch))
    assert [epoch.findings for epoch in report.epochs] == [[], []]
    assert log.verify().ok


def test_a_bad_sector_is_damage(log: Log, monkeypatch, caplog):
    """Scrub and verify name the segment that cannot be read, and go on."""
    writer = log.owner()
    recorder = log.recorder(segment_bytes=300)
    for value in range(6):
        writer.append_events([label(value, 300)])
        recorder.step()
    settle(recorder)
    epoch = epoch_path(log.spool, writer.source.source, writer.source.epoch)
    disk = BadSector()
    disk.bad = segments(epoch)[0][1]
    monkeypatch.setattr("gateway.audit.walk.walk.__defaults__", (0, 1 << 20, disk))
    monkeypatch.setattr("gateway.audit.spool.EpochReader.__init__.__defaults__", (disk,))
    monkeypatch.setattr("gateway.audit.spool.read_epoch.__defaults__", (disk,))
    (finding,) = next(e for e in log.verify().epochs if e.source == epoch.key[:16]).findings[:1]
    assert (finding.kind, finding.segment) == ("damaged", disk.bad.name)
    assert "Input/output error" in finding.found
    told: list[Gap] = []
    scrub = Scrub(log.spool)
    for _ in range(100):
        scrub._next_ns = 0
        scrub.step(lambda events: told.extend(events) or True)
    assert [(gap.from_seq, gap.cause) for gap in told] == [(0, "corrupt")]


def test_an_epoch_that_cannot_be_read_holds_nobody_up(log: Log, caplog):
    """A start that meets a bad sector in one epoch's end leaves that one open, and records the others."""
    writer = log.owner()
    recorder = log.recorder()
    writer.append_events([label(1)])
    settle(recorder)
    forget_recorder(recorder)
    forget_owner(writer)
    for ring in log.ring_dir.iterdir():
        ring.unlink()
    disk = BadSector()
    epoch = epoch_path(log.spool, writer.source.source, writer.source.epoch)
    disk.bad = segments(epoch)[0][1]
    recorder = log.recorder(disk)
    other = log.owner()
    other.append_events([label(2)])
    settle(recorder)
    assert not recorder.failing
    assert 2 in log.labels()
    assert closed(epoch) is None
    assert [r.__dict__["epoch"] for r in caplog.records if r.getMessage() == "epoch_unreadable"] == [
        epoch.key
    ]
    forget_recorder(recorder)
    settle(recorder := log.recorder())
    assert closed(epoch)


def test_a_loss_is_told_before_anything_is_written_behind_it(log: Log, monkeypatch):
    """Else a kill between the two would leave a hole that no later start takes for one."""
    writer = log.owner()
    recorder = log.recorder(segment_bytes=65536)
    for value in range(3):
        writer.append_events([label(value)])
    settle(recorder)
    forget_recorder(recorder)
    epoch = epoch_path(log.spool, writer.source.source, writer.source.epoch)
    path = segments(epoch)[-1][1]
    os.truncate(path, path.stat().st_size - 8)
    writer.append_events([label(3)])

    recorder = log.recorder()
    logged = recorder._log

    def killed(events: Sequence[Event]) -> int:
        if any(isinstance(event, Gap) for event in events):
            raise Killed
        return logged(events)

    monkeypatch.setattr(recorder, "_log", killed)
    with pytest.raises(Killed):
        settle(recorder)
    forget_recorder(recorder)
    settle(log.recorder())
    assert log.labels() == [0, 1, 3]
    assert log.verify().ok


def test_a_lost_epoch_is_told_once_however_long_the_disk_refuses(log: Log):
    """Tried each few milliseconds, its gap and its end stand in the ring once."""
    writer = log.owner()
    disk = FailingDisk()
    recorder = log.recorder(disk)
    writer.append_events([label(1)])
    settle(recorder)
    name = writer.source.ring_path.name
    disk.mode = "write"
    drain = recorder._drains.pop(name)
    drain.close(unlink=True)
    forget_owner(writer)
    recorder._rings.ringless = True
    for _ in range(20):
        recorder._retry_at = 0.0
        recorder.step()
    disk.mode = ""
    recorder._retry_at = 0.0
    settle(recorder)
    told = [event for event in log.read() if isinstance(event, Gap | EpochClose)]
    assert [type(event) for event in told] == [Gap, EpochClose]
    assert closed(epoch_path(log.spool, writer.source.source, writer.source.epoch))


def test_a_ring_that_cannot_be_looked_at_leaves_no_descriptor(log: Log, monkeypatch):
    """It is tried again with each pass: what was opened for it is closed."""
    recorder = log.recorder()
    log.owner()

    monkeypatch.setattr("gateway.audit.rings.closed", refuse)
    recorder.step()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        recorder.step()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_refused_retention_is_told_once(log: Log, monkeypatch, caplog):
    """Over the limit it is tried four times a second: a line for each cause, not for each try."""
    keeping = upkeep(log)
    monkeypatch.setattr(keeping.retention, "apply", lambda **_: refuse())
    for _ in range(5):
        keeping._trim()
    assert [record.getMessage() for record in caplog.records] == ["retention_failed"]
