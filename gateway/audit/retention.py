"""Retention: how long records stay in the spool, and how much of the disk they take.

Oldest segments go first. Only a configured forwarder may hold them back, by what it has acknowledged;
over the size limit even those go, since a full disk would stop the log altogether.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

from gateway.audit.spool import closed, epochs, segments
from gateway.config import Config

log = logging.getLogger("tidegate.recorder")

DEFAULT_MAX_BYTES = 20 * 1024**3
DEFAULT_SHARE = 5
"""A fifth of the file system."""


class Retention:
    """Trims one spool.

    Args:
        spool: its directory.
        config: `audit.max_bytes`, `audit.keep_h`, and whether there is a forwarder.
    """

    def __init__(self, spool: Path, config: Config) -> None:
        self._spool = spool
        self._positions = spool.parent / "forwarder" / "positions.json"
        self._held = config.kafka is not None
        self._keep_s = config.audit.keep_h * 3600
        self.max_bytes = config.audit.max_bytes or default_max_bytes(spool.parent)

    def apply(self, now_s: float | None = None) -> int:
        """Remove what is over; returns the segments removed. Never the one being written."""
        now_s = time.time() if now_s is None else now_s
        listed: list[tuple[float, int, Path, bool]] = []
        positions = self._acknowledged()
        for epoch in epochs(self._spool):
            found = segments(epoch)
            over = closed(epoch) is not None
            for index, (_, path) in enumerate(found):
                last = index + 1 == len(found)
                if last and not over:
                    continue
                next_first = found[index + 1][0] if not last else None
                acknowledged = positions.get(epoch.key, {}).get("next_seq", 0)
                sent = not self._held or (
                    acknowledged >= next_first if next_first is not None else over and acknowledged > 0
                )
                stat = path.stat()
                listed.append((stat.st_mtime, stat.st_size, path, sent))
        listed.sort()
        total = sum(size for _, size, _, _ in listed)
        removed = 0
        for mtime, size, path, sent in listed:
            if total <= self.max_bytes and not (sent and now_s - mtime > self._keep_s):
                continue
            if not sent:
                log.warning("unsent_records_trimmed", extra={"segment": path.name})
            path.unlink(missing_ok=True)
            total -= size
            removed += 1
        return removed

    def _acknowledged(self) -> dict[str, dict[str, int]]:
        if not self._held:
            return {}
        try:
            return json.loads(self._positions.read_bytes())  # type: ignore[no-any-return]
        except (FileNotFoundError, ValueError):
            return {}


def default_max_bytes(directory: Path) -> int:
    """The lesser of 20 GiB and a fifth of the file system."""
    stat = os.statvfs(directory)
    return min(DEFAULT_MAX_BYTES, stat.f_blocks * stat.f_frsize // DEFAULT_SHARE)
