"""A ring as it is between any two stores of its owner, and a recorder over it: every number is a record or is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.audit import ring as ring_module
from gateway.audit.frame import HEADER_BYTES, Events, encoder
from gateway.audit.ring import Ring
from gateway.audit.source import claim_source
from gateway.audit.writer import Writer
from tests.gateway.audit.powerless import RING_BYTES, Boot, Frames, Loss, check, recover
from tests.gateway.audit.sim import GATEWAY_ID, Log, forget_owner, forget_recorder, label, settle
from tests.gateway.audit.simulated_disk import SimulatedDisk, Tree
from tests.gateway.audit.test_ring import Stepped, SteppedHeader


class Watched:
    """An owner whose every store is a point where it may die."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.disk = SimulatedDisk(log.state_dir, log.ring_dir)
        self.recorder = log.recorder(self.disk, 700)
        source = claim_source(log.state_dir, GATEWAY_ID, "worker", log.ring_dir, RING_BYTES, self.disk)
        self.key = source.ring_path.name
        self.published: Frames = {}
        self.lost_end = 0
        """Behind the last number drawn without a frame."""
        self.copies: dict[tuple[int, bytes], Loss] = {}
        self.drained = 0
        self.tree: Tree = self.disk.standing()
        ring = source.ring
        ring._words, ring._data = Stepped(ring._words, self.look), Stepped(ring._data, self.look)  # type: ignore[assignment]
        self.ring = ring
        self.writer = Writer(source, GATEWAY_ID)
        self.publish()

    def look(self) -> None:
        """Keep a copy of memory as it is now, with what must and what may be found in it."""
        copy = bytes(self.ring.memory)
        drawn = Ring.attach(memoryview(bytearray(copy))).assigned
        known = self.publish(copy)
        # Drawn before published, and never behind what the owner was told.
        assert drawn >= max([self.lost_end, *(first + count for first, (count, _) in known.items())])
        self.copies.setdefault(
            (self.drained, copy),
            Loss(
                self.tree, {self.key: copy}, {self.key: known}, {self.key: set(known)}, {self.key: drawn}, {}
            ),
        )

    def publish(self, copy: bytes | None = None) -> Frames:
        """All frames below `committed`."""
        left = Ring.attach(memoryview(bytearray(copy or bytes(self.ring.memory))))
        for frame in left.read(left.synced, 1 << 20)[0]:
            self.published[frame.first_seq] = (frame.count, frame.payload)
        return dict(self.published)

    def lose(self, count: int) -> None:
        """Draw numbers without a frame."""
        self.lost_end = self.writer.lose(count) + count
        self.look()

    def drain(self) -> None:
        """The recorder takes all there is."""
        settle(self.recorder)
        self.drained += 1
        self.tree = self.disk.standing()

    def fill_to(self, left_bytes: int) -> None:
        """Append one frame such that so much of the lap is left."""
        at = self.ring._committed % RING_BYTES
        size = RING_BYTES - at - left_bytes - HEADER_BYTES
        while size > RING_BYTES // 8 - HEADER_BYTES:
            self.writer.append_run(_payload(800), 1)
            self.drain()
            at = self.ring._committed % RING_BYTES
            size = RING_BYTES - at - left_bytes - HEADER_BYTES
        self.writer.append_run(_payload(size), 1)
        self.drain()


def _payload(size_bytes: int) -> bytes:
    bare = len(encoder.encode(Events([label(0)])))
    for pad_bytes in range(size_bytes):
        made = encoder.encode(Events([label(0, pad_bytes)]))
        if len(made) >= size_bytes:
            return made
    assert bare <= size_bytes, "too small for an event"
    return made


def life(watched: Watched) -> None:
    """Appends in the middle, over the end with and without room for a mark, exactly to the end; a full ring; an end."""
    writer = watched.writer
    writer.append_events([label(1), label(2)])
    writer.append_events([label(3, 100)])
    watched.drain()
    watched.fill_to(0)  # the last frame ends where the ring ends
    assert watched.ring._committed % RING_BYTES == 0
    writer.append_events([label(4)])
    watched.fill_to(8)  # room for the mark, and no more
    assert watched.ring._committed % RING_BYTES == RING_BYTES - 8
    writer.append_events([label(5)])
    watched.fill_to(304)
    writer.append_events([label(6, 400)])  # a mark in the middle of what is left
    writer.append_events([label(7)])
    while writer.append_events([label(8, 700)]) is not None:
        pass
    watched.lose(3)
    assert writer.append_events([label(9, 700)]) is None
    watched.lose(1)
    watched.drain()
    writer.append_events([label(10)])  # leads with its gap
    watched.lose(2)
    watched.drain()
    writer.close()


def test_a_ring_between_any_two_stores_is_recovered(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whatever the owner was at, wraps, gaps and its end included: frames published are there, other numbers told."""
    Boot(monkeypatch)
    monkeypatch.setattr(ring_module, "HEADER", SteppedHeader)
    watched = Watched(log)
    life(watched)
    forget_recorder(watched.recorder)
    monkeypatch.undo()
    ring = watched.ring
    ring._words, ring._data = ring._words.view, ring._data.view  # type: ignore[attr-defined]
    forget_owner(watched.writer)
    Boot(monkeypatch)
    assert len(watched.copies) > 250
    for loss in watched.copies.values():
        may = dict(watched.published)
        disk = recover(log, loss)
        check(log, disk, loss._replace(appended={watched.key: may}))
