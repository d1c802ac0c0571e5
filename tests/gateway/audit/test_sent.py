"""The forwarder's positions: whole on disk or as they were, and an epoch keeps its partition."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.audit.sent import Positions

A1, A2, B1 = "000000000000000a-00000001", "000000000000000a-00000002", "000000000000000b-00000001"


@pytest.fixture
def positions(tmp_path: Path) -> Positions:
    """Three epochs in three partitions, all sent to 5."""
    made = Positions(tmp_path / "positions.json")
    for key in (A1, A2, B1):
        made.entry(key, 3)["next_seq"] = 5
    made.save()
    return made


def test_a_disk_that_fills_leaves_the_last_ones_whole(
    tmp_path: Path, positions: Positions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that takes a part and then nothing is no save: partitions must not be chosen anew at the next start."""
    before = dict(positions.entries)
    write, room = os.write, 50

    def fills(fd: int, data: bytes) -> int:
        nonlocal room
        taken = write(fd, bytes(data[:room]))
        room -= taken
        return taken

    positions.entries[B1]["next_seq"] = 9
    with monkeypatch.context() as full:
        full.setattr("os.write", fills)
        positions.moved()
        positions.flush()
    before[B1] = {**before[B1], "next_seq": 5}
    assert Positions(tmp_path / "positions.json").entries == before


def test_epochs_that_are_gone_are_forgotten(tmp_path: Path, positions: Positions) -> None:
    """Those before a source's last one, and what is over: the file grows with the spool and not with time."""
    assert positions.forget({A2}, {B1}) == [A1, B1]
    positions.flush()
    assert list(Positions(tmp_path / "positions.json").entries) == [A2]


def test_a_spool_that_was_removed_moves_no_epoch(positions: Positions) -> None:
    """The recorder goes on with the same epochs: they stay in their partitions."""
    partition = positions.entries[B1]["partition"]
    assert positions.forget(set(), set()) == [A1]
    assert positions.entry(B1, 3)["partition"] == partition
