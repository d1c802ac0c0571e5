"""The topic against a real broker: what refuses, what is told, and what becomes of one that is lost or grows."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    ResourceType,
)

from gateway.audit.topic import Found, differences, settings
from gateway.kafka import Kafka
from tests.kafka.lived import Lived, check_contiguous, labels, read_topic, run_with, until

OURS = Kafka(bootstrap_servers="b:1", topic="t", partitions=3, replication_factor=3)


@pytest.fixture
def lived(tmp_path: Path, kafka_bootstrap: str, monkeypatch) -> Iterator[Callable[..., Lived]]:
    """A log before the session's broker; looks again at once."""
    monkeypatch.setattr("gateway.audit.forwarder.REFUSED_S", 0.1)
    monkeypatch.setattr("gateway.audit.forwarder.BACKOFF_S", (0.05, 0.1))
    made: list[Lived] = []

    def make(**given: Any) -> Lived:
        given = {"request_timeout_ms": 2000, **given}
        made.append(Lived(tmp_path / f"state{len(made)}", kafka_bootstrap, **given))
        return made[-1]

    yield make
    for one in made:
        one.close()


@functools.cache
def admin_at(bootstrap: str) -> AdminClient:
    """Kept: its answers end with it."""
    return AdminClient({"bootstrap.servers": bootstrap})


def admin_of(one: Lived) -> AdminClient:
    return admin_at(one.kafka.bootstrap_servers)


def alter(one: Lived, **config: str) -> None:
    """Other settings for the topic, as kafka-configs.sh would."""
    entries = [
        ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
        for name, value in config.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, one.kafka.topic, incremental_configs=entries)
    (future,) = admin_of(one).incremental_alter_configs([resource]).values()
    future.result(10)


def read(one: Lived) -> list[int]:
    """Labels in the topic, in order, doubles dropped."""
    messages = read_topic(one.kafka.bootstrap_servers, one.kafka.topic)
    return labels(check_contiguous(messages, msgspec.msgpack.decode))


@pytest.mark.parametrize(
    ("name", "value", "refuses"),
    [
        ("cleanup.policy", "compact", True),
        ("cleanup.policy", "compact,delete", True),
        ("unclean.leader.election.enable", "true", True),
        ("min.insync.replicas", "1", True),
        ("message.timestamp.before.max.ms", "3600000", True),
        ("compression.type", "gzip", False),
        ("message.timestamp.type", "LogAppendTime", False),
        ("retention.ms", "86400000", False),
        ("retention.bytes", "1000", False),
        ("max.message.bytes", "1000", False),
    ],
)
def test_what_loses_or_changes_records_refuses(name: str, value: str, refuses: bool) -> None:
    """One line each, with the command that mends it where it refuses."""
    (found,) = differences(OURS, Found(3, 3, {**settings(3), name: value}))
    assert found.refuses == refuses
    assert found.text.startswith(f"topic t: {name} is {value!r}, expected ")
    wanted = settings(3).get(name, str(2**63 - 1))
    mend = (
        "mend it with: kafka-configs.sh --bootstrap-server b:1 --alter --entity-type topics --entity-name t"
    )
    assert (f"{mend} --add-config {name}={wanted}" in found.text) == refuses


def test_more_than_asked_is_no_difference() -> None:
    """More partitions, more replicas in sync; one replica has no election and no second one to wait for."""
    assert differences(OURS, Found(9, 3, {**settings(3), "min.insync.replicas": "3"})) == []
    alone = msgspec.structs.replace(OURS, replication_factor=1)
    lone = {**settings(1), "min.insync.replicas": "1", "unclean.leader.election.enable": "true"}
    assert differences(alone, Found(3, 1, lone)) == []
    texts = [one.text for one in differences(OURS, Found(2, 1, None))]
    assert texts == [
        "topic t: its settings cannot be seen; allow DescribeConfigs, or check them yourself",
        "topic t: it has 2 partitions, expected 3",
        "topic t: it has 1 replicas, expected 3",
    ]


def test_a_topic_that_loses_records_gets_none_until_it_is_mended(lived, caplog) -> None:
    """Compaction: nothing is sent, status and log say what mends it, and sending begins without a restart."""
    one = lived(partitions=1)
    one.make_topic(cleanup_policy="compact")
    one.append(1, 2)
    forwarder = one.forwarder()
    said: list[str] = []

    async def drive() -> None:
        await until(lambda: forwarder.retries >= 2)
        assert forwarder.forwarded == 0
        said.append(json.loads((one.directory / "status.json").read_bytes())["why"])
        alter(one, cleanup_policy="delete")
        await until(lambda: one.behind(forwarder) == 0)

    with caplog.at_level(logging.WARNING, logger="tidegate.forwarder"):
        run_with(forwarder, drive)
    assert said[0].startswith(
        f"topic {one.kafka.topic}: cleanup.policy is 'compact', expected 'delete'; mend"
    )
    assert said[0].endswith('or send in spite of it with kafka.topic_check = "warn"')
    assert [r.why for r in caplog.records if r.message == "topic_refused"] == said
    assert read(one) == [1, 2]


