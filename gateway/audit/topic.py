"""The topic: made with the right settings, or held against them.

What loses or changes records refuses (decision 0018): the forwarder sends nothing, says each difference with the
command that mends it, and looks again. What only makes the topic cost more or keep less is told once. Nothing expires
by default: how long an audit topic is kept is the operator's decision, not a broker's default.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    IncompatibleBrokerVersion,
    LeaderNotAvailableError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)

from gateway.audit.brokers import client_arguments
from gateway.errors import TopicRefused
from gateway.kafka import Kafka

MAX_MESSAGE_BYTES = 2 * 1024 * 1024
VISIBLE_S = 5.0
"""A new topic is waited for at most."""
OLDEST_MS_MIN = 7 * 24 * 3600 * 1000
"""Records of this age must be taken: so long the spool keeps them."""


class Difference(NamedTuple):
    """One thing that is not as an audit topic should be."""

    text: str
    refuses: bool
    """It loses or changes records."""


class TopicFacts(NamedTuple):
    """What a topic is like, as the brokers say."""

    partitions: int
    max_message_bytes: int
    """The largest batch that it takes; not always ours to choose."""
    differences: list[str]
    """Where it is not as an audit topic should be, one line each."""
    was_made: bool
    """It was not there a moment ago."""


class Found(NamedTuple):
    """A topic's partitions, the fewest replicas that one of them has, and its settings."""

    partitions: int
    replicas: int
    settings: Mapping[str, str] | None
    """None: this user may not see them."""


def settings(replication_factor: int) -> dict[str, str]:
    """What an audit topic is made with."""
    made = {
        "cleanup.policy": "delete",
        "retention.ms": "-1",
        "retention.bytes": "-1",
        "max.message.bytes": str(MAX_MESSAGE_BYTES),
        "compression.type": "producer",
        "message.timestamp.type": "CreateTime",
    }
    if replication_factor >= 3:
        made["min.insync.replicas"] = "2"
        made["unclean.leader.election.enable"] = "false"
    return made


def differences(kafka: Kafka, found: Found) -> list[Difference]:
    """What is not as it should be, the refusing ones first."""
    wanted = settings(max(kafka.replication_factor, found.replicas))
    out = []
    has_settings = found.settings or {}
    if found.settings is None:
        text = (
            f"topic {kafka.topic}: its settings cannot be seen; allow DescribeConfigs, or check them yourself"
        )
        out.append(Difference(text, refuses=False))
    for name, value in wanted.items():
        has = has_settings.get(name, value)
        if has != value and not _harmless(name, has, kafka):
            out.append(_setting(kafka, name, has, value, refuses=_loses(name, has, kafka, found.replicas)))
    for name in ("message.timestamp.before.max.ms", "message.timestamp.difference.max.ms"):
        limit = has_settings.get(name)
        if limit is not None and int(limit) < OLDEST_MS_MIN:
            out.append(_setting(kafka, name, limit, str(2**63 - 1), refuses=True))
    if found.partitions < kafka.partitions:
        text = f"topic {kafka.topic}: it has {found.partitions} partitions, expected {kafka.partitions}"
        out.append(Difference(text, refuses=False))
    if found.replicas < kafka.replication_factor:
        text = f"topic {kafka.topic}: it has {found.replicas} replicas, expected {kafka.replication_factor}"
        out.append(Difference(text, refuses=False))
    return sorted(out, key=lambda one: not one.refuses)


def _harmless(name: str, has: str, kafka: Kafka) -> bool:
    """More than asked, or not asked of a topic that has no replicas to choose among."""
    if name == "min.insync.replicas":
        return int(has) >= 2 or kafka.replication_factor < 3
    return False


def _loses(name: str, has: str, kafka: Kafka, replicas: int) -> bool:
    if name == "cleanup.policy":
        return True
    if name == "min.insync.replicas":
        return kafka.replication_factor >= 3
    return name == "unclean.leader.election.enable" and has == "true" and replicas > 1


def _setting(kafka: Kafka, name: str, has: str, value: str, *, refuses: bool) -> Difference:
    text = f"topic {kafka.topic}: {name} is {has!r}, expected {value!r}"
    if refuses:
        text += (
            f"; mend it with: kafka-configs.sh --bootstrap-server {kafka.bootstrap_servers} --alter"
            f" --entity-type topics --entity-name {kafka.topic} --add-config {name}={value}"
        )
    return Difference(text, refuses)


