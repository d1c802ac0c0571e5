"""A log with a living writer, forwarders of it to a topic of its own, and that topic read by a foreign client."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import Consumer, Message, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from gateway import config as configuration
from gateway.audit.forwarder import Forwarder
from gateway.audit.recorder import Recorder
from gateway.audit.spool import epochs
from gateway.audit.writer import Writer
from gateway.kafka import Kafka
from gateway.process import Context
from tests.gateway.audit.sim import GATEWAY_ID, ROOT, Log, forget_owner, forget_recorder, label, settle


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

    def forwarder(self, **given: int) -> Forwarder:
        """A new one, as after a start."""
        return Forwarder(self.log.spool, self.directory, GATEWAY_ID, self.kafka, **given)

    def make_topic(self, partitions: int = 1, **config: str) -> None:
        """A topic that is there before the forwarder, with settings of its own."""
        admin = AdminClient({"bootstrap.servers": self.kafka.bootstrap_servers})
        named = {name.replace("_", "."): value for name, value in config.items()}
        (future,) = admin.create_topics([NewTopic(self.kafka.topic, partitions, 1, config=named)]).values()
        future.result(timeout=10)

    def process(self) -> subprocess.Popen[bytes]:
        """A forwarder in a process of its own, as the supervisor starts it."""
        loaded, _ = configuration.load(
            None,
            [f"kafka.{name}={value}" for name, value in _settings(self.kafka)],
            {},
        )
        context = Context(
            config=configuration.encode(loaded),
            models="",
            state_dir=str(self.log.state_dir),
            gateway_id=GATEWAY_ID,
        )
        with (self.log.state_dir / "forwarder.out").open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "gateway.audit.forwarder"],
                env={**os.environ, "PYTHONPATH": str(ROOT), "TG_CONTEXT": context.to_env()["TG_CONTEXT"]},
                stdout=out,
                stderr=out,
            )

    def said(self) -> str:
        """What forwarder processes wrote."""
        return (self.log.state_dir / "forwarder.out").read_text()

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


def _settings(kafka: Kafka) -> list[tuple[str, object]]:
    given = [(name, getattr(kafka, name)) for name in kafka.__struct_fields__]
    return [
        (name, msgspec.json.encode(value).decode() if isinstance(value, msgspec.Struct) else value)
        for name, value in given
        if value is not None
    ]


async def until(condition: Callable[[], bool], wait_s: float = 90.0) -> None:
    """Wait for processes of others."""
    deadline = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.02)


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
