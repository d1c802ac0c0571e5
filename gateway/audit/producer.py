"""The producer: one idempotent connection to the topic, and the way to abandon it.

forwarder -> **producer** -> Kafka. aiokafka 0.14 cannot be trusted with its own recovery: a batch that expires
without a leader leaves a hole in its sequence that the broker refuses for ever, and `stop` hangs while no
broker answers. So the forwarder abandons a producer on any error or stall, makes a new one, and resumes at the
last acknowledged position; consumers drop what comes twice. `abandon` is the only code that touches
aiokafka's private parts; tests/kafka pins what it relies on, and pyproject pins the version.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import NamedTuple

from aiokafka import AIOKafkaProducer


class Record(NamedTuple):
    """One event on its way: key and value bytes, timestamp in ms, CloudEvents headers."""

    key: bytes
    value: bytes
    timestamp_ms: int
    headers: list[tuple[str, bytes]]


class TopicProducer:
    """One life of a producer.

    Args:
        batch_bytes: the largest produce batch before compression.

    Threading: one event loop.
    """

    def __init__(self, bootstrap_servers: str, topic: str, batch_bytes: int, request_timeout_ms: int) -> None:
        self._topic = topic
        self._deadline_s = request_timeout_ms / 1000 * 1.5
        self._producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap_servers,
            enable_idempotence=True,
            max_batch_size=batch_bytes,
            max_request_size=4 * batch_bytes,
            linger_ms=0,
            request_timeout_ms=request_timeout_ms,
            retry_backoff_ms=250,
            metadata_max_age_ms=60_000,
            compression_type="zstd",
        )
        self._futures: set[asyncio.Future[object]] = set()

    async def start(self) -> None:
        """Connect.

        Raises:
            aiokafka.errors.KafkaError: no broker answers; call `abandon`.
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
        count = 0
        for record in records:
            added = batch.append(
                key=record.key,
                value=record.value,
                timestamp=record.timestamp_ms,
                headers=record.headers,
            )
            if added is None:
                break
            count += 1
        if not count:
            return 0
        batch.close()
        async with asyncio.timeout(self._deadline_s):
            future = await self._producer.send_batch(batch, self._topic, partition=partition)
            self._futures.add(future)
            try:
                await asyncio.shield(future)
            finally:
                if future.done():
                    self._futures.discard(future)
        return count

    async def abandon(self) -> None:
        """Drop the producer with all that it holds, at once, whatever state it is in."""
        producer = self._producer
        producer._closed = True  # noqa: SLF001
        producer._message_accumulator.fail_all(ConnectionError("abandoned"))  # noqa: SLF001
        task = getattr(producer._sender, "_sender_task", None)  # noqa: SLF001
        if task is not None:
            # It would tell a transaction that is not there, and log a traceback.
            task.remove_done_callback(producer._sender._fail_all)  # noqa: SLF001
            task.add_done_callback(_consume)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await asyncio.wait([task], timeout=2)
        for future in self._futures:
            if future.done() and not future.cancelled():
                future.exception()
            future.add_done_callback(_consume)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(5):
                await producer.client.close()


def _consume(future: asyncio.Future[object]) -> None:
    if not future.cancelled():
        future.exception()
