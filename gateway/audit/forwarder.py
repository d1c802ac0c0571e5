"""The forwarder: spool to topic. `python -P -m gateway.audit.forwarder`, only when Kafka is configured.

drain -> spool -> **forward** -> Kafka. All events of a (source, epoch) go to one partition in order of seq; the
partition is fixed in the fsynced position file before the first send, and the position moves only when the
broker has acknowledged. On any error the producer is abandoned and a new one resumes at the position, so
records may come twice and never not at all; a reader's high-water mark drops the doubles. Records that a topic had
acknowledged and lost (it was deleted, or an unclean election cut it) are sent again from the spool.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import random
import signal
import time
from pathlib import Path

from aiokafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from gateway import config as configuration
from gateway import logs, process
from gateway.audit.backlog import Standing
from gateway.audit.batch import Pending
from gateway.audit.brokers import client_arguments, diagnose
from gateway.audit.limits import Limits
from gateway.audit.outgoing import Outgoing
from gateway.audit.producer import RENEW_RECORDS, TopicProducer
from gateway.audit.sent import Positions
from gateway.audit.spool import EpochPath, EpochReader, closed, epochs, synced_seq
from gateway.audit.topic import TopicFacts, end_offsets, ensure_topic
from gateway.errors import GatewayError, TopicLostRecords, TopicRefused
from gateway.kafka import Kafka

log = logging.getLogger("tidegate.forwarder")

BACKOFF_S = (0.25, 10.0)
IDLE_S = 0.02
SCAN_S = 0.25
"""New epochs are looked for so often; known ones are looked at each `IDLE_S`."""
REFUSED_S = 5.0
"""A topic that was refused is looked at again so often at least."""
CHECK_S = 60.0
"""The topic's settings are held against what they should be so often while records go."""
STOP_S = 5.0
TURN_BATCHES = 16
"""An epoch that is far behind lets others go on after so many batches."""


