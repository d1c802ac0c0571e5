"""The disk, as an argument: all that the recorder, its recovery and the spool do to files goes through here.

Beside drain and spool; below it the file system. `DISK` is the real one and the default everywhere. Tests give one
that fails, and one that forgets at a power loss what was not synced, so what is promised of names and bytes is what
POSIX promises: bytes are safe after `sync`, names (made, renamed, removed) after `sync_directory` of where they stand.
Rings are memory, not storage: only their names are made and removed here.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
from pathlib import Path
from typing import NamedTuple, Protocol

WORD_BYTES = 8


class Entry(NamedTuple):
    """One name of a directory."""

    name: str
    is_directory: bool


class FileFacts(NamedTuple):
    """What a name says about its file."""

    size_bytes: int
    mtime_ns: int


class Storage(Protocol):
    """One file system. Every method raises OSError as the call of its name does; `FileNotFoundError` where said.

    Threading: none of its own; descriptors are the caller's. Calls cut short by a signal are made again (PEP 475).
    """

    def create(self, path: Path, *, exclusive: bool = False) -> int:
        """A new empty file to append to, 0600. `exclusive`: FileExistsError where there is one, else it is emptied."""
        ...

    def open(self, path: Path, *, write: bool = False) -> int:
        """An existing file. Raises FileNotFoundError."""
        ...

    def close(self, fd: int) -> None:
        """close(2)."""
        ...

    def write(self, fd: int, data: memoryview) -> int:
        """write(2): the bytes taken, perhaps fewer than given."""
        ...

    def read(self, fd: int, size_bytes: int, offset: int) -> bytes:
        """pread(2)."""
        ...

    def content(self, path: Path) -> bytes:
        """A whole file. Raises FileNotFoundError."""
        ...

    def size(self, fd: int) -> int:
        """The file's bytes."""
        ...

    def truncate(self, fd: int, size_bytes: int) -> None:
        """ftruncate(2)."""
        ...

    def sync(self, fd: int) -> None:
        """fdatasync(2): content and size. A failure is final: what was written may be gone."""
        ...

    def map_word(self, path: Path) -> memoryview:
        """A file's first 8 bytes, shared, as one native word (`word[0]`); made, zeroed and synced where too short."""
        ...

    def unmap(self, word: memoryview) -> None:
        """Let go of a word."""
        ...

    def entries(self, directory: Path) -> list[Entry]:
        """Names in a directory, in no order; links are no directories. Raises FileNotFoundError."""
        ...

    def facts(self, path: Path) -> FileFacts:
        """stat(2). Raises FileNotFoundError."""
        ...

    def make_directory(self, path: Path) -> None:
        """mkdir -p, 0700."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove a name; nothing happens where there is none."""
        ...

    def remove_tree(self, path: Path) -> None:
        """rm -r."""
        ...

    def rename(self, path: Path, to: Path) -> None:
        """rename(2): replaces a file in one step."""
        ...

    def sync_directory(self, path: Path) -> None:
        """fsync of a directory: names in it survive power loss."""
        ...


_OURS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""A file of the log is a file: a link leads out of the spool, an auditor's command too; a pipe holds up for ever."""


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | _OURS)


class Disk:
    """The real one; documented by `Storage`."""

    def create(self, path: Path, *, exclusive: bool = False) -> int:
        """open(2)."""
        how = os.O_EXCL if exclusive else os.O_TRUNC
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _OURS | how, 0o600)

    def open(self, path: Path, *, write: bool = False) -> int:
        """open(2)."""
        return os.open(path, (os.O_WRONLY if write else os.O_RDONLY) | _OURS)

    def close(self, fd: int) -> None:
        """close(2)."""
        os.close(fd)

    def write(self, fd: int, data: memoryview) -> int:
        """write(2)."""
        return os.write(fd, data)

    def read(self, fd: int, size_bytes: int, offset: int) -> bytes:
        """pread(2)."""
        return os.pread(fd, size_bytes, offset)

    def content(self, path: Path) -> bytes:
        """read(2)."""
        with open(path, "rb", opener=_opened) as file:  # noqa: PTH123  pathlib has no opener
            return file.read()

    def size(self, fd: int) -> int:
        """fstat(2)."""
        return os.fstat(fd).st_size

    def truncate(self, fd: int, size_bytes: int) -> None:
        """ftruncate(2)."""
        os.ftruncate(fd, size_bytes)

    def sync(self, fd: int) -> None:
        """fdatasync(2)."""
        os.fdatasync(fd)

    def map_word(self, path: Path) -> memoryview:
        """mmap(2)."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | _OURS, 0o600)
        try:
            if os.fstat(fd).st_size < WORD_BYTES:
                os.pwrite(fd, bytes(WORD_BYTES), 0)
                os.fsync(fd)
            return memoryview(mmap.mmap(fd, WORD_BYTES)).cast("Q")
        finally:
            os.close(fd)

    def unmap(self, word: memoryview) -> None:
        """munmap(2)."""
        mapped = word.obj
        word.release()
        if isinstance(mapped, mmap.mmap):
            mapped.close()

    def entries(self, directory: Path) -> list[Entry]:
        """getdents(2)."""
        with os.scandir(directory) as found:
            return [Entry(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]

    def facts(self, path: Path) -> FileFacts:
        """stat(2)."""
        stat = path.stat()
        return FileFacts(stat.st_size, stat.st_mtime_ns)

    def make_directory(self, path: Path) -> None:
        """mkdir(2)."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def unlink(self, path: Path) -> None:
        """unlink(2)."""
        path.unlink(missing_ok=True)

    def remove_tree(self, path: Path) -> None:
        """unlink(2), rmdir(2)."""
        shutil.rmtree(path)

    def rename(self, path: Path, to: Path) -> None:
        """rename(2)."""
        path.rename(to)

    def sync_directory(self, path: Path) -> None:
        """fsync(2)."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


DISK = Disk()
"""Of this machine."""


def write_all(storage: Storage, fd: int, data: bytes) -> None:
    """Write all of it: after a short write (a signal, a disk that fills) the rest is tried, which tells why.

    Raises:
        OSError: nothing of it may be taken as written.
    """
    rest = memoryview(data)
    while rest:
        written = storage.write(fd, rest)
        if written == len(rest):
            return
        if not written:
            raise OSError(errno.ENOSPC, f"only {len(data) - len(rest)} of {len(data)} bytes were written")
        rest = rest[written:]


def replace(storage: Storage, path: Path, content: bytes) -> None:
    """A file's content in one step, and on disk when this returns: temporary file, sync, rename, sync of the directory.

    Raises:
        OSError: old or new content stands there, whole.
    """
    temporary = path.with_name(path.name + ".new")
    fd = storage.create(temporary)
    try:
        write_all(storage, fd, content)
        storage.sync(fd)
    finally:
        storage.close(fd)
    storage.rename(temporary, path)
    storage.sync_directory(path.parent)
