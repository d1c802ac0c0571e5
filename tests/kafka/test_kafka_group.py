"""Members of a consumer group that come, go, die and come back, beyond what tests/contracts/test_feeds.py holds."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace

import pytest
from aiokafka.errors import GroupLoadInProgressError
from click.testing import CliRunner
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from gateway.audit import kafka_feed
from gateway.audit.event import Event, encode_event
from gateway.audit.feed import Hole
from gateway.audit.kafka_feed import KafkaFeed
from gateway.audit.kafka_group import METADATA_BYTES, GroupReader, marks_of, marks_text
from gateway.audit.topic_reader import Wanted
from gateway.cli import command as tidegate
from tests.gateway.audit.sim import label, until
from tests.kafka.member import SESSION_MS, Member


class Shared:
    """A topic of two partitions, one source in each, and a group that reads it."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self.topic, self.group = (f"{kind}-{uuid.uuid4().hex[:12]}" for kind in ("shared", "group"))
        self.admin = AdminClient({"bootstrap.servers": bootstrap})
        self.admin.create_topics([NewTopic(self.topic, 2, 1)])[self.topic].result(10)
        self.producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
        self.next = [0, 0]

    def say(self, count: int) -> list[str]:
        """So many more events of each source; their ids."""
        made: list[str] = []
        for number in (0, 1):
            for _ in range(count):
                event = label(self.next[number])
                event.id = f"{number + 1:016x}-{1:08x}-{self.next[number]:016x}"
                self.next[number] += 1
                self.producer.produce(self.topic, encode_event(event), event.id.encode(), partition=number)
                made.append(event.id)
        assert self.producer.flush(10) == 0
        return made

    def feed(self) -> KafkaFeed:
        """One more member, in this process."""
        return KafkaFeed(self.bootstrap, self.topic, group=self.group)

    def committed(self) -> list[int]:
        """Where the group stands, as a foreign client sees it."""
        asked = ConsumerGroupTopicPartitions(self.group, [TopicPartition(self.topic, n) for n in (0, 1)])
        (future,) = self.admin.list_consumer_group_offsets([asked]).values()
        return [place.offset for place in future.result(10).topic_partitions]


