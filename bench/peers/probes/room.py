"""Room: whether this machine has run short of disk, files or memory. That says nothing of a product.

A probe takes an OSError for a product's failure, on threads of its own, too: **line** notes here what was this
machine's. Whoever writes an answer down asks first, and the run ends instead of the answer.
"""

from __future__ import annotations

import errno
import shutil
import tempfile

_SHORT = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM))
_FREE_BYTES = 64 << 20
"""Of the disk that models, logs and receivers are on: a product that meets its end says so in words of its own."""
_noted: list[OSError] = []


def note(exc: BaseException) -> None:
    """Keep it for the next `demand_room` if this machine ran short: whoever catches it need not tell the two apart."""
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _SHORT:
            _noted.append(seen)
            return
        seen = seen.__cause__ or seen.__context__


def demand_room(exc: BaseException | None = None, *, asks_disk: bool = True) -> None:
    """Ask before something is called a product's answer.

    Args:
        exc: what went wrong, if something did.
        asks_disk: whether there is room on the disk now; of no matter where nothing failed.

    Raises:
        OSError: this machine ran short since the last time, by `exc` or what was noted, or has no disk left.
    """
    if exc is not None:
        note(exc)
    if _noted:
        first = _noted[0]
        _noted.clear()
        msg = f"this machine ran short, which is no product's answer: {first.strerror}: free some, and run it again"
        raise OSError(first.errno, msg) from first
    if not asks_disk:
        return
    free_bytes = shutil.disk_usage(tempfile.gettempdir()).free
    if free_bytes < _FREE_BYTES:
        msg = (
            f"{tempfile.gettempdir()} has {free_bytes >> 20} MiB left, and what a product does without room is not its"
            f" answer: free some (at least {_FREE_BYTES >> 20} MiB), and run it again"
        )
        raise OSError(errno.ENOSPC, msg)
