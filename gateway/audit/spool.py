"""The spool: the log on this host's disk, as the recorder writes it and as readers find it.

    spool/<source hex>/<epoch hex>/<first seq, 20 digits>.log    frames, each at a multiple of 8 bytes
    spool/<source hex>/<epoch hex>/<first seq, 20 digits>.idx    where numbers stand in it (`index.py`)
    spool/<source hex>/<epoch hex>/chain                         the running hash at each segment's start (`chain.py`)
    spool/<source hex>/<epoch hex>/synced                        u64: the next seq not yet on disk
    spool/<source hex>/<epoch hex>/closed                        JSON: the epoch is over

`synced` is mapped by the recorder and stored whole: readers treat frames from that number on as not there
yet. It never runs ahead of what was synced to disk. `closed` comes once all there is to say of the epoch is
on disk, in its own segments or as gap records of the recorder.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gateway.audit.frame import HEADER_BYTES, PREFIX_BYTES, Frame, padded, scan
from gateway.audit.storage import DISK, Storage, replace, write_all

SUFFIX = ".log"
_NAME_CHARS = 24
_HEX = frozenset("0123456789abcdef")
SEQ_END = 2**64
"""No number of an event is as large."""
READ_BYTES = 1024 * 1024
"""A reader takes so much of a segment at once."""


class EpochPath(NamedTuple):
    """One epoch of one source on disk."""

    source: int
    epoch: int
    path: Path

    @property
    def key(self) -> str:
        """The positions' key of this epoch."""
        return f"{self.source:016x}-{self.epoch:08x}"


def epoch_path(spool: Path, source: int, epoch: int) -> EpochPath:
    """Where an epoch lies."""
    return EpochPath(source, epoch, spool / f"{source:016x}" / f"{epoch:08x}")


def epochs(spool: Path, storage: Storage = DISK) -> list[EpochPath]:
    """Every epoch on disk, by source and in order."""
    found: list[EpochPath] = []
    # Asked ten times a second by every reader, over all that is kept: names first, paths only for what counts.
    try:
        sources = _directories(spool, 16, storage)
    except FileNotFoundError:
        return found
    for source in sources:
        directory = spool / source
        number = int(source, 16)
        found.extend(
            EpochPath(number, int(name, 16), directory / name) for name in _directories(directory, 8, storage)
        )
    return found


def _directories(where: Path, name_chars: int, storage: Storage) -> list[str]:
    found = storage.entries(where)
    return sorted(
        name
        for name, is_directory in found
        # Whatever else lies there is not ours to trip over.
        if len(name) == name_chars and is_directory and _HEX.issuperset(name)
    )


def segments(epoch: EpochPath, storage: Storage = DISK) -> list[tuple[int, Path]]:
    """(first seq, file) of an epoch's segments, in order."""
    try:
        found = storage.entries(epoch.path)
    except FileNotFoundError:
        return []
    names = sorted(
        name
        for name, _ in found
        if name.endswith(SUFFIX)
        and len(name) == _NAME_CHARS
        and name[:-4].isascii()
        and name[:-4].isdecimal()
    )
    return [(seq, epoch.path / name) for name in names if (seq := int(name[:-4])) < SEQ_END]


def segment_name(first_seq: int) -> str:
    """The file name of a segment."""
    return f"{first_seq:020d}{SUFFIX}"


def synced_seq(epoch: EpochPath, storage: Storage = DISK) -> int:
    """The next seq of an epoch that is not yet on disk; 0 before the first sync, and where the mark is not whole."""
    try:
        content = storage.content(epoch.path / "synced")
    except FileNotFoundError:
        return 0
    return int.from_bytes(content[:8], "little") if len(content) >= 8 else 0


