"""What every feed guarantees, over the spool, over a real Kafka read alone, and read by a consumer group alike: one
log, read through all three."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from gateway.audit.event import SCHEMA, Event, Gap
from gateway.audit.feed import Feed, Hole
from gateway.audit.forwarder import Forwarder
from gateway.audit.frame import seal
from gateway.audit.identity import parse_event_id
from gateway.audit.kafka_feed import KafkaFeed
from gateway.audit.spool import EpochPath, epoch_path, epochs, segment_name, segments
from gateway.audit.spool_feed import SpoolFeed
from gateway.audit.writer import Writer
from gateway.errors import FeedUnreachable
from gateway.kafka import Kafka
from tests.gateway.audit.sim import GATEWAY_ID, Log, forget_owner, label, settle, stop

Fill = Callable[[list[Writer], Callable[[], int]], object]
Put = list[dict[str, Any]]
SOURCE, EPOCH = 7, 1_700_000_000
KEY = f"{SOURCE:016x}-{EPOCH:08x}"


class SpoolSide:
    """The spool itself."""

    quiet_ms = 0

    def __init__(self, log: Log) -> None:
        self.log = log

    def publish(self) -> None:
        """Nothing to do."""

    def publish_twice(self) -> None:
        """Frames stand in a segment and at the start of the next: a cut that did not get to disk."""
        first, second, *_ = segments(self.busiest())
        first[1].write_bytes(first[1].read_bytes() + second[1].read_bytes())

    def put(self, events: Put, source: int = SOURCE, epoch: int = EPOCH) -> None:
        """Events as any version may have written them, from seq 0 on: two a frame, two frames a segment; a segment was
        written last when its last event was made."""
        where = epoch_path(self.log.spool, source, epoch)
        where.path.mkdir(parents=True)
        for first in range(0, len(events), 4):
            content = b"".join(
                seal(at, len(two), msgspec.msgpack.encode({"frame": "events", "events": two}))
                for at in (first, first + 2)
                if (two := events[at : at + 2][: max(first + 4 - at, 0)])
            )
            path = where.path / segment_name(first)
            path.write_bytes(content)
            last_ns = events[first : first + 4][-1]["at_ns"]
            os.utime(path, ns=(last_ns, last_ns))
        (where.path / "synced").write_bytes(len(events).to_bytes(8, "little"))

    def trim(self, to_seq: int) -> None:
        """Retention removes what stands before that event of `put`."""
        for first, path in segments(epoch_path(self.log.spool, SOURCE, EPOCH)):
            if first < to_seq:
                path.unlink()

    def busiest(self) -> EpochPath:
        """The epoch with the most segments."""
        return max(epochs(self.log.spool), key=lambda epoch: len(segments(epoch)))

    def feed(self, place: Any = None, since_ns: int | None = None) -> Feed:
        """A feed from the beginning, from a time, or from a place that `keep` gave."""
        return SpoolFeed(self.log.spool, place, since_ns=since_ns)

    def keep(self, feed: Feed) -> Any:
        """Where the feed stands, for another that goes on there."""
        return feed.positions


class TopicSide(SpoolSide):
    """The same spool, sent to a topic of this test's own."""

    quiet_ms = 300

    def __init__(self, log: Log, bootstrap: str) -> None:
        super().__init__(log)
        self.kafka = Kafka(bootstrap_servers=bootstrap, topic=f"feeds-{uuid.uuid4().hex[:12]}", partitions=3)

    def publish(self) -> None:
        """Forward what is in the spool."""

        async def forward() -> int:
            forwarder = Forwarder(self.log.spool, self.log.state_dir / "forwarder", GATEWAY_ID, self.kafka)
            forwarder.stop()
            await forwarder.run()
            return forwarder.retries

        assert any(asyncio.run(forward()) == 0 for _ in range(5))

    def publish_twice(self) -> None:
        """The acknowledgement was lost: everything is sent again."""
        self.publish()
        (self.log.state_dir / "forwarder" / "positions.json").unlink()
        self.publish()

    @functools.cached_property
    def admin(self) -> AdminClient:
        """A foreign client; what it was asked ends with it."""
        return AdminClient({"bootstrap.servers": self.kafka.bootstrap_servers})

    def make_topic(self, partitions: int = 1) -> None:
        """Made before anything is sent."""
        new = NewTopic(self.kafka.topic, partitions, 1, config={"retention.ms": "-1"})
        self.admin.create_topics([new])[self.kafka.topic].result(10)

    def put(self, events: Put, source: int = SOURCE, epoch: int = EPOCH, partition: int = 0) -> None:
        """The same as records of a partition."""
        if self.kafka.topic not in self.admin.list_topics(timeout=10).topics:
            self.make_topic()
        producer = Producer({"bootstrap.servers": self.kafka.bootstrap_servers, "linger.ms": 0})
        for seq, event in enumerate(events):
            event_id = f"{source:016x}-{epoch:08x}-{seq:016x}"
            value = msgspec.msgpack.encode({**event, "id": event_id})
            at_ms = event["at_ns"] // 1_000_000
            producer.produce(
                self.kafka.topic, value, key=event_id.encode(), partition=partition, timestamp=at_ms
            )
        assert producer.flush(10) == 0

    def trim(self, to_seq: int) -> None:
        """Brokers remove what stands before."""
        at = TopicPartition(self.kafka.topic, 0, to_seq)
        self.admin.delete_records([at])[at].result(10)

    def feed(self, place: Any = None, since_ns: int | None = None) -> Feed:
        """A feed that reads alone."""
        return KafkaFeed(self.kafka.bootstrap_servers, self.kafka.topic, place, since_ns=since_ns)


