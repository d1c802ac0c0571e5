"""Who may write when room is short: a disk of so many bytes, one step at a time, in this process."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path

import pytest

from gateway import config
from gateway.audit.event import Gap
from gateway.audit.recorder import Recorder
from gateway.audit.room import RESERVE_FLOOR_BYTES, Reserve, Room
from gateway.audit.spool import epochs, segments
from gateway.audit.storage import Disk
from gateway.audit.upkeep import Upkeep
from tests.gateway.audit.sim import GATEWAY_ID, Log, forget_owner, label, recording, settle, stop

RESERVE = RESERVE_FLOOR_BYTES
KAFKA = 'kafka={"bootstrap_servers": "127.0.0.1:1"}'


class SmallDisk(Disk):
    """A disk of so many bytes, of which the reserve has its part."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.used_bytes = 0
        self.reserve: Reserve | None = None
        self.others_bytes = 0
        """What other programs put there."""
        self.quota_bytes = 1 << 62
        """What may be used, whatever is free."""

    @property
    def free_bytes(self) -> int:
        """What is left."""
        held = self.reserve.held_bytes if self.reserve else 0
        return self.size_bytes - self.used_bytes - self.others_bytes - held

    def write(self, fd: int, data: memoryview) -> int:
        """write(2), as long as there is room."""
        if len(data) > self.free_bytes or self.used_bytes + len(data) > self.quota_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.used_bytes += len(data)
        return os.write(fd, data)

    def sync(self, fd: int) -> None:
        """fdatasync(2)."""
        os.fdatasync(fd)


class Full:
    """A recorder on a disk that is about to be full, with a reserve of 64 KiB."""

    def __init__(self, log: Log, monkeypatch: pytest.MonkeyPatch, size_bytes: int = 4 * RESERVE) -> None:
        self.disk = SmallDisk(size_bytes)
        monkeypatch.setattr("gateway.audit.room.free_bytes", lambda _: self.disk.free_bytes)
        self.disk.reserve = Reserve(log.state_dir, RESERVE)
        self.room = Room(log.state_dir, self.disk.reserve)
        self.recorder = recording(Recorder(log.places, GATEWAY_ID, 65536, self.disk, self.room))


class Clock:
    """The clock of room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr("gateway.audit.room.time", self)

    def monotonic(self) -> float:
        """Stands still until it is moved."""
        return self.now_s


def values(log: Log) -> set[int]:
    """Labels on disk."""
    return set(log.labels())


def test_the_reserve_takes_room_and_gives_it_up(tmp_path: Path):
    """It is allocated, not sparse; given up, its blocks are free; a second take makes it again."""
    reserve = Reserve(tmp_path, 1 << 20)
    assert reserve.take()
    stat = (tmp_path / "reserve").stat()
    assert stat.st_size == 1 << 20 <= stat.st_blocks * 512
    reserve.give_up()
    assert not (tmp_path / "reserve").exists()
    assert reserve.take()
    assert reserve.is_whole


def test_a_tiny_file_system_has_no_reserve(tmp_path: Path, monkeypatch):
    """A sixteenth of the file system at most, and none where that is under 64 KiB."""
    for total, expected in ((1 << 40, 64 << 20), (16 << 20, 1 << 20), (1 << 19, 0)):
        found = os.statvfs_result((4096, 4096, total // 4096, 0, 0, 0, 0, 0, 0, 255))
        monkeypatch.setattr("os.statvfs", lambda _, found=found: found)
        assert Reserve(tmp_path).size_bytes == expected


def test_a_reserve_that_cannot_be_had_holds_nobody_up(tmp_path: Path, monkeypatch):
    """Refused for another reason than room (a file size limit): told once, and records are written without it."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr("os.posix_fallocate", refuse)
    room = Room(tmp_path, Reserve(tmp_path, RESERVE))
    room.look()
    assert not room.waits
    assert room.reserve_bytes == 0


