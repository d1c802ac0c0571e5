"""What a consumer pays for reading the log: processor time a prediction, by way of reading.

    python -m bench.feeds [--kafka HOST:PORT] [--predictions N] [--batch N]

A spool of runs of 20 features is made in a temporary directory, then read by whole frames, by frames whose features
are looked at as a matrix, by events, and (with --kafka) by events from a topic of its own, alone and as a group.
Figures are of processor time, so that other load on the machine counts little; the best of three.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from gateway.audit.event import ModelFacts, RouteFacts
from gateway.audit.feed import Feed
from gateway.audit.forwarder import Forwarder
from gateway.audit.frame import STAGE_COLUMNS, Caller, Run, RunTensor, decode_payload, encoder, seal
from gateway.audit.spool import epoch_path, segment_name
from gateway.audit.spool_feed import SpoolFeed
from gateway.kafka import Kafka

FEATURES = 20
EPOCH = 1_700_000_000
SEGMENT_BYTES = 64 * 1024 * 1024


def run_payload(count: int) -> bytes:
    """A run of so many requests of one row each, as the request path makes them."""
    raw = encoder.encode
    route = RouteFacts(1, 1, "primary", "primary", 10_000, "weight")
    rows = np.random.default_rng(count).normal(size=(count, FEATURES)).astype(np.float32)
    run = Run(
        model=msgspec.Raw(raw(ModelFacts("flights", "4", "a" * 64, "b" * 64, None, "onnxruntime 1.2x1"))),
        batch_id=1,
        cut="turn",
        infer_ns=90_000,
        rows=[1],
        received_ns=[time.time_ns() + i for i in range(count)],
        done_ns=[time.time_ns() + 1_000_000],
        route=[msgspec.Raw(raw(route))],
        unit_hash=[hash((i, 7)) & (2**64 - 1) for i in range(count)],
        caller=[msgspec.Raw(raw(Caller("infer", "oip-json", None)))],
        stages=[[10_000 + i for i in range(count)] for _ in STAGE_COLUMNS],
        inputs=[RunTensor("X", "FP32", (FEATURES,), rows.tobytes())],
        outputs=[RunTensor("probability", "FP32", (1,), rows[:, :1].tobytes())],
        request_id=[f"request-{i:08d}" for i in range(count)],
    )
    return raw(run)


def make_spool(spool: Path, predictions: int, batch: int) -> None:
    """One source's epoch of runs."""
    epoch = epoch_path(spool, 1, EPOCH)
    epoch.path.mkdir(parents=True)
    payload, seq, held, first = run_payload(batch), 0, bytearray(), 0
    while seq < predictions:
        held += seal(seq, batch, payload)
        seq += batch
        if len(held) >= SEGMENT_BYTES or seq >= predictions:
            (epoch.path / segment_name(first)).write_bytes(held)
            held, first = bytearray(), seq
    (epoch.path / "synced").write_bytes(seq.to_bytes(8, "little"))


def by_frames(feed: SpoolFeed, *, looked_at: bool) -> int:
    """Whole frames; `looked_at`: decoded, and the features as a matrix."""
    count = 0
    while taken := feed.read_frames(1000):
        for _, frame in taken:
            count += frame.count
            if looked_at:
                run = decode_payload(frame.payload)
                assert isinstance(run, Run)  # noqa: S101
                np.frombuffer(run.inputs[0].data, np.float32).reshape(-1, FEATURES).sum(axis=0)
    return count


def by_events(feed: Feed, total: int) -> int:
    """One by one."""
    count = 0
    while count < total:
        count += len(feed.read(500, 1000).events)
    return count


def measured(what: str, read: Callable[[], int]) -> None:
    """Print the best of three."""
    best_us = min(_once(read) for _ in range(3))
    sys.stdout.write(f"{what:48} {best_us:6.2f} us a prediction\n")
    sys.stdout.flush()


def _once(read: Callable[[], int]) -> float:
    started_s = time.process_time()
    count = read()
    return (time.process_time() - started_s) * 1e6 / count


def _from_topic(spool: Path, bootstrap: str, total: int) -> None:
    from gateway.audit.kafka_feed import KafkaFeed

    logging.getLogger("aiokafka").addHandler(logging.NullHandler())
    kafka = Kafka(bootstrap_servers=bootstrap, topic=f"bench-{uuid.uuid4().hex[:8]}", partitions=1)

    async def forward() -> None:
        forwarder = Forwarder(spool, spool.parent / "forwarder", "bench", kafka)
        forwarder.stop()
        await forwarder.run()

    while not _is_sent(spool.parent / "forwarder" / "positions.json", total):
        asyncio.run(forward())

    def read(group: str | None) -> int:
        feed = KafkaFeed(bootstrap, kafka.topic, group=group)
        try:
            return by_events(feed, total)
        finally:
            feed.close()

    measured("topic, events", lambda: read(None))
    measured("topic, events, a group's member", lambda: read(uuid.uuid4().hex))


def _is_sent(positions: Path, total: int) -> bool:
    try:
        (entry,) = msgspec.json.decode(positions.read_bytes()).values()
    except (FileNotFoundError, ValueError):
        return False
    return bool(entry["next_seq"] >= total)


def main() -> None:
    """See the module's head."""
    parser = argparse.ArgumentParser(description="processor time of reading the log")
    parser.add_argument("--kafka", metavar="HOST:PORT")
    parser.add_argument("--predictions", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=16)
    given = parser.parse_args()
    batch, total = given.batch, given.predictions // given.batch * given.batch
    with tempfile.TemporaryDirectory() as directory:
        spool = Path(directory) / "spool"
        make_spool(spool, total, batch)
        sys.stdout.write(f"{total} predictions of {FEATURES} features in runs of {batch}\n")
        measured("spool, whole frames", lambda: by_frames(SpoolFeed(spool), looked_at=False))
        measured("spool, features as a matrix", lambda: by_frames(SpoolFeed(spool), looked_at=True))
        measured("spool, events", lambda: by_events(SpoolFeed(spool), total))
        late_ns = time.time_ns() + 10**12
        measured(
            "spool, passed over (--since)",
            lambda: len(SpoolFeed(spool, since_ns=late_ns).read(1, 0)) and total,
        )
        if given.kafka:
            _from_topic(spool, given.kafka, total)


if __name__ == "__main__":
    main()
