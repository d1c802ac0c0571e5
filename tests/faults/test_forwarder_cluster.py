"""The forwarder before real brokers that die: the oldest Kafka that is supported, the newest, and three that replicate.

Each kind of death is a proof of minutes; the short forms are in test_forwarder_faults.py and tests/kafka.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiokafka import TopicPartition
from confluent_kafka.admin import AdminClient

from bench.cluster import Cluster
from bench.kafka import Broker, KafkaAbsent, Setup
from gateway.audit.producer import TopicProducer
from tests.kafka.lived import until

pytestmark = pytest.mark.prove
VERSIONS = ("3.9.2", "4.4.0")
"""The last of the third series, which has the oldest protocol that brokers still speak, and the newest."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.audit.forwarder.BACKOFF_S", (0.05, 0.5))


def _or_skip(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except KafkaAbsent as exc:
        if os.environ.get("CI") == "true":
            pytest.fail(f"required in CI: {exc}")
        pytest.skip(f"kafka: {exc}")


@pytest.fixture(scope="module", params=VERSIONS)
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One node of a version."""
    directory = tmp_path_factory.mktemp("versions")
    one = _or_skip(lambda: Broker(directory, setup=Setup(version=request.param)).start())
    yield one
    one.thaw()
    one.kill9()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes."""
    one = _or_skip(lambda: Cluster(tmp_path_factory.mktemp("cluster")).start())
    yield one
    one.stop()


def leader_of(bootstrap: str, topic: str, partition: int = 0) -> int:
    """Who leads a partition; -1: nobody."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    return admin.list_topics(topic, timeout=10).topics[topic].partitions[partition].leader


def test_killed_three_times(flow, broker) -> None:
    """kill -9 and a restart, three times, while records come: none is missing, in order."""
    one = flow(broker.bootstrap, timeout_ms=2000)

    async def drive() -> None:
        for _ in range(3):
            one.more(400)
            await asyncio.to_thread(broker.kill9)
            one.more(400)
            await one.failed(1)
            await asyncio.to_thread(broker.restart)
            await one.sent()

    one.run(drive)
    one.check(broker.bootstrap)


def test_frozen_past_the_timeout(flow, broker) -> None:
    """SIGSTOP for longer than a request may take: doubles at most."""
    one = flow(broker.bootstrap, timeout_ms=1000)

    async def drive() -> None:
        for _ in range(3):
            broker.freeze()
            one.more(400)
            await one.failed(1)
            broker.thaw()
            await one.sent()

    one.run(drive)
    one.check(broker.bootstrap)


def test_a_sequence_at_its_end(flow, broker, monkeypatch) -> None:
    """2^31 in both versions: refused, begun anew, nothing lost."""
    one = flow(broker.bootstrap, timeout_ms=2000)
    start = TopicProducer.start
    lives = 0

    async def near_the_end(self: TopicProducer) -> None:
        nonlocal lives
        await start(self)
        lives += 1
        if lives == 1:
            for partition in (0, 1):
                at = TopicPartition(one.topic, partition)
                self._producer._txn_manager._sequence_numbers[at] = 2**31 - 60

    monkeypatch.setattr(TopicProducer, "start", near_the_end)

    async def drive() -> None:
        for _ in range(4):
            one.more()
            await one.sent()

    one.run(drive)
    assert lives >= 2
    one.check(broker.bootstrap)


def test_without_a_leader_for_longer_than_the_timeout(flow, cluster) -> None:
    """The only replica's node dies, others say that nobody leads; after that the sequence would be refused for ever."""
    one = flow(cluster.bootstrap, timeout_ms=1500, partitions=1, replication_factor=1)

    async def drive() -> None:
        node = leader_of(cluster.bootstrap, one.topic)
        cluster.brokers[node].kill9()
        one.more(400)
        await one.failed(2)
        await asyncio.to_thread(cluster.brokers[node].restart)
        await one.sent()
        one.more(400)
        await one.sent()

    one.run(drive)
    one.check(cluster.bootstrap)


def test_leaders_killed_and_frozen(flow, cluster) -> None:
    """RF 3, two in sync: a leader is killed, then one frozen past its session; another takes over each time."""
    one = flow(cluster.bootstrap, timeout_ms=2000, replication_factor=3)

    async def drive() -> None:
        node = leader_of(cluster.bootstrap, one.topic)
        cluster.brokers[node].kill9()
        one.more(400)
        await one.sent()
        await asyncio.to_thread(cluster.brokers[node].restart)
        node = leader_of(cluster.bootstrap, one.topic)
        cluster.brokers[node].freeze()
        one.more(400)
        await one.sent()
        cluster.brokers[node].thaw()

    one.run(drive)
    one.check(cluster.bootstrap)


def test_two_of_three_away(flow, cluster) -> None:
    """One in sync is too few: nothing is acknowledged until a second is back, then all of it."""
    one = flow(cluster.bootstrap, timeout_ms=2000, replication_factor=3)

    async def drive() -> None:
        victims = [1, 2]
        for node in victims:
            cluster.brokers[node].freeze()
        before = one.forwarder.forwarded
        one.more(400)
        await one.failed(1)
        assert one.forwarder.forwarded == before
        for node in victims:
            cluster.brokers[node].thaw()
        await until(lambda: one.one.behind(one.forwarder) == 0)

    one.run(drive)
    one.check(cluster.bootstrap)
