"""The topic as clients see it that know nothing of Tidegate: librdkafka's, kcat, and aiokafka's own consumer."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from gateway.audit.event import RouteFacts, decode_event
from gateway.audit.frame import Caller, Frame, Run, RunTensor, encoder, expand, seal
from gateway.audit.spool import epoch_path
from tests.gateway.audit.sim import GATEWAY_ID
from tests.kafka.lived import Lived, read_topic

SOURCE, EPOCH, COUNT = 0x1122334455667788, 7, 5
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def run_frame() -> Frame:
    """A run of five requests, of which one came with a trace context."""
    raw = msgspec.Raw
    run = Run(
        model=raw(encoder.encode({"name": "m", "version": "1", "runtime": "rt"})),
        batch_id=3, cut="turn", infer_ns=9, rows=[1], received_ns=[1000], done_ns=[n * 10**6 for n in range(1, 6)],
        route=[raw(encoder.encode(RouteFacts(1, 1, "1", "1", None, "weight")))], unit_hash=[None, 1, 2, 3, 4],
        caller=[raw(encoder.encode(Caller("/v2/models/m/infer", "oip-json", None)))], stages=[[1]] * 5,
        inputs=[RunTensor("X", "FP32", (2,), bytes(range(40)))], outputs=[RunTensor("Y", "FP32", (1,), bytes(20))],
        traceparent=[TRACE, None, None, None, None], request_id=["ä", None, None, None, "e"],
    )  # fmt: skip
    return Frame(0, COUNT, encoder.encode(run))


@pytest.fixture(params=["msgpack", "json"])
def sent(request: pytest.FixtureRequest, tmp_path: Path, kafka_bootstrap: str) -> Iterator[Lived]:
    """A topic with a run, whole events and a gap."""
    one = Lived(tmp_path / "state", kafka_bootstrap, partitions=1, encoding=request.param)
    one.append(1, 2)
    frame = run_frame()
    path = epoch_path(one.log.spool, SOURCE, EPOCH).path
    path.mkdir(parents=True)
    content = seal(0, COUNT, frame.payload) + seal(COUNT, 2, b"\xc1 not ours")
    (path / f"{0:020d}.log").write_bytes(content)
    (path / "synced").write_bytes((COUNT + 2).to_bytes(8, "little"))
    one.forward()
    yield one
    one.close()


def expected_headers(kind: str, source: int, key: str, encoding: str, trace: str | None) -> dict[str, str]:
    """As CloudEvents' Kafka binding has them."""
    found = {
        "ce_specversion": "1.0",
        "ce_id": key,
        "ce_type": f"tidegate.{kind}",
        "ce_source": f"/tidegate/{GATEWAY_ID}/{source:016x}",
        "content-type": f"application/{encoding}",
    }
    return found | ({} if trace is None else {"ce_traceparent": trace})


def check(found: list[tuple[str, dict[str, str], bytes, int]], encoding: str) -> None:
    """Every record has its key, headers, value and time, whoever read it."""
    decode: Any = msgspec.json.decode if encoding == "json" else msgspec.msgpack.decode
    for key, headers, value, _ in found:
        event = decode(value)
        assert event["id"] == key
        source = int(key[:16], 16)
        assert headers == expected_headers(event["type"], source, key, encoding, event.get("traceparent"))
    ours = [(key, value, at) for key, _, value, at in found if key.startswith(f"{SOURCE:016x}")]
    predictions = expand(SOURCE, EPOCH, run_frame())
    assert [decode_event(value) for _, value, _ in ours[:COUNT]] == predictions
    assert [at for _, _, at in ours[:COUNT]] == [1, 2, 3, 4, 5]
    gap = decode(ours[COUNT][1])
    assert (gap["type"], gap["cause"], gap["from_seq"], gap["to_seq"]) == ("gap", "corrupt", COUNT, COUNT + 1)
    if encoding == "json":
        tensor = decode(ours[0][1])["inputs"][0]
        assert (tensor["name"], tensor["shape"]) == ("X", [1, 2])


def test_librdkafka(sent: Lived) -> None:
    """confluent-kafka's consumer."""
    found = []
    for message in read_topic(sent.kafka.bootstrap_servers, sent.kafka.topic):
        headers = {name: value.decode() for name, value in message.headers()}
        found.append((message.key().decode(), headers, message.value(), message.timestamp()[1]))
    check(found, sent.kafka.encoding)


def test_kcat(sent: Lived) -> None:
    """The command line's reader; binary values as they are, headers in their order."""
    if shutil.which("kcat") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("required in CI: kcat")
        pytest.skip("kcat is not installed")
    at = ["-b", sent.kafka.bootstrap_servers, "-t", sent.kafka.topic, "-C", "-e", "-q", "-o", "beginning"]
    form = "%k\t%h\t%S\t%T\n%s"
    done = subprocess.run(["kcat", *at, "-f", form], capture_output=True, check=True, timeout=60)
    found, rest = [], done.stdout
    while rest:
        line, _, rest = rest.partition(b"\n")
        key, headers, size, at_ms = line.decode().split("\t")
        pairs = dict(pair.split("=", 1) for pair in headers.split(","))
        found.append((key, pairs, rest[: int(size)], int(at_ms)))
        rest = rest[int(size) :]
    check(found, sent.kafka.encoding)
    if sent.kafka.encoding == "json":
        done = subprocess.run(["kcat", *at, "-J"], capture_output=True, check=True, timeout=60)
        events = [json.loads(json.loads(line)["payload"]) for line in done.stdout.splitlines()]
        assert {event["type"] for event in events} >= {"prediction", "feedback", "gap", "epoch_open"}


def test_aiokafka(sent: Lived) -> None:
    """The consumer of the library whose builder we do without."""

    async def read() -> list[tuple[str, dict[str, str], bytes, int]]:
        consumer = AIOKafkaConsumer(bootstrap_servers=sent.kafka.bootstrap_servers)
        await consumer.start()
        try:
            at = TopicPartition(sent.kafka.topic, 0)
            consumer.assign([at])
            await consumer.seek_to_beginning(at)
            end = (await consumer.end_offsets([at]))[at]
            found: list[Any] = []
            while len(found) < end:
                for records in (await consumer.getmany(timeout_ms=1000)).values():
                    found += records
        finally:
            await consumer.stop()
        return [
            (r.key.decode(), {name: value.decode() for name, value in r.headers}, r.value, r.timestamp)
            for r in found
        ]

    check(asyncio.run(read()), sent.kafka.encoding)
