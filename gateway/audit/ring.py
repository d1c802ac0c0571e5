"""The ring: how a process hands frames to the recorder without ever meeting the disk.

One producer (the owner), one consumer (the recorder), a file of fixed size mapped by both: one page
of header, then the bytes. The owner stores in this order, each word with one native 8-byte store:

    assigned (numbers ever drawn)  ->  the frame's bytes  ->  committed (bytes ever written)

and replies only after `committed`. So whatever instant a kill strikes: below `committed` every frame
is whole; numbers drawn and not covered by a frame are `assigned` minus what the frames say, and the
recorder logs them as a gap. The recorder moves `synced` (bytes ever on disk); between the two marks
lie the frames that exist only here.

A frame never wraps: where it does not fit before the end, a length of all ones says "go on at the
start". A file is made under a temporary name, filled, locked (flock: the owner lives), then renamed,
so that nobody ever sees half a ring. A ring is never reused; one file per (source, epoch).

On x86 stores are seen in order. Elsewhere a consumer may see `committed` before the bytes: it treats
a CRC mismatch below the mark as not yet visible and reads again.

Words of the header (u64 each, at these byte offsets; one cache line a writer):

    0 magic   8 capacity   16 source   24 epoch   32 prev_epoch (0: none)   40 created_ns   48 pid
    56 boot (of the machine that made it; 0: not known)
    64 assigned      128 committed   136 pending_gap_from   144 pending_gap_to + 1 (0: none)
    192 synced (recorder)   200 unavailable (recorder: 0 or 1)   208 recorder's heartbeat_ns

`boot` is there because a ring may lie on a disk: after a power loss its pages are of any age, and no mark in it
is to be believed (`gateway/audit/salvage.py`).

Memory is an argument, so that tests can copy it between any two stores.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

from gateway.audit.frame import ALIGN, HEADER, HEADER_BYTES, PREFIX_BYTES, Frame, open_frame, padded
from gateway.errors import FrameCorrupt, FrameTooLarge, RingUnusable

HEADER_PAGE_BYTES = 4096
FORMAT = 1
MAGIC = int.from_bytes(b"TGRING\0" + bytes([FORMAT]), "big")
MAX_FRAME_SHARE = 8
"""A frame takes at most this fraction (1/8) of the ring."""

_MAGIC, _CAPACITY, _SOURCE, _EPOCH, _PREV, _CREATED, _PID, _BOOT = 0, 1, 2, 3, 4, 5, 6, 7
_ASSIGNED, _COMMITTED, _GAP_FROM, _GAP_END = 8, 16, 17, 18
_SYNCED, _UNAVAILABLE, _BEAT = 24, 25, 26
_WRAP = 0xFFFFFFFF
_WRAP_BYTES = b"\xff" * ALIGN


class RingFacts(NamedTuple):
    """What a ring's header says about its owner."""

    source: int
    epoch: int
    prev_epoch: int | None
    created_ns: int
    pid: int
    boot: int = 0
    """`gateway.audit.source.boot_id` when it was made; 0 where it did not say."""


