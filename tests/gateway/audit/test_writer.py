"""The writer at a full ring: what is lost is told, by the owner or after it."""

from __future__ import annotations

import pytest

from gateway.audit.event import EpochClose, EpochOpen, Gap
from gateway.audit.ring import HEADER_PAGE_BYTES
from gateway.audit.writer import Writer
from tests.gateway.audit.sim import Log, forget_owner, label, settle, stop


def fill(writer: Writer, leave_bytes: int) -> int:
    """Append frames until only `leave_bytes` of the ring are free; returns the numbers drawn."""
    ring = writer.ring
    while (free := ring.capacity - (ring.committed - ring.synced) - leave_bytes) > 0:
        size = free if free <= ring.max_frame_bytes else min(ring.max_frame_bytes, free - 64)
        assert ring.append(bytes(size - 20), 1) >= 0
    return ring.assigned


def test_a_full_ring_refuses_runs_and_events(log: Log):
    """Without room nothing is drawn; numbers drawn by `lose` are told before the next append."""
    writer = log.owner()
    for number in range(1000):
        if writer.append_events([label(number, pad_bytes=1000)]) is None:
            break
    drawn = writer.ring.assigned
    assert writer.append_events([label(0, pad_bytes=1000)]) is None
    assert writer.append_run(bytes(2000), 4) is None
    assert writer.ring.assigned == drawn
    assert writer.lose(4) == drawn
    assert writer.append_run(bytes(2000), 4) is None
    assert writer.ring.assigned in (drawn + 4, drawn + 5)
    recorder = log.recorder()
    settle(recorder)
    assert writer.append_events([label(-1)]) == drawn + 5
    writer.close()
    forget_owner(writer)
    stop(recorder)
    (gap,) = [event for event in log.read() if isinstance(event, Gap)]
    assert (gap.from_seq, gap.to_seq, gap.cause) == (drawn, drawn + 3, "ring_full")
    assert log.verify().ok
    assert log.labels() == [*range(drawn - 1), -1]


@pytest.mark.parametrize("leave_bytes", range(0, 400, 40))
def test_closing_with_little_room_hides_no_loss(log: Log, leave_bytes: int):
    """However little room is left at the end, numbers drawn without a record are told."""
    writer = log.owner()
    drawn = fill(writer, leave_bytes)
    writer.lose(2)
    writer.close()
    ring = writer.ring
    pending = ring.pending_gap
    assert pending in (None, (drawn, drawn + 1))
    # A close stands only behind its gap.
    frames, _, _ = ring.read(ring.synced, ring.capacity)
    told = sum(frame.count for frame in frames)
    assert told == (drawn if pending else ring.assigned - 2)


def test_an_owner_without_room_to_close_is_told_by_the_recorder(log: Log):
    """The ring is full to the end: the recorder logs the gap and the end of the epoch."""
    writer = log.owner()
    values = 0
    while writer.append_events([label(values)]) is not None:
        values += 1
    drawn = writer.ring.assigned
    writer.lose(3)
    writer.close()
    key = (f"{writer.source.source:016x}", writer.source.epoch)
    forget_owner(writer)
    recorder = log.recorder()
    stop(recorder)
    events = log.read()
    (gap,) = [event for event in events if isinstance(event, Gap)]
    assert (gap.source, gap.epoch, gap.from_seq, gap.to_seq) == (*key, drawn, drawn + 2)
    ends = [event for event in events if isinstance(event, EpochClose) and (event.source, event.epoch) == key]
    assert [end.events for end in ends] == [drawn + 3]
    assert log.labels() == list(range(values))
    assert log.verify().ok


def test_epochs_follow_each_other(log: Log):
    """The next life of a source names the one before it."""
    epochs = []
    for _ in range(3):
        writer = log.owner()
        epochs.append(writer.source.epoch)
        writer.close()
        forget_owner(writer)
    stop(log.recorder())
    opened = {event.id[17:25]: event for event in log.read() if isinstance(event, EpochOpen)}
    assert [opened[f"{epoch:08x}"].prev_epoch for epoch in epochs] == [None, *epochs[:-1]]
    assert epochs == sorted(set(epochs))
    assert log.verify().ok


def test_a_ring_of_the_size_asked(log: Log):
    """The ring's file is its capacity and one page."""
    writer = log.owner(ring_bytes=65536)
    assert writer.source.ring_path.stat().st_size == 65536 + HEADER_PAGE_BYTES
    assert log.rings() == [writer.source.ring_path.name]
