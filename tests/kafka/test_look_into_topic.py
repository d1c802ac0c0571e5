"""One look into a real topic: by id and for positions."""

from __future__ import annotations

import time
import uuid
from contextlib import closing

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from gateway.audit.event import Gap, Heartbeat, encode_event
from gateway.audit.identity import EventId
from gateway.audit.topic_look import TopicLook
from gateway.audit.witnesses import in_events
from gateway.errors import FeedUnreachable
from tests.gateway.audit.sim import label

EVENTS = 3000


def test_a_number_and_positions_are_found(kafka_bootstrap: str):
    """In the partition of its epoch, among others'; a gap stands for its numbers; what is not there is None."""
    topic = f"look-{uuid.uuid4().hex[:12]}"
    admin = AdminClient({"bootstrap.servers": kafka_bootstrap})
    admin.create_topics([NewTopic(topic, 3, 1)])[topic].result(timeout=10)
    producer = Producer({"bootstrap.servers": kafka_bootstrap, "compression.type": "zstd"})
    now_s = int(time.time())

    def send(event, source: int, epoch: int, seq: int, partition: int) -> None:
        event.id = str(EventId(source, epoch, seq))
        value = encode_event(event)
        producer.produce(topic, value, event.id, partition, timestamp=now_s * 1000 + seq)

    for seq in range(EVENTS):
        for source in (1, 2):
            send(label(seq, 300), source, now_s, seq, 1)
        send(label(seq), 3, now_s, seq, 2)
        producer.poll(0)
    send(Gap(f"{1:016x}", now_s, EVENTS, EVENTS + 4, "oversized", at_ns=1), 1, now_s, EVENTS, 1)
    key = f"{1:016x}-{now_s:08x}"
    send(Heartbeat(at_ns=1, positions={key: (7, "ab" * 32)}), 4, now_s, 0, 0)
    # An epoch whose number is ahead of its records by more than any clock is.
    send(label(5), 5, now_s + 100_000, 0, 0)
    assert producer.flush(20) == 0
    read = 0.0

    def advance(done: float) -> None:
        nonlocal read
        read += done

    with closing(TopicLook(kafka_bootstrap, topic)) as look:
        assert look.records() == 3 * EVENTS + 3
        for seq in (0, 1, EVENTS // 2, EVENTS - 1):
            wanted = EventId(2, now_s, seq)
            found = look.find(wanted, advance)
            assert found is not None
            assert (found.id, found.labels[0]["value"]) == (str(wanted), seq)
        assert look.find(EventId(5, now_s + 100_000, 0), advance) is not None
        told = look.find(EventId(1, now_s, EVENTS + 3), advance)
        assert isinstance(told, Gap)
        assert look.find(EventId(2, now_s, EVENTS), advance) is None
        assert look.find(EventId(9, now_s, 0), advance) is None
        (known,) = in_events(look.positions(advance))[key]
        assert (known.next_seq, known.value) == (7, b"\xab" * 32)
        assert read > 0


def test_a_topic_that_is_not_there(kafka_bootstrap: str):
    """Is unreachable, in one line."""
    with pytest.raises(FeedUnreachable, match="no-such-topic is not there"):
        TopicLook(kafka_bootstrap, "no-such-topic")
