"""The recorder, one step at a time, in this process."""

from __future__ import annotations

import os
import struct

import pytest

from gateway.audit.drain import Drain
from gateway.audit.event import EpochClose, Gap
from gateway.audit.ring import Ring
from gateway.audit.spool import SegmentWriter, SyncedMark, closed, epochs, segments
from gateway.errors import FrameCorrupt
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


def test_what_is_appended_gets_to_disk_in_order(log: Log):
    """Events of one owner are on disk as they were appended, and the epoch ends as closed."""
    writer = log.owner()
    recorder = log.recorder()
    for value in range(50):
        writer.append_events([label(value)])
        if value % 7 == 0:
            recorder.step()
    writer.close()
    forget_owner(writer)
    stop(recorder)
    assert log.labels() == list(range(50))
    report = log.verify()
    assert report.ok
    assert {epoch.closed for epoch in report.epochs} == {"closed"}
    assert log.rings() == []


def test_synced_covers_what_is_committed_at_rest(log: Log):
    """At rest synced equals committed in every ring, and the recorder has shown a sign of life."""
    writer = log.owner()
    recorder = log.recorder()
    writer.append_events([label(1)])
    settle(recorder)
    assert writer.ring.synced == writer.ring.committed
    assert writer.ring.recorder_beat_ns > 0
    assert writer.synced(writer.ring.committed)


