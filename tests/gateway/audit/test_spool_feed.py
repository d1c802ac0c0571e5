"""The spool as a feed, beyond what tests/contracts/test_feeds.py holds of every feed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from gateway.audit import legible, spool, spool_feed
from gateway.audit.event import Event, Feedback, Gap, ModelFacts, RouteFacts
from gateway.audit.feed import RETENTION, Feed, Hole
from gateway.audit.frame import STAGE_COLUMNS, Caller, Events, Frame, Run, encoder, seal
from gateway.audit.identity import parse_event_id
from gateway.audit.spool import EpochPath, epoch_path, segment_name, segments, synced_seq, write_closed
from gateway.audit.spool_feed import SpoolFeed
from tests.gateway.audit.sim import Log, forget_owner, label, settle


def drain(feed: Feed, step: int = 7) -> tuple[list[Event], list[Hole]]:
    """Everything a feed has, a few at a time."""
    events: list[Event] = []
    holes: list[Hole] = []
    while True:
        delivery = feed.read(step, 0)
        if not delivery.events and not delivery.holes:
            return events, holes
        events += delivery.events
        holes += delivery.holes


def test_resent_records_are_seen_once(log: Log):
    """Frames that stand twice in an epoch are told once."""
    epoch = log.spool / f"{1:016x}" / f"{2:08x}"
    epoch.mkdir(parents=True)
    frames = [seal(n, 1, encoder.encode(Events([label(n)]))) for n in range(4)]
    (epoch / f"{0:020d}.log").write_bytes(frames[0] + frames[1] + frames[2] + frames[1])
    (epoch / f"{2:020d}.log").write_bytes(frames[2] + frames[2] + frames[3])
    (epoch / "synced").write_bytes((4).to_bytes(8, "little"))
    feed = SpoolFeed(log.spool)
    events, holes = drain(feed, 1)
    assert [e.labels[0]["value"] for e in events if isinstance(e, Feedback)] == [0, 1, 2, 3]
    assert holes == []
    feed.close()


def test_an_epoch_that_ended_is_not_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What a look costs does not grow with what is kept; a later epoch of the same source is found."""
    log = Log(tmp_path / "state")
    recorder = log.recorder()
    feed = SpoolFeed(log.spool)
    looked_at: list[int] = []

    def counted(epoch: EpochPath) -> int:
        looked_at.append(epoch.epoch)
        return synced_seq(epoch)

    monkeypatch.setattr(spool_feed, "synced_seq", counted)
    for value in range(3):
        writer = log.owner()
        writer.append_events([label(value)])
        writer.close()
        forget_owner(writer)
        settle(recorder)
        read = [e.labels[0]["value"] for e in feed.read(1000, 0).events if isinstance(e, Feedback)]
        assert read == [value]
        feed.read(1000, 0)
        assert len(looked_at) == 1
        looked_at.clear()
        feed.read(1000, 0)
        assert looked_at == []


def written(log: Log, source: int, numbers: Iterable[int], synced: int, *, over: bool = False) -> EpochPath:
    """An epoch of single labels, a segment each; `over`: it is closed."""
    epoch = epoch_path(log.spool, source, 5)
    epoch.path.mkdir(parents=True, exist_ok=True)
    for n in numbers:
        content = seal(n, 1, encoder.encode(Events([label(n)])))
        (epoch.path / segment_name(n)).write_bytes(content)
    (epoch.path / "synced").write_bytes(synced.to_bytes(8, "little"))
    if over:
        write_closed(epoch, synced, "closed")
    return epoch


def trimmed(source: int, from_seq: int, to_seq: int) -> Gap:
    """What a recorder says of what retention took."""
    return Gap(f"{source:016x}", 5, from_seq, to_seq, RETENTION)


def test_segments_that_go_while_they_are_read(log: Log, monkeypatch: pytest.MonkeyPatch):
    """Retention takes files between a look and their opening: their numbers are a hole, and the rest comes."""
    epoch = written(log, 1, range(6), 6)
    listed = segments

    def gone_since(of: EpochPath, *_: object) -> list[tuple[int, Path]]:
        found = listed(of)
        for _, path in found[:3]:
            path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(spool, "segments", gone_since)
    events, holes = drain(SpoolFeed(log.spool))
    assert [e.labels[0]["value"] for e in events if isinstance(e, Feedback)] == [3, 4, 5]
    assert holes == [Hole(1, 5, 0, 2, RETENTION)]
    assert epoch.path.is_dir()


