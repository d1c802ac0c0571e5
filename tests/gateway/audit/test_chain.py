"""The running hash of an epoch: what it is, how it is taken up again, and what the recorder says of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from gateway.audit import chain as chain_module
from gateway.audit.chain import ZERO, Chain, recorded
from gateway.audit.event import Heartbeat
from gateway.audit.recorder import Recorder
from gateway.audit.spool import EpochPath, epoch_path, epochs, segments, synced_seq
from gateway.audit.storage import Disk
from gateway.audit.writer import Writer
from tests.gateway.audit.sim import FailingDisk, Log, forget_owner, forget_recorder, label, settle, stop


def by_hand(epoch: EpochPath) -> dict[int, bytes]:
    """The value behind each frame, from the files and the definition alone."""
    value, values = bytes(32), {0: bytes(32)}
    for _, path in segments(epoch):
        content, at = path.read_bytes(), 0
        while at < len(content):
            length = int.from_bytes(content[at : at + 4], "little")
            end = at + (8 + length + 7) // 8 * 8
            value = hashlib.sha256(value + content[at:end]).digest()
            first, count = (
                int.from_bytes(content[at + a : at + b], "little") for a, b in ((8, 16), (16, 20))
            )
            values[first + count] = value
            at = end
    return values


def epoch_of(log: Log, writer: Writer) -> EpochPath:
    """Where a writer's epoch lies."""
    return epoch_path(log.spool, writer.source.source, writer.source.epoch)


def append(writer: Writer, recorder: Recorder, values: range) -> None:
    """An event and a step each, of odd sizes."""
    for value in values:
        writer.append_events([label(value, value % 5)])
        recorder.step()


def positions_of(log: Log, writer: Writer) -> list[tuple[int, str]]:
    """What the recorder's own epochs say of a writer's."""
    key = epoch_of(log, writer).key
    beats = [e for e in log.read() if isinstance(e, Heartbeat) and isinstance(e.positions, dict)]
    return [beat.positions[key] for beat in beats if key in beat.positions]


def test_the_value_is_what_its_definition_says(log: Log):
    """SHA-256 over the last value and the frame as it stands, written down at each segment's start."""
    writer = log.owner()
    recorder = log.recorder(segment_bytes=300)
    append(writer, recorder, range(20))
    epoch = epoch_of(log, writer)
    values = by_hand(epoch)
    assert len(segments(epoch)) > 5
    assert recorded(epoch) == {first: values[first] for first, _ in segments(epoch)}
    (position,) = (d.position for d in recorder._drains.values() if d.key == epoch.key)
    assert position == (synced_seq(epoch), values[synced_seq(epoch)])


@pytest.mark.parametrize("lost", ["nothing", "the last line", "half a line", "every line", "the file"])
def test_a_later_recorder_takes_it_up(log: Log, lost: str):
    """From the last segment, or from as far back as a line is missing; a torn line spoils none."""
    writer = log.owner()
    recorder = log.recorder(segment_bytes=300)
    append(writer, recorder, range(20))
    forget_recorder(recorder)
    epoch = epoch_of(log, writer)
    path = epoch.path / "chain"
    lines = path.read_bytes().splitlines(keepends=True)
    left = {"the last line": lines[:-1], "half a line": [*lines[:-1], lines[-1][:50]], "every line": []}
    if lost in left:
        path.write_bytes(b"".join(left[lost]))
    elif lost == "the file":
        path.unlink()
    recorder = log.recorder(segment_bytes=300)
    append(writer, recorder, range(20, 25))
    values = by_hand(epoch)
    assert recorded(epoch) == {first: values[first] for first, _ in segments(epoch)}


def test_only_the_last_segment_is_read_again(log: Log, monkeypatch: pytest.MonkeyPatch):
    """What stands before a recorded start is not."""
    writer = log.owner()
    recorder = log.recorder(segment_bytes=300)
    append(writer, recorder, range(20))
    read: list[Path] = []
    real = chain_module.walk
    monkeypatch.setattr(chain_module, "walk", lambda path, **_: (read.append(path), real(path))[1])
    epoch = epoch_of(log, writer)
    resumed = Chain.resume(epoch, Disk(), synced_seq(epoch))
    assert resumed.value == by_hand(epoch)[synced_seq(epoch)]
    assert read == [segments(epoch)[-1][1]]


@pytest.mark.parametrize("mode", ["write", "short", "sync"])
def test_a_frame_that_is_written_again_counts_once(log: Log, mode: str):
    """A disk that refused changes no value."""
    disk = FailingDisk()
    writer = log.owner()
    recorder = log.recorder(disk, segment_bytes=300)
    append(writer, recorder, range(5))
    disk.mode = mode
    append(writer, recorder, range(5, 8))
    disk.mode = ""
    recorder._retry_at = 0.0
    append(writer, recorder, range(8, 12))
    epoch = epoch_of(log, writer)
    values = by_hand(epoch)
    (position,) = (d.position for d in recorder._drains.values() if d.key == epoch.key)
    assert position == (synced_seq(epoch), values[synced_seq(epoch)])
    assert recorded(epoch) == {first: values[first] for first, _ in segments(epoch)}


