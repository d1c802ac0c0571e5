"""The sidecar's work over a real topic: the same decisions, counts and state as over the spool."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from pathlib import Path

import msgspec
import pytest

from gateway.audit.event import Heartbeat
from gateway.audit.feed import Feed, Positions
from gateway.audit.forwarder import Forwarder
from gateway.audit.kafka_feed import KafkaFeed
from gateway.audit.spool_feed import SpoolFeed
from gateway.kafka import Kafka
from shadow.bundles import Bundles
from shadow.replay import Replayed, Source, read_verdicts, replay, stored_of
from shadow.sidecar import Sidecar
from tests.gateway.audit import sim
from tests.gateway.audit.sim import GATEWAY_ID, Killed, Log, settle
from tests.shadow.play import Arm, traffic
from tests.shadow.story import Stage, labels, recording, route

ARMS = {"primary": (8000, Arm("1", 0.01)), "canary": (2000, Arm("2", 0.2))}
FOREIGN_ID = "ffeeddccbbaa9988"


class Topic:
    """A topic of a test's own and what is sent to it."""

    def __init__(self, bootstrap: str) -> None:
        self.kafka = Kafka(bootstrap_servers=bootstrap, topic=f"watch-{uuid.uuid4().hex[:12]}", partitions=3)

    def forward(self, log: Log, gateway_id: str = GATEWAY_ID) -> None:
        """Send what is new in a spool."""

        async def run() -> int:
            forwarder = Forwarder(log.spool, log.state_dir / "forwarder", gateway_id, self.kafka)
            forwarder.stop()
            await forwarder.run()
            return forwarder.retries

        assert any(asyncio.run(run()) == 0 for _ in range(5))

    def feed(self, positions: Positions | None = None) -> Feed:
        """A reader."""
        return KafkaFeed(self.kafka.bootstrap_servers, self.kafka.topic, positions)

    def replayed(self, models: Path, gateway_id: str | None) -> tuple[str, Replayed]:
        """What the topic folds to."""
        feed = self.feed()
        try:
            found, verdicts = read_verdicts(feed, gateway_id, 3000)
        finally:
            feed.close()
        return found, replay(Source(self.feed, 3000), found, stored_of(verdicts), Bundles(models))


def say(stage: Stage, seed: int) -> None:
    """A tick's worth, with labels, over both workers."""
    for index, event in enumerate(traffic(120, 2, ARMS, seed)):
        writer = stage.workers[index % 2]
        seq = writer.append_events([event])
        assert seq is not None
        if index % 5 == 0:
            writer.append_events([labels((writer.event_id(seq), 0, 1))])
    for writer in (stage.control, *stage.workers):
        writer.append_events([Heartbeat(at_ns=time.time_ns())])
    stage.say()


def encoded(replayed: Replayed) -> bytes:
    """A fold's state."""
    return msgspec.msgpack.encode(replayed.state)


def test_spool_and_topic_fold_alike(
    tmp_path: Path, kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One log through both, another gateway in the same topic: the same state, decisions and counts."""
    topic = Topic(kafka_bootstrap)
    stage = Stage(Log(tmp_path / "state"), tmp_path / "models")
    stage.sidecar.adopt([])
    stage.say(route(1), route(2, canary="2", weight_bp=2000))
    for seed in range(2):
        say(stage, seed)
        stage.tick()
    topic.forward(stage.log)

    other = Log(tmp_path / "other")
    with monkeypatch.context() as patch:
        patch.setattr(sim, "GATEWAY_ID", FOREIGN_ID)
        recorder = other.recorder()
        worker, control = other.owner("worker", 1 << 20), other.owner("control", 1 << 20)
    control.append_events([route(1), route(2, canary="2", weight_bp=2000)])
    for event in traffic(200, 2, {"primary": (8000, Arm("1")), "canary": (2000, Arm("2", 1.0))}, 1):
        worker.append_events([event])
    settle(recorder)
    topic.forward(other, FOREIGN_ID)
    for seed in range(2, 5):
        say(stage, seed)
        stage.tick()
    topic.forward(stage.log)

    spool = stage.replayed()
    gateway_id, replayed = topic.replayed(tmp_path / "models", None)
    assert gateway_id == GATEWAY_ID
    assert encoded(replayed) == encoded(spool) == msgspec.msgpack.encode(stage.sidecar.watch.state)
    assert replayed.ticks == 5
    assert [one.stored for one in replayed.decisions] == [one.stored for one in spool.decisions]
    assert replayed.decisions
    assert all(one.differs is None for one in replayed.decisions)
    assert sum(replayed.state.counts[kind] for kind in ("done", "failed")) == 600


def test_a_sidecar_that_reads_the_topic(tmp_path: Path, kafka_bootstrap: str) -> None:
    """Ticks over Kafka, killed before a commit: its successor adopts, goes on from its offsets, and the spool bears
    it out."""
    topic = Topic(kafka_bootstrap)
    stage = Stage(Log(tmp_path / "state"), tmp_path / "models")
    stage.say(route(1), route(2, canary="2", weight_bp=2000))
    topic.forward(stage.log)
    stage.die()
    stage.feed = topic.feed  # type: ignore[method-assign]
    stage.succeed()
    for seed in range(4):
        say(stage, seed)
        topic.forward(stage.log)
        turn_until(stage.sidecar, 120 * (seed + 1))
        if seed == 1:
            stage.sidecar._parts.store.commit = killed  # type: ignore[method-assign]
        with recording(stage.recorder), contextlib.suppress(Killed):
            stage.sidecar.tick()
        if seed == 1:
            stage.sidecar.runner._feed.close()
            stage.die()
            stage.succeed()
            assert stage.sidecar.watch.state.tick == 2
    stage.sidecar.runner._feed.close()
    state = stage.sidecar.watch.state
    assert sum(state.counts[kind] for kind in ("done", "failed")) == 480
    assert any("kafka/" in key for key in stage.sidecar._saved.feed)
    stage.feed = lambda positions: SpoolFeed(stage.log.spool, positions)  # type: ignore[method-assign]
    spool = stage.replayed()
    assert encoded(spool) == msgspec.msgpack.encode(state)
    assert spool.decisions
    assert all(one.differs is None for one in spool.decisions)


def killed() -> None:
    """The end of a process."""
    raise Killed


def turn_until(sidecar: Sidecar, total: int) -> None:
    """Read until all requests were taken."""
    deadline_s = time.monotonic() + 30
    while True:
        sidecar.runner.read(100)
        counts = [sidecar.watch.state.counts, sidecar.watch.tally.counts]
        if sum(count.get(kind, 0) for count in counts for kind in ("done", "failed")) >= total:
            return
        assert time.monotonic() < deadline_s
