"""The forwarder while brokers fail: whatever they do, nothing is missing, order holds, and doubles are resends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from aiokafka import TopicPartition

from bench.kafka import Broker
from gateway.audit.producer import TopicProducer
from tests.faults import mock_cluster as mock
from tests.faults.chaos_proxy import ChaosProxy, Weather
from tests.faults.mock_cluster import MockCluster
from tests.kafka.lived import run_with

PATIENT_MS = 10_000
"""Where nothing may expire, however slow the machine is."""


@pytest.fixture
def brokers() -> Iterator[MockCluster]:
    """Three that do as they are told."""
    with mock.mock_cluster() as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not wait for what operators may."""
    monkeypatch.setattr("gateway.audit.forwarder.BACKOFF_S", (0.02, 0.1))
    monkeypatch.setattr("gateway.audit.producer.RETRY_BACKOFF_MS", 20)


@pytest.mark.parametrize(
    ("code", "times", "begins_anew"),
    [
        (mock.NOT_LEADER, 3, False),
        (mock.REQUEST_TIMED_OUT, 3, False),
        (mock.NOT_ENOUGH_REPLICAS, 3, False),
        (mock.NOT_ENOUGH_AFTER_APPEND, 3, False),
        (mock.OUT_OF_ORDER, 1, True),
        (mock.TOPIC_AUTHORIZATION, 2, True),
        (mock.MESSAGE_TOO_LARGE, 1, True),
    ],
)
def test_errors_of_produce_requests(flow, brokers, code: int, times: int, begins_anew: bool) -> None:
    """What the client retries it retries; anything else begins anew at the position. Nothing comes twice."""
    one = flow(brokers.bootstrap, timeout_ms=PATIENT_MS)
    brokers.topic(one.topic, 2)

    async def drive() -> None:
        brokers.push_errors(mock.PRODUCE, [code] * times)
        one.more()
        await one.sent()

    one.run(drive)
    assert one.check(brokers.bootstrap) == 0
    assert (one.forwarder.retries > 0) == begins_anew


def test_connections_that_break_at_a_request(flow, brokers) -> None:
    """The broker drops the connection instead of answering, three times."""
    one = flow(brokers.bootstrap)
    brokers.topic(one.topic, 2)

    async def drive() -> None:
        brokers.push_errors(mock.PRODUCE, [mock.TRANSPORT] * 3)
        one.more()
        await one.sent()

    one.run(drive)
    one.check(brokers.bootstrap)


def test_a_leader_moves(flow, brokers) -> None:
    """Records follow it to another broker."""
    one = flow(brokers.bootstrap)
    brokers.topic(one.topic, 2)

    async def drive() -> None:
        for broker in (1, 2):
            for partition in (0, 1):
                brokers.leader(one.topic, partition, broker)
            one.more()
            await one.sent()

    one.run(drive)
    one.check(brokers.bootstrap)


def test_no_leader_for_longer_than_the_timeout(flow, brokers) -> None:
    """A batch that expires leaves a hole in the client's sequence: the producer is given up with it."""
    one = flow(brokers.bootstrap, timeout_ms=1500)
    brokers.topic(one.topic, 2)

    async def drive() -> None:
        for partition in (0, 1):
            brokers.leader(one.topic, partition, -1)
        one.more()
        await one.failed(1)
        for partition in (0, 1):
            brokers.leader(one.topic, partition, 2)
        await one.sent()

    one.run(drive)
    assert one.check(brokers.bootstrap) == 0


def test_all_brokers_away_and_back(flow, brokers) -> None:
    """Records wait while they grow, go when brokers are back, and the status says what was the matter."""
    one = flow(brokers.bootstrap)
    brokers.topic(one.topic, 2)

    async def drive() -> None:
        brokers.down()
        one.more()
        await one.failed(2)
        assert "refuses connections" in (one.forwarder.standing.why or "")
        one.more()
        brokers.up()
        await one.sent()

    one.run(drive)
    one.check(brokers.bootstrap)


def test_a_stop_does_not_wait_for_brokers_that_are_away(flow, brokers, monkeypatch) -> None:
    """The client's own `stop` would wait for ever; what is left is sent by the next life."""
    monkeypatch.setattr("gateway.audit.forwarder.STOP_S", 0.3)
    one = flow(brokers.bootstrap)
    brokers.topic(one.topic, 2)
    stopped_s = 0.0

    async def drive() -> None:
        nonlocal stopped_s
        one.more()
        await one.sent()
        brokers.down()
        one.more()
        await asyncio.sleep(0.2)
        stopped_s = time.monotonic()

    run_with(one.forwarder, drive)
    assert time.monotonic() - stopped_s < 15
    brokers.up()
    one.forwarder = one.one.forward()
    one.check(brokers.bootstrap)


