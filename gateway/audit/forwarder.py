"""The forwarder: spool to topic. `python -P -m gateway.audit.forwarder`, only when Kafka is configured.

drain -> spool -> **forward** -> Kafka. All events of a (source, epoch) go to one partition in order of seq; the
partition is fixed in the fsynced position file before the first send, and the position moves only when the
broker has acknowledged. On any error the producer is abandoned and a new one resumes at the position, so
records may come twice and never not at all; a reader's high-water mark drops the doubles. What cannot be sent
at all (too large for the topic, or unreadable) is told by a gap in its place: nothing waits behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import fcntl
import gc
import json
import logging
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from aiokafka.errors import KafkaError

from gateway import config as configuration
from gateway import logs, process
from gateway.audit.event import Event, Gap
from gateway.audit.frame import Frame, expand
from gateway.audit.identity import id_prefix
from gateway.audit.producer import Envelope, Record, TopicProducer, made_ms
from gateway.audit.spool import EpochPath, EpochReader, closed, epochs, segments, synced_seq
from gateway.audit.topic import Positions, TopicFacts, ensure_topic
from gateway.audit.values import values_of
from gateway.config import Kafka

log = logging.getLogger("tidegate.forwarder")

BACKOFF_S = (0.25, 10.0)
IDLE_S = 0.02
SCAN_S = 0.25
"""New epochs are looked for so often; known ones are looked at each `IDLE_S`."""
STATUS_S = 1.0
STOP_S = 5.0
TURN_BATCHES = 16
"""An epoch that is far behind lets others go on after so many batches."""
RECORD_SLACK_BYTES = 4096
"""Headers of a record and of a batch."""
_RECORD_BYTES = 320
"""About what a record's key and headers take."""


