"""Loss: kill -9 of every process while requests are answered, then the topic against the client's ledger."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.cluster import Cluster
from bench.kafka import KafkaAbsent
from bench.models import write_mlp
from bench.serving import Gateway
from gateway.audit.event import encode_event
from gateway.audit.spool_feed import SpoolFeed
from tests.e2e.foreign import Topic, problems, read_topic
from tests.e2e.ledger import SAMPLE_EVERY, Ledger, LedgerClient, Plan
from tests.faults.ledger_faults import (
    FORWARDER_TIMEOUT_MS,
    Fault,
    Scene,
    freeze_leader,
    kill_all,
    kill_leader,
    kill_of,
    kill_supervisor,
    nodes,
    stop_brokers,
)

SHORT: tuple[Fault, ...] = (
    kill_of("worker"), kill_of("recorder"), kill_of("forwarder"), kill_of("control"), kill_leader, kill_supervisor,
)  # fmt: skip
KILLS: tuple[Fault, ...] = (
    *[kill_of("worker")] * 6, *[kill_of("recorder")] * 4, *[kill_of("forwarder")] * 3, *[kill_of("control")] * 2,
    *[kill_supervisor] * 2, *[kill_all] * 3,
)  # fmt: skip
OUTAGES: tuple[Fault, ...] = (stop_brokers, freeze_leader, kill_leader)
CONNECTIONS = 24
FULL_ANSWERS = 100
"""So many say that the ring has no room before anybody is killed."""


def _prove(tmp_path: Path, brokers: Any, requests: int, faults: Sequence[Fault], copies: int) -> None:
    """Serve, send `requests`, do the faults at even distances, compare at the end."""
    models, topic = tmp_path / "models", f"ledger-{uuid.uuid4().hex[:12]}"
    write_mlp(models)
    gateway = Gateway(
        models,
        tmp_path / "state",
        workers=3,
        settings=(
            f"kafka.bootstrap_servers={brokers.bootstrap}",
            f"kafka.topic={topic}",
            "kafka.partitions=3",
            f"kafka.replication_factor={copies}",
            f"kafka.request_timeout_ms={FORWARDER_TIMEOUT_MS}",
        ),
    )
    started_s = time.monotonic()
    with gateway:
        client = LedgerClient(Plan(gateway.data_url, "mlp", "X", 30, requests, CONNECTIONS)).start()
        scene = Scene(gateway, client, brokers, topic)
        for i, fault in enumerate(faults):
            client.await_sent((i + 1) * requests // (len(faults) + 1), timeout_s=600)
            fault(scene)
        ledger = client.join(timeout_s=600)
        sent_s = time.monotonic() - started_s
        assert gateway.stop() == 0, gateway.said()
        # What drained after the forwarder's last send is sent by the next life.
        gateway.start()
        found = read_topic(brokers.bootstrap, topic, ledger, timeout_s=300)
    _report(ledger, found, (sent_s, time.monotonic() - started_s))
    assert problems(ledger, found) == []
    # Faults may cost the requests in flight at that moment, no others.
    assert len(ledger.answered) >= requests - CONNECTIONS * (len(faults) + 1)
    assert len(ledger.sampled) >= requests // SAMPLE_EVERY - len(faults) - 1
    assert found.sampled.keys() == ledger.sampled.keys()


def _report(ledger: Ledger, found: Topic, took_s: tuple[float, float]) -> None:
    """A few lines for whoever runs with -s or reads a failure."""
    gaps = {stream: gaps for stream, gaps in found.gaps.items() if gaps}
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(  # noqa: T201
        f"\nanswered {len(ledger.answered)}, unlogged {len(ledger.unlogged)}, refused {dict(ledger.refused)},"
        f" unknown {ledger.unknown};"
        f" topic: {found.events} events, {found.resent} resent, {len(found.next_seq)} epochs,"
        f" {len(found.closed)} closed, {len(found.sampled)} hashes compared, gaps {gaps};"
        f" sent in {took_s[0]:.0f} s, all in {took_s[1]:.0f} s; the test took {peak_mb} MB at most"
    )


@pytest.fixture
def ledger_brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Three brokers that replicate each other, for a test that may do anything to them."""
    brokers = Cluster(tmp_path_factory.mktemp("kafka-cluster"))
    try:
        brokers.start()
    except KafkaAbsent as exc:
        if os.environ.get("CI") == "true":
            pytest.fail(f"required in CI: {exc}")
        pytest.skip(f"kafka: {exc}")
    yield brokers
    brokers.stop()


