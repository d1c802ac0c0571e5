"""The topic as a feed: what consumers on any host read. See `gateway.audit.feed` for the guarantees.

aiokafka's consumer is asynchronous, a feed is not: it runs on a private event loop, moved only inside `read`. Besides
the marks per (source, epoch), `positions` holds a "kafka/<partition>" offset each, so that a resumed feed does not read
the topic from its beginning. No consumer group: a consumer keeps its positions together with its own state.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Set

import msgspec
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from gateway.audit.event import decode_event
from gateway.audit.feed import Delivery, HighWater, Positions
from gateway.audit.identity import parse_event_id
from gateway.errors import FeedUnreachable

METADATA_AGE_MS = 30_000
"""Partitions that were added to the topic are found within."""
_OFFSET = "kafka/"
_VISIBLE_S = 1.0
_ANSWER_S = 15.0


class KafkaFeed:
    """Reads one topic, all partitions, from the beginning or from where `positions` stand.

    Args:
        bootstrap_servers: host:port, comma-separated.

    Raises:
        FeedUnreachable: no broker answers, or the topic does not exist.
    """

    def __init__(self, bootstrap_servers: str, topic: str, positions: Positions | None = None) -> None:
        given = dict(positions or {})
        self._offsets = {k: v for k, v in given.items() if k.startswith(_OFFSET)}
        self._marks = HighWater({k: v for k, v in given.items() if not k.startswith(_OFFSET)})
        self._topic = topic
        self._assigned: frozenset[int] = frozenset()
        self._loop = asyncio.new_event_loop()
        self.unreadable = 0
        try:
            self._consumer = self._loop.run_until_complete(self._start(bootstrap_servers))
        except (KafkaError, TimeoutError) as exc:
            self._loop.close()
            msg = f"Kafka at {bootstrap_servers} cannot be read: {type(exc).__name__}"
            raise FeedUnreachable(msg) from exc
        except BaseException:
            self._loop.close()
            raise

    @property
    def positions(self) -> Positions:
        """Behind everything returned so far."""
        return {**self._marks.positions, **self._offsets}

    def read(self, max_events: int, wait_ms: int) -> Delivery:
        """Events in order within each epoch, each once."""
        return self._loop.run_until_complete(self._read(max_events, wait_ms))

    def close(self) -> None:
        """Leave the brokers."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(Exception):
            self._loop.run_until_complete(self._consumer.stop())
        self._loop.close()

    async def _start(self, bootstrap_servers: str) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=bootstrap_servers,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=100,
            max_partition_fetch_bytes=4 * 1024 * 1024,
            metadata_max_age_ms=METADATA_AGE_MS,
        )
        try:
            async with asyncio.timeout(_ANSWER_S):
                await consumer.start()
                await self._subscribe(consumer)
        except BaseException:
            await consumer.stop()
            raise
        return consumer

    async def _subscribe(self, consumer: AIOKafkaConsumer) -> None:
        """All partitions of the topic, also those that come later; a topic made just now may take a moment."""
        deadline_s = self._loop.time() + _VISIBLE_S
        while self._topic not in await consumer.topics():
            if self._loop.time() > deadline_s:
                msg = f"topic {self._topic} is not there"
                raise FeedUnreachable(msg)
            await asyncio.sleep(0.1)
        # One partition makes the client ask for the topic's metadata, which tells the others.
        self._assign(consumer, {0})
        while not consumer.partitions_for_topic(self._topic):
            await asyncio.sleep(0.005)
        self._follow(consumer)

    def _follow(self, consumer: AIOKafkaConsumer) -> None:
        """Read partitions that were added, too."""
        found = consumer.partitions_for_topic(self._topic) or set()
        if not found <= self._assigned:
            self._assign(consumer, found | self._assigned)

    def _assign(self, consumer: AIOKafkaConsumer, partitions: Set[int]) -> None:
        """Assigned by hand and placed at once: what aiokafka assigns by itself begins at the start again."""
        self._assigned = frozenset(partitions)
        consumer.assign([TopicPartition(self._topic, number) for number in sorted(partitions)])
        for number in partitions:
            offset = self._offsets.get(f"{_OFFSET}{number}")
            if offset is not None:
                consumer.seek(TopicPartition(self._topic, number), offset)

    async def _read(self, max_events: int, wait_ms: int) -> Delivery:
        deadline_s = self._loop.time() + wait_ms / 1000
        while True:
            left_ms = max(int((deadline_s - self._loop.time()) * 1000), 0)
            delivery = await self._fetch(max_events, left_ms)
            # A batch of nothing but doubles is not the end.
            if delivery.events or delivery.holes or not left_ms:
                return delivery

    async def _fetch(self, max_events: int, wait_ms: int) -> Delivery:
        delivery = Delivery([], [])
        self._follow(self._consumer)
        fetched = await self._consumer.getmany(timeout_ms=wait_ms, max_records=max_events)
        for partition, records in fetched.items():
            for record in records:
                self._offsets[f"{_OFFSET}{partition.partition}"] = record.offset + 1
                try:
                    event = decode_event(record.value or b"")
                    which = parse_event_id(event.id)
                except (msgspec.MsgspecError, ValueError):
                    # Not ours, or of a later, breaking schema: counted, never fatal.
                    self.unreadable += 1
                    continue
                new, hole = self._marks.admit(*which)
                if hole is not None:
                    delivery.holes.append(hole)
                if new:
                    delivery.events.append(event)
        return delivery
