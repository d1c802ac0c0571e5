"""What the commands know of Kafka: how to be let in, and how the forwarder does. For `tidegate audit`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

import gateway.config
from gateway.errors import FeedUnreachable
from gateway.kafka import Kafka


def reader_arguments(bootstrap_servers: str) -> dict[str, Any]:
    """Arguments of a client of `--kafka HOST:PORT`: user and TLS are those of the configuration's `[kafka]`.

    Raises:
        ConfigInvalid: the configuration cannot be read.
        BrokerSettingsUnusable: a password, certificate or key cannot be read.
    """
    # Here, not above: commands that read the spool need no Kafka client.
    from gateway.audit.brokers import client_arguments  # noqa: PLC0415

    kafka = gateway.config.load()[0].kafka
    if kafka is None:
        return {}
    return client_arguments(msgspec.structs.replace(kafka, bootstrap_servers=bootstrap_servers))


@contextmanager
def reasons(bootstrap_servers: str) -> Iterator[None]:
    """Within it, brokers that cannot be reached are told with the reason, as the forwarder tells it.

    Raises:
        FeedUnreachable: what was raised within; where no broker let us in, why. Looks for it take up to 5 s.
    """
    try:
        yield
    except FeedUnreachable as exc:
        # Here, not above: commands that read the spool need no Kafka client.
        from aiokafka.errors import KafkaConnectionError  # noqa: PLC0415

        from gateway.audit.brokers import diagnose  # noqa: PLC0415

        if not isinstance(exc.__cause__, KafkaConnectionError | TimeoutError):
            raise
        kafka = gateway.config.load()[0].kafka or Kafka(bootstrap_servers=bootstrap_servers)
        why = asyncio.run(diagnose(msgspec.structs.replace(kafka, bootstrap_servers=bootstrap_servers)))
        if why is None:
            raise
        msg = f"Kafka cannot be read: {why}"
        raise FeedUnreachable(msg) from exc


def forwarder_status(state_dir: Path) -> dict[str, Any] | None:
    """What the forwarder last said of itself, with `age_s`; None when there never was one."""
    try:
        found = json.loads((state_dir / "forwarder" / "status.json").read_bytes())
        return {**found, "age_s": round(max(time.time_ns() - found["at_ns"], 0) / 1e9, 1)}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def in_words(status: dict[str, Any]) -> str:
    """The same in one line."""
    lag = status.get("lag_events", 0)
    text = f"forwarder: {status.get('forwarded_events', 0)} records sent since its start"
    if lag:
        oldest_s = status.get("oldest_age_ms", 0) / 1000
        mib = status.get("lag_bytes", 0) / 2**20
        text += f", {lag} wait ({mib:.1f} MiB, the oldest {oldest_s:.0f} s)"
    if status.get("quarantined"):
        text += f", {status['quarantined']} told by a gap (quarantine.jsonl)"
    if status.get("why"):
        text += f"; nothing is sent: {status['why']}"
    if status["age_s"] > 10:
        text += (
            f"; it last said so {status['age_s']:.0f} s ago: no gateway with Kafka runs, or it stands still"
        )
    return text
