"""Files that are torn, damaged, empty or in the way: each has one outcome, and none of them is a crash."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

import pytest

from gateway.audit import source as source_module
from gateway.audit.event import Feedback, Gap
from gateway.audit.frame import Events, encoder, seal
from gateway.audit.recovery import cut
from gateway.audit.spool import (
    EpochPath,
    SegmentWriter,
    SyncedMark,
    closed,
    epoch_path,
    epochs,
    read_epoch,
    segments,
    synced_seq,
    write_closed,
)
from gateway.audit.storage import Disk
from tests.gateway.audit.powerless import events_of
from tests.gateway.audit.sim import (
    Killed,
    Log,
    forget_owner,
    forget_recorder,
    label,
    settle,
    stop,
)
from tests.gateway.audit.simulated_disk import SimulatedDisk, Tree

SOURCE, EPOCH = 0xABC, 0x65000000
FRAMES = [seal(n, 1, encoder.encode(Events([label(n)]))) for n in range(6)]
LAST_BYTES = len(encoder.encode(Events([label(2)]))) + 20
"""Of the last frame, padding left out."""


def tree_of(files: dict[str, bytes]) -> Tree:
    """A spool with one epoch."""
    return {"spool": {f"{SOURCE:016x}": {f"{EPOCH:08x}": dict(files)}}}


def recovered(
    log: Log, files: dict[str, bytes]
) -> tuple[list[int], list[tuple[int, int | None, str]], SimulatedDisk]:
    """A recorder over it, from start to end: the labels that are left, the gaps told, and the disk."""
    disk = SimulatedDisk(log.state_dir, log.ring_dir, tree_of(files))
    recorder = log.recorder(disk)
    settle(recorder)
    recorder.close()
    values: list[int] = []
    gaps: list[tuple[int, int | None, str]] = []
    for epoch in epochs(log.spool, disk):
        assert closed(epoch, disk) is not None
        for event in events_of(list(read_epoch(epoch, 0, disk))):
            if isinstance(event, Feedback):
                values.append(event.labels[0]["value"])
            elif isinstance(event, Gap) and event.source == f"{SOURCE:016x}":
                gaps.append((event.from_seq, event.to_seq, event.cause))
    return values, gaps, disk


def files(last: bytes, synced: int = 3) -> dict[str, bytes]:
    """Three frames in a segment, the last of them as given."""
    return {f"{0:020d}.log": FRAMES[0] + FRAMES[1] + last, "synced": synced.to_bytes(8, "little")}


def test_a_last_frame_cut_at_any_byte_is_cut_off(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole frames before it stay, the epoch's end is told from there on, and what was torn is kept aside."""
    monkeypatch.setattr("gateway.audit.recorder.SMALL_RING_BYTES", 16384)
    for size in range(len(FRAMES[2])):
        values, gaps, disk = recovered(log, files(FRAMES[2][:size]))
        whole = size >= LAST_BYTES
        assert values == ([0, 1, 2] if whole else [0, 1]), size
        assert gaps == [(len(values), None, "host_loss")], size
        aside = epoch_path(log.spool, SOURCE, EPOCH).path / f"{0:020d}.cut"
        if 0 < size < LAST_BYTES:
            assert disk.content(aside) == FRAMES[2][:size]


