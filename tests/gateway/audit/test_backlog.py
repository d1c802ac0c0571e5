"""What the forwarder's status costs while records go."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import msgspec
import pytest

from gateway.audit import backlog
from gateway.audit.batch import RecordBatch
from gateway.audit.forwarder import Forwarder
from gateway.audit.frame import seal
from gateway.audit.spool import epoch_path, segment_name
from gateway.kafka import Kafka
from tests.gateway.audit.sim import GATEWAY_ID, label

FRAMES = 20


def test_the_oldest_record_is_not_looked_for_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a batch is acknowledged and more wait, the first of those is known; a segment is not read for it."""
    epoch = epoch_path(tmp_path / "spool", 7, 1)
    epoch.path.mkdir(parents=True)
    payload = msgspec.msgpack.encode({"frame": "events", "events": [label(1, 5_000), label(2, 5_000)]})
    content = b"".join(seal(2 * number, 2, payload) for number in range(FRAMES))
    (epoch.path / segment_name(0)).write_bytes(content)
    (epoch.path / "synced").write_bytes((2 * FRAMES).to_bytes(8, "little"))
    monkeypatch.setattr(backlog, "STATUS_S", 0.0)
    looked = Mock(side_effect=backlog.expand)
    monkeypatch.setattr(backlog, "expand", looked)
    kafka = Kafka(bootstrap_servers="127.0.0.1:1", batch_bytes=16_384)
    forwarder = Forwarder(tmp_path / "spool", tmp_path / "forwarder", GATEWAY_ID, kafka)
    forwarder._limits.found(1 << 20)
    forwarder._positions.entry(epoch.key, 1)
    batches = 0

    async def send(batch: RecordBatch, partition: int) -> int:
        nonlocal batches
        batches += 1
        return -1

    asyncio.run(forwarder._send_partition(SimpleNamespace(send=send), 0, [epoch]))  # type: ignore[arg-type]
    assert batches > 8
    assert looked.call_count <= 1
