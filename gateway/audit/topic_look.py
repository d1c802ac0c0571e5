"""One look into the topic: an event by its id, or what the recorders said, without following it from its beginning.

Beside `kafka_feed`, for commands. A partition holds the records of an epoch in order, mixed with those of others, some
of them twice where the forwarder resumed. So a number is found by halving: records from any offset on tell which
number of the epoch comes next. Between a record at or below the wanted number and one above it the wanted one must
stand, since numbers go up by one and fall back, and never leap but over a gap.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from gateway.audit.event import Event, Gap, Heartbeat, decode_event
from gateway.audit.identity import EventId, id_prefix
from gateway.errors import FeedUnreachable

CLOCK_MARGIN_S = 3600
"""An epoch's records may be older than its number says: clocks are set back."""
STEP_RECORDS = 2048
_FETCH_BYTES = 512 * 1024
_WAIT_MS = 200
_ANSWER_S = 15.0
_EMPTY_MAX = 2
_POSITIONS = b"positions"
_RETENTION = b"retention"


class Item(NamedTuple):
    """What a look takes of a record."""

    offset: int
    key: bytes
    value: bytes


class Partition(Protocol):
    """A part of the topic, from `begin` up to, and without, `end`."""

    begin: int
    end: int

    async def fetch(self, offset: int) -> Sequence[Item]:
        """Some records from an offset on, in order; none only at the end."""
        ...


class Bracket(NamedTuple):
    """Where in a partition a number must stand: from `low` up to, and without, `high`."""

    low: int
    high: int


async def bracket(part: Partition, wanted: EventId, low: int) -> Bracket | None:
    """Leap through a partition until records of the epoch are met; None where there seem to be none.

    Cost: a fetch for each doubling of the distance.
    """
    at, step, met, floor = low, STEP_RECORDS, False, low
    while at < part.end:
        hit = _first_of(wanted, await part.fetch(at))
        if hit is not None:
            seq, offset = hit
            if seq > wanted.seq:
                return Bracket(floor, offset + 1)
            met, floor = True, offset
        at += step
        step *= 2
    return Bracket(floor, part.end) if met else None


async def search(
    part: Partition, wanted: EventId, where: Bracket, advance: Callable[[float], None]
) -> Item | None:
    """The record of a number, or the one before it where it has none of its own (a gap may stand there)."""
    low, high = where
    while high - low > STEP_RECORDS:
        middle = (low + high) // 2
        hit = await _next_of(part, wanted, middle, high, advance)
        if hit is None or hit[0] > wanted.seq:
            high = middle
        else:
            low = hit[1]
    before: Item | None = None
    prefix = id_prefix(wanted.source, wanted.epoch).encode()
    at = low
    while at < high and (items := await part.fetch(at)):
        for item in items:
            if item.key.startswith(prefix):
                seq = int(item.key[-16:], 16)
                if seq == wanted.seq:
                    return item
                if seq > wanted.seq:
                    return before
                before = item
        advance(len(items))
        at = items[-1].offset + 1
    return before


async def _next_of(
    part: Partition, wanted: EventId, offset: int, end: int, advance: Callable[[float], None]
) -> tuple[int, int] | None:
    """The epoch's first record from an offset on: number and offset."""
    while offset < end and (items := await part.fetch(offset)):
        hit = _first_of(wanted, items)
        if hit is not None:
            return hit
        advance(len(items))
        offset = items[-1].offset + 1
    return None


def _first_of(wanted: EventId, items: Sequence[Item]) -> tuple[int, int] | None:
    prefix = id_prefix(wanted.source, wanted.epoch).encode()
    for item in items:
        if item.key.startswith(prefix):
            return int(item.key[-16:], 16), item.offset
    return None


