"""A real Kafka for tests: one for the session, and one for those tests that kill it.

KAFKA_BOOTSTRAP_SERVERS names a broker to use instead of the session's. Without Java or Maven these tests are
skipped and listed; under CI that is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.kafka import Broker, KafkaAbsent, jars


def _broker(directory: Path) -> Broker:
    try:
        return Broker(directory).start()
    except KafkaAbsent as exc:
        if os.environ.get("CI") == "true":
            pytest.fail(f"required in CI: {exc}")
        pytest.skip(f"kafka: {exc}")


@pytest.fixture(scope="session")
def kafka_jars() -> Path:
    """A broker's archives, for tests that start one through a command."""
    try:
        return jars()
    except KafkaAbsent as exc:
        if os.environ.get("CI") == "true":
            pytest.fail(f"required in CI: {exc}")
        pytest.skip(f"kafka: {exc}")


@pytest.fixture(scope="session")
def kafka_bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of a broker that all tests share; use topics of your own."""
    given = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if given:
        yield given
        return
    broker = _broker(tmp_path_factory.mktemp("kafka"))
    yield broker.bootstrap
    broker.stop()


@pytest.fixture(scope="session")
def mortal_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One for all tests that kill it: a start takes seconds."""
    broker = _broker(tmp_path_factory.mktemp("mortal-kafka"))
    yield broker
    broker.kill9()


@pytest.fixture
def kafka_broker(mortal_broker: Broker) -> Iterator[Broker]:
    """A broker that a test may kill, stop or freeze; use topics of your own."""
    yield mortal_broker
    mortal_broker.thaw()
    if mortal_broker.pid is None:
        mortal_broker.restart()
