"""The topic: made with the right settings, or held against them.

Nothing expires by default: how long an audit topic is kept is the operator's decision, not a broker's default.
"""

from __future__ import annotations

import asyncio
import logging
import time

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import LeaderNotAvailableError, TopicAlreadyExistsError, for_code

from gateway.config import Kafka

log = logging.getLogger("tidegate.forwarder")

MAX_MESSAGE_BYTES = 2 * 1024 * 1024
VISIBLE_S = 5.0
"""A new topic is waited for at most."""


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


async def ensure_topic(kafka: Kafka) -> tuple[int, list[str]]:
    """Make the topic when it is missing; returns its partitions and the differences found, one line
    each. A difference never stops forwarding: records are better in a topic that expires than nowhere.

    Raises:
        aiokafka.errors.KafkaError: no broker answers.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers, request_timeout_ms=10_000)
    await admin.start()
    try:
        wanted = settings(kafka.replication_factor)
        reply = await admin.create_topics(
            [NewTopic(kafka.topic, kafka.partitions, kafka.replication_factor, topic_configs=wanted)]
        )
        for _, code, *_ in reply.topic_errors:
            if code and for_code(code) is not TopicAlreadyExistsError:
                raise for_code(code)(f"topic {kafka.topic} cannot be made")
        partitions = await _partitions(admin, kafka.topic)
        return partitions, await _differences(admin, kafka.topic, wanted)
    finally:
        await admin.close()


async def _partitions(admin: AIOKafkaAdminClient, topic: str) -> int:
    """How many there are; a topic made just now takes a moment to be known to every broker."""
    deadline_s = time.monotonic() + VISIBLE_S
    while True:
        (described,) = await admin.describe_topics([topic])
        code = described["error_code"]
        if not code and described["partitions"]:
            return len(described["partitions"])
        error = for_code(code) if code else LeaderNotAvailableError
        if not error.retriable or time.monotonic() > deadline_s:
            raise error(topic)
        await asyncio.sleep(0.05)


async def _differences(admin: AIOKafkaAdminClient, topic: str, wanted: dict[str, str]) -> list[str]:
    resource = ConfigResource(ConfigResourceType.TOPIC, topic)
    found: dict[str, str] = {}
    for response in await admin.describe_configs([resource]):
        for entry in response.resources:
            found.update({item[0]: item[1] for item in entry[4]})
    return [
        f"topic {topic}: {name} is {found[name]!r}, expected {value!r}"
        for name, value in wanted.items()
        if name in found and found[name] != value
    ]
