"""The spool as files: reading, following, trimming."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gateway import config
from gateway.audit import spool as spool_module
from gateway.audit.event import Feedback
from gateway.audit.frame import Events, encoder, expand, seal
from gateway.audit.identity import EventId
from gateway.audit.locate import frame_of
from gateway.audit.retention import Retention, default_max_bytes, segment_bytes
from gateway.audit.spool import (
    EpochPath,
    EpochReader,
    SyncedMark,
    epoch_path,
    epochs,
    read_epoch,
    segments,
    synced_seq,
    write_closed,
)
from gateway.audit.spool_feed import SpoolFeed
from gateway.audit.verify import status, verify
from tests.gateway.audit.sim import Log, forget_owner, label, settle, stop

SOURCE, EPOCH = 0xABC, 0x65000000
KAFKA = 'kafka={"bootstrap_servers": "127.0.0.1:1"}'


def write(spool: Path, frames: dict[int, list[int]], synced: int, pad_bytes: int = 0) -> EpochPath:
    """An epoch of segments {first seq: seqs}, a frame a number."""
    epoch = epoch_path(spool, SOURCE, EPOCH)
    epoch.path.mkdir(parents=True, exist_ok=True)
    for first, seqs in frames.items():
        content = b"".join(seal(n, 1, encoder.encode(Events([label(n, pad_bytes)]))) for n in seqs)
        (epoch.path / f"{first:020d}.log").write_bytes(content)
    mark = SyncedMark(epoch.path / "synced")
    mark.store(synced)
    mark.close()
    return epoch


def seqs(epoch: EpochPath, from_seq: int = 0) -> list[int]:
    """Numbers read."""
    return [frame.first_seq for frame in read_epoch(epoch, from_seq)]


def test_readers_stop_at_the_mark(tmp_path: Path):
    """Frames from the synced number on are not there yet."""
    epoch = write(tmp_path, {0: [0, 1, 2], 3: [3, 4]}, 4)
    assert seqs(epoch) == [0, 1, 2, 3]
    assert seqs(epoch, 2) == [2, 3]
    assert seqs(epoch, 4) == []
    assert frame_of(epoch, 4) is None


def test_the_mark_never_moves_back(tmp_path: Path):
    """A lower number is not stored."""
    mark = SyncedMark(tmp_path / "synced")
    mark.store(7)
    mark.store(3)
    assert mark.next_seq == 7
    mark.close()


def test_what_the_next_segment_begins_with_counts(tmp_path: Path):
    """A cut that did not reach the disk leaves numbers twice: the later segment's are read."""
    epoch = write(tmp_path, {0: [0, 1, 2, 3], 2: [2, 3]}, 4)
    assert seqs(epoch) == [0, 1, 2, 3]
    assert verify(tmp_path).ok


@pytest.mark.parametrize("size", [16, 64, 1000])
def test_segments_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int):
    """Whatever is read at once, frames come whole; a bad length ends a segment, not the reader."""
    monkeypatch.setattr(spool_module, "READ_BYTES", size)
    epoch = write(tmp_path, {0: list(range(9)), 9: [9, 10]}, 11, pad_bytes=100)
    assert seqs(epoch) == list(range(11))
    path = segments(epoch)[0][1]
    content = bytearray(path.read_bytes())
    at = len(content) // 9 * 4
    content[at : at + 4] = b"\xff\xff\xff\x7f"
    path.write_bytes(content)
    assert seqs(epoch) == [0, 1, 2, 3, 9, 10]
    report = verify(tmp_path).epochs[0]
    assert report.missing == [(4, 8)]


