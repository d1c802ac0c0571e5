"""What the topic does not take: told within bounds, however much of it clients make."""

from __future__ import annotations

import json
import logging
import stat
from pathlib import Path

import pytest

from gateway.audit import outgoing
from gateway.audit.event import Gap, decode_event
from gateway.audit.frame import Events, Frame, encoder
from gateway.audit.spool import EpochPath
from tests.gateway.audit.sim import GATEWAY_ID, label


def large(seq: int) -> Frame:
    """A record of more than a topic takes that takes 100 bytes."""
    return Frame(seq, 1, encoder.encode(Events([label(seq, 200)])))


def test_a_flood_of_large_records_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """In file, memory and log; each is a gap all the same, and counted."""
    monkeypatch.setattr(outgoing, "QUARANTINE_MAX_BYTES", 5_000)
    monkeypatch.setattr(outgoing, "REMEMBERED", 20)
    monkeypatch.setattr(outgoing.time, "monotonic_ns", lambda: 5_000_000_000)
    made = outgoing.Outgoing(tmp_path, GATEWAY_ID, "msgpack")
    epoch = EpochPath(1, 2, tmp_path)
    with caplog.at_level(logging.WARNING):
        for seq in range(500):
            parcel = made.parcel(epoch, large(seq), 100)
            assert isinstance(decode_event(parcel.values[0]), Gap)
    made.parcel(epoch, large(499), 100)
    assert made.quarantined == 500
    assert len(made._quarantined) == 20
    files = sorted(tmp_path.iterdir())
    assert {path.name for path in files} <= {"quarantine.jsonl", "quarantine.jsonl.1"}
    assert sum(path.stat().st_size for path in files) < 11_000
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    last = [line for path in files for line in path.read_text().splitlines()]
    assert max(json.loads(line)["id"] for line in last).endswith(f"{499:016x}")
    assert len(caplog.records) == outgoing.TOLD_PER_S
