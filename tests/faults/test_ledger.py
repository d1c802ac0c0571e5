"""Loss: kill -9 of every process while requests are answered, then the topic against the ledger."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

import pytest

from bench.models import write_mlp
from bench.serving import Gateway
from tests.e2e.foreign import Topic, problems, read_topic
from tests.e2e.ledger import Ledger, LedgerClient, Plan

ALL_ROLES = ("worker", "recorder", "forwarder", "broker")


def _kill(gateway: Gateway, broker, role: str) -> None:
    """Kill -9 one process and wait until its successor stands."""
    if role == "broker":
        broker.kill9()
        time.sleep(1.0)  # the outage: requests go on against a spool that cannot be forwarded
        broker.restart()
        return
    killed = gateway.kill9(role)
    gateway.await_successor(role, killed)


def _prove(tmp_path: Path, broker, requests: int, roles: tuple[str, ...]) -> tuple[Ledger, Topic]:
    """Serve, send `requests`, kill `roles` at even distances, compare at the end."""
    models, topic = tmp_path / "models", f"ledger-{uuid.uuid4().hex[:12]}"
    write_mlp(models)
    gateway = Gateway(
        models,
        tmp_path / "state",
        workers=3,
        settings=(
            f"kafka.bootstrap_servers={broker.bootstrap}",
            f"kafka.topic={topic}",
            "kafka.partitions=3",
        ),
    )
    with gateway:
        plan = Plan(gateway.data_url, "mlp", "X", 30, requests)
        client = LedgerClient(plan).start()
        for i, role in enumerate(roles):
            client.await_sent((i + 1) * requests // (len(roles) + 1), timeout_s=300)
            _kill(gateway, broker, role)
        ledger = client.join(timeout_s=300)
        assert gateway.stop() == 0, gateway.said()
        # What drained after the forwarder's last send is sent by the next life.
        gateway.start()
        found = read_topic(broker.bootstrap, topic, ledger, timeout_s=90)
    _report(ledger, found)
    return ledger, found


def _report(ledger: Ledger, found: Topic) -> None:
    """One line for whoever runs with -s or reads a failure."""
    gaps = {stream: gaps for stream, gaps in found.gaps.items() if gaps}
    print(  # noqa: T201
        f"\nanswered {len(ledger.answered)}, refused {dict(ledger.refused)},"
        f" unknown {ledger.unknown};"
        f" topic: {found.events} events, {found.resent} resent, {len(found.next_seq)} epochs,"
        f" {len(found.closed)} closed, {len(found.sampled)} hashes compared, gaps {gaps}"
    )


def _assert_proved(ledger: Ledger, found: Topic, requests: int) -> None:
    assert problems(ledger, found) == []
    # Kills may cost the requests in flight at that moment, no others: 24 connections a kill.
    assert len(ledger.answered) > requests - 24 * 16
    assert len(ledger.sampled) > requests // 200 - 16
    assert found.sampled.keys() == ledger.sampled.keys()


def test_every_answer_is_in_the_topic_after_kills(tmp_path: Path, kafka_broker) -> None:
    """Goal 1, short: 20,000 requests, a kill -9 each of worker, recorder, forwarder, broker."""
    requests = int(os.environ.get("TG_LEDGER_REQUESTS", "20000"))
    ledger, found = _prove(tmp_path, kafka_broker, requests, ALL_ROLES)
    _assert_proved(ledger, found, requests)


@pytest.mark.prove
def test_every_answer_is_in_the_topic_after_many_kills(tmp_path: Path, kafka_broker) -> None:
    """Goal 1, long: 200,000 requests over three workers, two kills of each process."""
    ledger, found = _prove(tmp_path, kafka_broker, 200_000, ALL_ROLES * 2)
    _assert_proved(ledger, found, 200_000)
