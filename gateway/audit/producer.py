"""The producer: one idempotent connection to the topic, what it sends, and the way to abandon it.

forwarder -> **producer** -> Kafka. aiokafka 0.14 cannot be trusted with its own recovery: a batch that expires
without a leader leaves a hole in its sequence that the broker refuses for ever, and `stop` hangs while no
broker answers. So the forwarder abandons a producer on any error or stall, makes a new one, and resumes at the
last acknowledged position; consumers drop what comes twice. `abandon` is the only code that touches
aiokafka's private parts; tests/kafka pins what it relies on, and pyproject pins the version.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from itertools import repeat
from typing import NamedTuple

from aiokafka import AIOKafkaProducer

from gateway.audit.event import Event, Prediction, encode_event
from gateway.audit.values import Values

RENEW_RECORDS = 1_000_000_000
"""A producer takes this many, then is renewed: aiokafka's sequence turns negative at 2^31 in a partition."""


class Record(NamedTuple):
    """One event on its way: key and value bytes, timestamp in ms, CloudEvents headers."""

    key: bytes
    value: bytes
    timestamp_ms: int
    headers: list[tuple[str, bytes]]


def made_ms(event: Event) -> int:
    """An event's own time, Unix ms."""
    return (getattr(event, "done_ns", 0) or getattr(event, "at_ns", 0) or time.time_ns()) // 1_000_000


class Envelope:
    """Makes events of one source into records (CloudEvents, binary mode).

    Args:
        encoding: of values, "msgpack" or "json".
    """

    def __init__(self, gateway_id: str, source: int, encoding: str) -> None:
        self._encoding = encoding
        self._types: dict[type, tuple[str, bytes]] = {}
        self._version = ("ce_specversion", b"1.0")
        self._source = ("ce_source", f"/tidegate/{gateway_id}/{source:016x}".encode())
        self._content = ("content-type", f"application/{encoding}".encode())

    def record(self, event: Event) -> Record:
        """One event as it goes to the topic, stamped with its own time."""
        key = event.id.encode()
        headers = self._headers(key, self._type(type(event)), getattr(event, "traceparent", None))
        return Record(key, encode_event(event, self._encoding), made_ms(event), headers)

    def records(self, made: Values) -> list[Record]:
        """The same for a run's values."""
        kind, count = self._type(Prediction), len(made.ids)
        times = [done_ns // 1_000_000 for done_ns in made.done_ns]
        traces = made.traceparents
        return [
            Record(key, value, at_ms, self._headers(key, kind, trace))
            for key, value, at_ms, trace in zip(
                made.ids,
                made.values,
                times if len(times) == count else times * count,
                traces if len(traces) == count else repeat(traces[0]),
                strict=False,
            )
        ]

    def _type(self, kind: type) -> tuple[str, bytes]:
        header = self._types.get(kind)
        if header is None:
            tag = kind.__struct_config__.tag  # type: ignore[attr-defined]
            header = self._types[kind] = ("ce_type", f"tidegate.{tag}".encode())
        return header

    def _headers(self, key: bytes, kind: tuple[str, bytes], trace: str | None) -> list[tuple[str, bytes]]:
        headers = [self._version, ("ce_id", key), kind, self._source, self._content]
        if trace is not None:
            # CloudEvents' distributed tracing extension: who reads the topic goes on in the client's trace.
            headers.append(("ce_traceparent", trace.encode()))
        return headers


class TopicProducer:
    """One life of a producer.

    Args:
        batch_bytes: the largest produce batch before compression; a single larger record goes alone.

    Threading: one event loop.
    """

    def __init__(self, bootstrap_servers: str, topic: str, batch_bytes: int, request_timeout_ms: int) -> None:
        self._topic = topic
        self._deadline_s = request_timeout_ms / 1000 * 1.5
        self._sent = 0
        self._producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap_servers,
            enable_idempotence=True,
            max_batch_size=batch_bytes,
            linger_ms=0,
            request_timeout_ms=request_timeout_ms,
            retry_backoff_ms=250,
            metadata_max_age_ms=60_000,
            compression_type="zstd",
        )
        self._futures: set[asyncio.Future[object]] = set()

    @property
    def spent(self) -> bool:
        """It has sent so much that a new one should take over."""
        return self._sent >= RENEW_RECORDS

    async def start(self) -> None:
        """Connect.

        Raises:
            aiokafka.errors.KafkaError, TimeoutError: no broker answers; call `abandon`.
        """
        async with asyncio.timeout(self._deadline_s):
            await self._producer.start()

    async def send(self, records: list[Record], partition: int) -> int:
        """Send as many records, from the first on, as one batch takes; returns how many once they
        are acknowledged by all in-sync replicas.

        Raises:
            Exception: whatever went wrong; the fate of the batch is unknown. Call `abandon`.
        """
        batch = self._producer.create_batch()
        append = batch.append
        count = 0
        for key, value, timestamp_ms, headers in records:
            if append(key=key, value=value, timestamp=timestamp_ms, headers=headers) is None:
                break
            count += 1
        batch.close()
        async with asyncio.timeout(self._deadline_s):
            future = await self._producer.send_batch(batch, self._topic, partition=partition)
            self._futures.add(future)
            # aiokafka does not expect its future to be cancelled.
            await asyncio.shield(future)
            self._futures.discard(future)
        self._sent += count
        return count

    async def abandon(self) -> None:
        """Drop the producer with all that it holds, whatever state it is in; takes a second at most, or
        two where a connection does not close."""
        producer = self._producer
        producer._closed = True  # noqa: SLF001
        accumulator = producer._message_accumulator  # noqa: SLF001
        # A batch that was put back for a retry is not pending any more, and its callback would fail on that.
        accumulator._pending_batches = _Forgiving(accumulator._pending_batches)  # noqa: SLF001
        queued = [batch for batches in accumulator._batches.values() for batch in batches]  # noqa: SLF001
        for batch in (*queued, *accumulator._pending_batches):  # noqa: SLF001
            self._futures.add(batch.future)
            batch._drain_waiter.add_done_callback(_consume)  # noqa: SLF001
        for future in self._futures:
            future.add_done_callback(_consume)
        accumulator.fail_all(ConnectionError("abandoned"))
        task = getattr(producer._sender, "_sender_task", None)  # noqa: SLF001
        if task is not None:
            # It would tell a transaction that is not there, and log a traceback.
            task.remove_done_callback(producer._sender._fail_all)  # noqa: SLF001
            task.add_done_callback(_consume)
            task.cancel()
        # Closed while the sender ends: it waits for requests that only a closed connection ends.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(1):
                await producer.client.close()
        if task is not None:
            _, alive = await asyncio.wait([task], timeout=1)
            for one in alive:
                one.cancel()


class _Forgiving(set):  # type: ignore[type-arg]
    """A set whose members may be removed twice."""

    remove = set.discard


def _consume(future: asyncio.Future[object]) -> None:
    if not future.cancelled():
        future.exception()