def test_on_a_full_disk_workers_wait_and_control_goes_on(log: Log, monkeypatch, caplog):
    """The reserve is given up: control's records get to disk, workers' and mirrors' wait in their rings, and are
    told."""
    full = Full(log, monkeypatch)
    worker, mirror, control = log.owner(), log.owner("mirror"), log.owner("control")
    settle(full.recorder)
    full.disk.others_bytes = full.disk.free_bytes - 100
    worker.append_events([label(1, 500)])
    mirror.append_events([label(2, 500)])
    full.recorder.step()
    assert full.room.waits == "disk_full"
    assert full.room.reserve_bytes == 0
    control.append_events([label(3, 500)])
    settle(full.recorder)
    assert values(log) == {3}
    assert (worker.ring.unavailable, mirror.ring.unavailable, control.ring.unavailable) == (True, True, False)
    assert full.recorder.failing == ""
    told = [(line.msg, line.free_bytes) for line in caplog.records if line.levelno == logging.ERROR]
    assert told == [("disk_full", 100)], "what is free now, not at the last look"


def test_with_room_again_everyone_goes_on(log: Log, monkeypatch, caplog):
    """Twice the reserve is free: it is taken again, and what waited is there, once, in order."""
    caplog.set_level(logging.INFO, "tidegate.recorder")
    clock = Clock(monkeypatch)
    full = Full(log, monkeypatch)
    worker = log.owner()
    settle(full.recorder)
    full.disk.others_bytes = full.disk.free_bytes - 100
    for value in range(3):
        worker.append_events([label(value, 500)])
        full.recorder.step()
    full.disk.others_bytes -= RESERVE // 2
    clock.now_s += 0.9
    full.room.look()
    assert full.room.waits == "disk_full"
    clock.now_s += 0.1
    full.room.look()
    assert full.room.waits == "disk_full", "less than twice the reserve is free"
    full.disk.others_bytes -= RESERVE
    full.room.look()
    assert full.room.waits == ""
    assert full.room.reserve_bytes == RESERVE
    settle(full.recorder)
    assert log.labels() == [0, 1, 2]
    assert not worker.ring.unavailable
    assert log.verify().ok
    assert [line.msg for line in caplog.records] == ["disk_full", "disk_has_room"]


def test_room_that_is_not_to_be_had_is_tried_ever_less_often(log: Log, monkeypatch):
    """Free by what the disk says, refused all the same: workers do not swing between the two every second."""
    clock = Clock(monkeypatch)
    full = Full(log, monkeypatch)
    worker = log.owner()
    settle(full.recorder)
    full.disk.quota_bytes = full.disk.used_bytes
    tries = []
    for second in range(40):
        clock.now_s += 1.0
        full.room.look()
        if not full.room.waits:
            tries.append(second)
            worker.append_events([label(second)])
            full.recorder.step()
    assert tries == [0, 1, 3, 7, 15, 23, 31, 39]


def test_a_recorder_that_starts_on_a_full_disk_leaves_the_room_that_was_given_up(log: Log, monkeypatch):
    """The reserve's size is free, for control: it is not taken again; one that is there already is kept."""
    disk = SmallDisk(2 * RESERVE - 1)
    monkeypatch.setattr("gateway.audit.room.free_bytes", lambda _: disk.free_bytes)
    reserve = Reserve(log.state_dir, RESERVE)
    assert Room(log.state_dir, reserve).waits == "disk_full"
    assert not reserve.is_found
    disk.size_bytes += 1
    assert Room(log.state_dir, reserve).waits == ""
    disk.size_bytes = 0
    again = Reserve(log.state_dir, RESERVE)
    assert Room(log.state_dir, again).waits == ""
    assert again.is_whole


def test_control_meets_the_full_disk_first(log: Log, monkeypatch):
    """Its own record is refused: the reserve is given up, and the very next pass writes it; nobody sees a failure."""
    full = Full(log, monkeypatch)
    control = log.owner("control")
    settle(full.recorder)
    full.disk.others_bytes = full.disk.free_bytes - 100
    control.append_events([label(1, 500)])
    full.recorder.step()
    full.recorder.step()
    assert values(log) == {1}
    assert not control.ring.unavailable


def test_without_any_room_at_all_control_is_told(log: Log, monkeypatch):
    """The reserve is used up, too: everyone sees that records cannot be kept, and it heals."""
    monkeypatch.setattr("gateway.audit.recorder.RETRY_S", (0.0, 0.0))
    monkeypatch.setattr("gateway.audit.room.BACK_S", (0.0, 0.0))
    full = Full(log, monkeypatch)
    control = log.owner("control")
    settle(full.recorder)
    full.disk.others_bytes = full.disk.free_bytes + RESERVE - 100
    control.append_events([label(1, 500)])
    for _ in range(3):
        full.recorder.step()
    assert control.ring.unavailable
    assert full.recorder.failing
    full.disk.others_bytes = 0
    full.room.look()
    settle(full.recorder)
    assert not control.ring.unavailable
    assert values(log) == {1}