class GroupSide(TopicSide):
    """That topic, read by a consumer group."""

    def feed(self, place: Any = None, since_ns: int | None = None) -> Feed:
        """A member of a group of its own, or of the one that was kept."""
        group = place or f"group-{uuid.uuid4().hex[:12]}"
        feed = KafkaFeed(self.kafka.bootstrap_servers, self.kafka.topic, group=group, since_ns=since_ns)
        feed.group = group  # type: ignore[attr-defined]
        return feed

    def keep(self, feed: Feed) -> Any:
        """Commit; the group's name."""
        assert isinstance(feed, KafkaFeed)
        assert feed.commit()
        return feed.group  # type: ignore[attr-defined]


SIDES = {"spool": SpoolSide, "topic": TopicSide, "group": GroupSide}


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SpoolSide]:
    """An empty log behind any of the feeds."""
    log = Log(tmp_path / "state")
    if request.param == "spool":
        yield SpoolSide(log)
    else:
        yield SIDES[request.param](log, request.getfixturevalue("kafka_bootstrap"))


def record(log: Log, fill: Fill) -> None:
    """Two workers live, `fill` appends, all end and everything is on disk."""
    recorder = log.recorder()
    writers = [log.owner(), log.owner()]
    fill(writers, recorder.step)
    for writer in writers:
        writer.close()
        forget_owner(writer)
    settle(recorder)
    stop(recorder)


def interleaved(writers: list[Writer], step: Callable[[], int]) -> None:
    """Labels from two writers in turn, in frames of one to three events and in several segments."""
    for i in range(15):
        for which, writer in enumerate(writers):
            values = [1000 * which + 10 * i + k for k in range(1 + i % 5 % 3)]
            assert writer.append_events([label(value, pad_bytes=800) for value in values]) is not None
        step()


def told(value: int, at_ns: int = 1) -> dict[str, Any]:
    """A label as plain data."""
    return {"type": "feedback", "kind": "label", "schema": 1, "at_ns": at_ns, "labels": [{"value": value}]}


def read_all(side: SpoolSide, feed: Feed, first_ms: int = 3000) -> tuple[list[Event], list[Hole]]:
    """Read until nothing comes any more.

    Args:
        first_ms: how long is waited for the first ones; a group takes its time to settle.
    """
    events: list[Event] = []
    holes: list[Hole] = []
    wait_ms = first_ms if side.quiet_ms else 0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        delivery = feed.read(7, wait_ms)
        wait_ms = side.quiet_ms
        if not delivery.events and not delivery.holes:
            return events, holes
        events += delivery.events
        holes += delivery.holes
    raise AssertionError("the feed does not come to an end")


def by_epoch(events: list[Event]) -> dict[str, list[int]]:
    """Numbers as they came, an epoch a list."""
    found = defaultdict(list)
    for event in events:
        found[event.id[:25]].append(parse_event_id(event.id).seq)
    return dict(found)


def values(events: list[Event]) -> list[int]:
    """Of labels."""
    return [e.labels[0]["value"] for e in events if e.__struct_config__.tag == "feedback"]


def test_each_epoch_in_order_and_once(side: SpoolSide):
    """Events of an epoch come in order of seq from 0 without a hole; positions stand behind them."""
    record(side.log, interleaved)
    side.publish()
    with closing(side.feed()) as feed:
        events, holes = read_all(side, feed)
        positions = feed.positions
    numbers = by_epoch(events)
    assert len(numbers) == 3
    assert all(seqs == list(range(len(seqs))) for seqs in numbers.values())
    assert not holes
    assert {key: positions[key] for key in numbers} == {key: len(seqs) for key, seqs in numbers.items()}
    assert len(values(events)) == len(set(values(events))) == 2 * sum(1 + i % 5 % 3 for i in range(15))


