"""Sources and writers: who gets which place in the log, and what a writer puts there."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from gateway.audit import source as source_module
from gateway.audit import writer as writer_module
from gateway.audit.event import EpochClose, EpochOpen, Gap, Heartbeat
from gateway.audit.frame import Events, Frame, decode_payload
from gateway.audit.identity import parse_event_id, source_of
from gateway.audit.source import claim_source, make_ring
from gateway.audit.writer import Writer
from gateway.errors import RingUnusable
from tests.gateway.audit.sim import GATEWAY_ID, Log, forget_owner, label


def contents(writer: Writer) -> list[object]:
    """Events in the ring, in order."""
    frames, _, _ = writer.ring.read(0, 1 << 30)
    found: list[object] = []
    for frame in frames:
        content = decode_payload(frame.payload)
        assert isinstance(content, Events)
        found += content.events
    return found


def frames(writer: Writer) -> list[Frame]:
    """Frames in the ring."""
    return writer.ring.read(0, 1 << 30)[0]


def test_a_process_takes_the_lowest_free_index_of_its_role(log: Log):
    """Indices are by role; one that a dead process leaves is taken again, in a later epoch."""
    first, second, other = log.owner(), log.owner(), log.owner("control")
    assert [(w.source.role, w.source.index) for w in (first, second, other)] == [
        ("worker", 0),
        ("worker", 1),
        ("control", 0),
    ]
    assert first.source.source == source_of(GATEWAY_ID, "worker", 0)
    assert first.source.prev_epoch is None
    epoch = first.source.epoch
    forget_owner(first)
    again = log.owner()
    assert again.source.index == 0
    assert again.source.epoch > epoch
    assert again.source.prev_epoch == epoch


def test_epochs_go_up_when_the_clock_does_not(log: Log, monkeypatch: pytest.MonkeyPatch):
    """epoch = max(last + 1, unix seconds), also when the clock goes back."""
    monkeypatch.setattr(source_module.time, "time", lambda: 1000.5)
    epochs = []
    for _ in range(3):
        writer = log.owner()
        epochs.append(writer.source.epoch)
        forget_owner(writer)
    assert epochs == [1000, 1001, 1002]
    assert (log.spool / f"{source_of(GATEWAY_ID, 'worker', 0):016x}" / "epoch").read_text() == "1002\n"


def test_a_ring_is_seen_only_whole_and_locked(log: Log):
    """The file has its final name, size and mode, and its owner's lock."""
    writer = log.owner()
    path = writer.source.ring_path
    assert log.rings() == [path.name]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size == 4096 + 65536
    fd = os.open(path, os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


def test_no_room_for_a_ring_says_what_to_do(log: Log, monkeypatch: pytest.MonkeyPatch):
    """ENOSPC is one sentence with the fix, and leaves no file."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RingUnusable, match="--shm-size"):
        claim_source(log.state_dir, GATEWAY_ID, "worker", log.ring_dir, 65536)
    assert log.rings() == []


def test_a_ring_shrinks_to_half_of_what_is_free(log: Log, monkeypatch: pytest.MonkeyPatch):
    """Down to 4 MiB, never below."""

    class Stat:
        f_frsize = 4096
        f_bavail = 3 * 1024  # 12 MiB

    writer = log.owner()
    monkeypatch.setattr(os, "statvfs", lambda _: Stat)
    ring, _, fd = make_ring(log.ring_dir, writer.ring.facts._replace(epoch=1), 32 * 1024 * 1024)
    assert ring.capacity == 6 * 1024 * 1024
    os.close(fd)


def test_a_ring_is_mapped_as_a_whole(log: Log):
    """Its pages are there before the first request: memory does not grow with the log, and no append waits for one."""
    writer = log.owner()
    ring, path, fd = make_ring(log.ring_dir, writer.ring.facts._replace(epoch=1), 4 * 1024 * 1024)
    maps = Path("/proc/self/smaps").read_text().partition(f" {path}\n")[2]
    rss_kib = int(maps.partition("Rss:")[2].split()[0])
    assert rss_kib * 1024 > ring.capacity
    os.close(fd)


def test_an_epoch_opens_and_closes(log: Log):
    """Seq 0 is epoch_open, the last is epoch_close with the count of numbers drawn, itself included."""
    writer = log.owner()
    writer.append_events([label(1), label(2)])
    writer.close()
    opened, *_, end = contents(writer)
    assert isinstance(opened, EpochOpen)
    assert (opened.role, opened.index, opened.pid) == ("worker", 0, os.getpid())
    assert isinstance(end, EpochClose)
    assert end.events == writer.ring.assigned == 4
    assert (end.source, end.epoch) == (f"{writer.source.source:016x}", writer.source.epoch)


def test_numbers_are_drawn_in_frames(log: Log):
    """`append_*` return the first number; ids follow from it."""
    writer = log.owner()
    assert writer.append_events([label(1), label(2)]) == 1
    assert writer.append_events([label(3)]) == 3
    assert [(f.first_seq, f.count) for f in frames(writer)] == [(0, 1), (1, 2), (3, 1)]
    assert parse_event_id(writer.event_id(3)).seq == writer.ring.assigned - 1


def test_lost_numbers_lead_the_next_frame_as_a_gap(log: Log):
    """What was drawn without room is told before anything else is appended, once."""
    writer = log.owner()
    assert writer.lose(2) == 1
    assert writer.lose(1) == 3
    assert writer.append_events([label(1)]) == 5
    writer.append_events([label(2)])
    gaps = [e for e in contents(writer) if isinstance(e, Gap)]
    assert [(g.from_seq, g.to_seq, g.cause) for g in gaps] == [(1, 3, "ring_full")]
    assert writer.ring.pending_gap is None


def test_an_idle_source_says_that_it_lives(log: Log, monkeypatch: pytest.MonkeyPatch):
    """A heartbeat a second, and none while events are appended."""
    writer = log.owner()
    writer.heartbeat()
    now_ns = writer_module.time.monotonic_ns()
    monkeypatch.setattr(writer_module.time, "monotonic_ns", lambda: now_ns + 1_100_000_000)
    writer.heartbeat()
    writer.heartbeat()
    assert [type(e) for e in contents(writer)] == [EpochOpen, Heartbeat]


def test_a_ring_left_half_made_is_removed_by_the_next(log: Log):
    """A process killed while it made its ring leaves a file that nobody drains; those of other sources stay."""
    writer = log.owner()
    other = f"{1:016x}-{2:08x}.new"
    (log.ring_dir / f"{writer.source.ring_path.name}.new").write_bytes(bytes(8192))
    (log.ring_dir / other).write_bytes(bytes(8192))
    forget_owner(writer)
    again = log.owner()
    assert log.rings() == sorted([other, writer.source.ring_path.name, again.source.ring_path.name])
