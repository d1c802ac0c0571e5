"""Someone with the run of the disk changes the spool and makes lengths and CRCs right: `verify` names what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.audit import witnesses
from gateway.audit.chain import ZERO, extended, read_position, recorded
from gateway.audit.epoch_check import EpochReport, Finding
from gateway.audit.event import Feedback, Gap, Heartbeat
from gateway.audit.frame import Events, Frame, encoder, expand, seal
from gateway.audit.spool import EpochPath, epoch_path, epochs, segments
from gateway.audit.verify import Report, bytes_of, verify
from gateway.audit.walk import Damage, walk
from gateway.errors import WitnessUnusable
from tests.gateway.audit.sim import Log, forget_owner, forget_recorder, label, settle, stop

LAST = 40
"""Labels 0 to 39 are the numbers 1 to 40."""


class Scene:
    """A spool of one worker's epoch, over and told, and what its recorder said."""

    def __init__(self, log: Log) -> None:
        self.log = log
        writer = log.owner()
        recorder = log.recorder(segment_bytes=700)
        for value in range(LAST):
            writer.append_events([label(value, 5)])
            recorder.step()
            if value == LAST // 2:
                recorder._positions._next_ns = 0
                recorder.step()
        settle(recorder)
        writer.close()
        forget_owner(writer)
        stop(recorder)
        self.epoch = epoch_path(log.spool, writer.source.source, writer.source.epoch)
        self.segments = segments(self.epoch)

    def frames(self, index: int) -> list[Frame]:
        """Of a segment."""
        return [piece.frame for piece in walk(self.segments[index][1])]

    def put(self, index: int, frames: list[Frame]) -> None:
        """Write a segment anew, lengths and CRCs right."""
        content = b"".join(seal(frame.first_seq, frame.count, frame.payload) for frame in frames)
        self.segments[index][1].write_bytes(content)

    def rewrite_chain(self) -> None:
        """What an attacker does who knows the definition: the chain file as the frames now are."""
        value, lines = ZERO, []
        for first_seq, path in segments(self.epoch):
            lines.append(f"{first_seq:020d} {value.hex()}\n")
            for piece in walk(path):
                value = extended(value, piece.raw)
        (self.epoch.path / "chain").write_text("".join(lines))

    def check(self, known: witnesses.Witnesses | None = None) -> Report:
        """The whole spool's."""
        return verify(self.log.spool, known)

    def report(self) -> EpochReport:
        """The worker's."""
        return next(e for e in self.check().epochs if e.role == "worker" or e.source == self.epoch.key[:16])

    def first(self) -> Finding:
        """The first thing wrong with the worker's epoch; nothing else is wrong anywhere."""
        report = self.check()
        assert not report.ok
        wrong = [epoch for epoch in report.epochs if not epoch.ok]
        assert [f"{epoch.source}-{epoch.epoch:08x}" for epoch in wrong] == [self.epoch.key]
        return wrong[0].findings[0]


@pytest.fixture
def scene(log: Log) -> Scene:
    """See `Scene`."""
    return Scene(log)


def relabelled(frame: Frame) -> Frame:
    """The same frame with another label in it."""
    (event,) = expand(1, 1, frame)
    assert isinstance(event, Feedback)
    event.labels[0]["value"] += 1
    event.id = ""
    return frame._replace(payload=encoder.encode(Events([event])))


def test_what_nobody_touched_is_proved_to_its_end(scene: Scene):
    """Every number up to the epoch's last is what a witness knows, and nothing is found."""
    report = scene.report()
    assert (report.ok, report.findings, report.notes) == (True, [], [])
    assert report.proved_to == report.next_seq == LAST + 2
    assert "the recorder's record" in str(report.proved_by)
    assert scene.check().ok


def changed(scene: Scene) -> None:
    """One record's content."""
    frames = scene.frames(2)
    frames[1] = relabelled(frames[1])
    scene.put(2, frames)


def bit(scene: Scene) -> None:
    """One bit of one payload, CRC right."""
    frames = scene.frames(2)
    payload = bytearray(frames[1].payload)
    payload[payload.index(b"ppppp")] ^= 1
    frames[1] = frames[1]._replace(payload=bytes(payload))
    scene.put(2, frames)