@pytest.fixture
def shared(kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> Shared:
    """See `Shared`; members that are silent for a second are out."""
    monkeypatch.setattr(kafka_feed, "SESSION_MS", SESSION_MS)
    return Shared(kafka_bootstrap)


@pytest.fixture
def member(shared: Shared) -> Iterator[Member]:
    """A member in a process of its own."""
    made = Member(shared.bootstrap, shared.topic, shared.group)
    yield made
    made.end()


def read(feed: KafkaFeed, count: int, wait_s: float = 20.0) -> list[Event]:
    """So many events, without a hole."""
    found: list[Event] = []
    deadline = time.monotonic() + wait_s
    while len(found) < count and time.monotonic() < deadline:
        delivery = feed.read(1000, 200)
        assert not delivery.holes
        found += delivery.events
    return found


def ids(events: list[Event]) -> list[str]:
    """In order of source and number."""
    return sorted(event.id for event in events)


def test_a_member_that_dies_is_taken_over(shared: Shared, member: Member, caplog: pytest.LogCaptureFixture):
    """Killed, its disk lost: another goes on where it committed. What it read since comes again, and is told."""
    first = shared.say(10)
    assert sorted(member.read(20)) == first
    member.tell("commit")
    assert member.answer() is True
    second = shared.say(5)
    assert sorted(member.read(10)) == sorted(second)
    member.end()
    with caplog.at_level(logging.INFO, "tidegate.feed"), closing(shared.feed()) as feed:
        assert ids(read(feed, 10)) == sorted(second)
    told = [
        (r.partition, r.from_offset, r.to_offset)
        for r in caplog.records
        if r.getMessage() == "may_have_been_read_before"
    ]
    assert sorted(told) == [(0, 10, 14), (1, 10, 14)]


def test_a_zombie_does_not_commit_over_its_successor(shared: Shared, member: Member):
    """Stopped for longer than its session, it comes back and commits, before or after it learns that it is out: the
    group stays where its successor left it, though that has gone since; then it reads on from there."""
    for ends, learns_first in ((5, False), (10, True)):
        said = shared.say(3)
        assert sorted(member.read(6)) == sorted(said)
        os.kill(member.process.pid, signal.SIGSTOP)
        said += shared.say(2)
        with closing(shared.feed()) as feed:
            assert ids(read(feed, 10)) == sorted(said)
            assert feed.commit()
        assert shared.committed() == [ends, ends]
        if not learns_first:
            member.tell("commit")
        os.kill(member.process.pid, signal.SIGCONT)
        if learns_first:
            time.sleep(0.3)
            member.tell("commit")
        assert member.answer() is False
        assert shared.committed() == [ends, ends]


class Coordinator:
    """As much of aiokafka's as a commit needs: a broker that is not ready, and a membership that changes meanwhile."""

    def __init__(self) -> None:
        self.generation = 3
        self.attempts: list[int] = []
        self._commit_lock = asyncio.Lock()

    async def ensure_coordinator_known(self) -> None:
        """It is."""

    async def _do_commit_offsets(self, _assignment: object, _offsets: object) -> None:
        self.attempts.append(self.generation)
        if len(self.attempts) == 2:
            self.generation = -1
        raise GroupLoadInProgressError


def test_a_commit_is_never_tried_under_another_membership() -> None:
    """It is tried again while the brokers are not ready, until the member is none any more: as nobody, an empty
    group's brokers would take it."""

    async def commit() -> None:
        reader = GroupReader(Wanted("", "topic", group="group"), lambda *_: None, lambda *_: None)
        coordinator = Coordinator()
        reader.consumer = SimpleNamespace(_coordinator=coordinator)
        reader._generation, reader.assignment = 3, 1
        assert await reader.commit({0: (5, "")}, 0) == "its partitions are handed over"
        assert coordinator.attempts == []
        assert await reader.commit({0: (5, "")}, 1) == "its partitions are handed over"
        assert coordinator.attempts == [3, 3]

    asyncio.run(commit())


def test_partitions_are_handed_over_whole(shared: Shared):
    """A second member comes while the first works on what it read: that may commit it, and nothing is seen twice. Its
    position is then only in what is its own; when the other leaves, all is its own again."""
    first = shared.say(10)
    with closing(shared.feed()) as one:
        assert ids(read(one, 20)) == first
        with closing(shared.feed()) as two:
            two.read(1, 300)
            assert one.commit()
            until(lambda: [len(feed._reader.owned) for feed in (one, two)] == [1, 1])
            second = shared.say(10)
            got: list[list[Event]] = [[], []]
            deadline = time.monotonic() + 20
            while sum(map(len, got)) < 20 and time.monotonic() < deadline:
                for index, feed in enumerate((one, two)):
                    got[index] += read(feed, 1, 0.2)
                    assert feed.commit()
            assert sorted(ids(got[0]) + ids(got[1])) == sorted(second)
            assert sorted(len(one) for one in got) == [10, 10]
            assert {key[:16] for key in one.positions if "kafka" not in key} == {got[0][0].id[:16]}
            assert len([key for key in one.positions if "kafka" in key]) == 1
        third = shared.say(1)
        last: list[Event] = []
        deadline = time.monotonic() + 20
        while len(last) < 2 and time.monotonic() < deadline:
            last += read(one, 1, 0.2)
            assert one.commit()
        assert ids(last) == sorted(third)


def test_what_a_slow_member_read_comes_again(shared: Shared, monkeypatch: pytest.MonkeyPatch, caplog):
    """One that works for longer than it is waited for has not committed: its successor reads that again, and it is
    told so."""
    monkeypatch.setattr("gateway.audit.kafka_group.GRACE_S", 0.1)
    first = shared.say(10)
    with closing(shared.feed()) as one, closing(shared.feed()) as two:
        held = read(one, 1) or read(two, 1)
        slow, other = (one, two) if one.positions else (two, one)
        with caplog.at_level(logging.WARNING, "tidegate.feed"):
            before = slow._reader.assignment
            with closing(shared.feed()):
                until(lambda: slow._reader.assignment != before)
            assert slow.commit() is False
        assert any(r.getMessage() == "read_and_not_committed" for r in caplog.records)
        rest = read(slow, 1) + read(other, 1)
        while more := read(slow, 1, 0.5) + read(other, 1, 0.5):
            rest += more
    assert {event.id for event in rest} == set(first)
    assert held


def test_marks_fit_into_a_position() -> None:
    """As many as brokers take, those that moved last; all, or told to be a part."""
    few = {f"{n:016x}-{n:08x}": n * 1000 for n in range(150)}
    assert marks_of(marks_text(few)) == (few, False)
    many = {f"{n:016x}-{n:08x}": n for n in range(2**20, 2**20 + 5000)}
    text = marks_text(many)
    found, is_part = marks_of(text)
    assert len(text.encode()) <= METADATA_BYTES
    assert is_part
    assert list(found.items()) == list(many.items())[-len(found) :]
    assert marks_of("written by others") == ({}, True)


def test_a_successor_without_marks_invents_no_hole(shared: Shared, monkeypatch: pytest.MonkeyPatch):
    """Of epochs whose marks did not fit into the position it reads on without a hole, and of others it finds holes."""
    monkeypatch.setattr("gateway.audit.kafka_group.METADATA_BYTES", 60)
    monkeypatch.setattr("gateway.audit.kafka_group.marks_text.__defaults__", (60,))
    shared.next = [0, 0]
    with closing(shared.feed()) as feed:
        shared.say(3)
        assert len(read(feed, 6)) == 6
        for source in (5, 6):
            event = label(0)
            event.id = f"{source:016x}-{1:08x}-{0:016x}"
            shared.producer.produce(shared.topic, encode_event(event), event.id.encode(), partition=0)
        shared.producer.flush(10)
        assert len(read(feed, 2)) == 2
        assert feed.commit()
    for source, seq in ((1, 3), (5, 1), (6, 4)):
        event = label(0)
        event.id = f"{source:016x}-{1:08x}-{seq:016x}"
        shared.producer.produce(shared.topic, encode_event(event), event.id.encode(), partition=0)
    shared.producer.flush(10)
    holes: list[Hole] = []
    with closing(shared.feed()) as feed:
        events: list[Event] = []
        deadline = time.monotonic() + 20
        while len(events) < 3 and time.monotonic() < deadline:
            delivery = feed.read(100, 500)
            events += delivery.events
            holes += delivery.holes
    assert [event.id[:16] for event in events] == [f"{source:016x}" for source in (1, 5, 6)]
    assert holes == [Hole(6, 1, 1, 3)]


def test_tail_of_a_group_goes_on_where_it_ended(shared: Shared):
    """The command run anew, as on another machine, prints what has come since and nothing else."""
    arguments = ["audit", "tail", "--kafka", shared.bootstrap, "--topic", shared.topic]
    for count in (5, 0, 2):
        said = shared.say(count)
        done = CliRunner().invoke(tidegate, [*arguments, "--group", shared.group, "--json"])
        assert done.exit_code == 0, done.output
        assert sorted(json.loads(line)["id"] for line in done.stdout.splitlines()) == sorted(said)


def test_alone_there_is_nothing_to_commit_to(shared: Shared):
    """A feed without a group says so."""
    with (
        closing(KafkaFeed(shared.bootstrap, shared.topic)) as feed,
        pytest.raises(ValueError, match="positions"),
    ):
        feed.commit()