class Forwarder:
    """Sends one spool to one topic.

    Threading: one event loop; disk reads are from the page cache and short.
    """

    def __init__(self, spool: Path, directory: Path, gateway_id: str, kafka: Kafka) -> None:
        self._spool = spool
        self._directory = directory
        self._gateway_id = gateway_id
        self._kafka = kafka
        self._positions = Positions(directory / "positions.json")
        self._topic = TopicFacts(0, 0, [])
        self._stopping = False
        self._limit: asyncio.Timeout | None = None
        self._scanned_s = self._status_s = 0.0
        self._told: set[str] = set()
        self._failed = False
        self._open: list[EpochPath] = []
        self._done: set[str] = set()
        """Closed epochs of which everything is sent."""
        self._readers: dict[str, EpochReader] = {}
        self._envelopes: dict[int, Envelope] = {}
        self._oldest: dict[str, tuple[int, int]] = {}
        """The first number of an epoch that is not sent, and its time in ms."""
        self._ended: dict[str, int] = {}
        """Epochs that gave nothing although numbers up to this one are said to be on disk: damaged at the end."""
        self._quarantined: set[str] = set()
        self.forwarded = 0
        self.retries = 0

    @property
    def quarantined(self) -> int:
        """Events and frames that were told by a gap instead of being sent."""
        return len(self._quarantined)

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
            self._write_status()

    async def _keep_sending(self) -> None:
        wait_s = BACKOFF_S[0]
        while True:
            producer: TopicProducer | None = None
            sent = self.forwarded
            try:
                await self._prepare()
                producer = TopicProducer(
                    self._kafka.bootstrap_servers,
                    self._kafka.topic,
                    min(self._kafka.batch_bytes, self._largest),
                    self._kafka.request_timeout_ms,
                )
                await producer.start()
                await self._send_with(producer)
            except* Exception as group:  # any failure means: abandon, wait, resume
                self.retries += 1
                self._tell(group)
            finally:
                if producer is not None:
                    await producer.abandon()
                self._positions.flush()
                self._write_status()
            if self._stopping:
                return
            wait_s = BACKOFF_S[0] if self.forwarded > sent else min(wait_s * 2, BACKOFF_S[1])
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311

    def _tell(self, exc: BaseException) -> None:
        while isinstance(exc, BaseExceptionGroup):
            exc = exc.exceptions[0]
        kind = type(exc).__name__
        self._failed = True
        if kind in self._told:
            return
        self._told.add(kind)
        ours = not isinstance(exc, KafkaError | TimeoutError | ConnectionError)
        log.warning(
            "forwarding_failed" if ours else "kafka_not_reachable",
            extra={
                "bootstrap_servers": self._kafka.bootstrap_servers,
                "why": f"{kind}: {str(exc)[:200]}",
                "meanwhile": "records wait in the spool",
            },
        )

    def _reached(self) -> None:
        if self._failed:
            self._failed = False
            self._told = {line for line in self._told if line.startswith("topic ")}
            log.info("kafka_reached", extra={"topic": self._kafka.topic})

    async def _prepare(self) -> None:
        async with asyncio.timeout(self._kafka.request_timeout_ms / 1000 * 1.5):
            self._topic = await ensure_topic(self._kafka)
        for line in self._topic.differences:
            if line not in self._told:
                self._told.add(line)
                log.warning("topic_differs", extra={"what": line})

    @property
    def _largest(self) -> int:
        """Bytes of the largest value that the topic takes, and of the largest batch."""
        most = self._topic.max_message_bytes
        return most - min(RECORD_SLACK_BYTES, most // 2)

    async def _send_with(self, producer: TopicProducer) -> None:
        """Round after round over what waits, until stopped with nothing left or the producer is spent."""
        while not producer.spent:
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
            if over and self._at(epoch.key) >= synced_seq(epoch):
                self._done.add(epoch.key)
                self._readers.pop(epoch.key, None)
            else:
                self._open.append(epoch)
        return self._open

    def _at(self, key: str) -> int:
        """The number that an epoch goes on with."""
        entry = self._positions.entries.get(key)
        return 0 if entry is None else max(entry["next_seq"], self._ended.get(key, 0))

    async def _send_partition(self, producer: TopicProducer, partition: int, listed: list[EpochPath]) -> None:
        """Some batches of each epoch of a partition, one after another."""
        for epoch in listed:
            entry = self._positions.entries[epoch.key]
            records: list[tuple[int, Record]] = []
            size = turns = 0
            synced, before = synced_seq(epoch), entry["next_seq"]
            reader = self._readers.setdefault(epoch.key, EpochReader(epoch))
            for frame in reader.frames(before):
                for next_seq, record in self._records(epoch, frame):
                    if next_seq > before:
                        records.append((next_seq, record))
                        size += len(record.value) + _RECORD_BYTES
                while size >= self._kafka.batch_bytes:
                    await self._send(producer, epoch.key, partition, records)
                    size = sum(len(record.value) + _RECORD_BYTES for _, record in records)
                    turns += 1
                if turns >= TURN_BATCHES:
                    break
            while records:
                await self._send(producer, epoch.key, partition, records)
            if entry["next_seq"] == before:
                self._ended[epoch.key] = synced

    async def _send(
        self, producer: TopicProducer, key: str, partition: int, records: list[tuple[int, Record]]
    ) -> None:
        """One batch from the front of `records`, each with the number to go on with behind it."""
        entry = self._positions.entries[key]
        self._oldest[key] = (entry["next_seq"], records[0][1].timestamp_ms)
        count = await producer.send([record for _, record in records], partition)
        entry["next_seq"] = records[count - 1][0]
        del records[:count]
        self.forwarded += count
        self._reached()
        self._positions.moved()
        self._write_status()

    def _records(self, epoch: EpochPath, frame: Frame) -> list[tuple[int, Record]]:
        """A frame's records, each with the number behind it."""
        envelope = self._envelopes.get(epoch.source)
        if envelope is None:
            envelope = Envelope(self._gateway_id, epoch.source, self._kafka.encoding)
            self._envelopes[epoch.source] = envelope
        largest = self._largest
        try:
            made = None
            if self._kafka.encoding == "msgpack":
                made = values_of(epoch.source, epoch.epoch, frame)
            if made is not None:
                records = envelope.records(made)
            else:
                records = [envelope.record(event) for event in expand(epoch.source, epoch.epoch, frame)]
            out = list(enumerate(records, frame.first_seq + 1))
        except Exception as exc:  # whatever it is that cannot be read, the rest must go on
            gap = self._quarantine(epoch, frame, "corrupt", why=f"{type(exc).__name__}: {str(exc)[:200]}")
            return [(frame.next_seq, envelope.record(gap))]
        for index, (next_seq, record) in enumerate(out):
            if len(record.value) > largest:
                one = Frame(next_seq - 1, 1, b"")
                gap = self._quarantine(epoch, one, "oversized", bytes=len(record.value))
                out[index] = (next_seq, envelope.record(gap))
        return out

    def _quarantine(self, epoch: EpochPath, frame: Frame, cause: str, **facts: object) -> Event:
        """Numbers that stay in the spool only; the gap that stands in their place."""
        event_id = f"{id_prefix(epoch.source, epoch.epoch)}{frame.first_seq:016x}"
        if event_id not in self._quarantined:
            self._quarantined.add(event_id)
            line = json.dumps({"id": event_id, "count": frame.count, "cause": cause, **facts})
            with contextlib.suppress(OSError), (self._directory / "quarantine.jsonl").open("a") as file:
                file.write(line + "\n")
            log.warning("record_quarantined", extra={"id": event_id, "cause": cause, **facts})
        return Gap(
            source=f"{epoch.source:016x}",
            epoch=epoch.epoch,
            from_seq=frame.first_seq,
            to_seq=frame.next_seq - 1,
            cause=cause,
            at_ns=time.time_ns(),
            id=event_id,
        )

    def _forget(self, present: set[str]) -> None:
        """Drop what is known of epochs that are gone from the spool."""
        gone = self._positions.entries.keys() - present
        for key in gone:
            del self._positions.entries[key]
            for known in (self._readers, self._ended, self._oldest):
                known.pop(key, None)  # type: ignore[attr-defined]
            self._done.discard(key)
        if gone:
            self._positions.moved()

    def _write_status(self) -> None:
        """For `/metrics` and `audit status`, about each second; never a reason to fail."""
        now_s = time.monotonic()
        if now_s - self._status_s < STATUS_S and self._limit is not None:
            return
        self._status_s = now_s
        with contextlib.suppress(OSError):
            # Retention may take away what is being looked at.
            text = json.dumps({"at_ns": time.time_ns(), **self._lag()})
            temporary = self._directory / "status.new"
            temporary.write_text(text)
            temporary.rename(self._directory / "status.json")

    def _lag(self) -> dict[str, Any]:
        lag_events = lag_bytes = 0
        oldest_ms = now_ms = time.time_ns() // 1_000_000
        for epoch in self._open or epochs(self._spool):
            at = self._positions.entries.get(epoch.key, {}).get("next_seq", 0)
            synced = synced_seq(epoch)
            if at >= synced:
                continue
            lag_events += synced - at
            oldest_ms = min(oldest_ms, self._oldest_ms(epoch, at))
            found = segments(epoch)
            ends = [first_seq for first_seq, _ in found[1:]] + [synced]
            for (first_seq, path), end_seq in zip(found, ends, strict=True):
                if end_seq > at:
                    share = (end_seq - max(at, first_seq)) / max(end_seq - first_seq, 1)
                    lag_bytes += int(path.stat().st_size * min(share, 1.0))
        return {
            "forwarded_events": self.forwarded,
            "lag_events": lag_events,
            "lag_bytes": lag_bytes,
            "oldest_age_ms": now_ms - oldest_ms,
            "retries": self.retries,
            "quarantined": self.quarantined,
        }

    def _oldest_ms(self, epoch: EpochPath, at: int) -> int:
        """When the first event that is not sent was made."""
        seq, at_ms = self._oldest.get(epoch.key, (-1, 0))
        if seq == at:
            return at_ms
        at_ms = time.time_ns() // 1_000_000
        # A copy: looking ahead must not move the reader's place.
        reader = copy.copy(self._readers.get(epoch.key) or EpochReader(epoch))
        with contextlib.suppress(Exception):  # what cannot be read has no time
            at_ms = made_ms(expand(epoch.source, epoch.epoch, next(reader.frames(at)))[0])
        self._oldest[epoch.key] = (at, at_ms)
        return at_ms


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
