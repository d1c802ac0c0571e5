"""What every feed guarantees, held over the spool and over a real Kafka alike: one log, read through both."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.audit.event import Event, Gap
from gateway.audit.feed import Feed, Hole, Positions
from gateway.audit.forwarder import Forwarder
from gateway.audit.identity import parse_event_id
from gateway.audit.kafka_feed import KafkaFeed
from gateway.audit.spool import EpochPath, epochs, segments
from gateway.audit.spool_feed import SpoolFeed
from gateway.audit.writer import Writer
from gateway.config import Kafka
from gateway.errors import FeedUnreachable
from tests.gateway.audit.sim import GATEWAY_ID, Log, forget_owner, label, settle, stop

Fill = Callable[[list[Writer], Callable[[], int]], object]


class SpoolSide:
    """The spool itself."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def publish(self) -> None:
        """Nothing to do."""

    def publish_twice(self) -> None:
        """Frames stand in a segment and at the start of the next: a cut that did not get to disk."""
        first, second, *_ = segments(self.busiest())
        first[1].write_bytes(first[1].read_bytes() + second[1].read_bytes())

    def busiest(self) -> EpochPath:
        """The epoch with the most segments."""
        return max(epochs(self.log.spool), key=lambda epoch: len(segments(epoch)))

    def feed(self, positions: Positions | None = None) -> Feed:
        """A new feed."""
        return SpoolFeed(self.log.spool, positions)


class TopicSide(SpoolSide):
    """The same spool, sent to a topic of this test's own."""

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

    def feed(self, positions: Positions | None = None) -> Feed:
        """A new feed."""
        return KafkaFeed(self.kafka.bootstrap_servers, self.kafka.topic, positions)


@pytest.fixture(params=["spool", "topic"])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SpoolSide]:
    """An empty log behind either feed."""
    log = Log(tmp_path / "state")
    if request.param == "spool":
        yield SpoolSide(log)
    else:
        yield TopicSide(log, request.getfixturevalue("kafka_bootstrap"))


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


def read_all(feed: Feed, quiet_ms: int = 500) -> tuple[list[Event], list[Hole]]:
    """Read until nothing comes any more."""
    events: list[Event] = []
    holes: list[Hole] = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        delivery = feed.read(7, quiet_ms)
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


def test_each_epoch_in_order_and_once(side: SpoolSide):
    """Events of an epoch come in order of seq from 0 without a hole; positions stand behind them."""
    record(side.log, interleaved)
    side.publish()
    with closing(side.feed()) as feed:
        events, holes = read_all(feed)
        positions = feed.positions
    numbers = by_epoch(events)
    assert len(numbers) == 3
    assert all(seqs == list(range(len(seqs))) for seqs in numbers.values())
    assert not holes
    assert {key: positions[key] for key in numbers} == {key: len(seqs) for key, seqs in numbers.items()}
    labels = [event.labels[0]["value"] for event in events if event.__struct_config__.tag == "feedback"]
    assert len(labels) == len(set(labels)) == 2 * sum(1 + i % 5 % 3 for i in range(15))


def test_resumes_from_positions(side: SpoolSide):
    """A feed made with another's positions goes on exactly behind what that one returned."""
    record(side.log, interleaved)
    side.publish()
    parts, positions = [], None
    for step in (9, 1, 5, 2):
        with closing(side.feed(positions)) as feed:
            delivery = feed.read(step, 3000)
            positions = feed.positions
        assert not delivery.holes
        assert delivery.events
        parts += delivery.events
    with closing(side.feed(positions)) as feed:
        rest, holes = read_all(feed)
    assert not holes
    assert rest
    numbers = by_epoch([*parts, *rest])
    assert all(seqs == list(range(len(seqs))) for seqs in numbers.values())
    with closing(side.feed()) as feed:
        whole, _ = read_all(feed)
    assert by_epoch(whole) == numbers


def test_what_comes_twice_is_dropped(side: SpoolSide):
    """Records that stand twice are returned once, and do not look like the end."""
    record(side.log, interleaved)
    with closing(SpoolFeed(side.log.spool)) as feed:
        wanted, _ = read_all(feed, 0)
    side.publish_twice()
    with closing(side.feed()) as feed:
        events, holes = read_all(feed)
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
        events, holes = read_all(feed)
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
        events, holes = read_all(feed)
    (gap,) = [event for event in events if isinstance(event, Gap)]
    assert holes == [Hole(int(gap.source, 16), gap.epoch, gap.from_seq, gap.to_seq)]
    assert (gap.from_seq, gap.to_seq) == (2, 5)


def test_an_open_feed_sees_what_comes_later(side: SpoolSide):
    """New events and new epochs arrive in a feed that has read everything before."""
    record(side.log, lambda writers, _: writers[0].append_events([label(1)]))
    side.publish()
    with closing(side.feed()) as feed:
        before, _ = read_all(feed)
        record(side.log, interleaved)
        side.publish()
        after, holes = read_all(feed)
    assert not holes
    assert len(by_epoch(before)) == 3
    assert by_epoch(after).keys().isdisjoint(by_epoch(before))
    assert all(seqs == list(range(len(seqs))) for seqs in by_epoch(after).values())


def test_waits_no_longer_than_asked(side: SpoolSide):
    """With nothing to read a feed returns empty after about `wait_ms`."""
    record(side.log, lambda *_: None)
    side.publish()
    with closing(side.feed()) as feed:
        read_all(feed)
        start = time.monotonic()
        delivery = feed.read(10, 100)
        assert not delivery.events
        assert 0.05 < time.monotonic() - start < 5


def test_a_topic_that_cannot_be_read_says_so(kafka_bootstrap: str):
    """No such topic, or no broker: FeedUnreachable, and nothing is left open."""
    with pytest.raises(FeedUnreachable, match="is not there"):
        KafkaFeed(kafka_bootstrap, "no-such-topic")
    with pytest.raises(FeedUnreachable, match="cannot be read"):
        KafkaFeed("127.0.0.1:1", "any")
