"""The topic: made with the right settings, or held against them; and where each epoch stands in it.

Nothing expires by default: how long an audit topic is kept is the operator's decision, not a broker's default.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    LeaderNotAvailableError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)

from gateway.audit.storage import DISK
from gateway.config import Kafka

log = logging.getLogger("tidegate.forwarder")

MAX_MESSAGE_BYTES = 2 * 1024 * 1024
SAVE_S = 0.1
"""Positions that move are saved so often."""
VISIBLE_S = 5.0
"""A new topic is waited for at most."""


class TopicFacts(NamedTuple):
    """What a topic is like, as the brokers say."""

    partitions: int
    max_message_bytes: int
    """The largest batch that it takes; not always ours to choose."""
    differences: list[str]
    """Where it is not as an audit topic should be, one line each."""


def settings(replication_factor: int) -> dict[str, str]:
    """What an audit topic is made with."""
    made = {
        "cleanup.policy": "delete",
        "retention.ms": "-1",
        "max.message.bytes": str(MAX_MESSAGE_BYTES),
        "compression.type": "producer",
        "message.timestamp.type": "CreateTime",
    }
    if replication_factor >= 3:
        made["min.insync.replicas"] = "2"
        made["unclean.leader.election.enable"] = "false"
    return made


async def ensure_topic(kafka: Kafka) -> TopicFacts:
    """Make the topic when it is missing. A difference never stops forwarding: records are better in a topic
    that expires than nowhere.

    Raises:
        aiokafka.errors.KafkaError: no broker answers, or the topic cannot be made.
    """
    admin = AIOKafkaAdminClient(
        bootstrap_servers=kafka.bootstrap_servers, request_timeout_ms=kafka.request_timeout_ms
    )
    try:
        await admin.start()
        # Asked first: who may write to a topic may not always make one.
        partitions = await _partitions(admin, kafka.topic)
        if partitions is None:
            await _make(admin, kafka)
            partitions = await _await_partitions(admin, kafka.topic)
        found = await _found_settings(admin, kafka.topic)
        differences = [
            f"topic {kafka.topic}: {name} is {found[name]!r}, expected {value!r}"
            for name, value in settings(kafka.replication_factor).items()
            if found.get(name, value) != value
        ]
        if partitions != kafka.partitions:
            line = f"topic {kafka.topic}: it has {partitions} partitions, expected {kafka.partitions}"
            differences.append(line)
        largest = int(found.get("max.message.bytes", MAX_MESSAGE_BYTES))
        return TopicFacts(partitions, largest, differences)
    finally:
        await admin.close()


async def _make(admin: AIOKafkaAdminClient, kafka: Kafka) -> None:
    new = NewTopic(
        kafka.topic,
        kafka.partitions,
        kafka.replication_factor,
        topic_configs=settings(kafka.replication_factor),
    )
    reply = await admin.create_topics([new])
    for _, code, *_ in reply.topic_errors:
        if code and for_code(code) is not TopicAlreadyExistsError:
            raise for_code(code)(f"topic {kafka.topic} cannot be made")


async def _partitions(admin: AIOKafkaAdminClient, topic: str) -> int | None:
    """How many there are; None when there is no such topic."""
    (described,) = await admin.describe_topics([topic])
    code = described["error_code"]
    if code and for_code(code) is UnknownTopicOrPartitionError:
        return None
    if code:
        raise for_code(code)(topic)
    return len(described["partitions"])


async def _await_partitions(admin: AIOKafkaAdminClient, topic: str) -> int:
    """A topic made just now takes a moment to be known to every broker."""
    deadline_s = time.monotonic() + VISIBLE_S
    while True:
        error: Exception = LeaderNotAvailableError(topic)
        try:
            partitions = await _partitions(admin, topic)
        except LeaderNotAvailableError as exc:
            partitions, error = None, exc
        if partitions:
            return partitions
        if time.monotonic() > deadline_s:
            raise error
        await asyncio.sleep(0.05)


async def _found_settings(admin: AIOKafkaAdminClient, topic: str) -> dict[str, Any]:
    resource = ConfigResource(ConfigResourceType.TOPIC, topic)
    found: dict[str, Any] = {}
    for response in await admin.describe_configs([resource]):
        for entry in response.resources:
            found.update({item[0]: item[1] for item in entry[4]})
    return found


class Positions:
    """The position file: {"<source>-<epoch>": {"partition": p, "next_seq": n}}."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.entries: dict[str, dict[str, int]] = {}
        try:
            self.entries = msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, int]])
        except FileNotFoundError:
            pass
        except msgspec.MsgspecError:
            log.warning("positions_unreadable", extra={"meanwhile": "the whole spool is sent again"})
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
            DISK.sync_directory(self._path.parent)
        return found

    def moved(self) -> None:
        """A position moved; saved now and then."""
        self._dirty = True
        self.save_due()

    def save_due(self) -> None:
        """Save what moved, once the last save is `SAVE_S` ago; also for a forwarder with nothing to send, or
        the last positions of a burst would stay in memory alone."""
        if self._dirty and time.monotonic() - self._saved_s >= SAVE_S:
            self.flush()

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
        """Save what moved since. A disk that refuses costs doubles after a crash, and stops nothing."""
        if not self._dirty:
            return
        try:
            self.save()
        except OSError as exc:
            self._saved_s = time.monotonic()
            log.warning("positions_not_saved", extra={"why": exc.strerror})
