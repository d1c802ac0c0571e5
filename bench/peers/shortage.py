"""Shortage: whether this machine has run short of disk, files or memory. That says nothing of a product.

Whoever starts or installs a product asks here before calling it unavailable: OSError goes up instead, and ends the run.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from pathlib import Path

from gateway.errors import ConfigInvalid

SHORT = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM))
FREE_BYTES = 64 << 20
"""With less a disk is full: whoever writes there fails in words of its own."""
ROOM_BYTES = 2 << 30
"""A run begins with so much: logs of servers under load take gigabytes."""
_NUMBERED = re.compile(r"\[Errno (\d+)\]|\(os error (\d+)\)")


def is_short(exc: BaseException) -> bool:
    """Whether an error is the machine's."""
    return isinstance(exc, OSError) and exc.errno in SHORT


def raise_short(exc: BaseException) -> None:
    """Raise an error on where it is the machine's."""
    if is_short(exc):
        raise exc


def demand_none(said: str, place: Path) -> None:
    """Ask after a process of somebody else has failed.

    Args:
        said: the end of its output.
        place: where it wrote.

    Raises:
        OSError: it says that the machine was short, or the disk of `place` is full.
    """
    for found in _NUMBERED.finditer(said):
        number = int(found[1] or found[2])
        if number in SHORT:
            raise OSError(number, os.strerror(number))
    for number in SHORT:
        if os.strerror(number) in said:
            raise OSError(number, os.strerror(number))
    while not place.exists():
        place = place.parent
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < FREE_BYTES:
        msg = f"{os.strerror(errno.ENOSPC)}: {free_bytes >> 20} MiB are left in {place}"
        raise OSError(errno.ENOSPC, msg)


def demand_room() -> None:
    """Raise ConfigInvalid now rather than after an hour, when the disk of temporary files is nearly full."""
    place = Path(tempfile.gettempdir())
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < ROOM_BYTES:
        msg = (
            f"{place} has {free_bytes / 2**30:.1f} GiB left, and servers under load log gigabytes there: expected"
            f" {ROOM_BYTES / 2**30:g} GiB at least; free some, or name a directory on another disk by TMPDIR"
        )
        raise ConfigInvalid(msg)
