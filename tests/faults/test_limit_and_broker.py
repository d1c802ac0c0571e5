"""A spool at its limit because the broker is away, until it comes back: nothing that was promised is lost, and it goes
on by itself."""

from __future__ import annotations

import statistics
import time
import uuid
from pathlib import Path

import pytest

from gateway.audit.event import Event, Gap
from gateway.audit.kafka_feed import KafkaFeed
from tests.faults.troubled import RING_BYTES, SPOOL_BYTES, small_disk, start

QUIET_MS = 5000


def read(bootstrap: str, topic: str) -> list[Event]:
    """All of a topic, until nothing comes."""
    feed = KafkaFeed(bootstrap, topic)
    events: list[Event] = []
    try:
        while delivery := feed.read(1000, QUIET_MS).events:
            # Heartbeats come for ever.
            if {event.kind for event in delivery} == {"heartbeat"}:
                break
            events.extend(delivery)
    finally:
        feed.close()
    return events


@pytest.mark.prove
@pytest.mark.parametrize("ring", ["memory", "state_dir"])
def test_the_limit_is_left_when_the_broker_is_back(tmp_path: Path, kafka_broker, ring: str) -> None:
    """Twice over: to the limit while the broker is dead, on when it lives. Every answer of level `spool` is in the
    topic, every other number in a gap; what retention took had been sent; a stop at the limit leaves nothing."""
    topic = f"limit-{uuid.uuid4().hex[:12]}"
    with small_disk(tmp_path / "state", 64 * 1024**2) as disk:
        troubled = start(
            tmp_path,
            disk,
            f"kafka.bootstrap_servers={kafka_broker.bootstrap}",
            f"kafka.topic={topic}",
            "sidecar.enabled=true",
            f"audit.ring={ring}",
        )
        try:
            for _ in range(2):
                well = [troubled.ask("lax").ms for _ in range(30)]
                kafka_broker.kill9()
                said = troubled.ask_until("lax", lambda answer: answer.audit == "none", 120)
                assert {answer.status for answer in said} == {200}
                assert troubled.ask("strict").code == "audit_unavailable"
                assert troubled.spool_bytes() < SPOOL_BYTES + 4 * RING_BYTES
                unlogged = [troubled.ask("lax") for _ in range(100)]
                assert {answer.status for answer in unlogged} == {200}
                print(  # noqa: T201
                    f"\nring in {ring}: median {statistics.median(well):.1f} ms logged,"
                    f" {statistics.median(a.ms for a in unlogged):.1f} ms with a full ring,"
                    f" at worst {max(a.ms for a in unlogged):.1f} ms"
                )
                kafka_broker.restart()
                troubled.all_is_well(60)
                time.sleep(1)
            assert len(troubled.said("spool_at_limit")) == 2
            kafka_broker.kill9()
            troubled.ask_until("lax", lambda answer: answer.audit == "none", 120)
            assert troubled.gateway.stop(60) == 0
            kafka_broker.restart()
            troubled.gateway.start()
            troubled.all_is_well(60)
            troubled.await_true(lambda: troubled.metric("tidegate_forwarder_lag_events") < 5, 60)
            events = read(kafka_broker.bootstrap, topic)
        finally:
            troubled.end()
    ids = {event.id for event in events}
    gaps = [event for event in events if isinstance(event, Gap)]
    kept = {identity for identity, audit in troubled.answered.items() if audit == "spool"}
    assert kept <= ids
    assert {gap.cause for gap in gaps} <= {"retention", "ring_full", "owner_died"}
    told = {
        f"{gap.source}-{gap.epoch:08x}-{seq:016x}"
        for gap in gaps
        if gap.cause != "retention"
        for seq in range(gap.from_seq, (gap.to_seq or 0) + 1)
    }
    went = {
        f"{gap.source}-{gap.epoch:08x}-{seq:016x}"
        for gap in gaps
        if gap.cause == "retention"
        for seq in range(gap.from_seq, (gap.to_seq or 0) + 1)
    }
    assert went
    assert went <= ids | told, "what left the spool had been sent, or had no record"