def test_every_answer_is_in_the_topic_after_kills(tmp_path: Path, kafka_broker) -> None:
    """Goal 1, short: 20,000 requests, a kill -9 each of worker, recorder, forwarder, control, supervisor, broker."""
    requests = int(os.environ.get("TG_LEDGER_REQUESTS", "20000"))
    _prove(tmp_path, kafka_broker, requests, SHORT, copies=1)


@pytest.mark.prove
def test_every_answer_is_in_the_topic_after_many_kills(tmp_path: Path, ledger_brokers) -> None:
    """Goal 1: a million requests over three workers, 20 kills -9 of every process there is, alone and all at once, and
    three outages of three brokers that replicate each other."""
    requests = int(os.environ.get("TG_LEDGER_PROOF_REQUESTS", "1000000"))
    faults = [*KILLS, *OUTAGES]
    random.Random(20).shuffle(faults)
    _prove(tmp_path, ledger_brokers, requests, faults, copies=min(3, len(nodes(ledger_brokers))))


@pytest.mark.parametrize("policy", ["degrade", "fail"])
def test_a_kill_while_the_ring_is_full_is_told(tmp_path: Path, policy: str) -> None:
    """The recorder stands still until the ring is full, then it and the worker are killed: every answer whose reply
    says that it is recorded is found, every other is in a gap; under `fail` there is no other."""
    models = tmp_path / "models"
    write_mlp(models)
    settings = ("audit.ring_bytes=262144", f"audit.on_unavailable={policy}", "audit.append_timeout_ms=5")
    with Gateway(models, tmp_path / "state", settings=settings) as gateway:
        client = LedgerClient(Plan(gateway.data_url, "mlp", "X", 30, 4000, CONNECTIONS)).start()
        client.await_sent(500, timeout_s=60)
        (recorder,), (worker,) = gateway.pids("recorder"), gateway.pids("worker")
        os.kill(recorder, signal.SIGSTOP)
        _await_full(client, policy)
        for pid in (worker, recorder):
            os.kill(pid, signal.SIGKILL)
        for role, pid in (("recorder", recorder), ("worker", worker)):
            gateway.await_successor(role, pid)
        ledger = client.join(timeout_s=120)
        assert gateway.stop() == 0, gateway.said()
    found = _read_spool(tmp_path / "state" / "spool", ledger)
    assert problems(ledger, found) == []
    causes = {gap[2] for gaps in found.gaps.values() for gap in gaps}
    if policy == "fail":
        assert (len(ledger.unlogged), causes) == (0, set())
        assert ledger.refused.keys() == {503}
    else:
        assert len(ledger.unlogged) >= FULL_ANSWERS
        assert causes
        assert not ledger.refused


def _await_full(client: LedgerClient, policy: str) -> None:
    """Wait until replies say that the ring has no room."""
    ledger, deadline = client.ledger, time.monotonic() + 60
    while (ledger.refused[503] if policy == "fail" else len(ledger.unlogged)) < FULL_ANSWERS:
        assert time.monotonic() < deadline, "the ring did not fill"
        time.sleep(0.005)


def _read_spool(spool: Path, ledger: Ledger) -> Topic:
    """All of a spool, as the topic would have it."""
    found, feed = Topic(ledger), SpoolFeed(spool)
    while events := feed.read(10_000, 0).events:
        for event in events:
            found.take(msgspec.msgpack.decode(encode_event(event)), 0)
    feed.close()
    return found
