"""The producer: one idempotent connection to the topic, and the way to abandon it.

batch -> **producer** -> Kafka. aiokafka 0.14 cannot be trusted with its own recovery: a batch that expires
without a leader leaves a hole in its sequence that the broker refuses for ever, and `stop` hangs while no
broker answers. So the forwarder abandons a producer on any error or stall, makes a new one, and resumes at the
last acknowledged position; consumers drop what comes twice. `abandon` and `RecordBatch` are the only code that
touches aiokafka's private parts; tests/kafka pins what they rely on, and pyproject pins the version.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from aiokafka import AIOKafkaProducer

from gateway.audit.batch import RecordBatch

RENEW_RECORDS = 1_000_000_000
"""A producer takes this many, then is renewed: aiokafka's sequence turns negative at 2^31 in a partition."""
RETRY_BACKOFF_MS = 250


class TopicProducer:
    """One life of a producer.

    Args:
        arguments: of the client (`gateway.audit.brokers.client_arguments`).
        renew_records: see `spent`.

    Threading: one event loop.
    """

    def __init__(
        self,
        arguments: dict[str, Any],
        topic: str,
        request_timeout_ms: int,
        renew_records: int = RENEW_RECORDS,
    ) -> None:
        self._topic = topic
        self._deadline_s = request_timeout_ms / 1000 * 1.5
        self._renew_records = renew_records
        self._sent = 0
        self._producer = AIOKafkaProducer(
            **arguments,
            enable_idempotence=True,
            linger_ms=0,
            request_timeout_ms=request_timeout_ms,
            retry_backoff_ms=RETRY_BACKOFF_MS,
            metadata_max_age_ms=60_000,
        )
        self._futures: set[asyncio.Future[Any]] = set()

    @property
    def spent(self) -> bool:
        """It has sent so much that a new one should take over."""
        return self._sent >= self._renew_records

    async def start(self) -> None:
        """Connect.

        Raises:
            aiokafka.errors.KafkaError, TimeoutError: no broker answers; call `abandon`.
        """
        async with asyncio.timeout(self._deadline_s):
            await self._producer.start()

    async def send(self, batch: RecordBatch, partition: int) -> int:
        """Send a batch; returns the offset of its first record once all in-sync replicas have acknowledged it, or -1
        where the brokers do not know any more.

        Raises:
            Exception: whatever went wrong; the fate of the batch is unknown. Call `abandon`.
        """
        async with asyncio.timeout(self._deadline_s):
            future = await self._producer.send_batch(batch, self._topic, partition=partition)
            self._futures.add(future)
            # aiokafka does not expect its future to be cancelled.
            answer = await asyncio.shield(future)
            self._futures.discard(future)
        self._sent += batch.count
        return int(answer.offset)

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