def test_resumes_from_where_it_stood(side: SpoolSide):
    """A feed made where another stood goes on exactly behind what that one returned, and drops the doubles that it
    would have dropped."""
    record(side.log, interleaved)
    side.publish_twice()
    parts: list[Event] = []
    place = None
    for step in (9, 1, 5, 2):
        with closing(side.feed(place)) as feed:
            delivery = feed.read(step, 3000)
            place = side.keep(feed)
        assert not delivery.holes
        assert delivery.events
        parts += delivery.events
    with closing(side.feed(place)) as feed:
        rest, holes = read_all(side, feed)
    assert not holes
    assert rest
    numbers = by_epoch([*parts, *rest])
    assert all(seqs == list(range(len(seqs))) for seqs in numbers.values())
    with closing(SpoolFeed(side.log.spool)) as whole:
        assert by_epoch(whole.read(10_000, 0).events) == numbers


def test_what_comes_twice_is_dropped(side: SpoolSide):
    """Records that stand twice are returned once, and do not look like the end."""
    record(side.log, interleaved)
    with closing(SpoolFeed(side.log.spool)) as feed:
        wanted = feed.read(10_000, 0).events
    side.publish_twice()
    with closing(side.feed()) as feed:
        events, holes = read_all(side, feed)
    assert by_epoch(events) == by_epoch(wanted)
    assert not holes


def test_a_hole_is_reported_once_with_its_numbers(side: SpoolSide):
    """A segment is gone: the feed says which numbers are missing and goes on behind them."""
    record(side.log, interleaved)
    epoch = side.busiest()
    (_, _), (from_seq, lost), (next_seq, _), *_ = segments(epoch)
    lost.unlink()
    side.publish()
    with closing(side.feed()) as feed:
        events, holes = read_all(side, feed)
    assert holes == [Hole(epoch.source, epoch.epoch, from_seq, next_seq - 1)]
    seqs = by_epoch(events)[epoch.key]
    assert seqs == sorted(set(range(seqs[-1] + 1)) - set(range(from_seq, next_seq)))


def test_a_logged_gap_covers_its_hole(side: SpoolSide):
    """Numbers lost to a full ring are a hole with a gap event of the same numbers."""

    def lose(writers: list[Writer], _step: object) -> None:
        writers[0].append_events([label(1)])
        writers[0].lose(4)
        writers[0].append_events([label(2)])

    record(side.log, lose)
    side.publish()
    with closing(side.feed()) as feed:
        events, holes = read_all(side, feed)
    (gap,) = [event for event in events if isinstance(event, Gap)]
    assert holes == [Hole(int(gap.source, 16), gap.epoch, gap.from_seq, gap.to_seq)]
    assert (gap.from_seq, gap.to_seq) == (2, 5)


def test_an_open_feed_sees_epochs_come_and_end(side: SpoolSide):
    """New events and new epochs arrive in a feed that has read everything before; what ended is not told again."""
    record(side.log, lambda writers, _: writers[0].append_events([label(1)]))
    side.publish()
    with closing(side.feed()) as feed:
        before, _ = read_all(side, feed)
        record(side.log, interleaved)
        side.publish()
        after, holes = read_all(side, feed)
    assert not holes
    assert len(by_epoch(before)) == 3
    assert by_epoch(after).keys().isdisjoint(by_epoch(before))
    assert all(seqs == list(range(len(seqs))) for seqs in by_epoch(after).values())


def test_waits_no_longer_than_asked(side: SpoolSide):
    """With nothing to read a feed returns empty after about `wait_ms`."""
    record(side.log, lambda *_: None)
    side.publish()
    with closing(side.feed()) as feed:
        read_all(side, feed)
        start = time.monotonic()
        delivery = feed.read(10, 100)
        assert not delivery.events
        assert 0.05 < time.monotonic() - start < 5


def test_what_cannot_be_read_is_counted_told_and_passed(side: SpoolSide, caplog: pytest.LogCaptureFixture):
    """A type that is not known here is passed over; a later schema of a known one, or no event at all, is a hole.
    Each kind is named once, all are counted, and what stands beside them comes."""
    strange = {"type": "seal", "kind": "seal", "schema": 1, "at_ns": 1}
    later = {**told(2), "schema": SCHEMA + 1}
    moved = {**later, "labels": {"moved": 1}}
    side.put(
        [told(0), strange, later, told(3), strange, told(5), {"type": "gap", "at_ns": 1}, moved, told(8)]
    )
    with caplog.at_level(logging.WARNING, "tidegate.feed"), closing(side.feed()) as feed:
        events, holes = read_all(side, feed)
        assert feed.unreadable == 5
        assert feed.positions[KEY] == 9
    assert values(events) == [0, 3, 5, 8]
    assert [hole[2:] for hole in holes] == [(seq, seq, "unreadable") for seq in (2, 6, 7)]
    named = [r.what for r in caplog.records if r.getMessage() == "records_unreadable"]
    assert len(named) == len(set(named)) == 3
    assert any("unknown event type: seal" in what for what in named)
    assert any(f"schema {SCHEMA + 1} of feedback" in what for what in named)