def test_a_reader_that_follows_keeps_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What was read is not read again when more is appended; a reader put back begins anew."""
    epoch = write(tmp_path, {0: [0, 1, 2]}, 3)
    reader = EpochReader(epoch)
    assert [f.first_seq for f in reader.frames(0)] == [0, 1, 2]
    write(tmp_path, {0: [0, 1, 2, 3, 4]}, 5)
    offsets: list[int] = []
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, at: (offsets.append(at), real(fd, n, at))[1])
    assert [f.first_seq for f in reader.frames(3)] == [3, 4]
    assert min(offsets) > 0
    assert [f.first_seq for f in reader.frames(1)] == [1, 2, 3, 4]


def test_an_event_is_found_by_its_id(log: Log):
    """`find` returns the event of an id, and None for one that was never drawn."""
    writer = log.owner()
    recorder = log.recorder(segment_bytes=300)
    for value in range(20):
        writer.append_events([label(value), label(100 + value)])
        recorder.step()
    settle(recorder)
    which = EventId(writer.source.source, writer.source.epoch, 1 + 2 * 13 + 1)
    epoch = epoch_path(log.spool, which.source, which.epoch)
    frame = frame_of(epoch, which.seq)
    assert frame is not None
    found = expand(which.source, which.epoch, frame)[which.seq - frame.first_seq]
    assert isinstance(found, Feedback)
    assert found.labels[0]["value"] == 113
    assert found.id == str(which)
    assert frame_of(epoch, 999) is None
    assert frame_of(epoch_path(log.spool, 1, which.epoch), which.seq) is None


def test_frames_for_columns_move_the_positions(log: Log):
    """`read_frames` gives each frame once and resumes behind it."""
    writer = log.owner()
    recorder = log.recorder(segment_bytes=300)
    for value in range(10):
        writer.append_events([label(value)])
        recorder.step()
    settle(recorder)
    feed = SpoolFeed(log.spool)
    taken = feed.read_frames(4)
    rest = SpoolFeed(log.spool, feed.positions).read_frames(1000)
    both = [(epoch.key, frame.first_seq) for epoch, frame in taken + rest]
    assert len(both) == len(set(both))
    assert len([key for key, _ in both if key.startswith(f"{writer.source.source:016x}")]) == 11


def retention(state_dir: Path, *settings: str) -> Retention:
    """Retention as configured."""
    loaded, _ = config.load(None, list(settings), {})
    return Retention(state_dir / "spool", loaded)


def went(retention: Retention) -> int:
    """Segments that one pass removes."""
    return sum(trim.segments for trim in retention.apply(1e9))


def aged(epoch: EpochPath, ages_h: list[int], now_s: float) -> None:
    """Set when each segment was last written."""
    for (_, path), age_h in zip(segments(epoch), ages_h, strict=True):
        os.utime(path, (now_s - age_h * 3600, now_s - age_h * 3600))


def test_old_segments_go_and_never_the_active_one(tmp_path: Path):
    """Segments beyond audit.keep_h are removed; a reader behind gets the skipped numbers as a hole."""
    epoch = write(tmp_path / "spool", {0: [0, 1], 2: [2, 3], 4: [4, 5]}, 6)
    aged(epoch, [9, 3, 9], 1e9)
    assert went(retention(tmp_path, "audit.keep_h=5")) == 1
    assert [first for first, _ in segments(epoch)] == [2, 4]
    delivery = SpoolFeed(tmp_path / "spool", {epoch.key: 1}).read(100, 0)
    assert [tuple(hole) for hole in delivery.holes] == [(SOURCE, EPOCH, 1, 1, "retention")]
    assert len(delivery.events) == 4
    report = verify(tmp_path / "spool").epochs[0]
    assert (report.ok, report.first_seq, report.next_seq) == (True, 2, 6)


def test_over_the_limit_the_oldest_go_first(tmp_path: Path):
    """audit.max_bytes holds for all sources together, the segment being written included."""
    epoch = write(tmp_path / "spool", {n: [n] for n in range(6)}, 6, pad_bytes=400_000)
    aged(epoch, [6, 5, 4, 3, 2, 1], 1e9)
    assert went(retention(tmp_path, "audit.max_bytes=1300000")) == 3
    assert [first for first, _ in segments(epoch)] == [3, 4, 5]


def test_only_a_forwarder_holds_records_back(tmp_path: Path):
    """With Kafka configured what was not acknowledged stays beyond its age."""
    epoch = write(tmp_path / "spool", {n: [n] for n in range(4)}, 4, pad_bytes=400_000)
    write_closed(epoch, 4, "closed")
    aged(epoch, [400, 399, 398, 397], 1e9)
    held = retention(tmp_path, KAFKA)
    assert went(held) == 0
    positions = tmp_path / "forwarder" / "positions.json"
    positions.parent.mkdir()
    positions.write_text(json.dumps({epoch.key: {"partition": 0, "next_seq": 2}}))
    assert went(held) == 2
    assert [first for first, _ in segments(epoch)] == [2, 3]
    positions.write_text(json.dumps({epoch.key: {"partition": 0, "next_seq": 4}}))
    assert went(held) == 2


def test_at_the_limit_unsent_records_stay_and_workers_wait(tmp_path: Path):
    """Only sent ones go, oldest first; what is left over the limit is told, until it is well below it again."""
    epoch = write(tmp_path / "spool", {n: [n] for n in range(4)}, 4, pad_bytes=400_000)
    aged(epoch, [4, 3, 2, 1], 1e9)
    held = retention(tmp_path, KAFKA, "audit.max_bytes=1300000")
    assert went(held) == 0
    assert held.at_limit
    assert held.held_bytes == held.total_bytes > 1_600_000
    positions = tmp_path / "forwarder" / "positions.json"
    positions.parent.mkdir()
    positions.write_text(json.dumps({epoch.key: {"partition": 0, "next_seq": 1}}))
    assert went(held) == 1
    assert [first for first, _ in segments(epoch)] == [1, 2, 3]
    assert not held.at_limit, "1.2 MB are below 15/16 of the limit"
    with next(path for first, path in segments(epoch) if first == 3).open("ab") as last:
        last.write(bytes(50_000))
    assert went(held) == 0
    assert not held.at_limit, "between the two marks nothing changes"
    with next(path for first, path in segments(epoch) if first == 3).open("ab") as last:
        last.write(bytes(100_000))
    assert went(held) == 0
    assert held.at_limit
    os.truncate(segments(epoch)[-1][1], 450_000)
    assert went(held) == 0
    assert held.at_limit, "1.25 MB: under the limit, and not yet well below it"


def test_what_is_sent_and_being_written_holds_nobody_up(tmp_path: Path):
    """A last segment as large as the limit: once it is sent, records are written again, and it can roll."""
    epoch = write(tmp_path / "spool", {0: [0, 1, 2]}, 3, pad_bytes=400_000)
    held = retention(tmp_path, KAFKA, "audit.max_bytes=1048576")
    held.apply(1e9)
    assert held.at_limit
    positions = tmp_path / "forwarder" / "positions.json"
    positions.parent.mkdir()
    positions.write_text(json.dumps({epoch.key: {"partition": 0, "next_seq": 3}}))
    assert went(held) == 0
    assert not held.at_limit


def test_what_was_written_since_counts(tmp_path: Path):
    """Between two passes the limit is seen by what came."""
    write(tmp_path / "spool", {0: [0]}, 1)
    held = retention(tmp_path, KAFKA, "audit.max_bytes=1048576")
    held.apply(1e9)
    assert not held.is_over
    held.wrote(1_048_576)
    assert held.is_over


def test_what_went_is_named(tmp_path: Path):
    """One entry an epoch and run of numbers, for the gap that tells it."""
    epoch = write(tmp_path / "spool", {0: [0, 1], 2: [2, 3], 4: [4, 5]}, 6)
    aged(epoch, [9, 9, 9], 1e9)
    (trim,) = retention(tmp_path, "audit.keep_h=5").apply(1e9)
    assert (trim.epoch, trim.from_seq, trim.to_seq, trim.segments) == (epoch, 0, 3, 2)


def test_segments_are_small_where_the_limit_is(tmp_path: Path):
    """Those being written cannot go: all sources' together take an eighth of the limit at most."""
    loaded, _ = config.load(None, ["workers=4"], {})
    assert segment_bytes(loaded, 20 * 1024**3) == loaded.audit.segment_bytes
    assert segment_bytes(loaded, 1 << 20) * 8 <= (1 << 20) // 8