def foreign(scene: Scene) -> None:
    """A segment of another epoch in a segment's place, its frames numbered as those were."""
    frames = scene.frames(2)
    other = [piece.frame for piece in walk(scene.segments[3][1])][: len(frames)]
    scene.put(2, [b._replace(first_seq=a.first_seq) for a, b in zip(frames, other, strict=True)])


def renumbered(scene: Scene) -> None:
    """One frame deleted and all that follow numbered anew, in all segments."""
    frames = [frame for index in range(len(scene.segments)) for frame in scene.frames(index)]
    del frames[15]
    at, where = 0, []
    for frame in frames:
        where.append(frame._replace(first_seq=at))
        at += frame.count
    ends = [first for first, _ in scene.segments[1:]] + [at + 1]
    for index, end in enumerate(ends):
        begin = scene.segments[index][0]
        scene.put(index, [frame for frame in where if begin <= frame.first_seq < end])
    (scene.epoch.path / "synced").write_bytes(at.to_bytes(8, "little"))
    (scene.epoch.path / "closed").write_text(json.dumps({"next_seq": at, "cause": "closed"}))


@pytest.mark.parametrize("chain", ["as it was", "rewritten", "deleted"])
@pytest.mark.parametrize("change", [changed, bit, foreign, renumbered])
def test_a_changed_record_is_found(scene: Scene, change: Callable[[Scene], None], chain: str):
    """With lengths, CRCs, marks and even the chain file made right: the recorder's words do not agree."""
    change(scene)
    if chain == "rewritten":
        scene.rewrite_chain()
    elif chain == "deleted":
        (scene.epoch.path / "chain").unlink()
    first = scene.first()
    touched = scene.frames(2)[1].first_seq if change is not renumbered else 15
    assert (first.kind, first.seq, first.segment) == ("altered", 0, scene.segments[0][1].name)
    # Before the first value that the recorder said, unless the chain file says it nearer.
    assert first.to_seq is not None
    assert touched <= first.to_seq <= LAST // 2 + 1
    assert "recorder's record" in first.expected + first.found
    if chain == "as it was":
        assert first.to_seq < scene.segments[4][0]


def test_the_chain_file_alone_changed(scene: Scene):
    """The frames lead to what the recorder says: it is the chain file that is not as it was."""
    path = scene.epoch.path / "chain"
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:-1] + ("0" if lines[2][-1] != "0" else "1")
    path.write_text("\n".join(lines) + "\n")
    first = scene.first()
    assert first.kind == "chain_file"
    assert f"at number {scene.segments[2][0]}" in first.expected
    assert "they lead to what the recorder's record" in first.found


def test_a_missing_middle_segment_is_named(scene: Scene):
    """By its numbers and the file where they stop."""
    scene.segments[3][1].unlink()
    first = scene.first()
    begin, end = scene.segments[3][0], scene.segments[4][0]
    assert (first.kind, first.seq, first.to_seq) == ("missing", begin, end - 1)
    assert (first.segment, first.offset) == (scene.segments[4][1].name, 0)


def test_a_segment_in_another_s_place_is_named(scene: Scene):
    """A copy of one that begins with another number than its name says."""
    (_, a), (b, path) = scene.segments[2], scene.segments[3]
    shutil.copy(path, a)
    first = scene.first()
    assert (first.kind, first.segment, first.offset) == ("foreign", a.name, 0)
    assert (first.seq, first.found) == (scene.segments[2][0], f"a first frame of number {b}")


def test_swapped_frames_are_named(scene: Scene):
    """The number that comes late, the file, the byte, and what should be there."""
    frames = scene.frames(2)
    a, b = frames[1], frames[2]
    scene.put(2, [frames[0], b, a, *frames[3:]])
    first = scene.first()
    offsets = [piece.offset for piece in walk(scene.segments[2][1])]
    assert (first.kind, first.seq) == ("reordered", a.first_seq)
    assert (first.segment, first.offset) == (scene.segments[2][1].name, offsets[2])
    assert (first.expected, first.found) == (f"number {b.next_seq}", f"number {a.first_seq}")


def test_a_frame_twice_is_named(scene: Scene):
    """The number, the file and the byte of the second."""
    frames = scene.frames(2)
    scene.put(2, [*frames[:2], frames[1], *frames[2:]])
    first = scene.first()
    offsets = [piece.offset for piece in walk(scene.segments[2][1])]
    assert (first.kind, first.seq, first.offset) == ("duplicate", frames[1].first_seq, offsets[2])