def test_a_topic_that_is_altered_under_way_is_seen(lived, monkeypatch) -> None:
    """Settings are looked at now and then while records go: sending stops before more are lost."""
    monkeypatch.setattr("gateway.audit.forwarder.CHECK_S", 0.05)
    one = lived(partitions=1)
    one.append(1)
    forwarder = one.forwarder()

    async def drive() -> None:
        await until(lambda: one.behind(forwarder) == 0)
        alter(one, cleanup_policy="compact")
        await until(lambda: "cleanup.policy" in (forwarder.standing.why or ""))
        one.append(2)
        alter(one, cleanup_policy="delete")
        await until(lambda: one.behind(forwarder) == 0)

    run_with(forwarder, drive)
    assert read(one) == [1, 2]


def test_told_to_only_warn_it_sends(lived, caplog) -> None:
    """`kafka.topic_check = "warn"`: the operator's word is enough; the difference is logged once."""
    one = lived(partitions=1, topic_check="warn")
    one.make_topic(cleanup_policy="compact")
    one.append(1)
    with caplog.at_level(logging.WARNING, logger="tidegate.forwarder"):
        assert one.forward().retries == 0
    told = [r.what for r in caplog.records if r.message == "topic_differs"]
    assert len([line for line in told if "cleanup.policy is 'compact'" in line]) == 1


def test_a_deleted_topic_is_made_again_and_filled_from_the_spool(lived, caplog) -> None:
    """What was acknowledged and deleted with the topic is sent again: the new topic has everything."""
    one = lived(partitions=2)
    one.append(1, 2)
    forwarder = one.forwarder()

    async def drive() -> None:
        await until(lambda: one.behind(forwarder) == 0)
        (future,) = admin_of(one).delete_topics([one.kafka.topic]).values()
        future.result(10)
        one.append(3)
        await until(lambda: forwarder.retries > 0)
        await until(lambda: one.behind(forwarder) == 0)

    with caplog.at_level(logging.ERROR, logger="tidegate.forwarder"):
        run_with(forwarder, drive)
    assert read(one) == [1, 2, 3]
    ours = [r.message for r in caplog.records if r.name == "tidegate.forwarder"]
    assert ours == ["topic_lost_records"]


def test_a_topic_that_was_cut_behind_our_back_is_filled_again(lived, caplog) -> None:
    """Deleted and made anew by somebody else, with fewer partitions: offsets begin anew, which gives it away."""
    one = lived(partitions=1)
    one.append(*range(50))
    one.forward()
    (future,) = admin_of(one).delete_topics([one.kafka.topic]).values()
    future.result(10)
    forwarder = one.forwarder()
    entries = forwarder._positions.entries.values()

    async def drive() -> None:
        await until(lambda: _make_again(one))
        one.append(50)
        await until(lambda: forwarder.forwarded > 1 and one.behind(forwarder) == 0)

    with caplog.at_level(logging.ERROR, logger="tidegate.forwarder"):
        run_with(forwarder, drive)
    assert read(one) == list(range(51))
    assert "topic_lost_records" in [r.message for r in caplog.records]
    assert all(entry["offset"] >= 0 for entry in entries if entry["next_seq"])


def _make_again(one: Lived) -> bool:
    try:
        one.make_topic()
    except Exception:  # the brokers are not through with deleting it
        return False
    return True


def test_a_topic_that_grows_keeps_each_epoch_where_it_is(lived) -> None:
    """Partitions are added: an epoch that has one stays there, in order."""
    one = lived(partitions=1)
    one.append(1)
    one.forward()
    admin = admin_of(one)
    (future,) = admin.create_partitions([NewPartitions(one.kafka.topic, 3)]).values()
    future.result(10)
    one.append(2, 3)
    one.forward()
    messages = read_topic(one.kafka.bootstrap_servers, one.kafka.topic)
    events = check_contiguous(messages, msgspec.msgpack.decode)
    assert labels(events) == [1, 2, 3]
    source = f"{one.writer.source.source:016x}"
    assert {m.partition() for m in messages if m.key().decode().startswith(source)} == {0}


def test_a_producer_is_renewed_before_its_sequence_wraps(lived) -> None:
    """A small limit: producers follow each other, nothing is lost, doubled or out of order, and none is a failure."""
    one = lived(partitions=1, batch_bytes=16_384)
    one.make_topic()
    forwarder = one.forwarder(renew_records=100)
    for i in range(6):
        one.append(*range(50 * i, 50 * i + 50), pad_bytes=300)

    async def drive() -> None:
        await until(lambda: one.behind(forwarder) == 0)
        for i in range(6, 9):
            one.append(*range(50 * i, 50 * i + 50), pad_bytes=300)
            await until(lambda: one.behind(forwarder) == 0)

    run_with(forwarder, drive)
    assert forwarder.producers >= 3
    assert forwarder.retries == 0
    messages = read_topic(one.kafka.bootstrap_servers, one.kafka.topic)
    assert labels(check_contiguous(messages, msgspec.msgpack.decode)) == list(range(450))
    assert len(messages) == forwarder.forwarded
