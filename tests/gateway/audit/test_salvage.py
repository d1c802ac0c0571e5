"""Rings that a power loss left: the disk is believed, of the ring only what goes on where it ends."""

from __future__ import annotations

import os
import struct

import pytest

from gateway.audit.event import Gap
from gateway.audit.frame import seal
from gateway.audit.ring import HEADER_PAGE_BYTES, MAGIC, Ring
from gateway.audit.salvage import following_frames
from gateway.audit.source import boot_id
from gateway.audit.writer import Writer
from tests.gateway.audit.sim import Log, forget_owner, forget_recorder, label, settle, stop
from tests.gateway.audit.test_ring import make

BOOT_BYTE, COMMITTED_BYTE, SYNCED_BYTE = 56, 128, 192


def power_loss(log: Log, writer: Writer, recorder, **words: int) -> None:
    """Everything ends; the rings' files say another boot, and the owner's has these header words."""
    path = writer.source.ring_path
    forget_recorder(recorder)
    forget_owner(writer)
    for ring in log.ring_dir.iterdir():
        with ring.open("r+b") as file:
            os.pwrite(file.fileno(), struct.pack("<Q", boot_id() ^ 1), BOOT_BYTE)
    with path.open("r+b") as file:
        for name, value in words.items():
            at = {"synced": SYNCED_BYTE, "committed": COMMITTED_BYTE}[name]
            os.pwrite(file.fileno(), struct.pack("<Q", value), at)


def gaps(log: Log, writer: Writer) -> list[tuple[int, int | None, str]]:
    """Of the owner's epoch."""
    source = f"{writer.source.source:016x}"
    return [(e.from_seq, e.to_seq, e.cause) for e in log.read() if isinstance(e, Gap) and e.source == source]


@pytest.mark.parametrize("synced", [0, "first", "all"])
def test_records_on_disk_outlive_an_old_mark(log: Log, synced):
    """A ring whose `synced` and `committed` are older than the disk cuts nothing; what it adds is written behind."""
    writer = log.owner()
    recorder = log.recorder(segment_bytes=300)
    settle(recorder)
    first = writer.ring.synced
    for value in range(9):
        writer.append_events([label(value)])
        recorder.step()
    settle(recorder)
    everything = writer.ring.synced
    for value in range(9, 12):
        writer.append_events([label(value)])
    at = {0: 0, "first": first, "all": everything}[synced]
    power_loss(log, writer, recorder, synced=at, committed=at)
    stop(log.recorder())
    assert log.labels() == list(range(12))
    assert gaps(log, writer) == [(13, None, "host_loss")]
    assert log.rings() == []
    assert log.verify().ok


def test_a_ring_that_goes_on_elsewhere_adds_nothing(log: Log):
    """Pages of the ring are older than the disk, or newer behind a lost one: nothing is written out of order."""
    writer = log.owner()
    recorder = log.recorder()
    for value in range(4):
        writer.append_events([label(value)])
    settle(recorder)
    lost_at = HEADER_PAGE_BYTES + writer.ring.committed
    for value in range(4, 8):
        writer.append_events([label(value)])
    path = writer.source.ring_path
    power_loss(log, writer, recorder)
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), bytes(40), lost_at)
    stop(log.recorder())
    assert log.labels() == [0, 1, 2, 3]
    assert gaps(log, writer) == [(5, None, "host_loss")]
    assert log.verify().ok


def test_an_end_that_the_ring_still_holds_is_an_end(log: Log):
    """The owner had closed its epoch; the ring's last frame says so, and no gap is told."""
    writer = log.owner()
    recorder = log.recorder()
    writer.append_events([label(0)])
    settle(recorder)
    writer.close()
    power_loss(log, writer, recorder)
    stop(log.recorder())
    assert gaps(log, writer) == []
    assert [e.closed for e in log.verify().epochs if e.role == "worker"] == ["closed"]