def test_damage_is_named_and_the_rest_is_read(scene: Scene):
    """A CRC that does not match: the byte; segments behind it are held against their own start."""
    path = scene.segments[2][1]
    content = bytearray(path.read_bytes())
    offset = [piece.offset for piece in walk(path)][1]
    content[offset + 30] ^= 1
    path.write_bytes(content)
    first = scene.first()
    assert (first.kind, first.segment, first.offset) == ("damaged", path.name, offset)
    assert (first.seq, first.to_seq) == (scene.segments[2][0] + 1, scene.segments[3][0] - 1)
    assert "CRC does not match" in first.found
    report = scene.report()
    assert report.missing == [(first.seq, first.to_seq)]
    assert {finding.kind for finding in report.findings} == {"damaged", "missing"}


def test_an_end_cut_off_is_found(scene: Scene):
    """The last segment gone and the marks made right: the recorder knows a later number."""
    first_seq, path = scene.segments[-1]
    path.unlink()
    (scene.epoch.path / "synced").write_bytes(first_seq.to_bytes(8, "little"))
    (scene.epoch.path / "closed").write_text(json.dumps({"next_seq": first_seq, "cause": "closed"}))
    first = scene.first()
    assert (first.kind, first.seq, first.to_seq) == ("cut_short", first_seq, LAST + 1)


def test_a_whole_epoch_taken_away_is_found(scene: Scene):
    """The recorder knows it; a gap of retention would say that it went in order."""
    shutil.rmtree(scene.epoch.path)
    report = scene.check()
    assert not report.ok
    assert [(gone.key, gone.told) for gone in report.gone] == [(scene.epoch.key, False)]


def test_what_retention_says_it_took_is_no_finding(scene: Scene):
    """Numbers up to the last that a witness knows."""
    shutil.rmtree(scene.epoch.path)
    recorder = scene.log.recorder()
    recorder._log([Gap(f"{scene.epoch.source:016x}", scene.epoch.epoch, 0, LAST + 1, "retention", at_ns=1)])
    stop(recorder)
    report = scene.check()
    assert report.ok
    assert [gone.told for gone in report.gone] == [True]


@pytest.mark.parametrize("line", ["there", "missing", "changed"])
def test_a_trimmed_beginning_starts_from_the_chain_file(scene: Scene, line: str):
    """With its line all is proved; without one it says so; a wrong one does not lead where it should."""
    for _, path in scene.segments[:2]:
        path.unlink()
    chain = scene.epoch.path / "chain"
    lines = chain.read_text().splitlines(keepends=True)
    if line == "missing":
        del lines[2]
    elif line == "changed":
        lines[2] = lines[2][:21] + "ab" * 32 + "\n"
    chain.write_text("".join(lines))
    begin = scene.segments[2][0]
    report = scene.report()
    if line == "changed":
        assert report.findings[0].kind == "altered"
        assert f"or the chain file's value at number {begin} was changed" in report.findings[0].found
        return
    assert report.ok
    assert report.first_seq == begin
    assert report.proved_to == LAST + 2
    assert bool(report.notes) == (line == "missing")
    if line == "missing":
        assert f"names no value for number {begin}" in report.notes[0]


def test_a_witness_of_just_that_number_stands_for_the_line(scene: Scene):
    """A trimmed beginning without its line in the chain file."""
    begin = scene.segments[2][0]
    value = recorded(scene.epoch)[begin]
    for _, path in scene.segments[:2]:
        path.unlink()
    (scene.epoch.path / "chain").unlink()
    known = {scene.epoch.key: [witnesses.Known(begin, value, "a friend")]}
    report = next(e for e in scene.check(known).epochs if e.source == scene.epoch.key[:16])
    assert (report.ok, report.notes, report.proved_to) == (True, [], LAST + 2)


