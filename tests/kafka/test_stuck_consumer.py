"""Consumers that are stuck, and brokers that die or stand still under them: reading goes on, each event once, told
once."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import CorruptRecordException
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from bench.kafka import Broker
from gateway.audit import kafka_feed, topic_reader
from gateway.audit.event import encode_event
from gateway.audit.kafka_feed import KafkaFeed
from gateway.audit.topic_reader import TopicReader
from tests.gateway.audit.sim import label
from tests.kafka.member import SESSION_MS


class Spoken:
    """A topic with one source."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap, self.topic = bootstrap, f"stuck-{uuid.uuid4().hex[:12]}"
        self.said = 0
        admin = AdminClient({"bootstrap.servers": bootstrap})
        admin.create_topics([NewTopic(self.topic, 1, 1)])[self.topic].result(20)

    def say(self, count: int) -> None:
        """More events."""
        producer = Producer({"bootstrap.servers": self.bootstrap, "message.timeout.ms": 30_000})
        for _ in range(count):
            event = label(self.said)
            event.id = f"{1:016x}-{1:08x}-{self.said:016x}"
            producer.produce(self.topic, encode_event(event), event.id.encode())
            self.said += 1
        assert producer.flush(30) == 0

    def feeds(self, stall_s: float) -> list[KafkaFeed]:
        """One alone and one that is a group's only member."""
        return [KafkaFeed(self.bootstrap, self.topic, group=g, stall_s=stall_s) for g in (None, self.topic)]


def read_to(feed: KafkaFeed, end: int, got: list[int], wait_s: float = 40.0) -> None:
    """Read up to that value, each once and in order; a group's member commits."""
    deadline = time.monotonic() + wait_s
    while len(got) < end and time.monotonic() < deadline:
        delivery = feed.read(100, 200)
        assert not delivery.holes
        assert not delivery.skipped
        got += [event.labels[0]["value"] for event in delivery.events]  # type: ignore[union-attr]
        if delivery.events and isinstance(feed._reader, kafka_feed.GroupReader):
            assert feed.commit()
    assert got == list(range(end))


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests and sessions end sooner than in life."""
    monkeypatch.setattr(topic_reader, "REQUEST_TIMEOUT_MS", 1500)
    monkeypatch.setattr(kafka_feed, "SESSION_MS", SESSION_MS)


def test_a_consumer_whose_fetching_ended_is_made_anew(
    kafka_bootstrap: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its task is dead and it says nothing (aiokafka #1154): abandoned, and a new one goes on behind what was read.
    One that has nothing to read is left alone."""
    spoken = Spoken(kafka_bootstrap)
    spoken.say(3)
    with ExitStack() as stack, caplog.at_level(logging.INFO, "tidegate.feed"):
        feeds = [stack.enter_context(closing(feed)) for feed in spoken.feeds(0.4)]
        got: list[list[int]] = [[], []]
        for feed, one in zip(feeds, got, strict=True):
            read_to(feed, 3, one)
            for _ in range(4):
                feed.read(10, 200)
            assert feed.remade == 0
            loop = feed._loop._loop
            loop.call_soon_threadsafe(feed._reader.consumer._fetcher._fetch_task.cancel)
        for feed in feeds:
            # A request that waits at the broker would still bring what comes next.
            assert feed.read(10, 400).events == []
        spoken.say(3)
        for feed, one in zip(feeds, got, strict=True):
            read_to(feed, 6, one)
            assert feed.remade == 1
    said = [record.getMessage() for record in caplog.records]
    assert said.count("consumer_made_anew") == said.count("topic_is_read_again") == 2


def test_one_that_never_starts_again_is_tried_again(
    kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While no new consumer starts a read returns empty in time; then reading goes on. Told once."""
    spoken = Spoken(kafka_bootstrap)
    spoken.say(2)
    with closing(spoken.feeds(0.3)[0]) as feed:
        got: list[int] = []
        read_to(feed, 2, got)
        make: Callable[[TopicReader], object] = TopicReader.make
        broken = 3

        def dead_end(reader: TopicReader) -> object:
            nonlocal broken
            broken -= 1
            wanted = reader.wanted
            if broken >= 0:
                reader.wanted = wanted._replace(bootstrap_servers="127.0.0.1:1")
            made = make(reader)
            reader.wanted = wanted
            return made

        monkeypatch.setattr(TopicReader, "make", dead_end)
        feed._reader.consumer._fetcher._fetch_task.cancel()
        spoken.say(2)
        with caplog.at_level(logging.WARNING, "tidegate.feed"):
            started_s = time.monotonic()
            feed.read(10, 100)
            assert time.monotonic() - started_s < 5
            read_to(feed, 4, got)
        assert broken < 0
    said = [record.getMessage() for record in caplog.records if record.name == "tidegate.feed"]
    assert said == ["consumer_made_anew", "kafka_not_reachable"]


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_broker_that_goes_and_comes_back(kafka_broker: Broker, how: str, tmp_path: Path) -> None:
    """kill -9 and a restart, or SIGSTOP for longer than all timeouts: reads return in time meanwhile, and reading goes
    on behind what was read."""
    spoken = Spoken(kafka_broker.bootstrap)
    spoken.say(3)
    with ExitStack() as stack:
        feeds = [stack.enter_context(closing(feed)) for feed in spoken.feeds(1.0)]
        got: list[list[int]] = [[], []]
        for feed, one in zip(feeds, got, strict=True):
            read_to(feed, 3, one)
        if how == "killed":
            kafka_broker.kill9()
        else:
            kafka_broker.freeze()
        deadline = time.monotonic() + (1.0 if how == "killed" else 3.5)
        while time.monotonic() < deadline:
            for feed in feeds:
                started_s = time.monotonic()
                assert not feed.read(10, 50).events
                assert time.monotonic() - started_s < 3
        if how == "killed":
            kafka_broker.restart()
        else:
            kafka_broker.thaw()
        spoken.say(3)
        for feed, one in zip(feeds, got, strict=True):
            read_to(feed, 6, one)


def test_records_beside_an_error_are_fetched_again(
    kafka_bootstrap: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A fetch that raises takes the records along that it had in hand: reading goes on at those before it. Told once,
    however often."""
    spoken = Spoken(kafka_bootstrap)
    spoken.say(3)
    with ExitStack() as stack, caplog.at_level(logging.WARNING, "tidegate.feed"):
        for feed in spoken.feeds(30.0):
            stack.enter_context(closing(feed))
            got: list[int] = []
            read_to(feed, spoken.said, got)
            fetch, raised = feed._reader.consumer.getmany, []

            async def torn(fetch: Any = fetch, raised: list[int] = raised, **limits: int) -> Any:
                found = await fetch(**limits)
                if found and len(raised) < 2:
                    raised.append(1)
                    raise CorruptRecordException
                return found

            feed._reader.consumer.getmany = torn
            spoken.say(3)
            read_to(feed, spoken.said, got)
            assert len(raised) == 2
            assert feed.remade == 0
    said = [record.getMessage() for record in caplog.records]
    assert said.count("fetch_failed") == 2
