"""A start over a large spool: what a recorder reads of it is the end of each epoch, whatever stands before."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gateway.audit.frame import seal
from gateway.audit.spool import SyncedMark, closed, epoch_path, segment_name, segments, write_closed
from gateway.audit.storage import Disk
from tests.gateway.audit.sim import Log, settle

SOURCE = 0xABC
SEGMENT_BYTES = 64 * 1024 * 1024
"""As configured by default."""


def fill(
    spool: Path, size_bytes: int, epochs: int, payload_bytes: int, segment_bytes: int = SEGMENT_BYTES
) -> list[int]:
    """So many bytes of frames in epochs of one source, all but the last ended; the number behind each epoch."""
    ends = []
    for number in range(epochs):
        epoch = epoch_path(spool, SOURCE, 0x65000000 + number)
        epoch.path.mkdir(parents=True)
        seq, left = 0, size_bytes // epochs
        while left > 0:
            with (epoch.path / "chain").open("a") as chain:
                # As a recorder leaves it; which values does not matter here.
                chain.write(f"{seq:020d} {seq:064x}\n")
            with (epoch.path / segment_name(seq)).open("wb") as file:
                chunk_bytes = min(left, segment_bytes)
                frame_bytes = len(seal(seq, 1, bytes(payload_bytes)))
                count = max(chunk_bytes // frame_bytes, 1)
                file.write(b"".join(seal(n, 1, bytes(payload_bytes)) for n in range(seq, seq + count)))
            seq += count
            left -= count * frame_bytes
        mark = SyncedMark(epoch.path / "synced")
        mark.store(seq)
        mark.close()
        if number < epochs - 1:
            write_closed(epoch, seq, "closed")
        ends.append(seq)
    return ends


def cpu_s_to_start(log: Log) -> float:
    """Processor time of the recorder's process until it drains."""
    recorder = log.real_recorder()
    deadline = time.monotonic() + 120
    while "draining" not in log.output(recorder):
        assert time.monotonic() < deadline and recorder.poll() is None, log.output(recorder)
        time.sleep(0.01)
    fields = Path(f"/proc/{recorder.pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    recorder.kill()
    recorder.wait()
    return ticks / 100


@pytest.mark.prove
@pytest.mark.parametrize(("epochs", "payload_bytes"), [(1, 180), (1, 4000), (200, 1000)])
def test_a_gibibyte_is_opened_within_two_seconds(
    tmp_path: Path, record_property, epochs: int, payload_bytes: int
) -> None:
    """2 s of processor time, Python's own start included."""
    log = Log(tmp_path / "state")
    ends = fill(log.spool, 1 << 30, epochs, payload_bytes)
    cpu_s = cpu_s_to_start(log)
    record_property("cpu_s", cpu_s)
    last = epoch_path(log.spool, SOURCE, 0x65000000 + epochs - 1)
    assert closed(last) == {"next_seq": ends[-1], "cause": "host_loss"}
    assert cpu_s <= 2.0


class Counting(Disk):
    """Counts what is read."""

    def __init__(self) -> None:
        self.read_bytes = 0

    def read(self, fd: int, size_bytes: int, offset: int) -> bytes:
        found = super().read(fd, size_bytes, offset)
        self.read_bytes += len(found)
        return found

    def content(self, path: Path) -> bytes:
        found = super().content(path)
        self.read_bytes += len(found)
        return found


def test_a_start_reads_the_end_of_an_epoch_only(log: Log) -> None:
    """Of thirty segments the last is read, for its end and for its hash; of epochs that are over, that they are."""
    ends = fill(log.spool, 3 << 20, 3, 1000, segment_bytes=100_000)
    last = segments(epoch_path(log.spool, SOURCE, 0x65000002))[-1][1].stat().st_size
    assert last > 50_000
    disk = Counting()
    recorder = log.recorder(disk)
    assert disk.read_bytes < 2 * last + 4096
    settle(recorder)
    assert closed(epoch_path(log.spool, SOURCE, 0x65000002)) == {"next_seq": ends[-1], "cause": "host_loss"}