def test_begins_at_a_time(side: SpoolSide):
    """Nothing at or after the time is left out, whatever clocks were set back meanwhile; what was before is no hole,
    and little of it comes."""
    at_s = EPOCH + 50_000
    # The clock runs, is set back by an hour while a segment is open, and runs on.
    seconds = [*range(at_s, at_s + 18), *range(at_s - 3582, at_s - 3560)]
    side.put([told(i, second * 10**9 + 1) for i, second in enumerate(seconds)])
    since_ns = (at_s + 17) * 10**9
    with closing(side.feed(since_ns=since_ns)) as feed:
        events, holes = read_all(side, feed)
        place = side.keep(feed)
    assert not holes
    found = [(value, event.at_ns) for value, event in zip(values(events), events, strict=True)]
    assert {value for value, at_ns in found if at_ns >= since_ns} == {17}
    assert min(value for value, _ in found) >= 16
    with closing(side.feed(place, since_ns=since_ns)) as feed:
        assert read_all(side, feed, 600) == ([], [])


def test_an_epoch_that_began_since_has_no_free_start(side: SpoolSide):
    """Begun at a time, a feed still reports what is missing at the start of a later epoch."""
    side.put([told(i, (EPOCH + i) * 10**9) for i in range(12)])
    side.trim(4)
    with closing(side.feed(since_ns=(EPOCH - 10) * 10**9)) as feed:
        events, holes = read_all(side, feed)
    assert values(events) == list(range(4, 12))
    assert [hole[:4] for hole in holes] == [(SOURCE, EPOCH, 0, 3)]


def test_a_reader_behind_retention_says_what_it_missed(side: SpoolSide):
    """What was removed before it was read is told with its numbers and its cause, once, and reading goes on."""
    side.put([told(i) for i in range(24)])
    with closing(side.feed()) as feed:
        before = feed.read(2, 3000).events
        place = side.keep(feed)
    side.trim(12)
    skipped: list[Any] = []
    with closing(side.feed(place)) as feed:
        delivery = feed.read(1000, 3000)
        while not delivery.events:
            skipped += delivery.skipped
            assert delivery.holes or delivery.skipped
            delivery = feed.read(1000, 3000)
        skipped += delivery.skipped
        assert read_all(side, feed, side.quiet_ms) == ([], [])
    seen = len(before)
    assert delivery.holes == [Hole(SOURCE, EPOCH, seen, 11, "retention")]
    assert values(before) + values(delivery.events) == [*range(seen), *range(12, 24)]
    if side.quiet_ms:
        assert skipped == [(0, seen, 11)]


def test_partitions_that_are_added_are_read(kafka_bootstrap: str, tmp_path: Path, monkeypatch):
    """Alone and in a group: an open feed finds partitions that the topic gets later, and does not tell the others
    again."""
    monkeypatch.setattr("gateway.audit.topic_reader.METADATA_AGE_MS", 200)
    alone, group = (
        TopicSide(Log(tmp_path / "state"), kafka_bootstrap),
        GroupSide(Log(tmp_path / "b"), kafka_bootstrap),
    )
    group.kafka = alone.kafka
    alone.put([told(i) for i in range(5)])
    with closing(alone.feed()) as one, closing(group.feed()) as two:
        assert [values(read_all(alone, feed)[0]) for feed in (one, two)] == [list(range(5))] * 2
        assert two.commit()  # type: ignore[attr-defined]
        alone.admin.create_partitions([NewPartitions(alone.kafka.topic, 2)])[alone.kafka.topic].result(10)
        alone.put([told(i) for i in range(5)], source=SOURCE + 1, partition=1)
        for feed in (one, two):
            got: list[Event] = []
            deadline = time.monotonic() + 20
            while len(got) < 5 and time.monotonic() < deadline:
                delivery = feed.read(100, 500)
                assert not delivery.holes
                got += delivery.events
            assert [event.id[:16] for event in got] == [f"{SOURCE + 1:016x}"] * 5
            assert {"kafka/0", "kafka/1"} <= feed.positions.keys() or feed is two


def test_a_topic_that_cannot_be_read_says_so(kafka_bootstrap: str):
    """No such topic, or no broker: FeedUnreachable, and nothing is left open."""
    for group in (None, "any"):
        with pytest.raises(FeedUnreachable, match="is not there"):
            KafkaFeed(kafka_bootstrap, "no-such-topic", group=group)
    with pytest.raises(FeedUnreachable, match="cannot be read"):
        KafkaFeed("127.0.0.1:1", "any")
