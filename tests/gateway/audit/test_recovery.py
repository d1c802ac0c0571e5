"""Cutting the end of an epoch: by the ring's word, or at the first bad frame."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.audit.event import EpochClose, Event
from gateway.audit.frame import Events, encoder, seal
from gateway.audit.recovery import closes, cut
from gateway.audit.spool import EpochPath, epoch_path, segments
from tests.gateway.audit.sim import label

FRAMES = [seal(n, 1, encoder.encode(Events([label(n)]))) for n in range(6)]


@pytest.fixture
def epoch(tmp_path: Path) -> EpochPath:
    """Six numbers in two segments."""
    made = epoch_path(tmp_path, 1, 2)
    made.path.mkdir(parents=True)
    (made.path / f"{0:020d}.log").write_bytes(b"".join(FRAMES[:3]))
    (made.path / f"{3:020d}.log").write_bytes(b"".join(FRAMES[3:]))
    return made


def contents(epoch: EpochPath) -> list[bytes]:
    """Bytes of each segment."""
    return [path.read_bytes() for _, path in segments(epoch)]


@pytest.mark.parametrize("from_seq", range(7))
@pytest.mark.parametrize("torn_bytes", [0, 5])
def test_everything_from_a_number_on_is_cut(epoch: EpochPath, from_seq: int, torn_bytes: int):
    """Torn or not, exactly the frames before it stay; cutting again changes nothing."""
    path = segments(epoch)[1][1]
    if torn_bytes and from_seq < 6:
        path.write_bytes(path.read_bytes()[:-torn_bytes])
    for _ in range(2):
        tail = cut(epoch, from_seq)
        assert tail.next_seq == (from_seq or None)
        assert b"".join(contents(epoch)) == b"".join(FRAMES[:from_seq])
        assert all(contents(epoch))
    assert not list(epoch.path.glob("*.cut")) or torn_bytes


@pytest.mark.parametrize("damage", [b"", b"\0" * 64, b"\xff" * 64, FRAMES[5][:-8]])
def test_without_a_number_whole_frames_stay(epoch: EpochPath, damage: bytes):
    """The end is the first bad length or CRC; bytes that are not zeros are kept aside."""
    path = segments(epoch)[1][1]
    path.write_bytes(b"".join(FRAMES[3:5]) + damage)
    for _ in range(2):
        tail = cut(epoch, None)
        assert tail.next_seq == 5
        assert contents(epoch) == [b"".join(FRAMES[:3]), b"".join(FRAMES[3:5])]
    kept = [p.read_bytes() for p in epoch.path.glob("*.cut")]
    assert kept == ([damage] if damage.strip(b"\0") else [])


def test_a_segment_with_no_frame_goes(epoch: EpochPath):
    """An empty file, as a kill right behind its making leaves it, is no end of an epoch."""
    (epoch.path / f"{6:020d}.log").touch()
    assert cut(epoch, None).next_seq == 6
    assert len(segments(epoch)) == 2


def test_nothing_on_disk_is_no_number(tmp_path: Path):
    """An epoch that never got to disk has no end."""
    assert cut(epoch_path(tmp_path, 1, 2), 0).next_seq is None


def test_only_its_own_close_ends_an_epoch(epoch: EpochPath):
    """An epoch_close of another epoch, of another event behind it, or unreadable bytes do not."""

    def payload(*events: Event) -> bytes:
        return encoder.encode(Events(list(events)))

    own = EpochClose(f"{1:016x}", 2, 3, "closed")
    assert closes(epoch, payload(label(1), own))
    assert not closes(epoch, payload(own, label(1)))
    assert not closes(epoch, payload(EpochClose(f"{1:016x}", 3, 3, "closed")))
    assert not closes(epoch, b"\xc1")
    assert not closes(epoch, None)
