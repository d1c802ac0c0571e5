"""The forwarder against a real broker, read back with a client that is not ours."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, Message, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from bench.kafka import Broker
from gateway.audit.forwarder import Forwarder
from gateway.audit.recorder import Recorder
from gateway.audit.spool import epochs, segments
from gateway.audit.writer import Writer
from gateway.config import Kafka
from tests.gateway.audit.sim import GATEWAY_ID, Log, forget_owner, forget_recorder, label, settle


class Lived:
    """A log with one living writer, drained on request, and forwarders to one topic of its own."""

    def __init__(self, directory: Path, bootstrap: str, **settings: Any) -> None:
        self.log = Log(directory)
        self.recorder: Recorder = self.log.recorder()
        self.writer: Writer = self.log.owner(ring_bytes=1 << 20)
        self.kafka = Kafka(bootstrap_servers=bootstrap, topic=f"t-{uuid.uuid4().hex[:12]}", **settings)
        self.directory = self.log.state_dir / "forwarder"

    def append(self, *values: int, pad_bytes: int = 0) -> None:
        """Labels, on disk."""
        assert self.writer.append_events([label(value, pad_bytes) for value in values]) is not None
        settle(self.recorder)

    def forwarder(self) -> Forwarder:
        """A new one, as after a start."""
        return Forwarder(self.log.spool, self.directory, GATEWAY_ID, self.kafka)

    def forward(self) -> Forwarder:
        """Send what is there and end."""
        forwarder = self.forwarder()

        async def send() -> None:
            task = asyncio.create_task(forwarder.run())
            await until(lambda: self.behind(forwarder) == 0)
            forwarder.stop()
            await task

        asyncio.run(send())
        return forwarder

    def behind(self, forwarder: Forwarder) -> int:
        """Events on disk that are not acknowledged."""
        at = forwarder._positions.entries
        return sum(
            int.from_bytes((epoch.path / "synced").read_bytes(), "little")
            - at.get(epoch.key, {"next_seq": 0})["next_seq"]
            for epoch in epochs(self.log.spool)
        )

    def close(self) -> None:
        """Let go of the rings."""
        forget_owner(self.writer)
        forget_recorder(self.recorder)


async def until(condition: Callable[[], bool], wait_s: float = 90.0) -> None:
    """Wait for processes of others."""
    deadline = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.02)


@pytest.fixture
def lived(tmp_path: Path, kafka_bootstrap: str):
    """A log before the session's broker; called with settings of its topic."""
    made: list[Lived] = []

    def make(**settings: Any) -> Lived:
        made.append(Lived(tmp_path / f"state{len(made)}", kafka_bootstrap, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def read_topic(bootstrap: str, topic: str) -> list[Message]:
    """The whole topic, partition by partition."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "reads", "enable.auto.commit": False})
    try:
        found = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        ends = {p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=10)[1] for p in found}
        consumer.assign([TopicPartition(topic, p, 0) for p in found])
        messages: list[Message] = []
        deadline = time.monotonic() + 60
        while len(messages) < sum(ends.values()):
            assert time.monotonic() < deadline, "the topic does not come to its end"
            messages += [m for m in consumer.consume(500, timeout=0.5) if m.error() is None]
        return messages
    finally:
        consumer.close()


def check_contiguous(messages: list[Message], decode: Callable[[bytes], Any]) -> dict[str, list[dict]]:
    """Each epoch in one partition, in order without a hole once doubles are dropped; its events."""
    partitions = defaultdict(set)
    events: dict[str, list[dict]] = defaultdict(list)
    for message in messages:
        event = decode(message.value())
        assert message.key().decode() == event["id"]
        key, seq = event["id"][:25], int(event["id"][26:], 16)
        partitions[key].add(message.partition())
        assert seq <= len(events[key]), f"{key}: {seq} came, {len(events[key])} was next"
        if seq == len(events[key]):
            events[key].append(event)
    assert all(len(found) == 1 for found in partitions.values())
    return events


def labels(events: dict[str, list[dict]]) -> list[int]:
    """Values of the label events."""
    return [
        event["labels"][0]["value"]
        for of_epoch in events.values()
        for event in of_epoch
        if event["type"] == "feedback"
    ]


@pytest.mark.parametrize("encoding", ["msgpack", "json"])
def test_a_foreign_client_reads_every_event(lived, encoding):
    """Every event on disk is in the topic, readable without our code, with its CloudEvents headers."""
    one = lived(encoding=encoding, partitions=3)
    for i in range(40):
        one.append(*range(10 * i, 10 * i + 10))
    forwarder = one.forward()
    messages = read_topic(one.kafka.bootstrap_servers, one.kafka.topic)
    decode = msgspec.json.decode if encoding == "json" else msgspec.msgpack.decode
    events = check_contiguous(messages, decode)
    assert labels(events) == list(range(400))
    assert forwarder.forwarded == len(messages) == sum(map(len, events.values()))
    headers = dict(messages[-1].headers())
    assert headers["ce_id"] == messages[-1].key()
    assert headers["ce_specversion"] == b"1.0"
    assert headers["ce_source"].startswith(f"/tidegate/{GATEWAY_ID}/".encode())
    assert headers["content-type"] == f"application/{encoding}".encode()
    status = json.loads((one.directory / "status.json").read_bytes())
    assert status["lag_events"] == 0
    assert status["forwarded_events"] == forwarder.forwarded


def test_goes_on_at_its_position(lived):
    """A forwarder that starts again sends what is new, and an epoch keeps its partition."""
    one = lived(partitions=2)
    one.append(1, 2, 3)
    one.forward()
    before = len(read_topic(one.kafka.bootstrap_servers, one.kafka.topic))
    one.append(4, 5)
    assert one.forward().forwarded == 2
    messages = read_topic(one.kafka.bootstrap_servers, one.kafka.topic)
    assert len(messages) == before + 2
    assert labels(check_contiguous(messages, msgspec.msgpack.decode)) == [1, 2, 3, 4, 5]


def test_the_topic_is_made_for_an_audit(lived):
    """A missing topic is made with its partitions, and nothing in it expires."""
    one = lived(partitions=5)
    one.append(1)
    one.forward()
    admin = AdminClient({"bootstrap.servers": one.kafka.bootstrap_servers})
    assert len(admin.list_topics(one.kafka.topic, timeout=10).topics[one.kafka.topic].partitions) == 5
    resource = ConfigResource(ResourceType.TOPIC, one.kafka.topic)
    (future,) = admin.describe_configs([resource]).values()
    found = {name: entry.value for name, entry in future.result(timeout=10).items()}
    assert found["retention.ms"] == "-1"
    assert found["cleanup.policy"] == "delete"
    assert found["message.timestamp.type"] == "CreateTime"
    assert found["max.message.bytes"] == str(2 * 1024 * 1024)


def test_a_topic_with_other_settings_is_told_and_used(lived, caplog):
    """A topic that is there keeps its settings; the difference is logged once and records are sent."""
    one = lived(partitions=2)
    admin = AdminClient({"bootstrap.servers": one.kafka.bootstrap_servers})
    new = NewTopic(one.kafka.topic, 1, 1, config={"retention.ms": "86400000"})
    (future,) = admin.create_topics([new]).values()
    future.result(timeout=10)
    one.append(1, 2)
    with caplog.at_level(logging.WARNING, logger="tidegate.forwarder"):
        one.forward()
    told = [record.what for record in caplog.records if record.message == "topic_differs"]
    assert [line for line in told if "retention.ms" in line] == [
        f"topic {one.kafka.topic}: retention.ms is '86400000', expected '-1'"
    ]
    assert len(told) == len(set(told))
    messages = read_topic(one.kafka.bootstrap_servers, one.kafka.topic)
    assert labels(check_contiguous(messages, msgspec.msgpack.decode)) == [1, 2]


def test_an_oversized_event_is_told_by_a_gap(lived):
    """An event that the topic cannot take: a gap of its number stands in its place, the rest goes on."""
    one = lived(partitions=1, batch_bytes=16_384)
    one.append(1)
    one.append(2, pad_bytes=20_000)
    one.append(3)
    forwarder = one.forward()
    assert forwarder.quarantined == 1
    assert forwarder.retries == 0
    events = check_contiguous(
        read_topic(one.kafka.bootstrap_servers, one.kafka.topic), msgspec.msgpack.decode
    )
    assert labels(events) == [1, 3]
    (gap,) = [event for of_epoch in events.values() for event in of_epoch if event["type"] == "gap"]
    assert gap["cause"] == "oversized"
    assert gap["from_seq"] == gap["to_seq"] == int(gap["id"][26:], 16)
    (line,) = (one.directory / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == gap["id"]


def test_a_damaged_segment_holds_up_nothing_else(lived):
    """An epoch whose last frames are unreadable is sent as far as it reads; the forwarder comes to rest."""
    one = lived(partitions=1)
    one.append(1)
    one.append(2)
    (epoch,) = [e for e in epochs(one.log.spool) if e.source == one.writer.source.source]
    path = segments(epoch)[-1][1]
    content = bytearray(path.read_bytes())
    content[-12] ^= 1
    path.write_bytes(content)
    forwarder = one.forwarder()

    async def send() -> float:
        task = asyncio.create_task(forwarder.run())
        await until(lambda: one.behind(forwarder) == 1)
        start = time.process_time()
        await asyncio.sleep(0.3)
        used = time.process_time() - start
        forwarder.stop()
        started = time.monotonic()
        await task
        assert time.monotonic() - started < 4
        return used

    assert asyncio.run(send()) < 0.2
    messages = read_topic(one.kafka.bootstrap_servers, one.kafka.topic)
    assert labels(check_contiguous(messages, msgspec.msgpack.decode)) == [1]


def run_with(forwarder: Forwarder, drive: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Forward while `drive` does something, then stop."""

    async def both() -> None:
        task = asyncio.create_task(forwarder.run())
        try:
            await drive()
        finally:
            forwarder.stop()
            await task

    asyncio.run(both())


def test_a_broker_killed_in_the_middle_loses_nothing(tmp_path: Path, kafka_broker: Broker):
    """kill -9 of the broker and a restart while records flow: the topic is contiguous afterwards."""
    one = Lived(tmp_path / "state", kafka_broker.bootstrap, partitions=2, request_timeout_ms=2000)
    forwarder = one.forwarder()
    written = 0

    def more(count: int) -> None:
        nonlocal written
        for _ in range(count):
            one.append(*range(written, written + 20), pad_bytes=200)
            written += 20

    async def drive() -> None:
        more(10)
        await until(lambda: forwarder.forwarded > 20)
        kafka_broker.kill9()
        more(30)
        await until(lambda: forwarder.retries > 0)
        await asyncio.to_thread(kafka_broker.restart)
        more(10)
        await until(lambda: one.behind(forwarder) == 0)

    try:
        run_with(forwarder, drive)
        messages = read_topic(kafka_broker.bootstrap, one.kafka.topic)
        assert labels(check_contiguous(messages, msgspec.msgpack.decode)) == list(range(written))
    finally:
        one.close()


def test_without_a_broker_it_stops_when_told(tmp_path: Path):
    """No broker answers: records wait in the spool, and SIGTERM still ends the forwarder in time."""
    one = Lived(tmp_path / "state", "127.0.0.1:1", request_timeout_ms=500)
    one.append(1)
    forwarder = one.forwarder()
    started = time.monotonic()
    try:
        run_with(forwarder, lambda: until(lambda: forwarder.retries > 0))
        assert time.monotonic() - started < 10
        status = json.loads((one.directory / "status.json").read_bytes())
        assert status["lag_events"] == one.behind(forwarder) > 0
    finally:
        one.close()