@pytest.mark.parametrize("read_bytes", [1, 100, 700, 1 << 20])
def test_a_walk_takes_any_pieces(scene: Scene, read_bytes: int):
    """Whatever is read at once: the same frames, the same damage at the same byte."""
    path = scene.segments[1][1]
    whole = [(piece.offset, piece.frame, bytes(piece.raw)) for piece in walk(path)]
    assert b"".join(raw for _, _, raw in whole) == path.read_bytes()
    assert [(p.offset, p.frame, bytes(p.raw)) for p in walk(path, read_bytes=read_bytes)] == whole
    content = bytearray(path.read_bytes())
    for at, found in ((whole[2][0] + 25, "CRC does not match"), (whole[2][0] + 3, "bytes are left")):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(Damage, match=found) as told:
            list(walk(path, read_bytes=read_bytes))
        assert told.value.offset == whole[2][0]


def test_an_auditor_s_file_is_a_witness(scene: Scene, tmp_path: Path):
    """Positions kept elsewhere find what a spool rewritten throughout hides, the recorder's words included."""
    kept = {e.key: p for e in epochs(scene.log.spool) if (p := read_position(e)) is not None}
    path = tmp_path / "kept.json"
    path.write_text(json.dumps({"positions": {key: [p.next_seq, p.value.hex()] for key, p in kept.items()}}))
    changed(scene)
    scene.rewrite_chain()
    own = next(e for e in epochs(scene.log.spool) if e.source != scene.epoch.source)
    _forget_positions(own)
    assert scene.check().ok
    report = scene.check(witnesses.in_file(path))
    found = {f"{e.source}-{e.epoch:08x}": e.findings[0] for e in report.epochs if e.findings}
    assert set(found) == {scene.epoch.key, own.key}
    assert "kept.json says" in found[scene.epoch.key].expected


def _forget_positions(own: EpochPath) -> None:
    """Take what a recorder said out of its own epoch, all else right."""
    value, lines = ZERO, []
    for first_seq, path in segments(own):
        frames = []
        for piece in walk(path):
            events = expand(own.source, own.epoch, piece.frame)
            for event in events:
                event.id = ""
                if isinstance(event, Heartbeat):
                    event.positions = {}
            frames.append(seal(piece.frame.first_seq, len(events), encoder.encode(Events(events))))
        path.write_bytes(b"".join(frames))
        lines.append(f"{first_seq:020d} {value.hex()}\n")
        for frame in frames:
            value = extended(value, frame)
    (own.path / "chain").write_text("".join(lines))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"positions": []}',
        '{"positions": {"x": [1, "00"]}}',
        '{"positions": {"%s": [1, 2, 3]}}',
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: str):
    """Named, with what was expected; the forwarder's is only left aside."""
    path = tmp_path / "positions.json"
    path.write_text(content)
    with pytest.raises(WitnessUnusable, match="audit positions --json"):
        witnesses.in_file(path)
    assert witnesses.in_forwarder(path) == {}


def test_a_spool_that_is_written_meanwhile_is_right(log: Log):
    """Live epochs, restarts and refused numbers: nothing is found where nothing is wrong."""
    writer = log.owner()
    recorder = log.recorder(segment_bytes=400)
    for value in range(30):
        if value % 10 == 3:
            writer.lose(2)
        writer.append_events([label(value)])
        recorder.step()
        recorder._positions._next_ns = 0
        if value % 10 == 9:
            forget_recorder(recorder)
            recorder = log.recorder(segment_bytes=400)
        assert log.verify().ok
    assert len(recorded(epoch_path(log.spool, writer.source.source, writer.source.epoch))) > 3


def test_a_later_version_s_frames_are_named_and_passed(log: Log):
    """A frame kind, an event type or a schema that we do not know is no fault of the log."""
    writer = log.owner()
    recorder = log.recorder()
    writer.append_events([label(1)])
    for content in (
        {"frame": "columns2", "x": 1},
        {"frame": "events", "events": [{"type": "oracle", "kind": "x", "schema": 1}]},
        {"frame": "events", "events": [{"type": "heartbeat", "schema": 2, "positions": {}}]},
    ):
        writer.append_run(encoder.encode(content), 1)
    writer.append_events([label(2)])
    writer.close()
    forget_owner(writer)
    stop(recorder)
    report = log.verify()
    worker = next(e for e in report.epochs if e.role == "worker")
    assert (report.ok, worker.newer, worker.events) == (True, 3, 7)
    assert any("'columns2' is of a later version" in note for note in worker.notes)


def test_progress_is_told_in_bytes(scene: Scene):
    """All that is read, once."""
    read: list[int] = []
    verify(scene.log.spool, None, read.append)
    assert sum(read) == bytes_of(scene.log.spool)