async def ensure_topic(kafka: Kafka) -> TopicFacts:
    """Make the topic when it is missing, and hold it against what an audit topic must be.

    Raises:
        aiokafka.errors.KafkaError: no broker answers, or the topic cannot be made.
        BrokerSettingsUnusable: a secret or certificate cannot be read.
        TopicRefused: its settings lose or change records, and `kafka.topic_check` is "refuse".
    """
    admin = AIOKafkaAdminClient(**client_arguments(kafka), request_timeout_ms=kafka.request_timeout_ms)
    try:
        await admin.start()
        # Asked first: who may write to a topic may not always make one.
        layout = await _layout(admin, kafka.topic)
        was_made = layout is None
        if layout is None:
            await _make(admin, kafka)
            layout = await _await_layout(admin, kafka.topic)
        found = Found(*layout, await _found_settings(admin, kafka.topic))
    finally:
        await admin.close()
    told = differences(kafka, found)
    refusing = [one.text for one in told if one.refuses]
    if refusing and kafka.topic_check == "refuse":
        msg = "; ".join(refusing) + '; or send in spite of it with kafka.topic_check = "warn"'
        raise TopicRefused(msg)
    largest = int((found.settings or {}).get("max.message.bytes", MAX_MESSAGE_BYTES))
    return TopicFacts(found.partitions, largest, [one.text for one in told], was_made)


async def end_offsets(kafka: Kafka, partitions: Iterable[int]) -> dict[int, int]:
    """Where each partition's next record will be.

    Raises:
        aiokafka.errors.KafkaError: no broker answers, or this user may not ask.
        BrokerSettingsUnusable: a secret or certificate cannot be read.
    """
    consumer = AIOKafkaConsumer(**client_arguments(kafka), request_timeout_ms=kafka.request_timeout_ms)
    try:
        await consumer.start()
        found = await consumer.end_offsets([TopicPartition(kafka.topic, number) for number in partitions])
        return {one.partition: offset for one, offset in found.items()}
    finally:
        await consumer.stop()


async def _make(admin: AIOKafkaAdminClient, kafka: Kafka) -> None:
    new = NewTopic(
        kafka.topic,
        kafka.partitions,
        kafka.replication_factor,
        topic_configs=settings(kafka.replication_factor),
    )
    reply = await admin.create_topics([new])
    for _, code, *rest in reply.topic_errors:
        if code and for_code(code) is not TopicAlreadyExistsError:
            why = f": {rest[0]}" if rest and rest[0] else ""
            raise for_code(code)(f"topic {kafka.topic} cannot be made{why}")


async def _layout(admin: AIOKafkaAdminClient, topic: str) -> tuple[int, int] | None:
    """Partitions, and the fewest replicas of one; None when there is no such topic."""
    (described,) = await admin.describe_topics([topic])
    code = described["error_code"]
    if code and for_code(code) is UnknownTopicOrPartitionError:
        return None
    if code:
        raise for_code(code)(topic)
    partitions = described["partitions"]
    return len(partitions), min((len(one["replicas"]) for one in partitions), default=0)


async def _await_layout(admin: AIOKafkaAdminClient, topic: str) -> tuple[int, int]:
    """A topic made just now takes a moment to be known to every broker."""
    deadline_s = time.monotonic() + VISIBLE_S
    while True:
        error: Exception = LeaderNotAvailableError(topic)
        try:
            layout = await _layout(admin, topic)
        except LeaderNotAvailableError as exc:
            layout, error = None, exc
        if layout is not None and layout[0]:
            return layout
        if time.monotonic() > deadline_s:
            raise error
        await asyncio.sleep(0.05)


async def _found_settings(admin: AIOKafkaAdminClient, topic: str) -> dict[str, str] | None:
    """All settings of the topic; None where this user may not see them, or the brokers have no way to ask."""
    resource = ConfigResource(ConfigResourceType.TOPIC, topic)
    found: dict[str, str] = {}
    try:
        responses = await admin.describe_configs([resource])
    except IncompatibleBrokerVersion:
        return None
    for response in responses:
        for entry in response.resources:
            if entry[0] and for_code(entry[0]) is TopicAuthorizationFailedError:
                return None
            if entry[0]:
                raise for_code(entry[0])(f"the settings of topic {topic} cannot be asked for")
            found.update({item[0]: item[1] for item in entry[4]})
    return found
