"""Room: who may still write when the disk is full or the spool is at its limit.

Beside the drain, in the recorder's process. A reserve of 64 MiB is allocated at start and given up when the disk has no
room: from then on workers' and mirrors' records wait in their rings, while control, the sidecar and the recorder go
on, so that a rollback can be logged, and made, on a full disk. It is taken again, and the others go on, once there is
twice as much room. At the spool's limit the same wait and the same go on; the reserve stays.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from pathlib import Path

log = logging.getLogger("tidegate.recorder")

RESERVE_BYTES = 64 * 1024**2
RESERVE_SHARE = 16
"""At most 1/16 of the file system."""
RESERVE_FLOOR_BYTES = 64 * 1024
"""Where it would be smaller (a file system under 1 MiB) there is none."""
LOW_SHARE = 16
"""It is given up before the disk is quite full, with 1/16 of its size left: others of ours write there, too."""
BACK_FACTOR = 2
"""It is taken again with so many times its size free."""
BACK_S = (1.0, 8.0)
"""And not before so long: twice as long each time that it did not last, where what is free is not to be had (a quota,
a thin volume)."""
LASTED_S = 60.0
NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT))
DISK_FULL, AT_LIMIT = "disk_full", "spool_at_limit"
"""Why workers' records wait, as `Room.waits` and status say."""


class Reserve:
    """A file that takes room so that it can be given up.

    Args:
        state_dir: where it lies, as `reserve`.
        size_bytes: None: by the file system.

    Threading: one thread. Cost: an allocation of up to 64 MiB, without writing where the file system can.
    """

    def __init__(self, state_dir: Path, size_bytes: int | None = None) -> None:
        self._path = state_dir / "reserve"
        if size_bytes is None:
            stat = os.statvfs(state_dir)
            size_bytes = min(RESERVE_BYTES, stat.f_blocks * stat.f_frsize // RESERVE_SHARE)
        self.size_bytes = size_bytes if size_bytes >= RESERVE_FLOOR_BYTES else 0
        """What it is meant to be; 0: there is none."""
        self.held_bytes = 0
        """What it is."""
        self._refused = ""

    @property
    def is_whole(self) -> bool:
        """It could be given up, or there is none to be had."""
        return self.held_bytes >= self.size_bytes

    @property
    def is_found(self) -> bool:
        """Its file is there, from an earlier life."""
        try:
            return self._path.stat().st_size == self.size_bytes
        except OSError:
            return False

    def take(self) -> bool:
        """Allocate it; False when there is no room for it. Where it is refused for another reason nothing is held, and
        nobody waits for that."""
        if self.is_whole:
            return True
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, self.size_bytes)
                os.ftruncate(fd, self.size_bytes)
            finally:
                os.close(fd)
        except OSError as exc:
            self.give_up()
            if exc.strerror != self._refused:
                self._refused = exc.strerror or ""
                log.warning("reserve_not_taken", extra={"bytes": self.size_bytes, "why": exc.strerror})
            return exc.errno not in NO_ROOM
        self.held_bytes, self._refused = self.size_bytes, ""
        return True

    def give_up(self) -> None:
        """Let its room go; never raises."""
        self.held_bytes = 0
        # In this order: a file that cannot be removed may still be emptied.
        for release in (lambda: os.truncate(self._path, 0), lambda: self._path.unlink(missing_ok=True)):
            with contextlib.suppress(OSError):
                release()


class Room:
    """Who may write now.

    Args:
        reserve: taken here; None: there is none (tests).

    Attributes:
        at_limit: the spool is at its size limit and may not be trimmed (`retention`); set from outside.
        free_bytes: of the file system, as of the last `look`.

    Threading: one thread. Cost: `waits` is two comparisons; `look` one statvfs.
    """

    def __init__(self, state_dir: Path, reserve: Reserve | None = None) -> None:
        self._state_dir = state_dir
        self._reserve = reserve
        self._full = False
        self._back_s = 0.0
        self._back_at_s = self._full_since_s = 0.0
        self._room_since_s = -LASTED_S
        self.at_limit = False
        self.free_bytes = free_bytes(state_dir)
        if reserve is None:
            return
        # What a predecessor gave up is not taken from those who need it now.
        enough = reserve.is_found or self.free_bytes >= reserve.size_bytes * BACK_FACTOR
        if not enough or not reserve.take():
            self._begin_full("there is no room for the reserve")

    @property
    def waits(self) -> str:
        """Why workers' records are left in their rings: `disk_full`, `spool_at_limit`, or nothing."""
        if self._full:
            return DISK_FULL
        return AT_LIMIT if self.at_limit else ""

    @property
    def reserve_bytes(self) -> int:
        """What is held in reserve."""
        return 0 if self._reserve is None else self._reserve.held_bytes

    @property
    def reserve_size_bytes(self) -> int:
        """What should be."""
        return 0 if self._reserve is None else self._reserve.size_bytes

    def refused(self, exc: OSError, *, can_wait: bool) -> bool:
        """A write was refused; whether it was for want of room and something was done about it.

        Args:
            can_wait: the record was a worker's or mirror's: it waits from now on.
        """
        if exc.errno not in NO_ROOM or self._reserve is None:
            return False
        had = self._reserve.held_bytes > 0
        if not self._full:
            self._begin_full(exc.strerror or "no room")
        return can_wait or had

    def look(self) -> None:
        """About each second: give the reserve up before others of ours meet a full disk, take it again after."""
        try:
            self.free_bytes = free_bytes(self._state_dir)
        except OSError:
            # What stands in its way is met, and told, by the next write.
            return
        reserve = self._reserve
        if reserve is None:
            return
        if not self._full:
            if self.free_bytes < reserve.size_bytes // LOW_SHARE:
                self._begin_full("almost no room is left")
            elif self.free_bytes >= reserve.size_bytes * BACK_FACTOR:
                reserve.take()
            return
        enough = max(reserve.size_bytes, RESERVE_FLOOR_BYTES) * BACK_FACTOR
        now_s = time.monotonic()
        if now_s >= self._back_at_s and self.free_bytes >= enough and reserve.take():
            self._full, self._room_since_s = False, now_s
            lasted_s = round(now_s - self._full_since_s, 1)
            log.info("disk_has_room", extra={"free_bytes": self.free_bytes, "after_s": lasted_s})

    def _begin_full(self, why: str) -> None:
        self._full = True
        self._full_since_s = now_s = time.monotonic()
        short = now_s - self._room_since_s < LASTED_S
        self._back_s = min(self._back_s * 2, BACK_S[1]) if short else BACK_S[0]
        self._back_at_s = now_s + self._back_s
        given_up = self.reserve_bytes
        with contextlib.suppress(OSError):
            # As of the last look there may have been plenty.
            self.free_bytes = free_bytes(self._state_dir)
        if self._reserve is not None:
            self._reserve.give_up()
        log.error(
            "disk_full",
            extra={
                "why": why,
                "free_bytes": self.free_bytes,
                "reserve_given_up_bytes": given_up,
                "meanwhile": "control's and the sidecar's records are written; workers' wait, then"
                " audit.on_unavailable decides",
                "do": f"free {max(self.reserve_size_bytes, RESERVE_FLOOR_BYTES) * BACK_FACTOR} bytes where the"
                " state directory lies; nothing needs a restart",
            },
        )


def free_bytes(directory: Path) -> int:
    """What this process may still write to a file system."""
    stat = os.statvfs(directory)
    return (stat.f_bfree if os.geteuid() == 0 else stat.f_bavail) * stat.f_frsize