def closed(epoch: EpochPath, storage: Storage = DISK) -> dict[str, object] | None:
    """What `closed` says, or None while the epoch is open. One that is not whole says nothing."""
    try:
        content = json.loads(storage.content(epoch.path / "closed"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def next_of(over: dict[str, object]) -> int:
    """The number behind an epoch's last, as its `closed` says; 0 where it says none."""
    found = over.get("next_seq")
    return found if isinstance(found, int) and 0 <= found < SEQ_END else 0


class EpochReader:
    """Reads one epoch onward and keeps its place, so that following a segment does not read it anew.

    Frames come in order up to the synced mark. Where a segment holds numbers that the next one begins
    with, the next one counts: the first was cut and the cut is not on disk.
    """

    def __init__(self, epoch: EpochPath, storage: Storage = DISK) -> None:
        self._epoch = epoch
        self._storage = storage
        self._place: tuple[int, int, int] | None = None
        """Segment, byte of its next frame, and that frame's number."""

    def frames(self, from_seq: int, damaged: list[tuple[int, int]] | None = None) -> Iterator[Frame]:
        """Frames from the one that holds `from_seq` on. Memory: 1 MiB, or the largest frame.

        Args:
            damaged: gets (first, behind the last) of numbers that a segment before the last holds and does not give any
                more, before the next frame comes. A hole between whole frames is none.
        """
        limit = synced_seq(self._epoch, self._storage)
        if limit <= from_seq:
            return
        listed = segments(self._epoch, self._storage)
        for index, (first_seq, path) in enumerate(listed):
            end_seq = listed[index + 1][0] if index + 1 < len(listed) else limit
            end_seq = min(end_seq, limit)
            if end_seq <= from_seq:
                continue
            end, at_seq = 0, first_seq
            if self._place and self._place[0] == first_seq and self._place[2] <= from_seq:
                _, end, at_seq = self._place
            for following, frame in _frames_at(path, end, self._storage):
                if frame.first_seq >= end_seq:
                    break
                end, at_seq = following, frame.next_seq
                if at_seq > from_seq:
                    self._place = (first_seq, following, at_seq)
                    yield frame
            else:
                lost = at_seq < end_seq and index + 1 < len(listed)
                if damaged is not None and lost and (not end or self._storage.facts(path).size_bytes > end):
                    damaged.append((max(at_seq, from_seq), end_seq))


def read_epoch(epoch: EpochPath, from_seq: int, storage: Storage = DISK) -> Iterator[Frame]:
    """Frames of an epoch from the one that holds `from_seq` on, up to the synced mark.

    For one look; who follows an epoch keeps an `EpochReader`.
    """
    return EpochReader(epoch, storage).frames(from_seq)


def _frames_at(path: Path, offset: int, storage: Storage) -> Iterator[tuple[int, Frame]]:
    """Frames of a file from a byte on, each with the byte behind it, to the first that is not whole.

    Not mapped: a file that is cut while mapped kills its reader.
    """
    try:
        fd = storage.open(path)
    except FileNotFoundError:
        return
    try:
        size = storage.size(fd)
        rest = b""
        while offset + len(rest) < size:
            wanted = READ_BYTES
            if len(rest) >= HEADER_BYTES:
                needed = PREFIX_BYTES + int.from_bytes(rest[:4], "little")
                if needed <= len(rest) or offset + needed > size:
                    return
                wanted = max(wanted, needed - len(rest))
            read = storage.read(fd, wanted, offset + len(rest))
            if not read:
                return
            rest += read
            taken = 0
            for at, frame in scan(rest, 0, len(rest)):
                taken = at + padded(HEADER_BYTES + len(frame.payload))
                yield offset + taken, frame
            offset += taken
            rest = rest[taken:]
    finally:
        storage.close(fd)


class SyncedMark:
    """The recorder's handle on an epoch's `synced` file."""

    def __init__(self, path: Path, storage: Storage = DISK) -> None:
        self._storage = storage
        self._word = storage.map_word(path)

    @property
    def next_seq(self) -> int:
        """Where it stands."""
        return self._word[0]

    def store(self, next_seq: int) -> None:
        """Everything below is on disk. Never moves back."""
        self._word[0] = max(self._word[0], next_seq)

    def close(self) -> None:
        """Unmap."""
        self._storage.unmap(self._word)


class SegmentWriter:
    """Appends frames of one epoch; rolls at `segment_bytes`.

    A write or sync that fails leaves the file poisoned: `abandon` closes it, and the caller cuts it and goes
    on in a new one; a failed sync is never tried again on the same file.
    """

    def __init__(self, epoch: EpochPath, segment_bytes: int, storage: Storage = DISK) -> None:
        self._epoch = epoch
        self._segment_bytes = segment_bytes
        self._storage = storage
        self._fd = -1
        self._size = 0
        self._fresh = False
        self.segment_seq = 0
        """The first number of the segment that was written last."""
        storage.make_directory(epoch.path)

    def write(self, first_seq: int, data: bytes) -> None:
        """Write frames; not on disk before `sync`.

        Raises:
            OSError: nothing of it may be taken as written.
        """
        if self._fd < 0 or self._size >= self._segment_bytes:
            self._roll(first_seq)
        write_all(self._storage, self._fd, data)
        self._size += len(data)

    def sync(self) -> None:
        """Put what was written on disk, and a new file's name too.

        Raises:
            OSError: the file is poisoned.
        """
        if self._fd < 0:
            return
        self._storage.sync(self._fd)
        if self._fresh:
            path = self._epoch.path
            for directory in (path, path.parent, path.parent.parent):
                self._storage.sync_directory(directory)
            self._fresh = False

    def abandon(self) -> None:
        """Close the file as it is."""
        if self._fd >= 0:
            self._storage.close(self._fd)
        self._fd, self._size = -1, 0

    def _roll(self, first_seq: int) -> None:
        if self._fd >= 0:
            # Its name, too: a power loss must not keep a segment and lose the one before it.
            self.sync()
            self.abandon()
        self.segment_seq = first_seq
        self._fd = self._storage.create(self._epoch.path / segment_name(first_seq), exclusive=True)
        self._fresh = True


def write_closed(epoch: EpochPath, next_seq: int, cause: str, storage: Storage = DISK) -> None:
    """Say that an epoch is over, in one step; it is on disk when this returns.

    So is the mark: no recovery looks at an epoch that is over, and readers would stop at an old one for ever.
    """
    path = epoch.path / "synced"
    with contextlib.suppress(FileNotFoundError):
        fd = storage.open(path, write=True)
        try:
            # Stored anew: should an earlier sync have failed, this one would else have nothing to write.
            word = storage.map_word(path)
            word[0] = word[0]
            storage.unmap(word)
            storage.sync(fd)
        finally:
            storage.close(fd)
    replace(storage, epoch.path / "closed", json.dumps({"next_seq": next_seq, "cause": cause}).encode())
