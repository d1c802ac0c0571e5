"""The sparse index of a segment: a hint that is looked at before it is believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.audit import index as index_module
from gateway.audit import locate
from gateway.audit.chain import Chain
from gateway.audit.frame import Events, encoder, open_frame, seal
from gateway.audit.index import read_index
from gateway.audit.locate import Sought, frame_of
from gateway.audit.spool import EpochPath, SyncedMark, epoch_path, segments
from gateway.audit.storage import Disk
from tests.gateway.audit.sim import Log, label, settle

SEGMENTS, FRAMES, STEP_BYTES = 4, 30, 1024


@pytest.fixture
def epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EpochPath:
    """Four segments of thirty frames of two numbers each, an index entry a KiB; written as the recorder does."""
    monkeypatch.setattr(index_module, "STEP_BYTES", STEP_BYTES)
    made = epoch_path(tmp_path, 1, 2)
    made.path.mkdir(parents=True)
    chain = Chain(made, Disk())
    for first in range(0, SEGMENTS * FRAMES * 2, FRAMES * 2):
        raws = [
            seal(seq, 2, encoder.encode(Events([label(seq, 50), label(seq + 1, 50)])))
            for seq in range(first, first + FRAMES * 2, 2)
        ]
        (made.path / f"{first:020d}.log").write_bytes(b"".join(raws))
        chain.extend([open_frame(raw, 0, len(raw))[0] for raw in raws], b"".join(raws), first)
    mark = SyncedMark(made.path / "synced")
    mark.store(SEGMENTS * FRAMES * 2)
    mark.close()
    return made


def all_found(epoch: EpochPath) -> bool:
    """Whether each number leads to the frame that holds it."""
    numbers = range(SEGMENTS * FRAMES * 2)
    return all((frame := frame_of(epoch, n)) is not None and frame.first_seq == n - n % 2 for n in numbers)


def test_full_segments_have_an_index(epoch: EpochPath):
    """All but the one being written; each entry leads to its frame."""
    assert sorted(path.stem for path in epoch.path.glob("*.idx")) == [p.stem for _, p in segments(epoch)[:-1]]
    for _, path in segments(epoch)[:-1]:
        found = read_index(path)
        assert found
        content = path.read_bytes()
        assert all(open_frame(content, at, len(content))[0].first_seq == seq for seq, at in found)
        assert len(found) >= len(content) // (2 * STEP_BYTES)
    assert all_found(epoch)


def test_a_look_up_reads_little(epoch: EpochPath, monkeypatch: pytest.MonkeyPatch):
    """Of a full segment the entry's frame and what follows it up to the number."""
    taken: list[int] = []
    real = locate.walk

    def counting(*args: object):
        for piece in real(*args):
            taken.append(piece.frame.first_seq)
            yield piece

    monkeypatch.setattr(locate, "walk", counting)
    frame = frame_of(epoch, FRAMES * 2 - 3)
    assert frame is not None
    assert len(taken) < 9 < FRAMES


SPOILT = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "a bit": lambda path: path.write_bytes(path.read_bytes()[:-9] + b"\xff" + path.read_bytes()[-8:]),
    "of another segment": lambda path: path.write_bytes(min(path.parent.glob("*.idx")).read_bytes()),
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILT)
def test_a_wrong_index_leads_nobody_astray(epoch: EpochPath, how: str):
    """Whatever stands in it, every number is found; one that is not whole is made anew."""
    path = segments(epoch)[1][1].with_suffix(".idx")
    before = path.read_bytes()
    SPOILT[how](path)
    assert all_found(epoch)
    if how != "of another segment":
        assert path.read_bytes() == before


def test_a_reader_who_may_not_write_finds_all_the_same(epoch: EpochPath, monkeypatch: pytest.MonkeyPatch):
    """No index can be kept, and none is needed."""
    for path in epoch.path.glob("*.idx"):
        path.unlink()

    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.rename", refused)
    assert all_found(epoch)
    assert list(epoch.path.glob("*.idx")) == []


def test_damage_on_the_way_is_told(epoch: EpochPath):
    """Segment and byte; what stands before and, by the index, far enough behind is found."""
    first, path = segments(epoch)[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    numbers = range(first, first + FRAMES * 2)
    lost = [n for n in numbers if (frame := frame_of(epoch, n)) is None or frame.first_seq != n - n % 2]
    assert 0 < len(lost) < FRAMES
    sought = Sought()
    frame_of(epoch, lost[0], sought)
    assert sought.damage is not None
    assert sought.damage[0] == path
    assert sought.damage[1].offset <= len(content) // 2


def test_the_recorder_makes_them(log: Log):
    """With each segment that is full, and for the last one after a restart."""
    writer = log.owner()
    recorder = log.recorder(segment_bytes=400)
    for value in range(12):
        writer.append_events([label(value)])
        recorder.step()
    settle(recorder)
    epoch = epoch_path(log.spool, writer.source.source, writer.source.epoch)
    full = segments(epoch)[:-1]
    assert len(full) > 2
    assert all(read_index(path) is not None for _, path in full)
