"""The spool: the log on this host's disk, as the recorder writes it and as readers find it.

    spool/<source hex>/<epoch hex>/<first seq, 20 digits>.log    frames, each at a multiple of 8 bytes
    spool/<source hex>/<epoch hex>/synced                        u64: the next seq not yet on disk
    spool/<source hex>/<epoch hex>/closed                        JSON: the epoch is over

`synced` is mapped by the recorder and stored whole: readers treat frames from that number on as not there
yet. It never runs ahead of what was synced to disk. `closed` comes once all there is to say of the epoch is
on disk, in its own segments or as gap records of the recorder.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from gateway.audit.frame import HEADER_BYTES, PREFIX_BYTES, Frame, padded, scan

SUFFIX = ".log"
READ_BYTES = 1024 * 1024
"""A reader takes so much of a segment at once."""


class Storage(Protocol):
    """The disk, as an argument: tests give one that fails."""

    def write(self, fd: int, data: memoryview) -> int:
        """write(2)."""
        ...

    def sync(self, fd: int) -> None:
        """fdatasync(2)."""
        ...


class Disk:
    """The real one."""

    def write(self, fd: int, data: memoryview) -> int:
        """write(2)."""
        return os.write(fd, data)

    def sync(self, fd: int) -> None:
        """fdatasync(2)."""
        os.fdatasync(fd)


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


def epochs(spool: Path) -> list[EpochPath]:
    """Every epoch on disk, by source and in order."""
    found: list[EpochPath] = []
    # Asked ten times a second by every reader, over all that is kept: names first, paths only for what counts.
    try:
        sources = _directories(spool, 16)
    except FileNotFoundError:
        return found
    for source in sources:
        directory = spool / source
        number = int(source, 16)
        found.extend(
            EpochPath(number, int(name, 16), directory / name) for name in _directories(directory, 8)
        )
    return found


def _directories(where: Path, name_chars: int) -> list[str]:
    with os.scandir(where) as entries:
        return sorted(entry.name for entry in entries if len(entry.name) == name_chars and entry.is_dir())


def segments(epoch: EpochPath) -> list[tuple[int, Path]]:
    """(first seq, file) of an epoch's segments, in order."""
    try:
        names = sorted(p for p in epoch.path.iterdir() if p.suffix == SUFFIX)
    except FileNotFoundError:
        return []
    return [(int(path.stem), path) for path in names]


def segment_name(first_seq: int) -> str:
    """The file name of a segment."""
    return f"{first_seq:020d}{SUFFIX}"


def synced_seq(epoch: EpochPath) -> int:
    """The next seq of an epoch that is not yet on disk; 0 before the first sync."""
    try:
        content = (epoch.path / "synced").read_bytes()
    except FileNotFoundError:
        return 0
    return int.from_bytes(content[:8], "little")


def closed(epoch: EpochPath) -> dict[str, object] | None:
    """What `closed` says, or None while the epoch is open."""
    try:
        return json.loads((epoch.path / "closed").read_bytes())  # type: ignore[no-any-return]
    except (FileNotFoundError, ValueError):
        return None


class EpochReader:
    """Reads one epoch onward and keeps its place, so that following a segment does not read it anew.

    Frames come in order up to the synced mark. Where a segment holds numbers that the next one begins
    with, the next one counts: the first was cut and the cut is not on disk.
    """

    def __init__(self, epoch: EpochPath) -> None:
        self._epoch = epoch
        self._place: tuple[int, int, int] | None = None
        """Segment, byte of its next frame, and that frame's number."""

    def frames(self, from_seq: int) -> Iterator[Frame]:
        """Frames from the one that holds `from_seq` on. Memory: 1 MiB, or the largest frame."""
        limit = synced_seq(self._epoch)
        if limit <= from_seq:
            return
        listed = segments(self._epoch)
        for index, (first_seq, path) in enumerate(listed):
            end_seq = listed[index + 1][0] if index + 1 < len(listed) else limit
            end_seq = min(end_seq, limit)
            if end_seq <= from_seq:
                continue
            start = 0
            if self._place and self._place[0] == first_seq and self._place[2] <= from_seq:
                start = self._place[1]
            for following, frame in _frames_at(path, start):
                if frame.first_seq >= end_seq:
                    break
                if frame.next_seq > from_seq:
                    self._place = (first_seq, following, frame.next_seq)
                    yield frame