@pytest.mark.parametrize("whole", [True, False])
def test_the_end_of_an_epoch_that_is_gone(log: Log, whole: bool):
    """An epoch that ended loses its last segments, or its directory, to retention before they were read: told once."""
    epoch = written(log, 1, range(6), 6, over=True)
    feed = SpoolFeed(log.spool)
    assert len(feed.read(2, 0).events) == 2
    for _, path in segments(epoch):
        path.unlink()
    if whole:
        shutil.rmtree(epoch.path)
    assert drain(feed) == ([], [Hole(1, 5, 2, 5, RETENTION)])
    assert feed.positions[epoch.key] == 6
    assert drain(SpoolFeed(log.spool, feed.positions)) == ([], [])


def test_the_end_of_an_epoch_that_is_damaged(log: Log):
    """Its last frame does not add up: nothing comes later that would show the hole, so it is told at the end."""
    epoch = written(log, 1, range(4), 4, over=True)
    _, last = segments(epoch)[-1]
    last.write_bytes(last.read_bytes()[:-9] + b"\0" * 9)
    events, holes = drain(SpoolFeed(log.spool))
    assert len(events) == 3
    assert holes == [Hole(1, 5, 3, 3, "corrupt")]


def test_an_epoch_that_was_never_seen_is_told_by_its_gap(log: Log):
    """Written and taken while the reader was away: the recorder's gap is all there is of it. What was read before it
    was taken is no hole, and what is left shows the rest itself."""
    written(log, 1, range(3), 3, over=True)
    first = SpoolFeed(log.spool)
    assert len(drain(first)[0]) == 3
    shutil.rmtree(epoch_path(log.spool, 1, 5).path)
    written(log, 3, range(8, 10), 10, over=True)
    recorder = log.recorder()
    # Said, and not taken yet.
    written(log, 4, range(20), 20, over=True)
    recorder._log([trimmed(1, 0, 2), trimmed(2, 0, 3), trimmed(2, 4, 7), trimmed(3, 0, 7), trimmed(4, 0, 15)])
    settle(recorder)
    events, holes = drain(SpoolFeed(log.spool, first.positions), 1)
    assert sum(isinstance(event, Gap) for event in events) == 5
    assert [e.labels[0]["value"] for e in events if isinstance(e, Feedback)].count(19) == 1
    assert sum(isinstance(event, Feedback) for event in events) == 22
    assert sorted(holes) == [
        Hole(2, 5, 0, 3, RETENTION),
        Hole(2, 5, 4, 7, RETENTION),
        Hole(3, 5, 0, 7, RETENTION),
    ]


def test_frames_of_a_reader_by_columns_have_their_holes(log: Log):
    """Who reads whole frames finds what no later frame shows in `holes`."""
    written(log, 1, range(3), 5, over=True)
    feed = SpoolFeed(log.spool)
    assert [frame.first_seq for _, frame in feed.read_frames(100)] == [0, 1, 2]
    assert feed.holes == [Hole(1, 5, 3, 4, "corrupt")]
    assert feed.read_frames(100) == []


def test_runs_before_the_time_are_passed_over(log: Log, monkeypatch: pytest.MonkeyPatch):
    """Their frames are not made into events, though their segment was written to later."""
    epoch = epoch_path(log.spool, 1, 5)
    epoch.path.mkdir(parents=True)
    frames = [seal(n, 1, run_of(n * 10)) for n in range(4)]
    (epoch.path / segment_name(0)).write_bytes(b"".join(frames))
    (epoch.path / "synced").write_bytes((4).to_bytes(8, "little"))
    expanded: list[int] = []
    made = legible.expand_content

    def counted(source: int, epoch: int, frame: Frame, content: Run | Events) -> list[Event]:
        expanded.append(frame.first_seq)
        return made(source, epoch, frame, content)

    monkeypatch.setattr(legible, "expand_content", counted)
    events, holes = drain(SpoolFeed(log.spool, since_ns=20))
    assert [parse_event_id(event.id).seq for event in events] == expanded == [2, 3]
    assert holes == []


def run_of(done_ns: int) -> bytes:
    """A run of one request without tensors."""
    raw = encoder.encode
    run = Run(
        model=msgspec.Raw(raw(ModelFacts("m", "1"))),
        batch_id=1,
        cut="idle",
        infer_ns=1,
        rows=[1],
        received_ns=[done_ns],
        done_ns=[done_ns],
        route=[msgspec.Raw(raw(RouteFacts(1, 1, "primary", "primary", 10_000, "weight")))],
        unit_hash=[None],
        caller=[msgspec.Raw(raw(Caller("infer", "oip-json", None)))],
        stages=[[0]] * len(STAGE_COLUMNS),
        inputs=[],
        outputs=[],
    )
    return raw(run)
