"""The recorder reads older segments again while it is idle, and tells once what it cannot read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.audit import scrub as scrub_module
from gateway.audit.event import Event, Gap
from gateway.audit.frame import seal
from gateway.audit.identity import parse_event_id
from gateway.audit.scrub import Scrub
from gateway.audit.spool import EpochPath, epoch_path, segments
from gateway.audit.walk import walk
from tests.gateway.audit.sim import Log, forget_owner, label, settle, stop, until

LABELS = 30


class Clock:
    """Both clocks of the module; `monotonic_ns` is where the next step is due."""

    def __init__(self) -> None:
        self.now_ns = 10**18
        self.stepped = 0

    def time(self) -> float:
        return self.now_ns / 1e9

    def time_ns(self) -> int:
        return self.now_ns

    def monotonic_ns(self) -> int:
        return self.now_ns


class Scene:
    """A worker's epoch of many segments, a scrub, and what it told."""

    def __init__(self, log: Log, clock: Clock) -> None:
        self.log, self.clock = log, clock
        writer = log.owner()
        recorder = log.recorder(segment_bytes=700)
        for value in range(LABELS):
            if value == 12:
                writer.lose(2)
            writer.append_events([label(value, 20)])
            recorder.step()
        settle(recorder)
        self.writer, self.recorder = writer, recorder
        self.epoch: EpochPath = epoch_path(log.spool, writer.source.source, writer.source.epoch)
        self.segments = segments(self.epoch)
        self.told: list[Gap] = []
        self.room = True
        self.scrub = Scrub(log.spool)

    def tell(self, events: Sequence[Event]) -> bool:
        """What the recorder does with events."""
        if self.room:
            self.told += [event for event in events if isinstance(event, Gap)]
        return self.room

    def run(self, hours: float = 0.0) -> int:
        """Steps until a pass is over; returns how long it took, in ns of the clock."""
        self.clock.now_ns += int(hours * 3600e9)
        begun = self.clock.now_ns
        for _ in range(10_000):
            self.scrub.step(self.tell)
            if self.scrub._steps is None and not self.scrub._after:
                break
            self.clock.now_ns = max(self.clock.now_ns, self.scrub._next_ns)
        return self.clock.now_ns - begun

    def ranges(self) -> list[tuple[int, int | None, str]]:
        """Of the gaps that were told, of this epoch."""
        assert {(gap.source, gap.epoch) for gap in self.told} <= {(self.epoch.key[:16], self.epoch.epoch)}
        return [(gap.from_seq, gap.to_seq, gap.cause) for gap in self.told]

    def flip(self, index: int, frame: int = 1) -> int:
        """Damage a frame of a segment; returns its number."""
        path = self.segments[index][1]
        piece = list(walk(path))[frame]
        content = bytearray(path.read_bytes())
        content[piece.offset + 25] ^= 1
        path.write_bytes(content)
        return piece.frame.first_seq


