"""What is gone and who may say so: `verify` takes a gap from the recorder, and from others about themselves alone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from gateway import config
from gateway.audit import legible, witnesses
from gateway.audit import verify as verifying
from gateway.audit.event import Gap, Heartbeat
from gateway.audit.frame import Events, Frame, encoder, seal
from gateway.audit.identity import EventId, source_of
from gateway.audit.index import IndexBuilder
from gateway.audit.legible import read_frame, read_record
from gateway.audit.retention import Retention
from gateway.audit.spool import epoch_path, segment_name, segments
from gateway.audit.spool_feed import SpoolFeed
from gateway.audit.verify import verify
from tests.gateway.audit.sim import GATEWAY_ID, Log, settle, stop
from tests.gateway.audit.test_tampering import LAST, Scene


@pytest.fixture
def scene(log: Log) -> Scene:
    """As in test_tampering, with the gateway's id where it lies."""
    (log.state_dir / "gateway_id").write_text(GATEWAY_ID)
    return Scene(log)


def gap(scene: Scene, to_seq: int, cause: str = "retention") -> Gap:
    """Of the worker's epoch, from its beginning."""
    return Gap(f"{scene.epoch.source:016x}", scene.epoch.epoch, 0, to_seq, cause, at_ns=1)


def forge(scene: Scene, told: Gap) -> None:
    """A whole epoch of a source that never was, which holds a gap."""
    epoch = epoch_path(scene.log.spool, 0xFFFFFFFFFFFFFFFF, 1)
    epoch.path.mkdir(parents=True)
    (epoch.path / segment_name(0)).write_bytes(seal(0, 1, encoder.encode(Events([told]))))
    (epoch.path / "synced").write_bytes((1).to_bytes(8, "little"))
    (epoch.path / "closed").write_text(json.dumps({"next_seq": 1, "cause": "closed"}))


def tell(scene: Scene, told: Gap) -> None:
    """The recorder says it."""
    recorder = scene.log.recorder()
    recorder._log([told])
    stop(recorder)


def test_another_source_excuses_no_epoch(scene: Scene):
    """An epoch taken away stays a finding whatever a source that is no recorder says of it."""
    shutil.rmtree(scene.epoch.path)
    forge(scene, gap(scene, LAST + 1))
    report = scene.check()
    assert not report.ok
    assert [gone.told for gone in report.gone] == [False]


def test_another_source_excuses_no_hole(scene: Scene):
    """Nor a segment in the middle."""
    scene.segments[1][1].unlink()
    forge(scene, gap(scene, LAST, "host_loss"))
    assert scene.report().missing == [(scene.segments[1][0], scene.segments[2][0] - 1)]


def test_who_says_that_an_epoch_went_is_named(scene: Scene):
    """By the record's id: it is as good as the epoch that holds it."""
    shutil.rmtree(scene.epoch.path)
    tell(scene, gap(scene, LAST + 1))
    (gone,) = scene.check().gone
    assert gone.told
    (said,) = [e.id for e in scene.log.read() if isinstance(e, Gap)]
    assert gone.says == said


def test_a_beginning_that_nobody_says_went_is_missing(scene: Scene):
    """Where the recorder's record of it is still here, so would be the gap of retention."""
    for _, path in scene.segments[:-1]:
        path.unlink()
    first = scene.first()
    assert (first.kind, first.seq, first.to_seq) == ("missing", 0, scene.segments[-1][0] - 1)
    tell(scene, gap(scene, scene.segments[-1][0] - 1))
    report = scene.report()
    assert report.ok
    assert not report.untold


def test_a_beginning_that_no_record_here_knows_is_said(scene: Scene):
    """The gap may have gone in its turn, so it is no finding; but it is not passed over."""
    for _, path in scene.segments[:2]:
        path.unlink()
    report = scene.report()
    assert report.ok
    assert report.untold


