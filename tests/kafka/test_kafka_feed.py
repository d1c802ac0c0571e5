"""What only the topic's feed must do; the rest is in tests/contracts/test_feeds_alike.py."""

from __future__ import annotations

import time
import uuid
from contextlib import closing

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from gateway.audit.event import Event, encode_event
from gateway.audit.feed import Delivery
from gateway.audit.kafka_feed import KafkaFeed
from tests.gateway.audit.sim import label


def events_of(source: int, count: int) -> list[Event]:
    """The first events of an epoch."""
    made: list[Event] = []
    for seq in range(count):
        event = label(seq)
        event.id = f"{source:016x}-{1:08x}-{seq:016x}"
        made.append(event)
    return made


def test_partitions_that_are_added_are_read(kafka_bootstrap: str, monkeypatch):
    """An open feed finds partitions that the topic gets later, and does not tell the others again."""
    monkeypatch.setattr("gateway.audit.kafka_feed.METADATA_AGE_MS", 200)
    topic = f"feed-{uuid.uuid4().hex[:12]}"
    admin = AdminClient({"bootstrap.servers": kafka_bootstrap})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(timeout=10)
    producer = Producer({"bootstrap.servers": kafka_bootstrap})
    for event in events_of(1, 5):
        producer.produce(topic, encode_event(event), partition=0)
    # Not ours: passed over.
    producer.produce(topic, b"{}", partition=0)
    assert producer.flush(10) == 0
    with closing(KafkaFeed(kafka_bootstrap, topic)) as feed:
        got: list[Event] = []
        deadline = time.monotonic() + 20
        while len(got) < 5 and time.monotonic() < deadline:
            got += feed.read(100, 500).events
        admin.create_partitions([NewPartitions(topic, 2)])[topic].result(timeout=10)
        later = Producer({"bootstrap.servers": kafka_bootstrap})
        for event in events_of(2, 5):
            later.produce(topic, encode_event(event), partition=1)
        assert later.flush(10) == 0
        while len(got) < 10 and time.monotonic() < deadline:
            delivery: Delivery = feed.read(100, 500)
            assert not delivery.holes
            got += delivery.events
        assert [event.id for event in got] == [event.id for event in events_of(1, 5) + events_of(2, 5)]
        assert feed.unreadable == 1
        assert {"kafka/0", "kafka/1"} <= feed.positions.keys()
