"""A topic whose settings this user may not see, and which takes less than is thought."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from gateway.audit.limits import FLOOR_BYTES, Limits
from tests.kafka.lived import Lived, check_contiguous, labels, read_topic


def test_what_the_topic_refuses_is_made_smaller(
    tmp_path: Path, kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are halved until they are taken; a record that is refused alone has a gap, and nothing waits for it."""

    async def unseen(*_: object) -> None:
        return None

    monkeypatch.setattr("gateway.audit.topic._found_settings", unseen)
    monkeypatch.setattr("gateway.audit.forwarder.BACKOFF_S", (0.02, 0.1))
    # Labels' padding would be packed to nothing.
    unpacked = SimpleNamespace(zstd=SimpleNamespace(compress=lambda body, level: body))
    monkeypatch.setattr("gateway.audit.batch.cramjam", unpacked)
    one = Lived(tmp_path / "state", kafka_bootstrap, partitions=1)
    try:
        one.make_topic(max_message_bytes="2000")
        for i in range(10):
            one.append(*range(10 * i, 10 * i + 10), pad_bytes=300)
        one.append(100, pad_bytes=30_000)
        one.append(101)
        forwarder = one.forward()
        assert forwarder.quarantined == 1
        messages = read_topic(kafka_bootstrap, one.kafka.topic)
        events = check_contiguous(messages, msgspec.msgpack.decode)
        assert labels(events) == [*range(100), 101]
    finally:
        one.close()


def test_limits() -> None:
    """Refusals count until the topic's own limit is another; no limit gets so low that a gap would not fit."""
    limits = Limits(500_000)
    limits.found(1_000_000)
    assert (limits.batch_bytes, limits.record_bytes) == (500_000, 1_000_000 - 4096)
    limits.refused(10, 70_000)
    limits.refused(1, 70_000)
    limits.found(1_000_000)
    assert (limits.batch_bytes, limits.record_bytes) == (250_000, 69_999)
    for _ in range(20):
        limits.refused(2, 200)
        limits.refused(1, 200)
    assert (limits.batch_bytes, limits.record_bytes) == (FLOOR_BYTES, FLOOR_BYTES)
    limits.found(6000)
    assert (limits.batch_bytes, limits.record_bytes) == (3000, 3000)