def test_the_reserve_goes_before_the_disk_is_quite_full(log: Log, monkeypatch):
    """A snapshot of control's must find room even if no record met the full disk before."""
    full = Full(log, monkeypatch)
    full.disk.others_bytes = full.disk.free_bytes - RESERVE // 32
    full.room.look()
    assert full.room.waits == "disk_full"


def test_at_the_limit_the_living_wait_and_the_dead_are_drained(log: Log, monkeypatch):
    """Workers' records wait, control's do not; the ring of a worker that died is written: it is at most the ring."""
    full = Full(log, monkeypatch, 1 << 30)
    worker, control, dead = log.owner(), log.owner("control"), log.owner()
    settle(full.recorder)
    full.room.at_limit = True
    for value, writer in enumerate((worker, control, dead)):
        writer.append_events([label(value)])
    settle(full.recorder)
    assert values(log) == {1}
    assert worker.ring.unavailable
    assert not control.ring.unavailable
    forget_owner(dead)
    settle(full.recorder)
    assert values(log) == {1, 2}
    full.room.at_limit = False
    settle(full.recorder)
    assert values(log) == {0, 1, 2}
    assert log.verify().ok


def upkeep(log: Log, *settings: str) -> Upkeep:
    """As the recorder's process has it."""
    loaded, _ = config.load(None, [f"state_dir={log.state_dir}", *settings], {})
    return Upkeep(log.spool, loaded)


def test_what_retention_removes_is_told(log: Log):
    """A gap of the recorder's own, cause `retention`, for each epoch and range; the log adds up."""
    writer = log.owner()
    recorder = log.recorder(segment_bytes=300)
    for value in range(6):
        writer.append_events([label(value, 300)])
        recorder.step()
    settle(recorder)
    epoch = next(e for e in epochs(log.spool) if e.source == writer.source.source)
    for _, path in segments(epoch)[:3]:
        os.utime(path, (1, 1))
    left = segments(epoch)[3][0]
    keeping = upkeep(log, "audit.keep_h=1")
    keeping.after_pass(recorder, 0)
    settle(recorder)
    (gap,) = [event for event in log.read() if isinstance(event, Gap)]
    assert (gap.source, gap.from_seq, gap.to_seq, gap.cause) == (
        f"{epoch.source:016x}",
        0,
        left - 1,
        "retention",
    )
    assert recorder.gaps == 1
    report = next(e for e in log.verify().epochs if e.role is None and e.first_seq == left)
    assert (report.ok, report.gaps) == (True, [])


def test_a_removed_spool_is_begun_anew(log: Log):
    """Somebody takes the directory away: what was in it is told by a gap, what comes later is there."""
    writer = log.owner()
    recorder = log.recorder()
    writer.append_events([label(0)])
    settle(recorder)
    shutil.rmtree(log.spool)
    writer.append_events([label(1)])
    settle(recorder)
    recorder.look_after()
    writer.append_events([label(2)])
    settle(recorder)
    assert log.labels() == [2]
    of = f"{writer.source.source:016x}"
    gaps = [event for event in log.read() if isinstance(event, Gap) and event.source == of]
    assert [(gap.from_seq, gap.to_seq, gap.cause) for gap in gaps] == [(0, 2, "corrupt")]
    writer.close()
    forget_owner(writer)
    stop(recorder)
    assert log.verify().ok


def test_a_recorder_without_descriptors_goes_on_with_the_first(log: Log, monkeypatch):
    """EMFILE when a ring is to be opened: it is told, tried again, and taken up."""
    monkeypatch.setattr("gateway.audit.recorder.RETRY_S", (0.0, 0.0))
    recorder = log.recorder()
    settle(recorder)
    writer = log.owner()
    writer.append_events([label(1)])
    real = os.open

    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr("os.open", refuse)
        recorder.step()
        assert "open files" in recorder.failing
        recorder.step()
    assert os.open is real
    settle(recorder)
    assert recorder.failing == ""
    assert values(log) == {1}