@pytest.fixture
def scene(log: Log, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """See `Scene`."""
    clock = Clock()
    monkeypatch.setattr(scrub_module, "time", clock)
    return Scene(log, clock)


def test_a_whole_spool_has_nothing_to_tell(scene: Scene, caplog: pytest.LogCaptureFixture):
    """Numbers that were never written are no damage: the hash says so."""
    scene.run()
    assert (scene.told, caplog.records) == ([], [])


def test_a_damaged_segment_is_told_once(scene: Scene, caplog: pytest.LogCaptureFixture):
    """From the bad frame to the segment's end, in a gap and in a line; after a day or a restart not again."""
    lost = scene.flip(2)
    with caplog.at_level(logging.ERROR):
        scene.run()
        scene.run(hours=25)
        scene.scrub = Scrub(scene.log.spool)
        scene.run(hours=25)
    assert scene.ranges() == [(lost, scene.segments[3][0] - 1, "corrupt")]
    (line,) = [record for record in caplog.records if record.getMessage() == "segment_corrupt"]
    assert line.__dict__["segment"] == str(scene.segments[2][1])
    assert "CRC does not match" in line.__dict__["why"]
    assert scene.segments[2][1].exists()


def test_readers_go_on_behind_it_and_the_numbers_are_told(scene: Scene):
    """What the recorder tells covers just what a reader misses."""
    lost = scene.flip(2)
    scene.tell = scene.recorder.tell  # type: ignore[method-assign]
    scene.run()
    settle(scene.recorder)
    seen = {
        parse_event_id(event.id).seq for event in scene.log.read() if event.id.startswith(scene.epoch.key)
    }
    never_written = set(range(13, 15))
    assert (
        set(range(LABELS + 4)) - seen - never_written
        == set(range(lost, scene.segments[3][0])) - never_written
    )
    worker = next(e for e in scene.log.verify().epochs if e.role == "worker")
    assert worker.missing == []
    assert [finding.kind for finding in worker.findings] == ["damaged"]


def test_a_missing_segment_is_told(scene: Scene):
    """The one before does not lead to the one behind."""
    scene.segments[3][1].unlink()
    scene.run()
    assert scene.ranges() == [(scene.segments[3][0], scene.segments[4][0] - 1, "corrupt")]


def test_a_changed_segment_is_named_and_has_no_gap(scene: Scene, caplog: pytest.LogCaptureFixture):
    """Its numbers can be read; that they are not what they were is the hash's to say."""
    path = scene.segments[3][1]
    frames = [piece.frame for piece in walk(path)]
    frames[1] = frames[1]._replace(payload=frames[0].payload)
    path.write_bytes(b"".join(seal(*frame) for frame in frames))
    scene.run()
    assert scene.told == []
    assert [record.__dict__["segment"] for record in caplog.records] == [str(path)]


def test_where_the_hash_begins_anew_nothing_is_changed(scene: Scene, caplog: pytest.LogCaptureFixture):
    """A line of zeros says that no earlier value was known: the segment before leads to none."""
    path = scene.epoch.path / "chain"
    lines = path.read_text().splitlines(keepends=True)
    lines[4] = f"{lines[4][:20]} {'0' * 64}\n"
    path.write_text("".join(lines[:5]))
    scene.run()
    assert (scene.told, caplog.records) == ([], [])


def test_the_segment_being_written_is_left_alone(scene: Scene):
    """It is looked at when it is full, or its epoch over."""
    index = len(scene.segments) - 1
    lost = scene.flip(index, frame=0)
    scene.run()
    assert scene.told == []
    (scene.epoch.path / "closed").write_text('{"next_seq": 34, "cause": "closed"}')
    scene.run(hours=25)
    assert scene.ranges() == [(lost, LABELS + 3, "corrupt")]


def test_it_goes_slowly_and_rests(scene: Scene):
    """8 MiB in a second at most; a pass a day."""
    size = sum(path.stat().st_size for _, path in scene.segments[:-1])
    assert scene.run() >= size * 1e9 / scrub_module.BYTES_PER_S * 0.99
    read: list[Path] = []
    real = scrub_module.walk

    def counted(path: Path, **how: object):
        read.append(path)
        return real(path, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scrub_module, "walk", counted)
        scene.run(hours=23)
        assert read == []
        scene.run(hours=2)
        assert read == [path for _, path in scene.segments[:-1]]


def test_it_goes_on_where_it_was(scene: Scene):
    """A restart in the middle of a pass reads on, not again."""
    read: list[Path] = []
    real = scrub_module.walk

    def counted(path: Path, **how: object):
        read.append(path)
        return real(path, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scrub_module, "walk", counted)
        while len(read) < 4:
            scene.scrub.step(scene.tell)
            scene.clock.now_ns = scene.scrub._next_ns
        scene.scrub = Scrub(scene.log.spool)
        scene.run()
    assert sorted(set(read)) == [path for _, path in scene.segments[:-1]]
    assert len(read) <= len(scene.segments)


def test_a_full_ring_is_waited_for(scene: Scene):
    """What finds no room is told later, not never."""
    scene.flip(2)
    scene.room = False
    for _ in range(200):
        scene.scrub.step(scene.tell)
        scene.clock.now_ns = max(scene.clock.now_ns, scene.scrub._next_ns)
    assert scene.told == []
    scene.room = True
    scene.run()
    assert len(scene.told) == 1


@pytest.mark.parametrize("content", [b"", b"[]", b'{"told": 1}', b"\xff"])
def test_a_spoilt_memory_only_tells_again(scene: Scene, content: bytes):
    """Its file is a memory aid, nothing more."""
    scene.flip(2)
    scene.run()
    (scene.log.state_dir / "scrub.json").write_bytes(content)
    scene.scrub = Scrub(scene.log.spool)
    scene.run(hours=25)
    assert len(scene.told) == 2


def test_the_recorder_s_process_does_it(log: Log):
    """Idle, and beside an owner that lives: a gap in its own epoch."""
    writer = log.owner()
    recorder = log.recorder(segment_bytes=700)
    for value in range(LABELS):
        writer.append_events([label(value, 20)])
        recorder.step()
    writer.close()
    forget_owner(writer)
    stop(recorder)
    forget_owner(recorder._own)
    path = segments(epoch_path(log.spool, writer.source.source, writer.source.epoch))[1][1]
    path.write_bytes(path.read_bytes()[:-8])
    log.real_recorder()
    until(lambda: any(isinstance(event, Gap) and event.cause == "corrupt" for event in log.read()))
