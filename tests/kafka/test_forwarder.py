"""The forwarder against a real broker, read back with a client that is not ours."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from bench.kafka import Broker
from gateway.audit.frame import seal
from gateway.audit.spool import epoch_path, epochs, segments, write_closed
from tests.faults.chaos_proxy import ChaosProxy
from tests.gateway.audit.sim import GATEWAY_ID
from tests.kafka.lived import Lived, check_contiguous, labels, read_topic, run_with, until


@pytest.fixture
def lived(tmp_path: Path, kafka_bootstrap: str):
    """A log before the session's broker; called with settings of its topic."""
    made: list[Lived] = []

    def make(**settings: Any) -> Lived:
        made.append(Lived(tmp_path / f"state{len(made)}", kafka_bootstrap, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("encoding", ["msgpack", "json"])
def test_a_foreign_client_reads_every_event(lived, encoding):
    """Every event on disk is in the topic, readable without our code, with its CloudEvents headers."""
    one = lived(encoding=encoding, partitions=3)
    for i in range(40):
        one.append(*range(10 * i, 10 * i + 10))
    forwarder = one.forward()
    messages = read_topic(one.kafka.bootstrap_servers, one.kafka.topic)
    decode = msgspec.json.decode if encoding == "json" else msgspec.msgpack.decode
    events = check_contiguous(messages, decode)
    assert labels(events) == list(range(400))
    assert forwarder.forwarded == len(messages) == sum(map(len, events.values()))
    headers = dict(messages[-1].headers())
    assert headers["ce_id"] == messages[-1].key()
    assert headers["ce_specversion"] == b"1.0"
    assert headers["ce_source"].startswith(f"/tidegate/{GATEWAY_ID}/".encode())
    assert headers["content-type"] == f"application/{encoding}".encode()
    status = json.loads((one.directory / "status.json").read_bytes())
    assert status["lag_events"] == 0
    assert status["forwarded_events"] == forwarder.forwarded


def test_goes_on_at_its_position(lived):
    """A forwarder that starts again sends what is new, and an epoch keeps its partition."""
    one = lived(partitions=2)
    one.append(1, 2, 3)
    one.forward()
    before = len(read_topic(one.kafka.bootstrap_servers, one.kafka.topic))
    one.append(4, 5)
    assert one.forward().forwarded == 2
    messages = read_topic(one.kafka.bootstrap_servers, one.kafka.topic)
    assert len(messages) == before + 2
    assert labels(check_contiguous(messages, msgspec.msgpack.decode)) == [1, 2, 3, 4, 5]


def test_the_topic_is_made_for_an_audit(lived):
    """A missing topic is made with its partitions, and nothing in it expires."""
    one = lived(partitions=5)
    one.append(1)
    one.forward()
    admin = AdminClient({"bootstrap.servers": one.kafka.bootstrap_servers})
    assert len(admin.list_topics(one.kafka.topic, timeout=10).topics[one.kafka.topic].partitions) == 5
    resource = ConfigResource(ResourceType.TOPIC, one.kafka.topic)
    (future,) = admin.describe_configs([resource]).values()
    found = {name: entry.value for name, entry in future.result(timeout=10).items()}
    assert found["retention.ms"] == "-1"
    assert found["cleanup.policy"] == "delete"
    assert found["message.timestamp.type"] == "CreateTime"
    assert found["max.message.bytes"] == str(2 * 1024 * 1024)


def test_a_topic_with_other_settings_is_told_and_used(lived, caplog):
    """A topic that is there keeps its settings; the difference is logged once and records are sent."""
    one = lived(partitions=2)
    one.make_topic(retention_ms="86400000")
    one.append(1, 2)
    with caplog.at_level(logging.WARNING, logger="tidegate.forwarder"):
        one.forward()
    told = [record.what for record in caplog.records if record.message == "topic_differs"]
    assert [line for line in told if "retention.ms" in line] == [
        f"topic {one.kafka.topic}: retention.ms is '86400000', expected '-1'"
    ]
    assert f"topic {one.kafka.topic}: it has 1 partitions, expected 2" in told
    assert len(told) == len(set(told))
    messages = read_topic(one.kafka.bootstrap_servers, one.kafka.topic)
    assert labels(check_contiguous(messages, msgspec.msgpack.decode)) == [1, 2]


def test_an_oversized_event_is_told_by_a_gap(lived):
    """An event that the topic cannot take: a gap of its number stands in its place, the rest goes on."""
    one = lived(partitions=1)
    one.make_topic(max_message_bytes="20000")
    one.append(1)
    one.append(2, pad_bytes=20_000)
    one.append(3)
    forwarder = one.forward()
    assert forwarder.quarantined == 1
    assert forwarder.retries == 0
    events = check_contiguous(
        read_topic(one.kafka.bootstrap_servers, one.kafka.topic), msgspec.msgpack.decode
    )
    assert labels(events) == [1, 3]
    (gap,) = [event for of_epoch in events.values() for event in of_epoch if event["type"] == "gap"]
    assert gap["cause"] == "oversized"
    assert gap["from_seq"] == gap["to_seq"] == int(gap["id"][26:], 16)
    (line,) = (one.directory / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == gap["id"]


def test_a_topic_that_takes_little_is_sent_little_batches(lived):
    """Batches keep to the topic's own max.message.bytes, not to ours: nothing is refused for ever."""
    one = lived(partitions=1)
    one.make_topic(max_message_bytes="20000")
    for i in range(10):
        one.append(*range(10 * i, 10 * i + 10), pad_bytes=900)
    forwarder = one.forward()
    assert (forwarder.retries, forwarder.quarantined) == (0, 0)
    messages = read_topic(one.kafka.bootstrap_servers, one.kafka.topic)
    assert labels(check_contiguous(messages, msgspec.msgpack.decode)) == list(range(100))


def test_a_record_larger_than_a_batch_goes_alone(lived):
    """`batch_bytes` limits batches, only the topic limits a record."""
    one = lived(partitions=1, batch_bytes=16_384)
    one.append(1)
    one.append(2, pad_bytes=50_000)
    one.append(3)
    assert one.forward().quarantined == 0
    messages = read_topic(one.kafka.bootstrap_servers, one.kafka.topic)
    assert labels(check_contiguous(messages, msgspec.msgpack.decode)) == [1, 2, 3]


def test_an_unreadable_frame_is_told_by_a_gap(lived):
    """A whole frame whose content we cannot read: a gap of its numbers, and no source waits behind it."""
    one = lived(partitions=1)
    one.append(1)
    path = epoch_path(one.log.spool, 7, 1).path
    path.mkdir(parents=True)
    (path / f"{0:020d}.log").write_bytes(seal(0, 3, b"\xc1 of another format"))
    (path / "synced").write_bytes((3).to_bytes(8, "little"))
    forwarder = one.forward()
    assert (forwarder.quarantined, forwarder.retries) == (1, 0)
    messages = read_topic(one.kafka.bootstrap_servers, one.kafka.topic)
    events = check_contiguous(messages, msgspec.msgpack.decode)
    assert labels(events) == [1]
    (gap,) = events[f"{7:016x}-{1:08x}"]
    assert (gap["type"], gap["cause"], gap["from_seq"], gap["to_seq"]) == ("gap", "corrupt", 0, 2)


def test_a_damaged_segment_holds_up_nothing_else(lived):
    """An epoch whose last frames are unreadable is sent as far as it reads; the forwarder comes to rest."""
    one = lived(partitions=1)
    one.append(1)
    one.append(2)
    (epoch,) = [e for e in epochs(one.log.spool) if e.source == one.writer.source.source]
    path = segments(epoch)[-1][1]
    content = bytearray(path.read_bytes())
    content[-12] ^= 1
    path.write_bytes(content)
    forwarder = one.forwarder()

    async def send() -> float:
        task = asyncio.create_task(forwarder.run())
        await until(lambda: one.behind(forwarder) == 1)
        start = time.process_time()
        await asyncio.sleep(0.3)
        used = time.process_time() - start
        forwarder.stop()
        started = time.monotonic()
        await task
        assert time.monotonic() - started < 4
        return used

    assert asyncio.run(send()) < 0.2
    messages = read_topic(one.kafka.bootstrap_servers, one.kafka.topic)
    assert labels(check_contiguous(messages, msgspec.msgpack.decode)) == [1]


@pytest.mark.prove
def test_a_broker_killed_in_the_middle_loses_nothing(tmp_path: Path, kafka_broker: Broker, monkeypatch):
    """kill -9 of the broker and a restart while records flow: the topic is contiguous afterwards. In short:
    tests/faults/test_ledger.py, where a broker is killed beneath a whole gateway."""
    monkeypatch.setattr("gateway.audit.forwarder.BACKOFF_S", (0.1, 1.0))
    one = Lived(tmp_path / "state", kafka_broker.bootstrap, partitions=2, request_timeout_ms=2000)
    forwarder = one.forwarder()
    written = 0

    def more(count: int) -> None:
        nonlocal written
        for _ in range(count):
            one.append(*range(written, written + 20), pad_bytes=200)
            written += 20

    async def drive() -> None:
        more(10)
        await until(lambda: forwarder.forwarded > 20)
        kafka_broker.kill9()
        more(30)
        await until(lambda: forwarder.retries > 0)
        await asyncio.to_thread(kafka_broker.restart)
        more(10)
        await until(lambda: one.behind(forwarder) == 0)

    try:
        run_with(forwarder, drive)
        messages = read_topic(kafka_broker.bootstrap, one.kafka.topic)
        assert labels(check_contiguous(messages, msgspec.msgpack.decode)) == list(range(written))
    finally:
        one.close()


def test_without_a_broker_it_stops_when_told(tmp_path: Path):
    """No broker answers: records wait in the spool, and SIGTERM still ends the forwarder in time."""
    one = Lived(tmp_path / "state", "127.0.0.1:1", request_timeout_ms=500)
    one.append(1)
    forwarder = one.forwarder()
    started = time.monotonic()
    try:
        run_with(forwarder, lambda: until(lambda: forwarder.retries > 0))
        assert time.monotonic() - started < 10
        status = json.loads((one.directory / "status.json").read_bytes())
        assert status["lag_events"] == one.behind(forwarder) > 0
        assert status["lag_bytes"] > 0
        assert 0 <= status["oldest_age_ms"] < 60_000
        assert status["quarantined"] == 0
    finally:
        one.close()


def test_a_frozen_broker_is_left_and_found_again(tmp_path: Path, kafka_broker: Broker, monkeypatch, caplog):
    """A broker that stops answering: the producer is abandoned without a trace, doubles are all that comes of
    it, and a stop does not wait for an answer."""
    monkeypatch.setattr("gateway.audit.forwarder.STOP_S", 0.5)
    one = Lived(tmp_path / "state", kafka_broker.bootstrap, partitions=1, request_timeout_ms=500)
    forwarder = one.forwarder()
    stopped_s = 0.0

    async def drive() -> None:
        nonlocal stopped_s
        one.append(1)
        await until(lambda: one.behind(forwarder) == 0)
        kafka_broker.freeze()
        one.append(2)
        await until(lambda: forwarder.retries > 0)
        kafka_broker.thaw()
        await until(lambda: one.behind(forwarder) == 0)
        kafka_broker.freeze()
        one.append(3)
        stopped_s = time.monotonic()

    try:
        run_with(forwarder, drive)
        assert time.monotonic() - stopped_s < 15
        kafka_broker.thaw()
        one.forward()
        messages = read_topic(kafka_broker.bootstrap, one.kafka.topic)
        assert labels(check_contiguous(messages, msgspec.msgpack.decode)) == [1, 2, 3]
        assert [record.message for record in caplog.records if record.name == "asyncio"] == []
    finally:
        one.close()


def test_a_killed_forwarder_goes_on_when_it_is_back(tmp_path: Path, guarded: Broker, chaos: ChaosProxy):
    """The real process: started without a broker, killed -9 while it sends, told to stop; nothing is lost."""
    chaos.refuses = True
    one = Lived(tmp_path / "state", chaos.address, partitions=1, request_timeout_ms=2000)
    for i in range(100):
        one.append(*range(100 * i, 100 * i + 100), pad_bytes=300)
    process = one.process()

    def sent() -> int:
        try:
            found = json.loads((one.directory / "positions.json").read_bytes())
        except FileNotFoundError:
            return 0
        return sum(entry["next_seq"] for entry in found.values())

    async def drive() -> None:
        nonlocal process
        await until(lambda: "kafka_not_reachable" in one.said())
        chaos.clear()
        await until(lambda: sent() > 0)
        process.kill()
        process.wait()
        one.append(10_000)
        process = one.process()
        await until(lambda: one.behind(one.forwarder()) == 0)
        process.terminate()

    try:
        asyncio.run(drive())
        assert process.wait(timeout=10) == 0
        assert one.said().count("kafka_not_reachable") == 1
        assert "Traceback" not in one.said()
        messages = read_topic(guarded.bootstrap, one.kafka.topic)
        assert labels(check_contiguous(messages, msgspec.msgpack.decode)) == list(range(10_001))
    finally:
        chaos.clear()
        process.kill()
        process.wait()
        one.close()


def test_epochs_that_are_over_cost_nothing(tmp_path: Path):
    """An epoch that is closed and sent is not looked at again; one that is gone is forgotten, on disk too."""
    one = Lived(tmp_path / "state", "127.0.0.1:1")
    epoch = epoch_path(one.log.spool, 7, 1)
    epoch.path.mkdir(parents=True)
    (epoch.path / "synced").write_bytes((3).to_bytes(8, "little"))
    forwarder = one.forwarder()
    forwarder.stop()  # looks each time
    forwarder._positions.entry(epoch.key, 1)["next_seq"] = 3
    try:
        assert epoch in forwarder._look()
        write_closed(epoch, 3, "closed")
        assert epoch not in forwarder._look()
        epoch.path.rename(tmp_path / "gone")
        forwarder._look()
        forwarder._positions.flush()
        assert epoch.key not in json.loads((one.directory / "positions.json").read_bytes())
    finally:
        one.close()


def test_unreadable_positions_are_told(tmp_path: Path, caplog):
    """A damaged position file: everything is sent again, and the log says why."""
    one = Lived(tmp_path / "state", "127.0.0.1:1")
    one.directory.mkdir()
    (one.directory / "positions.json").write_bytes(b'{"a": 3}')
    try:
        assert one.forwarder()._positions.entries == {}
        assert "positions_unreadable" in [record.message for record in caplog.records]
    finally:
        one.close()


def test_the_last_positions_of_a_burst_are_saved_while_idle(tmp_path: Path, kafka_bootstrap: str):
    """Two quick batches, then nothing: what was acknowledged stands on disk without a stop or a further send."""
    one = Lived(tmp_path / "state", kafka_bootstrap, partitions=1, batch_bytes=16_384)
    one.make_topic()
    one.append(*range(200), pad_bytes=300)
    forwarder = one.forwarder()

    async def drive() -> None:
        task = asyncio.create_task(forwarder.run())
        await until(lambda: one.behind(forwarder) == 0)
        await until(lambda: one.behind(one.forwarder()) == 0)
        forwarder.stop()
        await task

    try:
        asyncio.run(drive())
    finally:
        one.close()
