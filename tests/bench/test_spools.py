"""Spools of the forwarder's figures: what they hold is what readers of the log find."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cases import spools
from gateway.audit.spool import EpochReader, epochs, segments


@pytest.mark.parametrize("segment_bytes", [1 << 20, 100])
def test_a_filled_spool_reads_whole(tmp_path: Path, monkeypatch, segment_bytes: int) -> None:
    """Numbers without a hole in every epoch, over one segment or many; as many as it says."""
    monkeypatch.setattr(spools, "SEGMENT_BYTES", segment_bytes)
    made = spools.fill(tmp_path, spools.Runs(4, [b"a" * 40, b"b" * 40]), 100)
    found = 0
    for epoch in epochs(tmp_path / "spool"):
        next_seq = 0
        for frame in EpochReader(epoch).frames(0):
            assert (frame.first_seq, frame.count) == (next_seq, 4)
            next_seq = frame.next_seq
        found += next_seq
        assert (len(segments(epoch)) > 1) == (segment_bytes == 100)
    assert found == made == 96
