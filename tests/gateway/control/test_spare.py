"""The spare: a snapshot is written on a disk that takes nothing more."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from gateway.control import snapshot
from gateway.control.snapshot import SPARE_STEP_BYTES, Ledger, Serving

SMALL = snapshot.encode(Serving(gateway_id="g", generation=1), Ledger())
OTHER = snapshot.encode(Serving(gateway_id="g", generation=2), Ledger(last_event="e"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A snapshot that was written once, in quiet."""
    path = tmp_path / "snapshot"
    snapshot.write(path, SMALL)
    return path


class FullDisk:
    """No file may grow: writes behind the end of a file are refused."""

    def __init__(self, patch: pytest.MonkeyPatch, error: int = errno.ENOSPC) -> None:
        self.error = error
        self._write, self._allocate = os.write, os.posix_fallocate
        patch.setattr(os, "write", self.write)
        patch.setattr(os, "posix_fallocate", self.allocate)

    def write(self, fd: int, data: bytes) -> int:
        if os.lseek(fd, 0, os.SEEK_CUR) + len(data) > os.fstat(fd).st_size:
            raise OSError(self.error, os.strerror(self.error))
        return self._write(fd, data)

    def allocate(self, fd: int, offset: int, size: int) -> None:
        if offset + size > os.fstat(fd).st_size:
            raise OSError(self.error, os.strerror(self.error))


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir())


def test_a_spare_lies_ready(path: Path) -> None:
    """Two of them after the first snapshot, allocated, and larger than what they must hold."""
    assert names(path) == ["snapshot", "snapshot.spare", "snapshot.spare2"]
    spare = path.with_name("snapshot.spare").stat()
    assert spare.st_size == SPARE_STEP_BYTES
    assert spare.st_blocks * 512 >= SPARE_STEP_BYTES


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_takes_it(path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    """The content is there whole, by its usual name, and half a file nowhere."""
    with monkeypatch.context() as patch:
        FullDisk(patch, error)
        snapshot.write(path, OTHER)
    assert snapshot.decode(path.read_bytes()) == snapshot.decode(OTHER)
    assert snapshot.decode_serving(path.read_bytes()).generation == 2
    assert names(path) == ["snapshot", "snapshot.spare2"]


def test_again_and_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many changes as there are: the spares take turns, also for a state that grows. With room all is as before."""
    with monkeypatch.context() as patch:
        FullDisk(patch)
        for number in range(10):
            content = snapshot.encode(Serving(gateway_id="g" * 1000 * number, generation=number), Ledger())
            snapshot.write(path, content)
            assert snapshot.decode_serving(path.read_bytes()).generation == number
    snapshot.write(path, OTHER)
    assert path.read_bytes() == OTHER
    assert names(path) == ["snapshot", "snapshot.spare", "snapshot.spare2"]


def test_too_much_for_the_spare(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused as the disk refuses, and the snapshot stays."""
    large = snapshot.encode(Serving(gateway_id="g" * 2 * SPARE_STEP_BYTES, generation=1), Ledger())
    FullDisk(monkeypatch)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        snapshot.write(path, large)
    assert path.read_bytes() == SMALL


def test_other_errors_are_no_need(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails is not written to in another place."""
    FullDisk(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        snapshot.write(path, OTHER)
    assert path.read_bytes() == SMALL
    assert path.with_name("snapshot.spare").stat().st_size == SPARE_STEP_BYTES


def test_it_grows_with_the_snapshot(path: Path) -> None:
    """There is room for half as much again at least."""
    large = snapshot.encode(Serving(gateway_id="g" * SPARE_STEP_BYTES, generation=1), Ledger())
    snapshot.write(path, large)
    assert path.with_name("snapshot.spare").stat().st_size >= 1.5 * len(large)