def test_answers_that_come_too_late(flow, brokers) -> None:
    """Each answer takes longer than the deadline: batches were taken, come again, and are told apart as doubles."""
    one = flow(brokers.bootstrap)
    brokers.topic(one.topic, 2)

    async def drive() -> None:
        brokers.round_trip(1500)
        one.more()
        await one.failed(1)
        brokers.round_trip(0)
        await one.sent()

    one.run(drive)
    one.check(brokers.bootstrap)


def test_a_sequence_that_turns_negative(flow, guarded, monkeypatch) -> None:
    """A producer that reached 2^31 in a partition: the broker refuses it, a new one goes on, nothing is lost."""
    one = flow(guarded.bootstrap, timeout_ms=2000)
    start = TopicProducer.start
    lives: list[TopicProducer] = []

    async def near_the_end(self: TopicProducer) -> None:
        await start(self)
        lives.append(self)
        if len(lives) == 1:
            for partition in (0, 1):
                at = TopicPartition(one.topic, partition)
                self._producer._txn_manager._sequence_numbers[at] = 2**31 - 60

    monkeypatch.setattr(TopicProducer, "start", near_the_end)

    async def drive() -> None:
        for _ in range(4):
            one.more()
            await one.sent()

    one.run(drive)
    assert len(lives) >= 2
    one.check(guarded.bootstrap)


@pytest.fixture
def link(chaos: ChaosProxy, guarded: Broker) -> Iterator[ChaosProxy]:
    """The way to a real broker, fair before and after."""
    chaos.clear()
    yield chaos
    chaos.clear()
    chaos.reset_all()


def test_a_slow_link(flow, link, guarded) -> None:
    """300 KB/s and 20 ms: slow is no failure."""
    one = flow(link.address, timeout_ms=PATIENT_MS)

    async def drive() -> None:
        link.both(bytes_per_s=300_000, latency_ms=20)
        one.more(400)
        await one.sent()

    one.run(drive)
    assert one.forwarder.retries == 0
    assert one.check(guarded.bootstrap) == 0


def test_a_black_hole(flow, link, guarded) -> None:
    """Bytes go nowhere and nobody is told: given up at the deadline, nothing lost."""
    one = flow(link.address)

    async def drive() -> None:
        link.both(is_black_hole=True)
        one.more()
        await one.failed(1)
        link.clear()
        link.reset_all()
        await one.sent()

    one.run(drive)
    one.check(guarded.bootstrap)


def test_acknowledgements_that_are_lost(flow, link, guarded) -> None:
    """The way back is dead: the broker has the batch, the forwarder does not know; it comes again, as a double."""
    one = flow(link.address)

    async def drive() -> None:
        link.down = Weather(is_black_hole=True)
        one.more()
        await one.failed(1)
        link.clear()
        link.reset_all()
        await one.sent()

    one.run(drive)
    assert one.check(guarded.bootstrap) > 0


@pytest.mark.parametrize("what", ["reset_after_bytes", "half_close_after_bytes"])
def test_connections_cut_in_the_middle_of_a_batch(flow, link, guarded, what: str) -> None:
    """RST and FIN after some bytes of a batch: it comes again whole."""
    one = flow(link.address)

    async def drive() -> None:
        link.reset_all()
        link.up = Weather(**{what: 3000})
        one.more(400, pad_bytes=300)
        await one.failed(1)
        link.clear()
        await one.sent()

    one.run(drive)
    one.check(guarded.bootstrap)


def test_bits_that_turn_on_the_way(flow, link, guarded) -> None:
    """A checksum refuses the batch, or the request makes no sense; nothing wrong is kept."""
    one = flow(link.address)

    async def drive() -> None:
        # Oftener than a batch is long: none gets through whole to where a turned bit of its address leads.
        link.up = Weather(corrupt_each=211)
        one.more(400, pad_bytes=300)
        await one.failed(1)
        link.clear()
        link.reset_all()
        await one.sent()

    one.run(drive)
    one.check(guarded.bootstrap)
