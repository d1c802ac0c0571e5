"""One ring on its way to disk. Used by the recorder, which has one `Drain` a ring.

Order of a step: write, fdatasync, `synced` in the ring, the epoch's `synced` file. A kill at any point
leaves frames that are written again from the ring, and never a mark ahead of the disk. The disk is first
touched in `step`, so that a disk that fails can be told to a ring's owner.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path
from typing import NamedTuple

from gateway.audit.chain import Chain, Position
from gateway.audit.event import Gap
from gateway.audit.recovery import closes, cut
from gateway.audit.ring import Ring
from gateway.audit.source import boot_id
from gateway.audit.spool import EpochPath, SegmentWriter, SyncedMark, epoch_path
from gateway.audit.storage import Storage
from gateway.errors import FrameCorrupt, RingUnusable

READ_BYTES = 4 * 1024 * 1024
DOUBT_NS = 200_000_000
"""A frame whose CRC does not match may be one not yet visible; after this it is not."""


class Target(NamedTuple):
    """Where a ring is drained to."""

    spool: Path
    segment_bytes: int
    storage: Storage


class Retirement(NamedTuple):
    """An epoch that is over: `closed` comes when the recorder's own ring is on disk to `position`."""

    position: int
    cause: str
    next_seq: int


class Drain:
    """One ring being drained, and its epoch on disk.

    Raises:
        RingUnusable: the file is no ring, or not that of its name.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, target: Target) -> None:
        self.path = path
        self._target = target
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self.ring = _attach(self._fd, path.name)
        except RingUnusable:
            os.close(self._fd)
            raise
        facts = self.ring.facts
        self.source = facts.source
        self.epoch: EpochPath = epoch_path(target.spool, facts.source, facts.epoch)
        self.next_seq = 0
        self.lost: tuple[int, int] | None = None
        """Numbers once on disk that recovery did not find; the recorder logs them and clears this."""
        self.retirement: Retirement | None = None
        self._mark: SyncedMark | None = None
        self._writer: SegmentWriter | None = None
        self._chain: Chain | None = None
        self._last_payload: bytes | None = None
        self._doubt_since_ns = 0

    def step(self) -> int:
        """Move what is there to disk; returns the bytes moved. The first step recovers.

        Raises:
            OSError: the disk refused; the next step recovers and tries in a new segment.
            FrameCorrupt: the next bytes below `committed` are no frame.
        """
        if self._writer is None or self._mark is None or self._chain is None:
            self._mark, self._writer, self._chain = self._recover()
            if self.lost is not None:
                # Told before anything is written behind it: no later start would take the hole for a loss.
                return 0
        position = self.ring.synced
        if position == self.ring.committed:
            return 0
        try:
            frames, data, position = self.ring.read(position, READ_BYTES, self.next_seq)
        except FrameCorrupt:
            # Those before the bad one are good.
            frames, data, position = self.ring.read(position, 1, self.next_seq)
        self._doubt_since_ns = 0
        if frames:
            try:
                self._writer.write(frames[0].first_seq, data)
                self._writer.sync()
            except OSError:
                self._writer.abandon()
                self._writer = None
                raise
            self.next_seq = frames[-1].next_seq
            self._last_payload = frames[-1].payload
            self._chain.extend(frames, data, self._writer.segment_seq)
        self.ring.set_synced(position)
        self._mark.store(self.next_seq)
        return len(data)

    @property
    def key(self) -> str:
        """Of its epoch, as in positions."""
        return self.epoch.key

    @property
    def position(self) -> Position | None:
        """The running hash of what is on disk; None before the first step."""
        return None if self._chain is None else self._chain.position

    def is_removed(self) -> bool:
        """Whether somebody took the epoch's directory away."""
        if self._mark is None:
            return False
        try:
            self._target.storage.facts(self.epoch.path / "synced")
        except FileNotFoundError:
            return True
        return False

    def begin_anew(self) -> int:
        """Make the directory again, behind what was in it; returns the number to go on with.

        Raises:
            OSError: the disk refused.
        """
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None
        self._target.storage.make_directory(self.epoch.path)
        before, self._mark = self._mark, SyncedMark(self.epoch.path / "synced", self._target.storage)
        if before is not None:
            before.close()
        self._mark.store(self.next_seq)
        return self.next_seq

    def corrupt(self, now_ns: int) -> bool:
        """Whether a `FrameCorrupt` has stood for so long that it is not a store still on its way."""
        self._doubt_since_ns = self._doubt_since_ns or now_ns
        return now_ns - self._doubt_since_ns >= DOUBT_NS

    def settle(self) -> None:
        """Give up what is in the ring: keep and sync every whole frame on disk.

        Raises:
            OSError: the disk refused.
        """
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None
        storage = self._target.storage
        storage.make_directory(self.epoch.path)
        self._mark = mark = self._mark or SyncedMark(self.epoch.path / "synced", storage)
        tail = cut(self.epoch, None, storage)
        self.next_seq = mark.next_seq if tail.next_seq is None else tail.next_seq
        mark.store(self.next_seq)
        self._chain = self._take_up_chain()

    @property
    def empty(self) -> bool:
        """Nothing waits in the ring, and what recovery had to do is done."""
        return self._writer is not None and self.ring.synced == self.ring.committed

    @property
    def owner_closed(self) -> bool:
        """The last frame on disk is the owner's own epoch_close and no number was drawn after it."""
        return self.ring.assigned == self.next_seq and closes(self.epoch, self._last_payload)

    def tail_gaps(self, at_ns: int) -> list[Gap]:
        """Gaps for the numbers that a dead owner drew and never published."""
        assigned = self.ring.assigned
        ranges: list[tuple[int, int, str]] = []
        at = self.next_seq
        pending = self.ring.pending_gap
        if pending is not None and pending[1] >= at:
            # What the ring had no room for comes first: nothing is published while it is pending.
            ranges.append((at, pending[1], "ring_full"))
            at = pending[1] + 1
        if at < assigned:
            ranges.append((at, assigned - 1, "owner_died"))
        return [self.gap(first, last, cause, at_ns) for first, last, cause in ranges]

    def gap(self, from_seq: int, to_seq: int | None, cause: str, at_ns: int) -> Gap:
        """A gap event about this epoch."""
        return Gap(
            source=f"{self.source:016x}",
            epoch=self.epoch.epoch,
            from_seq=from_seq,
            to_seq=to_seq,
            cause=cause,
            at_ns=at_ns,
        )

    @property
    def believed(self) -> bool:
        """The ring is memory of this boot: of another's, and of one that does not say, no mark counts."""
        return self.ring.facts.boot == boot_id() or self.owner_lives()

    def owner_lives(self) -> bool:
        """Whether the owner holds its lock."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return False

    def close(self, *, unlink: bool = False) -> None:
        """Let go; `unlink` removes the ring file, for good before anything of its epoch may be removed."""
        if self._writer is not None:
            self._writer.abandon()
        if self._mark is not None:
            self._mark.close()
        self.ring.release()
        os.close(self._fd)
        if unlink:
            self._target.storage.unlink(self.path)
            self._target.storage.sync_directory(self.path.parent)

    def _recover(self) -> tuple[SyncedMark, SegmentWriter, Chain]:
        """Cut what is not known to be on disk; go on in a new segment."""
        frames, _, _ = self.ring.read(self.ring.synced, 1)
        writer = SegmentWriter(self.epoch, self._target.segment_bytes, self._target.storage)
        storage = self._target.storage
        self._mark = mark = self._mark or SyncedMark(self.epoch.path / "synced", storage)
        # The mark follows the ring's: what is below it is no frame's that waits, whatever that one says.
        from_seq = max(frames[0].first_seq, mark.next_seq) if frames else None
        tail = cut(self.epoch, from_seq, storage)
        if tail.next_seq is None:
            # Nothing was written yet, or retention took all that came before.
            self.next_seq = mark.next_seq
        else:
            self.next_seq = tail.next_seq
            if tail.next_seq < mark.next_seq:
                self.lost = (tail.next_seq, mark.next_seq - 1)
        self._last_payload = tail.payload
        mark.store(self.next_seq)
        return mark, writer, self._take_up_chain()

    def _take_up_chain(self) -> Chain:
        if self._chain is not None and self._chain.next_seq == self.next_seq:
            # The cut took only what was not synced.
            return self._chain
        return Chain.resume(self.epoch, self._target.storage, self.next_seq)


def _attach(fd: int, name: str) -> Ring:
    try:
        ring = Ring.attach(memoryview(mmap.mmap(fd, 0)))
    except ValueError as exc:
        msg = f"not a ring: {exc}"
        raise RingUnusable(msg) from exc
    facts = ring.facts
    if f"{facts.source:016x}-{facts.epoch:08x}" != name:
        msg = f"ring {name} says that it is {facts.source:016x}-{facts.epoch:08x}"
        raise RingUnusable(msg)
    return ring
