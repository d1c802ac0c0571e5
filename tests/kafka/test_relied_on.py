"""What gateway/audit/producer.py and batch.py rely on in aiokafka, defects included: an upgrade that changes it fails.

A defect that is gone is good news: then the workaround that its test names may go, and the test with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, LeaderNotAvailableError
from aiokafka.producer import message_accumulator
from aiokafka.producer.message_accumulator import MessageAccumulator
from aiokafka.producer.transaction_manager import TransactionManager

from gateway.audit.batch import RecordBatch
from gateway.audit.forwarder import TURN_BATCHES
from gateway.audit.producer import RENEW_RECORDS, TopicProducer
from gateway.audit.topic import MAX_MESSAGE_BYTES
from tests.faults.mock_cluster import PRODUCE, MockCluster, mock_cluster
from tests.gateway.audit.test_batch import pending_of

AT = TopicPartition("t", 0)


@pytest.fixture
def brokers() -> Iterator[MockCluster]:
    """One broker with one topic."""
    with mock_cluster(1) as cluster:
        cluster.topic("t")
        yield cluster


def batch(count: int = 1) -> RecordBatch:
    """Some records."""
    return pending_of([(b"%042d" % i, b"v", 1, [], []) for i in range(count)]).batch(1 << 20)


def test_the_version_is_the_one_that_was_looked_at() -> None:
    """Private parts have no promise: another version is looked at, then this line is changed."""
    assert version("aiokafka") == "0.14.0"


def test_a_batch_has_all_that_is_asked_of_a_builder() -> None:
    """Whatever the accumulator calls of a builder that comes by `send_batch`, ours has."""
    source = inspect.getsource(message_accumulator)
    source = source[source.index("class MessageBatch") :]
    asked = set(re.findall(r"_builder\.(\w+)\(", source)) - {"append"}  # closed batches take nothing more
    assert asked == {"record_count", "closed", "close", "_set_producer_state", "_build"}
    assert {name for name in asked if not callable(getattr(RecordBatch, name, None))} == set()


def test_a_sequence_has_a_hole_where_a_batch_expired() -> None:
    """Defect A: a batch without a leader expires *after* its numbers were taken; brokers refuse what follows, for ever.

    Why a producer is abandoned on any error.
    """

    async def drive() -> tuple[int, BaseException | None]:
        manager = TransactionManager(None, 60_000)
        manager.set_pid_and_epoch(1, 0)

        class Leaderless:
            def leader_for_partition(self, _: Any) -> int:
                return -1

        accumulator = MessageAccumulator(Leaderless(), 16_384, 0, 0.0, txn_manager=manager)
        future = await accumulator.add_batch(batch(3), AT, 1)
        await asyncio.sleep(0.01)
        accumulator.drain_by_nodes(set())
        with contextlib.suppress(LeaderNotAvailableError):
            await future
        return manager.sequence_number(AT), future.exception()

    taken, failure = asyncio.run(drive())
    assert isinstance(failure, LeaderNotAvailableError)
    assert taken == 3, "aiokafka keeps its sequence whole now: see gateway/audit/producer.py"


def test_its_own_stop_hangs_without_brokers(brokers: MockCluster) -> None:
    """Defect B: `stop` waits for batches that nobody takes. Why `abandon` reaches inside."""

    async def drive() -> bool:
        producer = TopicProducer({"bootstrap_servers": brokers.bootstrap}, "t", 500)
        await producer.start()
        await producer.send(batch(), 0)
        brokers.down()
        await producer._producer.send_batch(batch(), "t", partition=0)
        stop = asyncio.ensure_future(producer._producer.stop())
        ended, _ = await asyncio.wait([stop], timeout=1.5)
        await producer.abandon()
        stop.cancel()
        await asyncio.wait([stop])
        if not stop.cancelled():
            stop.exception()
        return not ended

    assert asyncio.run(drive()), "aiokafka's stop ends by itself now"


def test_a_sequence_turns_negative() -> None:
    """Defect C: numbers past 2^31 are negative, where brokers expect 0. Why producers are renewed, and in time."""

    async def following() -> int:
        manager = TransactionManager(None, 60_000)
        manager._sequence_numbers[AT] = 2**31 - 2
        manager.increment_sequence_number(AT, 5)
        return manager.sequence_number(AT)

    assert asyncio.run(following()) < 0, "aiokafka's sequence wraps to 0 now"
    # Even if each record took a single byte, a turn beyond the limit would not reach the wrap.
    assert RENEW_RECORDS + TURN_BATCHES * 8 * MAX_MESSAGE_BYTES < 2**31


def test_abandoning_leaves_nothing(brokers: MockCluster, caplog: pytest.LogCaptureFixture) -> None:
    """Idle, in flight, or without brokers: it is over before an answer of five seconds; no task is left, no future
    waits, nothing is logged."""

    async def abandoned(kind: str) -> tuple[float, int]:
        producer = TopicProducer({"bootstrap_servers": brokers.bootstrap}, "t", 800)
        await producer.start()
        await producer.send(batch(), 0)
        sending: asyncio.Task[int] | None = None
        if kind == "in flight":
            brokers.round_trip(5000)
        elif kind == "away":
            brokers.down()
        if kind != "idle":
            sending = asyncio.create_task(producer.send(batch(), 0))
            await asyncio.sleep(0.1)
        loop = asyncio.get_running_loop()
        started = loop.time()
        await producer.abandon()
        took_s = loop.time() - started
        if sending is not None:
            with pytest.raises((KafkaError, ConnectionError)):
                await sending
        brokers.round_trip(0)
        brokers.up()
        for _ in range(1000):
            left = len(asyncio.all_tasks()) - 1
            if not left:
                break
            await asyncio.sleep(0.01)
        return took_s, left

    for kind in ("idle", "in flight", "away"):
        took_s, left = asyncio.run(abandoned(kind))
        assert (took_s < 4, left) == (True, 0), kind
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


def test_an_error_that_is_retried_keeps_the_batch_as_it_is(brokers: MockCluster) -> None:
    """A resend by the client is the same bytes with the same sequence: brokers know it."""
    one = batch(4)

    async def drive() -> None:
        producer = TopicProducer({"bootstrap_servers": brokers.bootstrap}, "t", 2000)
        await producer.start()
        first = one._build
        built: list[bytes] = []

        def build() -> bytes:
            built.append(first())
            return built[-1]

        one._build = build  # type: ignore[method-assign]
        brokers.push_errors(PRODUCE, [7, 7])
        assert await producer.send(one, 0) >= 0
        assert len(built) == 3
        assert len(set(built)) == 1
        await producer.abandon()

    asyncio.run(drive())


def test_the_real_producer_is_what_is_wrapped() -> None:
    """The parts that `abandon` touches are there."""
    source = inspect.getsource(AIOKafkaProducer)
    for part in ("_message_accumulator", "_sender", "_closed", "client"):
        assert f"self.{part}" in source
    assert "_sender_task" in inspect.getsource(__import__("aiokafka.producer.sender", fromlist=["Sender"]))