class Ring:
    """A view on one ring's memory; both sides use this class, each only its own methods.

    Args:
        memory: the whole file, header page included; its size less the page is the capacity, a
            multiple of 8.

    Threading: one producer thread and one consumer, in any two processes.
    """

    COMMITTED_WORD = _COMMITTED
    SYNCED_WORD = _SYNCED

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory
        self._words = memory[:HEADER_PAGE_BYTES].cast("Q")
        self.capacity = len(memory) - HEADER_PAGE_BYTES
        self._data = memory[HEADER_PAGE_BYTES:]
        self._committed = self._words[_COMMITTED]
        self._assigned = self._words[_ASSIGNED]
        self.max_frame_bytes = self.capacity // MAX_FRAME_SHARE

    @classmethod
    def create(cls, memory: memoryview, facts: RingFacts) -> Ring:
        """Write the header of a new ring into zeroed memory."""
        if (len(memory) - HEADER_PAGE_BYTES) % ALIGN or len(memory) <= HEADER_PAGE_BYTES:
            msg = f"a ring of {len(memory)} bytes: expected 4096 plus a multiple of {ALIGN}"
            raise RingUnusable(msg)
        words = memory[:HEADER_PAGE_BYTES].cast("Q")
        words[_CAPACITY] = len(memory) - HEADER_PAGE_BYTES
        words[_SOURCE] = facts.source
        words[_EPOCH] = facts.epoch
        words[_PREV] = facts.prev_epoch or 0
        words[_CREATED] = facts.created_ns
        words[_PID] = facts.pid
        words[_BOOT] = facts.boot
        words[_MAGIC] = MAGIC
        return cls(memory)

    @classmethod
    def attach(cls, memory: memoryview) -> Ring:
        """Look at an existing ring.

        Raises:
            RingUnusable: when the memory is no ring, of another format, or of another size.
        """
        if len(memory) <= HEADER_PAGE_BYTES:
            msg = f"not a ring: {len(memory)} bytes"
            raise RingUnusable(msg)
        words = memory[:HEADER_PAGE_BYTES].cast("Q")
        if words[_MAGIC] != MAGIC:
            msg = f"not a ring of format {FORMAT}: magic {words[_MAGIC]:016x}"
            raise RingUnusable(msg)
        if words[_CAPACITY] != len(memory) - HEADER_PAGE_BYTES:
            msg = f"ring says {words[_CAPACITY]} bytes, file holds {len(memory) - HEADER_PAGE_BYTES}"
            raise RingUnusable(msg)
        return cls(memory)

    @property
    def facts(self) -> RingFacts:
        """Who owns it."""
        w = self._words
        return RingFacts(w[_SOURCE], w[_EPOCH], w[_PREV] or None, w[_CREATED], w[_PID], w[_BOOT])

    @property
    def assigned(self) -> int:
        """Numbers ever drawn: last_assigned_seq + 1."""
        return self._words[_ASSIGNED]

    @property
    def committed(self) -> int:
        """Bytes ever published by the owner."""
        return self._words[_COMMITTED]

    @property
    def synced(self) -> int:
        """Bytes ever put on disk by the recorder."""
        return self._words[_SYNCED]

    @property
    def unavailable(self) -> bool:
        """The recorder cannot write at present."""
        return self._words[_UNAVAILABLE] != 0

    @property
    def recorder_beat_ns(self) -> int:
        """The recorder's last sign of life here, monotonic clock; 0 before the first."""
        return self._words[_BEAT]

    @property
    def pending_gap(self) -> tuple[int, int] | None:
        """Numbers (from, to), both included, drawn without a frame and not yet logged as a gap."""
        end = self._words[_GAP_END]
        return (self._words[_GAP_FROM], end - 1) if end else None

    # --- the owner -------------------------------------------------------------------------

    def append(self, payload: bytes, count: int) -> int:
        """Draw `count` numbers and publish one frame.

        Returns the first number, or -1 when the ring has no room (nothing is drawn then).

        Raises:
            FrameTooLarge: when the frame is over an eighth of the ring.
        """
        length = HEADER_BYTES - PREFIX_BYTES + len(payload)
        need = padded(PREFIX_BYTES + length)
        capacity = self.capacity
        if need > self.max_frame_bytes:
            msg = f"a frame of {need} bytes; a ring of {capacity} takes {self.max_frame_bytes}"
            raise FrameTooLarge(msg)
        words = self._words
        committed = self._committed
        at = committed % capacity
        skip = capacity - at if at + need > capacity else 0
        if skip + need > capacity - (committed - words[_SYNCED]):
            return -1
        first_seq = self._assigned
        self._assigned = words[_ASSIGNED] = first_seq + count
        data = self._data
        if skip:
            data[at : at + ALIGN] = _WRAP_BYTES
            at = 0
        head = HEADER.pack(length, 0, first_seq, count)
        crc = zlib.crc32(payload, zlib.crc32(head[PREFIX_BYTES:]))
        HEADER.pack_into(data, at, length, crc, first_seq, count)
        at += HEADER_BYTES
        data[at : at + len(payload)] = payload
        self._committed = words[_COMMITTED] = committed + skip + need
        return first_seq

    def draw_unlogged(self, count: int) -> int:
        """Draw numbers for which no frame fits; they stand as the pending gap. Returns the first.

        Only numbers in one run can be pending: call `clear_pending` once the gap event is in.
        """
        first_seq = self._assigned
        words = self._words
        if not words[_GAP_END]:
            words[_GAP_FROM] = first_seq
        words[_GAP_END] = first_seq + count
        self._assigned = words[_ASSIGNED] = first_seq + count
        return first_seq

    def clear_pending(self) -> None:
        """The pending gap's event is in the ring."""
        self._words[_GAP_END] = 0

    # --- the recorder ----------------------------------------------------------------------

    def read(self, position: int, max_bytes: int, next_seq: int = 0) -> tuple[list[Frame], bytes, int]:
        """Frames from `position` (bytes ever) up to `committed`, about `max_bytes` at most.

        Args:
            next_seq: no frame may begin before this number, or before the end of the one in front of it.

        Returns the frames, their bytes as they stand (padding included, no wrap marks), and the
        position behind them.

        Raises:
            FrameCorrupt: when bytes below `committed` are no frame, or one whose numbers are not the next, or the
                marks are more than a ring apart: whatever an owner writes here, a read ends. On machines that
                reorder stores, read again before you believe it.
        """
        committed = self._words[_COMMITTED]
        if not 0 <= committed - position <= self.capacity:
            msg = f"bytes {position} to {committed} are to be read from a ring of {self.capacity}"
            raise FrameCorrupt(msg)
        # Drawn before it was committed, so read behind it.
        assigned = self._words[_ASSIGNED]
        frames: list[Frame] = []
        chunks: list[bytes] = []
        taken = 0
        while position < committed and taken < max_bytes:
            at = position % self.capacity
            if int.from_bytes(self._data[at : at + 4], "little") == _WRAP:
                position += self.capacity - at
                continue
            limit = min(self.capacity, at + committed - position)
            frame, following = open_frame(self._data, at, limit)
            if not next_seq <= frame.first_seq < frame.next_seq <= assigned:
                msg = (
                    f"frame at byte {at}: {frame.count} numbers from {frame.first_seq} on; expected some between"
                    f" {next_seq} and {assigned}"
                )
                raise FrameCorrupt(msg)
            next_seq = frame.next_seq
            frames.append(frame)
            chunks.append(bytes(self._data[at:following]))
            taken += following - at
            position += following - at
        return frames, b"".join(chunks), position

    def standing(self, position: int) -> Iterator[tuple[Frame, bytes]]:
        """Whole frames as they stand from a byte of the ring on, and their bytes, whatever the marks say.

        At most one lap; ends at what is no frame. For memory whose marks cannot be believed.
        """
        left = self.capacity
        while left > 0:
            if int.from_bytes(self._data[position : position + 4], "little") == _WRAP:
                left -= self.capacity - position
                position = 0
                continue
            try:
                frame, following = open_frame(self._data, position, self.capacity)
            except FrameCorrupt:
                return
            left -= following - position
            yield frame, bytes(self._data[position:following])
            position = following % self.capacity

    def set_synced(self, position: int) -> None:
        """Everything below `position` is on disk; the owner may reuse its room."""
        if not self._words[_SYNCED] <= position <= self._words[_COMMITTED]:
            msg = f"synced {self._words[_SYNCED]} -> {position}, committed {self._words[_COMMITTED]}"
            raise FrameCorrupt(msg)
        self._words[_SYNCED] = position

    def set_unavailable(self, value: bool) -> None:
        """Tell the owner whether records can be written."""
        self._words[_UNAVAILABLE] = 1 if value else 0

    def beat(self, now_ns: int) -> None:
        """The recorder's sign of life."""
        self._words[_BEAT] = now_ns

    def release(self) -> None:
        """Let go of the memory so that its map can be closed."""
        self._words.release()
        self._data.release()
        self.memory.release()