@pytest.mark.parametrize("call", [1, 2, 3, 4])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (SegmentWriter, "_roll"),
        (SegmentWriter, "write"),
        (SegmentWriter, "sync"),
        (Ring, "set_synced"),
        (SyncedMark, "store"),
        (Drain, "_recover"),
    ],
)
def test_a_kill_at_any_step_loses_and_doubles_nothing(log, monkeypatch, owner, name, when, call):
    """However a recorder dies, the next one leaves each event on disk exactly once."""
    writer = log.owner()
    real = getattr(owner, name)
    calls = 0

    def killing(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call and when == "before":
            raise Killed
        result = real(*args)
        if calls == call:
            raise Killed
        return result

    values = iter(range(1000))
    recorder = log.recorder(segment_bytes=300)
    monkeypatch.setattr(owner, name, killing)
    try:
        for _ in range(8):
            writer.append_events([label(next(values)), label(next(values))])
            recorder.step()
    except Killed:
        pass
    monkeypatch.setattr(owner, name, real)
    forget_recorder(recorder)
    recorder = log.recorder(segment_bytes=300)
    settle(recorder)
    writer.append_events([label(next(values))])
    writer.close()
    forget_owner(writer)
    stop(recorder)
    assert log.labels() == list(range(next(values)))
    assert log.verify().ok
    assert not any(isinstance(event, Gap) for event in log.read())


@pytest.mark.parametrize("step", ["_log", "write_closed", "unlink"])
def test_retirement_is_taken_up_again_after_a_kill(log, monkeypatch, step):
    """A recorder killed while it tells a dead owner's end leaves it to the next to tell."""
    writer = log.owner()
    writer.append_events([label(1)])
    writer.lose(3)
    forget_owner(writer)
    recorder = log.recorder()

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if step == "_log":
            real = recorder._log
            patch.setattr(recorder, "_log", lambda events: (real(events), killed()))
        elif step == "write_closed":
            patch.setattr("gateway.audit.recorder.write_closed", killed)
        else:
            patch.setattr("pathlib.Path.unlink", killed)
        with pytest.raises(Killed):
            settle(recorder)
    forget_recorder(recorder)
    recorder = log.recorder()
    stop(recorder)
    assert log.verify().ok
    assert log.rings() == []


def test_a_dead_owner_s_numbers_without_records_are_told(log: Log):
    """Drawn and unpublished numbers become gaps: ring_full what was pending, owner_died the rest."""
    writer = log.owner()
    writer.append_events([label(1)])
    writer.lose(3)
    writer.ring._words[8] += 2  # numbers drawn for a frame that a kill cut short
    forget_owner(writer)
    recorder = log.recorder()
    stop(recorder)
    gaps = [(e.from_seq, e.to_seq, e.cause) for e in log.read() if isinstance(e, Gap)]
    assert gaps == [(2, 4, "ring_full"), (5, 6, "owner_died")]
    ends = [e for e in log.read() if isinstance(e, EpochClose) and e.cause == "owner_died"]
    assert [end.events for end in ends] == [7]
    assert log.verify().ok


def test_closed_comes_only_once_its_gap_is_on_disk(log: Log):
    """While the recorder's own ring is behind, a dead owner's epoch stays open."""
    writer = log.owner()
    writer.lose(1)
    forget_owner(writer)
    recorder = log.recorder()
    settle(recorder)
    epoch = next(e for e in epochs(log.spool) if e.source == writer.source.source)
    assert closed(epoch) == {"next_seq": 2, "cause": "owner_died"}
    assert any(isinstance(e, Gap) for e in log.read())


def test_a_later_epoch_waits_for_the_earlier(log: Log):
    """A source's next epoch gets to disk only when the one before is over."""
    first = log.owner()
    first.append_events([label(1)])
    forget_owner(first)
    second = log.owner()
    assert second.source.source == first.source.source
    second.append_events([label(2)])
    recorder = log.recorder()
    recorder.step()
    at = [(e.epoch, closed(e) is not None) for e in epochs(log.spool) if e.source == first.source.source]
    assert at == [(first.source.epoch, False)]
    settle(recorder)
    assert log.labels() == [1, 2]


def test_a_full_ring_goes_on_after_a_drain(log: Log):
    """What had no room is a gap that leads the next frame; nothing else is missing."""
    writer = log.owner()
    appended = 0
    while writer.append_events([label(appended, 500)]) is not None:
        appended += 1
    writer.lose(4)
    assert writer.append_events([label(-1, 500)]) is None
    recorder = log.recorder()
    settle(recorder)
    assert writer.append_events([label(appended, 500)]) is not None
    settle(recorder)
    assert log.labels() == list(range(appended + 1))
    report = log.verify()
    assert report.ok
    owner = next(e for e in report.epochs if e.role == "worker")
    assert owner.gaps == [(appended + 1, appended + 4, "ring_full")]


@pytest.mark.parametrize("mode", ["write", "short", "sync"])
def test_a_disk_that_refuses_is_told_and_taken_up_again(log: Log, monkeypatch, mode: str):
    """Owners see `unavailable` while it lasts; afterwards everything is there once."""
    monkeypatch.setattr("gateway.audit.recorder.RETRY_S", (0.0, 0.0))
    disk = FailingDisk()
    writer = log.owner()
    recorder = log.recorder(disk)
    writer.append_events([label(0)])
    settle(recorder)
    disk.mode = mode
    writer.append_events([label(1)])
    for _ in range(3):
        recorder.step()
        assert writer.ring.unavailable
    late = log.owner()
    recorder.step()
    assert late.ring.unavailable
    assert log.labels() == [0]
    disk.mode = ""
    settle(recorder)
    assert not writer.ring.unavailable
    writer.append_events([label(2)])
    settle(recorder)
    assert log.labels() == [0, 1, 2]
    assert log.verify().ok


def test_a_kill_while_the_disk_refuses_loses_nothing(log: Log, monkeypatch):
    """What a failed sync left in a segment is cut by the next recorder and written again."""
    monkeypatch.setattr("gateway.audit.recorder.RETRY_S", (0.0, 0.0))
    disk = FailingDisk()
    writer = log.owner()
    recorder = log.recorder(disk)
    writer.append_events([label(0)])
    settle(recorder)
    disk.mode = "sync"
    writer.append_events([label(1)])
    recorder.step()
    forget_recorder(recorder)
    recorder = log.recorder()
    settle(recorder)
    assert log.labels() == [0, 1]
    assert log.verify().ok


def test_stopping_on_a_disk_that_refuses_ends(log: Log, monkeypatch):
    """SIGTERM ends the recorder although its own last event cannot be written; the next one tells it."""
    monkeypatch.setattr("gateway.audit.recorder.OWN_STOP_S", 0.0)
    disk = FailingDisk()
    recorder = log.recorder(disk)
    settle(recorder)
    disk.mode = "write"
    recorder.close()
    forget_recorder(recorder)
    stop(log.recorder())
    assert log.verify().ok
    assert log.rings() == []


def last_segment(log: Log, source: int) -> str:
    epoch = next(e for e in epochs(log.spool) if e.source == source)
    return str(segments(epoch)[-1][1])


@pytest.mark.parametrize("damage", ["truncated", "flipped", "garbage"])
def test_without_its_ring_an_epoch_ends_at_the_first_bad_frame(log: Log, damage: str):
    """The ring is lost: whole frames stay, an open gap says from where on the rest may be missing."""
    writer = log.owner()
    recorder = log.recorder(segment_bytes=65536)
    for value in range(3):
        writer.append_events([label(value)])
        settle(recorder)
    forget_recorder(recorder)
    forget_owner(writer)
    for ring in log.ring_dir.iterdir():
        ring.unlink()
    path = last_segment(log, writer.source.source)
    with open(path, "r+b") as file:
        size = os.path.getsize(path)
        if damage == "truncated":
            file.truncate(size - 9)
        elif damage == "flipped":
            file.seek(size - 12)
            file.write(b"\xee")
        else:
            file.seek(size)
            file.write(b"\x07" * 40)
    kept = [0, 1, 2] if damage == "garbage" else [0, 1]
    stop(log.recorder())
    assert log.labels() == kept
    gap = next(e for e in log.read() if isinstance(e, Gap) and e.source.endswith(f"{writer.source.source:x}"))
    assert (gap.from_seq, gap.to_seq, gap.cause) == (1 + len(kept), None, "host_loss")
    assert gap.last_synced_ns
    report = log.verify()
    assert report.ok
    assert {"host_loss", "closed"} == {epoch.closed for epoch in report.epochs}


def test_damage_before_the_end_drops_nothing_behind_it(log: Log):
    """A flipped bit in an old segment costs that frame alone; verify names it, recovery leaves the rest."""
    writer = log.owner()
    recorder = log.recorder(segment_bytes=1)
    for value in range(4):
        writer.append_events([label(value)])
        settle(recorder)
    forget_recorder(recorder)
    epoch = next(e for e in epochs(log.spool) if e.source == writer.source.source)
    path = segments(epoch)[1][1]
    content = bytearray(path.read_bytes())
    content[30] ^= 1
    path.write_bytes(content)
    recorder = log.recorder()
    settle(recorder)
    assert log.labels() == [0, 2, 3]
    report = next(e for e in log.verify().epochs if e.role == "worker")
    assert report.missing == [(2, 2)]


def test_records_that_recovery_does_not_find_are_told(log: Log):
    """The last synced frame is unreadable at a start with its ring: a `corrupt` gap covers it."""
    writer = log.owner()
    recorder = log.recorder(segment_bytes=65536)
    for value in range(3):
        writer.append_events([label(value)])
    settle(recorder)
    forget_recorder(recorder)
    path = last_segment(log, writer.source.source)
    os.truncate(path, os.path.getsize(path) - 8)
    recorder = log.recorder()
    settle(recorder)
    writer.append_events([label(3)])
    settle(recorder)
    assert log.labels() == [0, 1, 3]
    assert log.verify().ok
    assert [(e.from_seq, e.to_seq, e.cause) for e in log.read() if isinstance(e, Gap)] == [(3, 3, "corrupt")]


def test_an_end_told_for_another_is_not_its_own(log: Log):
    """A recorder killed right behind an epoch_close of a dead owner has not closed its own epoch."""
    writer = log.owner()
    forget_owner(writer)
    recorder = log.recorder()
    settle(recorder)
    own = recorder._own.source
    forget_recorder(recorder)
    stop(log.recorder())
    report = next(e for e in log.verify().epochs if e.source == f"{own.source:016x}" and e.epoch == own.epoch)
    assert report.closed == "owner_died"


def test_a_corrupt_ring_is_put_aside(log: Log, monkeypatch):
    """Bytes that are no frame: what came before is kept, an open gap tells the rest, the owner is told."""
    monkeypatch.setattr("gateway.audit.drain.DOUBT_NS", 0)
    writer = log.owner()
    recorder = log.recorder()
    writer.append_events([label(0)])
    at = writer.ring.committed
    writer.append_events([label(1)])
    writer.ring._data[at + 25] ^= 1
    with pytest.raises(FrameCorrupt):
        writer.ring.read(at, 1)
    settle(recorder)
    assert writer.ring.unavailable
    assert log.labels() == [0]
    assert [(e.from_seq, e.to_seq, e.cause) for e in log.read() if isinstance(e, Gap)] == [
        (2, None, "corrupt")
    ]
    assert writer.source.ring_path.name + ".bad" in log.rings()
    assert log.verify().ok


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\0" * 8192, struct.pack("<2Q", 7, 8) * 1024])
def test_a_foreign_file_among_the_rings_is_put_aside(log: Log, content: bytes):
    """What is no ring is renamed, once, and the others are drained."""
    name = f"{1:016x}-{2:08x}"
    (log.ring_dir / name).write_bytes(content)
    (log.ring_dir / f"{name}.new").write_bytes(content)
    writer = log.owner()
    recorder = log.recorder()
    writer.append_events([label(1)])
    settle(recorder)
    assert log.labels() == [1]
    assert f"{name}.bad" in log.rings()
    assert f"{name}.new" in log.rings()