def test_an_epoch_that_is_over_and_empty_goes(log: Log):
    """Its directory is removed a pass after its last segment, and a recorder does not take it for lost."""
    writer = log.owner()
    recorder = log.recorder()
    writer.close()
    forget_owner(writer)
    stop(recorder)
    loaded = retention(log.state_dir, "audit.keep_h=1")
    loaded.apply(4e9)
    assert [segments(epoch) for epoch in epochs(log.spool)] == [[], []]
    assert loaded.apply(4e9, told=False) == []
    assert len(epochs(log.spool)) == 2, "what went is not in the log yet"
    assert loaded.apply(4e9) == []
    assert epochs(log.spool) == []
    stop(log.recorder())
    assert [epoch.closed for epoch in log.verify().epochs] == ["closed"]


def test_the_limit_defaults_to_a_share_of_the_disk(tmp_path: Path):
    """The lesser of 20 GiB and a fifth of the file system."""
    stat = os.statvfs(tmp_path)
    assert default_max_bytes(tmp_path) == min(20 * 1024**3, stat.f_blocks * stat.f_frsize // 5)


def test_verify_finds_what_is_missing_and_what_is_twice(tmp_path: Path):
    """Holes without a gap, doubles, and numbers below the mark that no segment holds."""
    epoch = write(tmp_path, {0: [0, 1, 1, 4]}, 9)
    (report,) = verify(tmp_path).epochs
    assert report.missing == [(2, 3), (5, 8)]
    assert report.twice == 1
    assert not report.ok
    assert synced_seq(epoch) == 9


def test_status_tells_rings_and_disk(log: Log):
    """Per source: the next number, what waits in the ring, and the bytes of all its epochs."""
    writer = log.owner()
    recorder = log.recorder(segment_bytes=300)
    for value in range(9):
        writer.append_events([label(value)])
        recorder.step()
    settle(recorder)
    writer.append_events([label(9)])
    of = {s.source: s for s in status(log.spool, log.ring_dir)}[f"{writer.source.source:016x}"]
    epoch = next(e for e in epochs(log.spool) if e.source == writer.source.source)
    assert of.next_seq == 10
    assert of.ring_bytes == writer.ring.committed - writer.ring.synced > 0
    assert of.spool_bytes == sum(path.stat().st_size for _, path in segments(epoch))
    assert of.oldest_age_s >= of.age_s >= 0
