"""How a process becomes a source: index by flock, epoch by file, ring in shared memory.

    <state_dir>/gateway_id                     made once, 16 hex digits
    <state_dir>/sources/<role>-<index>.lock    flock held for life
    <state_dir>/spool/<source hex>/epoch       last epoch, the only file an owner writes there
    <ring dir>/<source hex>-<epoch hex>        the ring, 0600, flock held for life

The ring directory is /dev/shm/tidegate-<gateway_id> or <state_dir>/ring.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import logging
import mmap
import os
import time
from pathlib import Path
from typing import NamedTuple

from gateway.audit.identity import source_of
from gateway.audit.ring import HEADER_PAGE_BYTES, Ring, RingFacts
from gateway.audit.storage import DISK, Storage, replace
from gateway.errors import RingUnusable, StateInUse

log = logging.getLogger("tidegate.source")

RING_FLOOR_BYTES = 4 * 1024 * 1024
SMALL_RING_BYTES = 4 * 1024 * 1024
"""Rings of all roles but workers."""
_MADV_POPULATE_READ = 22
"""Map all pages now: they are allocated already, and would else be mapped one by one while requests are answered."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_EPOCH_NAME_CHARS = 8
_EPOCH_MAX = 0xFFFFFFFF


class Source(NamedTuple):
    """A claimed place in the log. Keep it referenced: its descriptors are the locks."""

    source: int
    role: str
    index: int  # type: ignore[assignment]
    epoch: int
    prev_epoch: int | None
    ring: Ring
    ring_path: Path
    lock_fds: tuple[int, int]


@functools.cache
def boot_id() -> int:
    """The first 64 bits of this machine's boot id; 0 where the system does not tell it."""
    try:
        return int(_BOOT_ID.read_text().replace("-", "")[:16], 16)
    except (OSError, ValueError):
        return 0


def source_directory(state_dir: Path, source: int) -> Path:
    """`spool/<source hex>`."""
    return state_dir / "spool" / f"{source:016x}"


def claim_source(
    state_dir: Path, gateway_id: str, role: str, ring_dir: Path, ring_bytes: int, storage: Storage = DISK
) -> Source:
    """Take the lowest free index of a role, begin a new epoch, make its ring.

    Raises:
        RingUnusable: no room for a ring of at least 4 MiB; says what to do.
        StateInUse: more than 1,024 processes of the role live.
    """
    index, lock_fd = _lock_lowest(state_dir, role)
    source = source_of(gateway_id, role, index)
    epoch, prev_epoch = _next_epoch(source_directory(state_dir, source), storage)
    facts = RingFacts(source, epoch, prev_epoch, time.time_ns(), os.getpid(), boot_id())
    ring, path, ring_fd = make_ring(ring_dir, facts, ring_bytes)
    return Source(source, role, index, epoch, prev_epoch, ring, path, (lock_fd, ring_fd))


def make_ring(ring_dir: Path, facts: RingFacts, ring_bytes: int) -> tuple[Ring, Path, int]:
    """A new ring file: allocated, filled, locked, then renamed into sight.

    Shrinks to what is free (all rings take at most half of it), down to 4 MiB or to what was asked
    when that is less. Removes what a process of the same source left that was killed right here.
    """
    for left in ring_dir.glob(f"{facts.source:016x}-*.new"):
        left.unlink(missing_ok=True)
    stat = os.statvfs(ring_dir)
    free = stat.f_bavail * stat.f_frsize
    floor = min(RING_FLOOR_BYTES, ring_bytes)
    size = max(min(ring_bytes, free // 2), floor) // mmap.PAGESIZE * mmap.PAGESIZE
    path = ring_dir / f"{facts.source:016x}-{facts.epoch:08x}"
    temporary = path.with_name(path.name + ".new")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    total = HEADER_PAGE_BYTES + size
    try:
        os.posix_fallocate(fd, 0, total)
    except OSError as exc:
        os.close(fd)
        temporary.unlink()
        if exc.errno != errno.ENOSPC:
            raise
        msg = (
            f"no room for a log ring of {size >> 20} MiB in shared memory: give the container more"
            ' (--shm-size=256m) or set audit.ring = "state_dir"'
        )
        raise RingUnusable(msg) from exc
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    memory = mmap.mmap(fd, total)
    with contextlib.suppress(OSError):  # Linux before 5.14.
        memory.madvise(_MADV_POPULATE_READ)
    ring = Ring.create(memoryview(memory), facts)
    temporary.rename(path)
    return ring, path, fd


def _lock_lowest(state_dir: Path, role: str) -> tuple[int, int]:
    directory = state_dir / "sources"
    directory.mkdir(mode=0o700, exist_ok=True)
    for index in range(1024):
        fd = os.open(directory / f"{role}-{index}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            continue
        return index, fd
    msg = f"1024 processes of role {role} hold this state directory"
    raise StateInUse(msg)


def _next_epoch(directory: Path, storage: Storage) -> tuple[int, int | None]:
    storage.make_directory(directory)
    path = directory / "epoch"
    prev_epoch = _last_epoch(path, storage)
    epoch = max((prev_epoch or 0) + 1, int(time.time()))
    replace(storage, path, f"{epoch}\n".encode())
    for parent in (directory.parent, directory.parent.parent):
        storage.sync_directory(parent)
    return epoch, prev_epoch


def _last_epoch(path: Path, storage: Storage) -> int | None:
    """The last epoch of a source by its file or, should that be torn or older, by what lies beside it."""
    found = storage.entries(path.parent)
    known = [
        int(name, 16)
        for name, is_directory in found
        if is_directory and len(name) == _EPOCH_NAME_CHARS and not set(name) - set("0123456789abcdef")
    ]
    try:
        content = storage.content(path)
    except FileNotFoundError:
        return max(known, default=None)
    if content.strip().isdigit() and int(content) <= _EPOCH_MAX:
        known.append(int(content))
    else:
        log.error("epoch_file_unreadable", extra={"file": str(path), "found": repr(content[:32])})
    return max(known, default=None)