def test_a_last_frame_with_any_bit_turned_is_cut_off(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every byte, a bit of it; what follows the frame's content is padding and loses nothing."""
    monkeypatch.setattr("gateway.audit.recorder.SMALL_RING_BYTES", 16384)
    rng = random.Random(5)
    for at in range(len(FRAMES[2])):
        damaged = bytearray(FRAMES[2])
        damaged[at] ^= 1 << rng.randrange(8)
        values, gaps, _ = recovered(log, files(bytes(damaged)))
        assert values == ([0, 1, 2] if at >= LAST_BYTES else [0, 1]), at
        assert gaps == [(len(values), None, "host_loss")], at


@pytest.mark.parametrize(
    "tail",
    [b"\0" * 4096, b"\xff" * 64, b"\0" * 4 + b"\xff" * 20, random.Random(1).randbytes(1000)],
    ids=["zeros", "ones", "short", "noise"],
)
def test_what_is_no_frame_behind_the_last_is_cut_off(log: Log, tail: bytes) -> None:
    """Zeros of a file that grew, ones, noise: the frames before it stay."""
    values, gaps, _ = recovered(log, files(FRAMES[2] + tail))
    assert values == [0, 1, 2]
    assert gaps == [(3, None, "host_loss")]


@pytest.mark.parametrize(
    ("mark", "seq"),
    [(b"", 0), (b"\x03", 0), (b"\x03\0\0\0\0\0\0", 0), ((3).to_bytes(8, "little") + b"more", 3)],
    ids=["empty", "a byte", "seven", "more"],
)
def test_a_mark_that_is_not_whole_is_no_mark(log: Log, mark: bytes, seq: int) -> None:
    """Readers see nothing until a recorder says what is on disk; then all of it."""
    disk = SimulatedDisk(log.state_dir, log.ring_dir, tree_of({**files(FRAMES[2]), "synced": mark}))
    assert synced_seq(epoch_path(log.spool, SOURCE, EPOCH), disk) == seq
    values, _, _ = recovered(log, {**files(FRAMES[2]), "synced": mark})
    assert values == [0, 1, 2]


@pytest.mark.parametrize("content", [b"", b'{"next_s', b"5", b"null", b"\xff\xfe", b"[]"])
def test_an_end_that_is_not_whole_is_no_end(log: Log, content: bytes) -> None:
    """The epoch is taken for open and ended anew, from what is on disk."""
    values, gaps, disk = recovered(log, {**files(FRAMES[2]), "closed": content})
    assert values == [0, 1, 2]
    assert gaps == [(3, None, "host_loss")]
    assert closed(epoch_path(log.spool, SOURCE, EPOCH), disk) == {"next_seq": 3, "cause": "host_loss"}


def test_an_end_half_written_is_in_nobody_s_way(log: Log) -> None:
    """Temporary files and aside ones from another life are written over."""
    values, _, _ = recovered(
        log, {**files(FRAMES[2][:40]), "closed.new": b"half", f"{0:020d}.cut": b"older", "lost+found": b""}
    )
    assert values == [0, 1]


@pytest.mark.parametrize("torn", [b"", FRAMES[3][:30], b"\0" * 64], ids=["empty", "torn", "zeros"])
def test_a_segment_left_at_a_roll_is_in_nobody_s_way(log: Log, monkeypatch, torn: bytes) -> None:
    """At a start and while it runs: its name is free again, and its number is written."""
    monkeypatch.setattr("gateway.audit.recorder.RETRY_S", (0.0, 0.0))
    writer = log.owner()
    recorder = log.recorder(segment_bytes=1)
    for value in range(3):
        writer.append_events([label(value)])
        settle(recorder)
    forget_recorder(recorder)
    epoch = next(e for e in epochs(log.spool) if e.source == writer.source.source)
    (epoch.path / f"{4:020d}.log").write_bytes(torn)
    recorder = log.recorder(segment_bytes=1)
    settle(recorder)
    for value in range(3, 6):
        (epoch.path / f"{value + 1:020d}.log").write_bytes(torn)
        writer.append_events([label(value)])
        recorder.step()
        settle(recorder)
    assert log.labels() == list(range(6))
    writer.close()
    forget_owner(writer)
    stop(recorder)
    assert log.verify().ok


def test_names_of_others_in_the_spool_are_passed_over(log: Log) -> None:
    """Directories and files that are not ours are neither read nor a reason to stop."""
    writer = log.owner()
    recorder = log.recorder()
    writer.append_events([label(0)])
    settle(recorder)
    epoch = next(e for e in epochs(log.spool) if e.source == writer.source.source)
    (log.spool / "sixteen-letters!").mkdir()
    (epoch.path.parent / "eight--8").mkdir()
    for name in ("notes.log", "copy of 00000000.log", f"{7:020d}.log.gz"):
        (epoch.path / name).write_bytes(b"?")
    (log.ring_dir / "sixteen-letters!-8letters").write_bytes(b"?")
    settle(recorder)
    assert log.labels() == [0]
    assert [first for first, _ in segments(epoch)] == [0]
    assert log.verify().ok


@pytest.mark.parametrize("content", [b"", b"\0\0\0\0", b"12x4", b"-7", b"99999999999999999999", b"\xff\xfe"])
def test_a_torn_epoch_file_takes_no_number_twice(log: Log, monkeypatch, content: bytes) -> None:
    """What lies beside it says which epochs there were; the clock, which may be behind, does not."""
    monkeypatch.setattr(source_module.time, "time", lambda: 1000.5)
    writer = log.owner()
    recorder = log.recorder()
    settle(recorder)
    stop_owner(writer)
    first = writer.source.epoch
    directory = log.spool / f"{writer.source.source:016x}"
    (directory / f"{first + 5:08x}").mkdir()
    (directory / "epoch").write_bytes(content)
    again = log.owner()
    assert (again.source.epoch, again.source.prev_epoch) == (first + 6, first + 5)
    assert (directory / "epoch").read_text() == f"{first + 6}\n"


def test_an_epoch_file_older_than_the_spool_is_not_believed(log: Log, monkeypatch) -> None:
    """As from a backup: the next epoch is behind all that lie there."""
    monkeypatch.setattr(source_module.time, "time", lambda: 1000.5)
    writer = log.owner()
    directory = log.spool / f"{writer.source.source:016x}"
    (directory / f"{5000:08x}").mkdir()
    stop_owner(writer)
    assert log.owner().source.epoch == 5001


def stop_owner(writer) -> None:
    """In order."""
    writer.close()
    forget_owner(writer)


class Sparing(Disk):
    """Takes a byte, then three, then all, of each write."""

    def __init__(self) -> None:
        self.calls = 0

    def write(self, fd: int, data: memoryview) -> int:
        self.calls += 1
        return os.write(fd, data[: (1, 3, len(data))[self.calls % 3]])


def test_a_short_write_goes_on(tmp_path: Path) -> None:
    """What a write did not take is written behind it, and the frames are whole."""
    disk = Sparing()
    epoch = epoch_path(tmp_path, SOURCE, EPOCH)
    writer = SegmentWriter(epoch, 1 << 20, disk)
    for number, frame in enumerate(FRAMES):
        writer.write(number, frame)
    writer.sync()
    writer.abandon()
    assert segments(epoch)[0][1].read_bytes() == b"".join(FRAMES)
    assert disk.calls > len(FRAMES)


def test_a_disk_that_takes_nothing_is_full(tmp_path: Path) -> None:
    """A write of no bytes is an error that names both counts, not a loop."""

    class Full(Disk):
        def write(self, fd: int, data: memoryview) -> int:
            return 0

    writer = SegmentWriter(epoch_path(tmp_path, SOURCE, EPOCH), 1 << 20, Full())
    with pytest.raises(OSError, match=f"only 0 of {len(FRAMES[0])} bytes"):
        writer.write(0, FRAMES[0])


def test_a_mark_whose_sync_failed_is_stored_again(tmp_path: Path) -> None:
    """An epoch that was ended at the second try is read after a power loss: the first had dropped its mark."""
    epoch = epoch_path(tmp_path / "spool", SOURCE, EPOCH)
    disk = SimulatedDisk(tmp_path, tmp_path / "ring", tree_of(files(FRAMES[2], synced=0)))
    mark = SyncedMark(epoch.path / "synced", disk)
    mark.store(3)
    disk.refused = "sync"
    with pytest.raises(OSError, match="refused"):
        write_closed(epoch, 3, "closed", disk)
    disk.refused = ""
    write_closed(epoch, 3, "closed", disk)
    mark.close()
    left = SimulatedDisk(tmp_path, tmp_path / "ring", disk.survivors(random.Random(0)))
    assert closed(epoch, left) == {"next_seq": 3, "cause": "closed"}
    assert [frame.first_seq for frame in read_epoch(epoch, 0, left)] == [0, 1, 2]


@pytest.mark.parametrize("from_seq", [1, 2, 4, 5])
def test_a_cut_that_the_power_cuts_short_leaves_no_hole(tmp_path: Path, from_seq: int) -> None:
    """At each of its steps, and whichever names and bytes survive: numbers go on from the first without a hole."""
    rng = random.Random(from_seq)
    tree = tree_of({f"{n:020d}.log": FRAMES[n] + FRAMES[n + 1] for n in (0, 2, 4)})
    epoch = EpochPath(SOURCE, EPOCH, tmp_path / "spool" / f"{SOURCE:016x}" / f"{EPOCH:08x}")
    for step in range(12):
        for _ in range(12):
            disk = SimulatedDisk(tmp_path, tmp_path / "ring", tree)
            disk.before_each = _killing(step)
            with contextlib.suppress(Killed):
                cut(epoch, from_seq, disk)
            left = SimulatedDisk(tmp_path, tmp_path / "ring", disk.survivors(rng))
            tail = cut(epoch, None, left)
            content = b"".join(left.content(path) for _, path in segments(epoch, left))
            assert content == b"".join(FRAMES[: tail.next_seq])
            assert (tail.next_seq or 0) >= from_seq


def _killing(after: int):
    left = after

    def before_each() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    return before_each