def read_epoch(epoch: EpochPath, from_seq: int) -> Iterator[Frame]:
    """Frames of an epoch from the one that holds `from_seq` on, up to the synced mark.

    For one look; who follows an epoch keeps an `EpochReader`.
    """
    return EpochReader(epoch).frames(from_seq)


def _frames_at(path: Path, offset: int) -> Iterator[tuple[int, Frame]]:
    """Frames of a file from a byte on, each with the byte behind it, to the first that is not whole.

    Not mapped: a file that is cut while mapped kills its reader.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        size = os.fstat(fd).st_size
        rest = b""
        while offset + len(rest) < size:
            wanted = READ_BYTES
            if len(rest) >= HEADER_BYTES:
                needed = PREFIX_BYTES + int.from_bytes(rest[:4], "little")
                if needed <= len(rest) or offset + needed > size:
                    return
                wanted = max(wanted, needed - len(rest))
            read = os.pread(fd, wanted, offset + len(rest))
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
        os.close(fd)


class SyncedMark:
    """The recorder's handle on an epoch's `synced` file."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size < 8:
                os.pwrite(fd, b"\0" * 8, 0)
                os.fsync(fd)
            self._map = mmap.mmap(fd, 8)
        finally:
            os.close(fd)
        self._word = memoryview(self._map).cast("Q")

    @property
    def next_seq(self) -> int:
        """Where it stands."""
        return self._word[0]

    def store(self, next_seq: int) -> None:
        """Everything below is on disk. Never moves back."""
        self._word[0] = max(self._word[0], next_seq)

    def close(self) -> None:
        """Unmap."""
        self._word.release()
        self._map.close()


class SegmentWriter:
    """Appends frames of one epoch; rolls at `segment_bytes`.

    A write or sync that fails leaves the file poisoned: `abandon` closes it, and the caller cuts it and goes
    on in a new one; a failed sync is never tried again on the same file.
    """

    def __init__(self, epoch: EpochPath, segment_bytes: int, storage: Storage) -> None:
        self._epoch = epoch
        self._segment_bytes = segment_bytes
        self._storage = storage
        self._fd = -1
        self._size = 0
        self._fresh = False
        epoch.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, first_seq: int, data: bytes) -> None:
        """Write frames; not on disk before `sync`.

        Raises:
            OSError: nothing of it may be taken as written.
        """
        if self._fd < 0 or self._size >= self._segment_bytes:
            self._roll(first_seq)
        written = self._storage.write(self._fd, memoryview(data))
        if written != len(data):
            raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes were written")
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
            sync_directory(self._epoch.path)
            sync_directory(self._epoch.path.parent)
            sync_directory(self._epoch.path.parent.parent)
            self._fresh = False

    def abandon(self) -> None:
        """Close the file as it is."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size = -1, 0

    def _roll(self, first_seq: int) -> None:
        if self._fd >= 0:
            self._storage.sync(self._fd)
            self.abandon()
        path = self._epoch.path / segment_name(first_seq)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)
        self._fresh = True


def sync_directory(path: Path) -> None:
    """fsync of a directory: names in it survive power loss."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_closed(epoch: EpochPath, next_seq: int, cause: str) -> None:
    """Say that an epoch is over (temporary file, fsync, rename, fsync of the directory)."""
    temporary = epoch.path / "closed.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, json.dumps({"next_seq": next_seq, "cause": cause}).encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.rename(epoch.path / "closed")
    sync_directory(epoch.path)