def test_an_owner_that_lives_is_of_this_boot(log: Log):
    """A ring made by a version that did not say its boot is believed while its owner holds it."""
    writer = log.owner()
    writer.ring._words[BOOT_BYTE // 8] = 0
    recorder = log.recorder()
    writer.append_events([label(0)])
    settle(recorder)
    writer.append_events([label(1)])
    settle(recorder)
    assert log.labels() == [0, 1]
    assert gaps(log, writer) == []


def test_bytes_of_a_client_are_no_frames():
    """A mark that points into a later payload: the frame forged there is not taken, whatever its number."""
    ring, _ = make(4096)
    for _ in range(3):
        ring.append(b"a" * 20, 1)
    forged = seal(2, 1, b"forged") + seal(3, 1, b"forged too")
    at = ring.committed + 24
    ring.append(b"pad." + forged, 1)
    ring._words[SYNCED_BYTE // 8] = at
    assert [f.first_seq for f, _ in ring.standing(at)] == [2, 3]
    # The disk ends with 0..2 and its last frame is the true one; the walk from the start finds 3.
    (found,) = following_frames(ring, 3, b"a" * 20)
    assert b"pad." in found[1]
    assert following_frames(ring, 3, b"another") == []


def test_frames_of_the_lap_before_are_not_taken():
    """Behind the newest frame whole ones of an earlier lap stand: their numbers do not go on, and the walk ends."""
    ring, _ = make(1024)
    for number in range(10):
        if number == 8:
            ring.set_synced(ring.read(0, 1 << 20)[2])
        ring.append(bytes([number]) * 100, 1)
    assert [f.first_seq for f, _ in ring.standing(0)] == [8, 9, 2, 3, 4, 5, 6, 7]
    assert [end for end, _ in following_frames(ring, 8, bytes([7]) * 100)] == [9, 10]


def test_a_walk_ends_within_a_lap():
    """A ring full of frames is walked once, wherever one begins, wrap mark included."""
    ring, _ = make(1024)
    for size in (60, 100, 90, 104, 70, 60, 80, 100, 76):
        while ring.append(bytes(size), 1) < 0:
            ring.set_synced(ring.read(ring.synced, 1)[2])
    total = len(list(ring.standing(0)))
    assert total > 1
    position = ring.synced % 1024
    assert next(f.first_seq for f, _ in ring.standing(position)) == ring.read(ring.synced, 1)[0][0].first_seq


FILES = {
    "short": lambda content: content[:100],
    "truncated": lambda content: content[:-4096],
    "zeroed": lambda content: bytes(len(content)),
    "foreign": lambda content: content[:16] + struct.pack("<Q", 77) + content[24:],
    "newer": lambda content: struct.pack("<Q", MAGIC + 1) + content[8:],
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("found", list(FILES))
def test_a_ring_that_cannot_be_read_is_a_lost_ring(log: Log, found: str):
    """Short, zeroed, another's, of a newer format: put aside, and its epoch told from the disk, once."""
    writer = log.owner()
    recorder = log.recorder()
    writer.append_events([label(0)])
    settle(recorder)
    writer.append_events([label(1)])
    path = writer.source.ring_path
    forget_recorder(recorder)
    forget_owner(writer)
    path.write_bytes(FILES[found](path.read_bytes()))
    for _ in range(2):
        stop(log.recorder())
        assert log.labels() == [0]
        assert gaps(log, writer) == [(2, None, "host_loss")]
        assert log.rings() == [f"{path.name}.bad"]
        assert log.verify().ok


def test_a_ring_that_turns_up_unreadable_later_is_told_at_once(log: Log):
    """Also while the recorder runs; an epoch that never got to disk is told from its first number on."""
    recorder = log.recorder()
    settle(recorder)
    (log.ring_dir / f"{1:016x}-{2:08x}").write_bytes(b"\0" * 8192)
    settle(recorder)
    assert [(e.source, e.epoch, e.from_seq, e.to_seq) for e in log.read() if isinstance(e, Gap)] == [
        (f"{1:016x}", 2, 0, None)
    ]


def test_the_start_names_the_boot(log: Log):
    """The header's word is this boot's id, and a header without it reads as not known."""
    writer = log.owner()
    assert writer.ring.facts.boot == boot_id() != 0
    ring, _ = make()
    assert ring.facts.boot == 0
    assert isinstance(ring, Ring)
