"""The spool as a feed, beyond what tests/contracts/test_feeds.py holds of every feed."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.audit import spool_feed
from gateway.audit.event import EpochOpen, Event, Feedback, Gap
from gateway.audit.feed import Feed, Hole, Positions
from gateway.audit.frame import Events, encoder, seal
from gateway.audit.identity import parse_event_id
from gateway.audit.spool import EpochPath, synced_seq
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


def two_sources(log: Log) -> None:
    """Two owners, one with two epochs and a gap, told by a recorder that still runs."""
    recorder = log.recorder(segment_bytes=400)
    first, second = log.owner(), log.owner()
    for value in range(30):
        first.append_events([label(value), label(1000 + value)])
        second.append_events([label(2000 + value)])
        if value == 15:
            first.lose(3)
        recorder.step()
    first.close()
    forget_owner(first)
    settle(recorder)
    again = log.owner()
    again.append_events([label(3000)])
    settle(recorder)


def numbers(events: list[Event]) -> dict[tuple[int, int], list[int]]:
    """seq per (source, epoch), as they came."""
    found: dict[tuple[int, int], list[int]] = {}
    for event in events:
        which = parse_event_id(event.id)
        found.setdefault((which.source, which.epoch), []).append(which.seq)
    return found


def test_each_epoch_comes_in_order_and_once(log: Log):
    """Events of one (source, epoch) come in order of seq, each once; an epoch begins with its opening."""
    two_sources(log)
    feed = SpoolFeed(log.spool)
    events, _ = drain(feed)
    of_epoch = numbers(events)
    assert len(of_epoch) == 4
    assert all(seqs == sorted(set(seqs)) for seqs in of_epoch.values())
    assert all(isinstance(e, EpochOpen) for e in events if e.id.endswith(f"-{0:016x}"))
    assert sum(isinstance(e, Feedback) for e in events) == 91
    feed.close()


def test_a_hole_is_reported_and_its_gap_arrives(log: Log):
    """Numbers that no event has are a hole, and the gap event says the same numbers."""
    two_sources(log)
    feed = SpoolFeed(log.spool)
    events, holes = drain(feed)
    (gap,) = [e for e in events if isinstance(e, Gap)]
    assert [(f"{h.source:016x}", h.epoch, h.from_seq, h.to_seq) for h in holes] == [
        (gap.source, gap.epoch, gap.from_seq, gap.to_seq)
    ]
    feed.close()


@pytest.mark.parametrize("step", [1, 5, 1000])
def test_positions_resume_exactly_behind_what_was_returned(log: Log, step: int):
    """However often a reader is cut off and made anew, it reads each event once."""
    two_sources(log)
    whole = SpoolFeed(log.spool)
    expected, _ = drain(whole)
    whole.close()
    positions: Positions | None = None
    found: list[Event] = []
    while True:
        feed = SpoolFeed(log.spool, positions)
        delivery = feed.read(step, 0)
        positions = feed.positions
        feed.close()
        if not delivery.events:
            break
        found += delivery.events
    assert numbers(found) == numbers(expected)


def test_a_feed_at_the_end_gets_what_comes_later(log: Log):
    """New events, new epochs and new sources are found on the go; nothing is told again."""
    recorder = log.recorder()
    settle(recorder)
    feed = SpoolFeed(log.spool)
    drain(feed)
    writer = log.owner()
    writer.append_events([label(1)])
    settle(recorder)
    events, holes = drain(feed)
    assert [e.labels[0]["value"] for e in events if isinstance(e, Feedback)] == [1]
    writer.append_events([label(2)])
    settle(recorder)
    events, more = drain(feed)
    assert [e.labels[0]["value"] for e in events if isinstance(e, Feedback)] == [2]
    assert holes + more == []
    feed.close()


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