class Forwarder:
    """Sends one spool to one topic.

    Args:
        directory: of positions, status and quarantine.
        renew_records: a producer takes so many, then is renewed.

    Threading: one event loop; disk reads are from the page cache and short.
    """

    def __init__(
        self,
        spool: Path,
        directory: Path,
        gateway_id: str,
        kafka: Kafka,
        renew_records: int = RENEW_RECORDS,
    ) -> None:
        self._spool = spool
        self._kafka = kafka
        self._renew_records = renew_records
        self._positions = Positions(directory / "positions.json")
        self._outgoing = Outgoing(directory, gateway_id, kafka.encoding)
        self._topic = TopicFacts(0, 0, [], False)
        self._limits = Limits(kafka.batch_bytes)
        self._checked_s = 0.0
        self._stopping = False
        self._limit: asyncio.Timeout | None = None
        self._scanned_s = 0.0
        self._told: set[str] = set()
        self._open: list[EpochPath] = []
        self._done: set[str] = set()
        """Closed epochs of which everything is sent."""
        self._readers: dict[str, EpochReader] = {}
        self._ended: dict[str, int] = {}
        """Epochs that gave nothing though numbers below this are said to be on disk; looked at again at a check."""
        self.standing = Standing(directory, self._positions, self._readers)
        self.producers = 0
        """Made since the start."""

    @property
    def forwarded(self) -> int:
        """Records that were acknowledged."""
        return self.standing.forwarded

    @property
    def retries(self) -> int:
        """Times that sending was begun anew after a failure."""
        return self.standing.retries

    @property
    def quarantined(self) -> int:
        """Events and frames that were told by a gap instead of being sent."""
        return self._outgoing.quarantined

    def stop(self) -> None:
        """Send what is there, for 5 s at most, then end."""
        self._stopping = True
        if self._limit is not None and self._limit.when() is None:
            self._limit.reschedule(asyncio.get_running_loop().time() + STOP_S)

    async def run(self) -> None:
        """Until stopped: connect, send, and begin again after any failure."""
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._limit = limit
                if self._stopping:
                    self.stop()
                await self._keep_sending()
        except (TimeoutError, asyncio.CancelledError):
            # Asked, not told by the type: Python 3.11's task groups lose count of cancellations.
            if not limit.expired():
                raise
            log.warning("stopped_behind", extra={"meanwhile": "records wait in the spool"})
        finally:
            self._limit = None
            self._positions.flush()
            self._write_status(now=True)

    async def _keep_sending(self) -> None:
        wait_s = BACKOFF_S[0]
        while True:
            sent = self.forwarded
            failure = await self._live_once()
            if failure is not None:
                self.standing.retries += 1
                await self._tell(failure)
            self._positions.flush()
            self._write_status(now=failure is not None)
            if self._stopping:
                return
            if isinstance(failure, TopicRefused):
                wait_s = REFUSED_S
            else:
                wait_s = BACKOFF_S[0] if self.forwarded > sent else min(wait_s * 2, BACKOFF_S[1])
            if failure is not None:
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311

    async def _live_once(self) -> BaseException | None:
        """One producer's life: until told to stop, until it is spent (None), or until something fails."""
        producer: TopicProducer | None = None
        failure: BaseException | None = None
        try:
            await self._prepare()
            producer = TopicProducer(
                client_arguments(self._kafka),
                self._kafka.topic,
                self._kafka.request_timeout_ms,
                self._renew_records,
            )
            self.producers += 1
            await producer.start()
            await self._send_with(producer)
        except* Exception as group:  # any failure means: abandon, wait, resume
            failure = group
            while isinstance(failure, BaseExceptionGroup):
                failure = failure.exceptions[0]
        finally:
            if producer is not None:
                await producer.abandon()
        return failure

    async def _tell(self, failure: BaseException) -> None:
        """Why nothing is sent: into the status each time, into the log once."""
        why = await self._why(failure)
        self.standing.stopped(why)
        if why in self._told or len(self._told) > 1000:
            return
        self._told.add(why)
        away = isinstance(failure, KafkaError | TimeoutError | ConnectionError)
        ours = failure.code if isinstance(failure, GatewayError) else "forwarding_failed"
        log.warning(
            "kafka_not_reachable" if away else ours,
            extra={
                "bootstrap_servers": self._kafka.bootstrap_servers,
                "why": why,
                "meanwhile": "records wait in the spool",
            },
        )

    async def _why(self, failure: BaseException) -> str:
        if isinstance(failure, GatewayError):
            return str(failure)
        why = None
        if isinstance(failure, KafkaError | TimeoutError | ConnectionError):
            try:
                why = await diagnose(self._kafka)
            except Exception:  # the failure itself says enough
                log.debug("not_diagnosed", exc_info=True)
        if why is None and isinstance(failure, TimeoutError):
            why = f"brokers answer, and acknowledged nothing within {self._kafka.request_timeout_ms * 1.5:.0f} ms"
        return why or f"{type(failure).__name__}: {str(failure)[:200]}"

    def _reached(self) -> None:
        if self.standing.why is not None:
            self._told = {line for line in self._told if line.startswith("topic ")}
            log.info("kafka_reached", extra={"topic": self._kafka.topic})

    async def _prepare(self) -> None:
        """Make the topic or look at it, and see that it has what it acknowledged.

        Raises:
            TopicRefused, KafkaError, TimeoutError, BrokerSettingsUnusable: see `ensure_topic`.
        """
        async with asyncio.timeout(self._kafka.request_timeout_ms / 1000 * 1.5):
            self._topic = await ensure_topic(self._kafka)
            self._limits.found(self._topic.max_message_bytes)
            if self._topic.was_made:
                self._rewind("it was not there", None, 0)
            acknowledged = self._positions.offsets(self._topic.partitions)
            ends = await end_offsets(self._kafka, acknowledged) if acknowledged else {}
        for partition, end in ends.items():
            if end <= acknowledged[partition]:
                self._rewind(f"partition {partition} ends at offset {end}", partition, end)
        self._checked_s = time.monotonic()
        # Such an epoch may be over by now, or its disk well.
        self._ended.clear()
        for line in self._topic.differences:
            if line not in self._told:
                self._told.add(line)
                log.warning("topic_differs", extra={"what": line})

    async def _send_with(self, producer: TopicProducer) -> None:
        """Round after round over what waits, until stopped with nothing left or the producer is spent."""
        while not producer.spent:
            if time.monotonic() > self._checked_s + CHECK_S:
                await self._prepare()
            by_partition: dict[int, list[EpochPath]] = {}
            for epoch in self._look():
                if self._at(epoch.key) < synced_seq(epoch):
                    entry = self._positions.entry(epoch.key, self._topic.partitions)
                    by_partition.setdefault(entry["partition"], []).append(epoch)
            if by_partition:
                async with asyncio.TaskGroup() as group:
                    for partition, listed in by_partition.items():
                        group.create_task(self._send_partition(producer, partition, listed))
            elif self._stopping:
                return
            else:
                self._positions.save_due()
                await asyncio.sleep(IDLE_S)
            self._write_status()

    def _look(self) -> list[EpochPath]:
        """Epochs that have or may get something to send; the spool itself is listed now and then."""
        now_s = time.monotonic()
        if now_s - self._scanned_s < SCAN_S and not self._stopping:
            return self._open
        self._scanned_s = now_s
        present = epochs(self._spool)
        self._forget({epoch.key for epoch in present})
        self._open = []
        for epoch in present:
            if epoch.key in self._done:
                continue
            # Looked at first: what is closed gets nothing more.
            over = closed(epoch) is not None
            if over and self._acknowledged(epoch.key) >= synced_seq(epoch):
                self._done.add(epoch.key)
                self._readers.pop(epoch.key, None)
            else:
                self._open.append(epoch)
        return self._open

    def _at(self, key: str) -> int:
        """The number that is waited for of an epoch."""
        return max(self._acknowledged(key), self._ended.get(key, 0))

    def _acknowledged(self, key: str) -> int:
        entry = self._positions.entries.get(key)
        return 0 if entry is None else entry["next_seq"]

    async def _send_partition(self, producer: TopicProducer, partition: int, listed: list[EpochPath]) -> None:
        """Some batches of each epoch of a partition, one after another."""
        batch_bytes, largest_bytes = self._limits.batch_bytes, self._limits.record_bytes
        for epoch in listed:
            entry = self._positions.entries[epoch.key]
            pending = Pending()
            turns, before = 0, entry["next_seq"]
            synced = synced_seq(epoch)
            reader = self._readers.setdefault(epoch.key, EpochReader(epoch))
            for parcel in self._outgoing.parcels(reader, epoch, before, largest_bytes):
                pending.add(parcel)
                while pending.size_bytes >= batch_bytes:
                    await self._send(producer, epoch.key, pending, batch_bytes)
                    turns += 1
                if turns >= TURN_BATCHES:
                    break
            while pending:
                await self._send(producer, epoch.key, pending, batch_bytes)
            if entry["next_seq"] == before:
                self._ended[epoch.key] = synced

    async def _send(self, producer: TopicProducer, key: str, pending: Pending, batch_bytes: int) -> None:
        """One batch from the front of what is pending.

        Raises:
            TopicLostRecords: the topic put it before records of this epoch that it had acknowledged.
        """
        entry = self._positions.entries[key]
        self.standing.next_is(key, entry["next_seq"], pending.first_ms)
        batch = pending.batch(batch_bytes)
        try:
            offset = await producer.send(batch, entry["partition"])
        except (MessageSizeTooLargeError, RecordListTooLargeError):
            self._limits.refused(batch.count, pending.first_bytes)
            raise
        if 0 <= offset <= entry.get("offset", -1):
            what = f"offset {offset} of partition {entry['partition']} was taken before"
            self._rewind(what, entry["partition"], offset)
            msg = f"topic {self._kafka.topic} lost records: {what}; they are sent again"
            raise TopicLostRecords(msg)
        entry["next_seq"] = batch.next_seq
        if offset >= 0:
            entry["offset"] = offset + batch.count - 1
        pending.drop(batch.count)
        if pending:
            # Else the status would look for it on disk, from the start of the segment.
            self.standing.next_is(key, batch.next_seq, pending.first_ms)
        self._reached()
        self.standing.sent(batch.count, batch.size())
        self._positions.moved()
        self._write_status()

    def _rewind(self, why: str, partition: int | None, offset: int) -> None:
        """Send again what the topic had and has not any more, as far as the spool reaches."""
        count = self._positions.rewind(partition, offset)
        if not count:
            return
        self._done.clear()
        self._ended.clear()
        log.error(
            "topic_lost_records",
            extra={
                "topic": self._kafka.topic,
                "why": why,
                "epochs": count,
                "meanwhile": "they are sent again from the spool",
            },
        )

    def _forget(self, present: set[str]) -> None:
        """Drop what is known of epochs that are gone from the spool."""
        for key in self._positions.forget(present, self._done):
            self._readers.pop(key, None)
            self._ended.pop(key, None)
            self._done.discard(key)
            self.standing.forget(key)

    def _write_status(self, *, now: bool = False) -> None:
        self.standing.write(self._open or epochs(self._spool), self.quarantined, now=now)


async def _run(context: process.Context) -> None:
    config = configuration.decode(context.config)
    if config.kafka is None:
        return
    state_dir = context.state_path
    lock = os.open(state_dir / "forwarder.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    forwarder = Forwarder(state_dir / "spool", state_dir / "forwarder", context.gateway_id, config.kafka)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, forwarder.stop)
    await forwarder.run()


def main() -> None:
    """Entry of the process."""
    context = process.enter()
    process.patient()
    logs.setup("forwarder")
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Events come and go in batches: collecting less often takes a tenth less time.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    asyncio.run(_run(context))


if __name__ == "__main__":
    main()
