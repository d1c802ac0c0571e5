"""The ring: what goes in comes out, whole and in order, wherever the owner is stopped."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.audit import ring as ring_module
from gateway.audit.frame import HEADER, HEADER_BYTES
from gateway.audit.ring import HEADER_PAGE_BYTES, Ring, RingFacts
from gateway.errors import FrameCorrupt, FrameTooLarge, RingUnusable

CAPACITY = 1024
MAX_PAYLOAD = CAPACITY // 8 - HEADER_BYTES
FACTS = RingFacts(source=1, epoch=2, prev_epoch=None, created_ns=3, pid=4)


def make(capacity: int = CAPACITY) -> tuple[Ring, bytearray]:
    """A new ring and its memory."""
    memory = bytearray(HEADER_PAGE_BYTES + capacity)
    return Ring.create(memoryview(memory), FACTS), memory


def drain(ring: Ring, max_bytes: int = 1 << 20) -> list[tuple[int, int, bytes]]:
    """Read what is there as the recorder does, and mark it synced."""
    frames, data, position = ring.read(ring.synced, max_bytes)
    assert len(data) % 8 == 0
    ring.set_synced(position)
    return [tuple(frame) for frame in frames]


APPEND = st.tuples(st.just("append"), st.integers(0, MAX_PAYLOAD), st.integers(1, 9))
DRAIN = st.tuples(st.just("drain"), st.integers(1, 600), st.just(0))


@settings(deadline=None)
@given(st.lists(APPEND | DRAIN, max_size=80))
def test_any_pattern_comes_out_as_it_went_in(steps):
    """Appends of any size and drains of any size: the same frames, in order, numbers contiguous."""
    ring, memory = make()
    reader = Ring.attach(memoryview(memory))
    went_in, came_out = [], []
    for number, (step, size, count) in enumerate(steps):
        if step == "drain":
            came_out += drain(reader, size)
            continue
        payload = bytes([number]) * size
        before = ring.assigned, ring.committed
        first_seq = ring.append(payload, count)
        if first_seq < 0:
            assert (ring.assigned, ring.committed) == before
            # Refused only for want of room: even with the rest of the lap unused it cannot be near empty.
            assert ring.committed - ring.synced > CAPACITY - 2 * (CAPACITY // 8)
        else:
            went_in.append((first_seq, count, payload))
    came_out += drain(reader)
    assert came_out == went_in
    assert [first for first, _, _ in went_in] == [
        sum(c for _, c, _ in went_in[:i]) for i in range(len(went_in))
    ]
    assert ring.assigned == sum(count for _, count, _ in went_in)
    assert ring.synced == ring.committed


class Stepped:
    """Memory that calls `look` before and after each store, and in the middle of a longer one."""

    def __init__(self, view: memoryview, look) -> None:
        self.view, self.look = view, look

    def __getitem__(self, key):
        return self.view[key]

    def __setitem__(self, key, value) -> None:
        self.look()
        if isinstance(key, slice) and len(value) > 1:
            half = key.start + len(value) // 2
            self.view[key.start : half] = value[: len(value) // 2]
            self.look()
            self.view[half : key.stop] = value[len(value) // 2 :]
        else:
            self.view[key] = value
        self.look()


class SteppedHeader:
    """`HEADER` whose `pack_into` stores through `Stepped`."""

    pack = staticmethod(HEADER.pack)

    @staticmethod
    def pack_into(data: Stepped, at: int, *values: int) -> None:
        data[at : at + HEADER_BYTES] = HEADER.pack(*values)


@settings(deadline=None, max_examples=40)
@given(st.lists(APPEND | DRAIN | st.tuples(st.just("lose"), st.just(0), st.integers(1, 5)), max_size=30))
def test_stopped_between_any_two_stores(steps):
    """Memory as it is between any two stores holds every frame published, and nothing half."""
    ring, memory = make()
    published: list[tuple[int, int, bytes]] = []
    drawn = [0]
    copies = [0]

    def look() -> None:
        copies[0] += 1
        left = Ring.attach(memoryview(bytearray(memory)))
        frames, _, position = left.read(left.synced, 1 << 20)
        got = [tuple(frame) for frame in frames]
        assert position == left.committed
        # `doing` may be there or not; all before it must be.
        assert got in (published, [*published, doing])
        covered = got[-1][0] + got[-1][1] if got else 0
        assert left.assigned >= max(covered, drawn[0])

    ring._words, ring._data = Stepped(ring._words, look), Stepped(ring._data, look)
    doing = (-1, -1, b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring_module, "HEADER", SteppedHeader)
        for number, (step, size, count) in enumerate(steps):
            if step == "drain":
                for _ in drain(Ring.attach(memoryview(memory)), size):
                    published.pop(0)
                continue
            if step == "lose":
                ring.draw_unlogged(count)
                ring.clear_pending()
                drawn[0] += count
                continue
            doing = (drawn[0], count, bytes([number]) * size)
            if ring.append(doing[2], count) >= 0:
                published.append(doing)
                drawn[0] += count
            doing = (-1, -1, b"")
    assert copies[0] or all(step == "drain" for step, _, _ in steps)


def test_full_ring_draws_nothing():
    """Without room `append` returns -1 and draws no number; after a drain it goes on where it was."""
    ring, _ = make()
    seqs = []
    while (first_seq := ring.append(bytes(MAX_PAYLOAD), 3)) >= 0:
        seqs.append(first_seq)
    assert seqs == list(range(0, 24, 3))
    assert ring.assigned == 24
    assert len(drain(ring, 1)) == 1
    assert ring.append(bytes(MAX_PAYLOAD), 1) == 24
    assert ring.append(b"", 1) == -1


def test_frame_over_an_eighth_is_refused():
    """A frame over an eighth of the ring would never find room; nothing is drawn for it."""
    ring, _ = make()
    with pytest.raises(FrameTooLarge, match="takes 128"):
        ring.append(bytes(MAX_PAYLOAD + 1), 1)
    assert ring.assigned == ring.committed == 0


def test_numbers_without_a_frame_are_pending():
    """Numbers drawn without a frame stand as one range until its gap is logged."""
    ring, memory = make()
    assert ring.pending_gap is None
    assert ring.append(b"a", 2) == 0
    assert ring.draw_unlogged(3) == 2
    assert ring.draw_unlogged(1) == 5
    assert Ring.attach(memoryview(memory)).pending_gap == (2, 5)
    ring.clear_pending()
    assert ring.pending_gap is None
    assert ring.append(b"b", 1) == 6
    assert ring.draw_unlogged(1) == 7
    assert ring.pending_gap == (7, 7)


def test_a_changed_byte_is_found():
    """Any byte below `committed` that changed is a corrupt frame, never another frame."""
    ring, memory = make()
    ring.append(b"some payload", 1)
    for at in range(HEADER_BYTES + 12):
        memory[HEADER_PAGE_BYTES + at] ^= 0x10
        with pytest.raises(FrameCorrupt):
            ring.read(0, 1)
        memory[HEADER_PAGE_BYTES + at] ^= 0x10
    assert drain(ring) == [(0, 1, b"some payload")]


def test_synced_stays_between_the_marks():
    """The recorder's mark never moves back and never passes `committed`."""
    ring, _ = make()
    ring.append(b"a", 1)
    ring.set_synced(ring.committed)
    for wrong in (0, ring.committed + 8):
        with pytest.raises(FrameCorrupt):
            ring.set_synced(wrong)


def test_foreign_memory_is_refused():
    """What is no ring, of another format or of another size is not read as one."""
    _, memory = make()
    with pytest.raises(RingUnusable, match="bytes"):
        Ring.attach(memoryview(memory)[:HEADER_PAGE_BYTES])
    with pytest.raises(RingUnusable, match="file holds"):
        Ring.attach(memoryview(memory)[:-8])
    memory[0] += 1
    with pytest.raises(RingUnusable, match="format"):
        Ring.attach(memoryview(memory))
    with pytest.raises(RingUnusable, match="multiple"):
        Ring.create(memoryview(bytearray(HEADER_PAGE_BYTES + 12)), FACTS)


def test_header_words():
    """Owner's facts, the recorder's sign of life and its refusal are seen through another view."""
    ring, memory = make()
    other = Ring.attach(memoryview(memory))
    assert other.facts == FACTS
    ring.beat(17)
    ring.set_unavailable(True)
    assert (other.recorder_beat_ns, other.unavailable) == (17, True)
    ring.set_unavailable(False)
    assert not other.unavailable
    other.release()
    ring.release()