class TopicLook:
    """A connection for looks. Runs on a private event loop; not thread-safe.

    Args:
        bootstrap_servers: host:port, comma-separated.
        arguments: of the client, where brokers want a user or TLS.

    Raises:
        FeedUnreachable: no broker answers, or the topic does not exist.
    """

    def __init__(
        self, bootstrap_servers: str, topic: str, arguments: Mapping[str, Any] | None = None
    ) -> None:
        self._topic = topic
        self._loop = asyncio.new_event_loop()
        self._parts: list[_TopicPartition] = []
        self._consumer: AIOKafkaConsumer | None = None
        try:
            self._loop.run_until_complete(
                self._start({"bootstrap_servers": bootstrap_servers, **(arguments or {})})
            )
        except (KafkaError, TimeoutError) as exc:
            self.close()
            msg = f"Kafka at {bootstrap_servers} cannot be read: {type(exc).__name__}"
            raise FeedUnreachable(msg) from exc
        except BaseException:
            self.close()
            raise

    def records(self) -> float:
        """How many records the topic holds, or held."""
        return float(sum(part.end - part.begin for part in self._parts))

    def find(self, wanted: EventId, advance: Callable[[float], None]) -> Event | None:
        """The event of an id, or the gap that covers it; None when the topic has neither.

        Args:
            advance: told the records that were read one after another.

        Raises:
            FeedUnreachable: the brokers stopped answering.
        """
        item = self._run(self._find(wanted, advance))
        event = None if item is None else _event(item)
        return event if event is not None and (event.id == str(wanted) or _covers(event, wanted)) else None

    def positions(self, advance: Callable[[float], None]) -> list[Event]:
        """All heartbeats that carry positions, and all gaps of retention. Reads the whole topic.

        Raises:
            FeedUnreachable: the brokers stopped answering.
        """
        return self._run(self._positions(advance))

    def close(self) -> None:
        """Leave the brokers."""
        if self._loop.is_closed():
            return
        if self._consumer is not None:
            with contextlib.suppress(Exception):
                self._loop.run_until_complete(self._consumer.stop())
        self._loop.close()

    def _run(self, coroutine: Any) -> Any:
        try:
            return self._loop.run_until_complete(coroutine)
        except (KafkaError, TimeoutError) as exc:
            msg = f"topic {self._topic} cannot be read: {type(exc).__name__}"
            raise FeedUnreachable(msg) from exc

    async def _find(self, wanted: EventId, advance: Callable[[float], None]) -> Item | None:
        since_ms = max(wanted.epoch - CLOCK_MARGIN_S, 0) * 1000
        best: Item | None = None
        own = str(wanted).encode()
        # Twice before it is said that there is none: the client loses its place at times while partitions change.
        for _ in range(2):
            for part in self._parts:
                part.forget()
                low = await part.offset_at(since_ms)
                where = await bracket(part, wanted, low)
                found = await search(part, wanted, where, advance) if where is not None else None
                if found is not None and _answers(found, own, wanted):
                    return found
                best = best or found
        if best is not None:
            # Its epoch's partition is known, and the number has no record there.
            return best
        for part in self._parts:
            found = await search_all(part, own, advance)
            if found is not None:
                return found
        return None

    async def _positions(self, advance: Callable[[float], None]) -> list[Event]:
        found: list[Event] = []
        for part in self._parts:
            at = part.begin
            while at < part.end and (items := await part.fetch(at)):
                for item in items:
                    if _POSITIONS in item.value or _RETENTION in item.value:
                        with contextlib.suppress(msgspec.MsgspecError, ValueError, RecursionError):
                            event = decode_event(item.value)
                            if isinstance(event, Heartbeat) or _is_trim(event):
                                found.append(event)
                advance(len(items))
                at = items[-1].offset + 1
        return found

    async def _start(self, arguments: dict[str, Any]) -> None:
        consumer = AIOKafkaConsumer(
            **arguments,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=_WAIT_MS,
            max_partition_fetch_bytes=_FETCH_BYTES,
        )
        self._consumer = consumer
        async with asyncio.timeout(_ANSWER_S):
            await consumer.start()
            if self._topic not in await consumer.topics():
                msg = f"topic {self._topic} is not there"
                raise FeedUnreachable(msg)
            consumer.assign([TopicPartition(self._topic, 0)])
            while not (numbers := consumer.partitions_for_topic(self._topic)):
                await asyncio.sleep(0.005)
            tps = [TopicPartition(self._topic, number) for number in sorted(numbers)]
            begins, ends = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)
            self._parts = [_TopicPartition(consumer, tp, begins[tp], ends[tp]) for tp in tps]


def _event(item: Item) -> Event | None:
    try:
        return decode_event(item.value)
    except (msgspec.MsgspecError, ValueError):
        return None


def _covers(event: Event, wanted: EventId) -> bool:
    return isinstance(event, Gap) and (event.to_seq is None or event.to_seq >= wanted.seq)


def _answers(item: Item, own: bytes, wanted: EventId) -> bool:
    """Whether it is the record, or the gap that stands in its place."""
    if item.key == own:
        return True
    event = _event(item)
    return event is not None and _covers(event, wanted)


def _is_trim(event: Event) -> bool:
    return isinstance(event, Gap) and event.cause == "retention"


async def search_all(part: Partition, key: bytes, advance: Callable[[float], None]) -> Item | None:
    """A record by its key, read from the beginning."""
    at = part.begin
    while at < part.end and (items := await part.fetch(at)):
        for item in items:
            if item.key == key:
                return item
        advance(len(items))
        at = items[-1].offset + 1
    return None


class _TopicPartition:
    """A `Partition` of the brokers."""

    def __init__(self, consumer: AIOKafkaConsumer, tp: TopicPartition, begin: int, end: int) -> None:
        self.begin = begin
        self.end = end
        self._consumer = consumer
        self._tp = tp
        self._next: int | None = None

    async def fetch(self, offset: int) -> Sequence[Item]:
        """See `Partition`."""
        if self._consumer.assignment() != {self._tp}:
            self._consumer.assign([self._tp])
            self._next = None
        if offset != self._next:
            self._consumer.seek(self._tp, offset)
        empty = 0
        async with asyncio.timeout(_ANSWER_S):
            while True:
                fetched = await self._consumer.getmany(self._tp, timeout_ms=_WAIT_MS)
                records = fetched.get(self._tp, ())
                if records and (records[0].offset == offset or (records[0].offset > offset and empty)):
                    break
                if records or await self._consumer.position(self._tp) >= self.end:
                    # The client may lose its place while partitions change; only marks of transactions are nothing.
                    empty += 1
                    if empty > _EMPTY_MAX:
                        return ()
                    self._consumer.seek(self._tp, offset)
        self._next = records[-1].offset + 1
        return [Item(record.offset, record.key or b"", record.value or b"") for record in records]

    def forget(self) -> None:
        """Ask for the next records anew, whatever the client holds."""
        self._next = None

    async def offset_at(self, since_ms: int) -> int:
        """The first offset whose record is as young; where brokers do not say, the first of all."""
        found = await self._consumer.offsets_for_times({self._tp: since_ms})
        at = found.get(self._tp)
        return self.begin if at is None else max(at.offset, self.begin)