def test_what_retention_takes_meanwhile_is_looked_for_again(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    """The recorder's epoch was read before it told the trim: its gap counts all the same."""
    for _, path in scene.segments[:-1]:
        path.unlink()
    recorder = scene.log.recorder()
    settle(recorder)
    real, slept = verifying.time.sleep, []

    def sleep(wait_s: float) -> None:
        slept.append(wait_s)
        if wait_s:
            recorder._log([gap(scene, scene.segments[-1][0] - 1)])
            settle(recorder)
        real(0)

    monkeypatch.setattr(verifying.time, "sleep", sleep)
    assert scene.report().ok
    assert slept == [0.0, verifying.LATE_S]


@pytest.mark.parametrize(
    "content", [b'{"next_seq": "abc"}', b'{"next_seq": 1e400}', b'{"next_seq": -1}', b"[" * 100_000]
)
def test_an_end_that_is_nonsense_is_none(scene: Scene, content: bytes):
    """`closed` of any content stops no command."""
    (scene.epoch.path / "closed").write_bytes(content)
    assert scene.report().next_seq == LAST + 2


def test_content_nested_without_end_is_a_finding(scene: Scene):
    """Of a frame with its CRC right; it does not end the check."""
    frames = scene.frames(2)
    frames[0] = frames[0]._replace(payload=b"\x82\xa5frame\xa6events\xa6events" + b"\x91" * 100_000)
    scene.put(2, frames)
    assert scene.first().found == "content that cannot be read"


def test_a_pipe_in_the_spool_holds_nobody_up(scene: Scene):
    """A segment's name that is no file."""
    os.mkfifo(scene.epoch.path / segment_name(99))
    assert not scene.report().findings


def test_retention_leaves_alone_what_links_lead_to(scene: Scene, tmp_path: Path):
    """Neither segments nor directories outside of the spool go."""
    outside = tmp_path / "outside"
    epoch = epoch_path(outside, 0xEEEEEEEEEEEEEEEE, 9)
    epoch.path.mkdir(parents=True)
    for name in (segment_name(0), segment_name(5), "closed"):
        (epoch.path / name).write_text("{}")
    (epoch.path.parent / "x.removed").mkdir()
    (scene.log.spool / epoch.path.parent.name).symlink_to(epoch.path.parent)
    before = sorted(outside.rglob("*"))
    loaded, _ = config.load(None, [f"state_dir={scene.log.state_dir}"], {})
    retention = Retention(scene.log.spool, loaded)
    # A directory goes in the pass after its last segment.
    retention.apply(now_s=1e12)
    retention.apply(now_s=1e12)
    assert sorted(outside.rglob("*")) == before
    assert not scene.epoch.path.exists()


def test_an_index_is_not_written_through_a_link(scene: Scene, tmp_path: Path):
    """A reader with more rights than the spool's owner harms no file elsewhere."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    segment = scene.segments[0][1]
    temporary = segment.with_suffix(f".idx.{os.getpid()}")
    temporary.symlink_to(precious)
    IndexBuilder().write(segment)
    assert precious.read_text() == "mine"


def test_numbers_beyond_all_are_no_segment_s(scene: Scene):
    """A name of digits that no number has is somebody else's file."""
    (scene.epoch.path / ("9" * 20 + ".log")).write_bytes(b"x")
    assert segments(scene.epoch) == scene.segments


def test_a_topic_of_several_gateways_misses_nothing_here(scene: Scene):
    """What another gateway's recorder said of its epochs is no epoch that is gone from this spool."""
    other = source_of("ffeeddccbbaa0011", "worker", 0)
    own = source_of(GATEWAY_ID, "worker", 7)
    positions = {f"{source:016x}-00000001": (5, "ab" * 32) for source in (other, own)}
    known = witnesses.in_events([Heartbeat(at_ns=1, positions=positions, id="x")])
    kept = witnesses.of_spool(scene.log.spool, known)
    assert [gone.key for gone in scene.check(kept).gone] == [f"{own:016x}-00000001"]


def test_the_topic_s_gap_outlives_that_of_the_spool(scene: Scene):
    """Retention takes its own gaps, too; what another than the recorder says there counts for nothing."""
    shutil.rmtree(scene.epoch.path)
    told = gap(scene, LAST + 1)
    for role, counts in (("worker", False), ("recorder", True)):
        told.id = str(EventId(source_of(GATEWAY_ID, role, 0), 1, 5))
        trims = witnesses.trims_in(scene.log.spool, [told])
        assert verify(scene.log.spool, trims=trims).ok == counts


def test_a_frame_that_says_too_many_numbers_is_passed(scene: Scene):
    """A reader tells the hole and goes on behind it, at once."""
    frames = scene.frames(len(scene.segments) - 1)
    path = scene.segments[-1][1]
    last = frames[-1]
    run = encoder.encode({"frame": "run"})
    path.write_bytes(path.read_bytes() + seal(last.next_seq, 2**32 - 1, run))
    end = last.next_seq + 2**32 - 1
    (scene.epoch.path / "synced").write_bytes(end.to_bytes(8, "little"))
    feed = SpoolFeed(scene.log.spool)
    holes = [hole for _ in range(3) for hole in feed.read(100_000, 0).holes]
    assert max(hole.to_seq for hole in holes) == end - 1
    assert feed.positions[scene.epoch.key] == end


@pytest.mark.parametrize("value", [b'{"a":' * 100_000, b"\x81\xa1a" * 100_000, b"\x91" * 100_000])
def test_a_topic_s_record_nested_without_end_is_no_event(value: bytes):
    """Whoever may write to the topic does not end its readers, nor with a frame those of the spool."""
    assert read_record(value) is legible.NO_EVENT
    told = read_frame(1, 2, Frame(0, 1, value))
    assert told is not None
    assert not any(isinstance(one, Gap) for one in told)