class FullForLines(Disk):
    """A disk that takes segments and, while `full`, no line of the chain file."""

    full = True

    def write(self, fd: int, data: memoryview) -> int:
        """write(2), or not."""
        if self.full and data[20:21] == b" ":
            raise OSError(28, "No space left on device")
        return super().write(fd, data)


def test_a_line_that_finds_no_room_is_written_later(log: Log):
    """The records are what counts: a chain file that cannot be written stops none, and misses none in the end."""
    disk = FullForLines()
    writer = log.owner()
    recorder = log.recorder(disk, segment_bytes=300)
    append(writer, recorder, range(10))
    epoch = epoch_of(log, writer)
    assert recorded(epoch) == {}
    assert log.labels() == list(range(10))
    disk.full = False
    append(writer, recorder, range(10, 14))
    values = by_hand(epoch)
    assert recorded(epoch) == {first: values[first] for first, _ in segments(epoch)}


def test_what_the_disk_lost_is_not_in_it(log: Log):
    """Frames that recovery does not find any more are in no value behind them."""
    disk = FailingDisk()
    writer = log.owner()
    recorder = log.recorder(disk, segment_bytes=300)
    append(writer, recorder, range(9))
    epoch = epoch_of(log, writer)
    segments(epoch)[-1][1].unlink()
    disk.mode = "sync"
    append(writer, recorder, range(9, 10))
    disk.mode = ""
    recorder._retry_at = 0.0
    append(writer, recorder, range(10, 12))
    (position,) = (d.position for d in recorder._drains.values() if d.key == epoch.key)
    assert position == (synced_seq(epoch), by_hand(epoch)[synced_seq(epoch)])


def test_it_begins_anew_where_no_value_is_known(log: Log, monkeypatch: pytest.MonkeyPatch):
    """Too much to read again, and no line: a line of zeros says so."""
    writer = log.owner()
    recorder = log.recorder(segment_bytes=300)
    append(writer, recorder, range(20))
    forget_recorder(recorder)
    epoch = epoch_of(log, writer)
    (epoch.path / "chain").unlink()
    monkeypatch.setattr(chain_module, "BACK_BYTES", 0)
    last = segments(epoch)[-1][0]
    append(writer, log.recorder(segment_bytes=300), range(20, 22))
    assert recorded(epoch)[last] == ZERO


def test_positions_are_said_once_a_minute(log: Log):
    """Only of what moved; the value is that of the number beside it."""
    writer = log.owner()
    recorder = log.recorder()
    append(writer, recorder, range(4))
    assert positions_of(log, writer) == []
    for expected in (1, 1, 2):
        recorder._positions._next_ns = 0
        if expected == 2:
            append(writer, recorder, range(4, 5))
        settle(recorder)
        assert len(positions_of(log, writer)) == expected
    values = by_hand(epoch_of(log, writer))
    assert [(seq, digits) for seq, digits in positions_of(log, writer)] == [
        (seq, values[seq].hex()) for seq, _ in positions_of(log, writer)
    ]


@pytest.mark.parametrize("end", ["closed", "killed", "ring lost"])
def test_an_epoch_s_end_is_said(log: Log, end: str):
    """However it ended, the recorder's epoch names the value of all of it."""
    writer = log.owner()
    recorder = log.recorder()
    append(writer, recorder, range(4))
    if end == "closed":
        writer.close()
    forget_owner(writer)
    if end == "ring lost":
        forget_recorder(recorder)
        writer.source.ring_path.unlink()
        recorder = log.recorder()
    stop(recorder)
    epoch = epoch_of(log, writer)
    at = synced_seq(epoch)
    assert positions_of(log, writer) == [(at, by_hand(epoch)[at].hex())]


def test_a_recorder_says_what_its_predecessor_ended_with(log: Log):
    """The frames behind the last position of an epoch that its recorder closed are named by the next one."""
    for _ in range(2):
        recorder = log.recorder()
        stop(recorder)
        forget_owner(recorder._own)
    first, second = epochs(log.spool)
    beats = [e for e in log.read() if isinstance(e, Heartbeat) and e.id.startswith(second.key)]
    named = [
        b.positions[first.key] for b in beats if isinstance(b.positions, dict) and first.key in b.positions
    ]
    assert named[0] == (synced_seq(first), by_hand(first)[synced_seq(first)].hex())
