"""The forwarder: spool to topic. `python -P -m gateway.audit.forwarder`, only when Kafka is configured.

drain -> spool -> **forward** -> Kafka. All events of a (source, epoch) go to one partition in order of seq; the
partition is fixed in the fsynced position file before the first send, and the position moves only when the
broker has acknowledged. On any error the producer is abandoned and a new one resumes at the position, so
records may come twice and never not at all; a reader's high-water mark drops the doubles.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from gateway import config as configuration
from gateway import logs, process
from gateway.audit.event import Event, Gap, encode_event
from gateway.audit.frame import expand
from gateway.audit.identity import parse_event_id
from gateway.audit.producer import Record, TopicProducer
from gateway.audit.spool import EpochPath, EpochReader, epochs, segments, synced_seq
from gateway.audit.topic import MAX_MESSAGE_BYTES, ensure_topic
from gateway.config import Kafka

log = logging.getLogger("tidegate.forwarder")

BACKOFF_S = (0.25, 10.0)
IDLE_S = 0.02
SAVE_S = 0.1
STATUS_S = 1.0
STOP_S = 5.0
RECORD_SLACK_BYTES = 4096
_ID_BYTES = 42


class Positions:
    """The position file: {"<source>-<epoch>": {"partition": p, "next_seq": n}}."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self.entries: dict[str, dict[str, int]] = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):
            self.entries = {}
        self._saved_s = 0.0
        self._dirty = False

    def entry(self, key: str, partitions: int) -> dict[str, int]:
        """An epoch's entry; a new one gets its partition, on disk before it is used."""
        found = self.entries.get(key)
        if found is None:
            used = [0] * partitions
            for other in self.entries.values():
                if other["partition"] < partitions:
                    used[other["partition"]] += 1
            found = {"partition": used.index(min(used)), "next_seq": 0}
            self.entries[key] = found
            self.save()
        return found

    def moved(self) -> None:
        """A position moved; saved now and then."""
        self._dirty = True
        if time.monotonic() - self._saved_s >= SAVE_S:
            self.save()

    def save(self) -> None:
        """Temporary file, fsync, rename."""
        temporary = self._path.with_suffix(".new")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, json.dumps(self.entries).encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.rename(self._path)
        self._saved_s, self._dirty = time.monotonic(), False

    def flush(self) -> None:
        """Save what moved since."""
        if self._dirty:
            self.save()


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
        self._partitions = 0
        self._stop_at: float | None = None
        self._status_s = 0.0
        self._told: set[str] = set()
        self._readers: dict[str, EpochReader] = {}
        self._ended: dict[str, int] = {}
        """Epochs that gave nothing although numbers up to this one are said to be on disk: damaged at the end."""
        self.forwarded = 0
        self.retries = 0
        self.quarantined = 0

    def stop(self) -> None:
        """Send what is there, for 5 s at most, then end."""
        self._stop_at = time.monotonic() + STOP_S

    async def run(self) -> None:
        """Until stopped: connect, send, and begin again after any failure."""
        wait_s = BACKOFF_S[0]
        while not self._over():
            producer: TopicProducer | None = None
            sent = self.forwarded
            try:
                await self._prepare()
                producer = TopicProducer(
                    self._kafka.bootstrap_servers,
                    self._kafka.topic,
                    self._kafka.batch_bytes,
                    self._kafka.request_timeout_ms,
                )
                await producer.start()
                await self._send_until_stopped(producer)
            except* Exception as group:  # any failure means: abandon, wait, resume
                self.retries += 1
                self._tell(group.exceptions[0])
            finally:
                if producer is not None:
                    await producer.abandon()
                self._positions.flush()
                self._write_status()
            if self._over() or self._stop_at is not None:
                break
            wait_s = BACKOFF_S[0] if self.forwarded > sent else min(wait_s * 2, BACKOFF_S[1])
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311
        self._positions.flush()
        self._write_status()

    def _over(self) -> bool:
        return self._stop_at is not None and time.monotonic() > self._stop_at

    def _tell(self, exc: BaseException) -> None:
        while isinstance(exc, BaseExceptionGroup):
            exc = exc.exceptions[0]
        kind = type(exc).__name__
        if kind not in self._told:
            self._told.add(kind)
            log.warning(
                "kafka_not_reachable",
                extra={
                    "bootstrap_servers": self._kafka.bootstrap_servers,
                    "why": f"{kind}: {str(exc)[:200]}",
                    "meanwhile": "records wait in the spool",
                },
            )

    async def _prepare(self) -> None:
        self._partitions, differences = await ensure_topic(self._kafka)
        for line in differences:
            if line not in self._told:
                self._told.add(line)
                log.warning("topic_differs", extra={"what": line})

    async def _send_until_stopped(self, producer: TopicProducer) -> None:
        if self._told:
            log.info("kafka_reached", extra={"topic": self._kafka.topic})
            self._told = {line for line in self._told if line.startswith("topic ")}
        while not self._over():
            by_partition: dict[int, list[EpochPath]] = {}
            for epoch in epochs(self._spool):
                entry = self._positions.entries.get(epoch.key)
                synced = synced_seq(epoch)
                at = 0 if entry is None else max(entry["next_seq"], self._ended.get(epoch.key, 0))
                if at < synced:
                    entry = self._positions.entry(epoch.key, self._partitions)
                    by_partition.setdefault(entry["partition"], []).append(epoch)
            if not by_partition:
                if self._stop_at is not None:
                    return
                self._forget()
                self._write_status()
                await asyncio.sleep(IDLE_S)
                continue
            async with asyncio.TaskGroup() as group:
                for partition, listed in by_partition.items():
                    group.create_task(self._send_partition(producer, partition, listed))
            self._write_status()

    async def _send_partition(self, producer: TopicProducer, partition: int, listed: list[EpochPath]) -> None:
        """One batch after another for each epoch of a partition, until they are caught up."""
        for epoch in listed:
            entry = self._positions.entries[epoch.key]
            records: list[tuple[int, Record]] = []
            size = 0
            synced, before = synced_seq(epoch), entry["next_seq"]
            reader = self._readers.setdefault(epoch.key, EpochReader(epoch))
            for frame in reader.frames(entry["next_seq"]):
                for offset, event in enumerate(expand(epoch.source, epoch.epoch, frame)):
                    seq = frame.first_seq + offset
                    if seq < entry["next_seq"]:
                        continue
                    record = self._record(event)
                    records.append((seq, record))
                    size += len(record.value) + _ID_BYTES
                while size >= self._kafka.batch_bytes:
                    await self._send(producer, partition, entry, records)
                    size = sum(len(r.value) + _ID_BYTES for _, r in records)
            while records:
                await self._send(producer, partition, entry, records)
            if entry["next_seq"] == before:
                self._ended[epoch.key] = synced

    async def _send(
        self,
        producer: TopicProducer,
        partition: int,
        entry: dict[str, int],
        records: list[tuple[int, Record]],
    ) -> None:
        count = await producer.send([record for _, record in records], partition)
        if not count:
            # Larger than a batch may be: quarantined by `_record` before, so this cannot happen.
            msg = "a record does not fit a batch"
            raise ValueError(msg)
        entry["next_seq"] = records[count - 1][0] + 1
        del records[:count]
        self.forwarded += count
        self._positions.moved()
        self._write_status()

    def _record(self, event: Event) -> Record:
        value = encode_event(event, self._kafka.encoding)
        limit = min(MAX_MESSAGE_BYTES, self._kafka.batch_bytes) - RECORD_SLACK_BYTES
        if len(value) > limit:
            event = self._quarantine(event, len(value))
            value = encode_event(event, self._kafka.encoding)
        at_ns = getattr(event, "done_ns", 0) or getattr(event, "at_ns", 0)
        source = event.id[:16]
        return Record(
            key=event.id.encode(),
            value=value,
            timestamp_ms=(at_ns or time.time_ns()) // 1_000_000,
            headers=[
                ("ce_specversion", b"1.0"),
                ("ce_id", event.id.encode()),
                ("ce_type", f"tidegate.{event.__struct_config__.tag}".encode()),
                ("ce_source", f"/tidegate/{self._gateway_id}/{source}".encode()),
                ("content-type", f"application/{self._kafka.encoding}".encode()),
            ],
        )

    def _quarantine(self, event: Event, size: int) -> Event:
        """An event too large for the topic: told by a gap in its place, kept in the spool."""
        self.quarantined += 1
        with (self._directory / "quarantine.jsonl").open("a") as file:
            file.write(json.dumps({"id": event.id, "bytes": size}) + "\n")
        log.warning("record_too_large", extra={"id": event.id, "bytes": size})
        which = parse_event_id(event.id)
        return Gap(
            source=f"{which.source:016x}",
            epoch=which.epoch,
            from_seq=which.seq,
            to_seq=which.seq,
            cause="oversized",
            at_ns=time.time_ns(),
            id=event.id,
        )

    def _forget(self) -> None:
        """Drop positions of epochs that are over, sent, and gone from the spool."""
        present = {epoch.key for epoch in epochs(self._spool)}
        gone = [key for key in self._positions.entries if key not in present]
        for key in gone:
            del self._positions.entries[key]
            self._readers.pop(key, None)
            self._ended.pop(key, None)
        if gone:
            self._positions.save()

    def _write_status(self) -> None:
        now = time.monotonic()
        if now - self._status_s < STATUS_S and self._stop_at is None:
            return
        self._status_s = now
        lag_events = lag_bytes = 0
        oldest = 0.0
        for epoch in epochs(self._spool):
            at = self._positions.entries.get(epoch.key, {}).get("next_seq", 0)
            behind = synced_seq(epoch) - at
            if behind <= 0:
                continue
            lag_events += behind
            for _, path in [s for s in segments(epoch) if s[0] >= at] or segments(epoch)[-1:]:
                stat = path.stat()
                lag_bytes += stat.st_size
                oldest = max(oldest, time.time() - stat.st_mtime)
        status: dict[str, Any] = {
            "at_ns": time.time_ns(),
            "forwarded_events": self.forwarded,
            "lag_events": lag_events,
            "lag_bytes": lag_bytes,
            "oldest_age_ms": int(oldest * 1000),
            "retries": self.retries,
            "quarantined": self.quarantined,
        }
        temporary = self._directory / "status.new"
        temporary.write_text(json.dumps(status))
        temporary.rename(self._directory / "status.json")


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
    logs.setup("forwarder")
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_run(context))


if __name__ == "__main__":
    main()
