"""Retention: how long records stay in the spool, and how much of the disk they take.

Oldest segments go first. Only a configured forwarder may hold them back, by what it has acknowledged;
over the size limit even those go, since a full disk would stop the log altogether.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

from gateway.audit.spool import EpochPath, closed, epochs, segments, synced_seq
from gateway.config import Config

log = logging.getLogger("tidegate.recorder")

DEFAULT_MAX_BYTES = 20 * 1024**3
DEFAULT_SHARE = 5
"""A fifth of the file system."""
REMOVED = ".removed"


class _Segment(NamedTuple):
    path: Path
    mtime_s: float
    size_bytes: int
    sent: bool
    """The forwarder does not need it (any more)."""


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
        positions = self._acknowledged()
        total = 0
        listed: list[_Segment] = []
        for epoch in epochs(self._spool):
            found = self._segments(epoch, positions.get(epoch.key, {}).get("next_seq", 0))
            total += sum(segment.size_bytes for segment in found)
            if found and closed(epoch) is None:
                found.pop()
            listed.extend(found)
        removed: list[_Segment] = []
        for segment in sorted(listed, key=lambda s: s.mtime_s):
            old = segment.sent and now_s - segment.mtime_s > self._keep_s
            if total <= self.max_bytes and not old:
                continue
            if not segment.sent:
                log.warning("unsent_records_trimmed", extra={"segment": segment.path.name})
            segment.path.unlink(missing_ok=True)
            segment.path.with_suffix(".idx").unlink(missing_ok=True)
            total -= segment.size_bytes
            removed.append(segment)
        for path in {segment.path.parent for segment in removed}:
            _remove_empty(path)
        for path in self._spool.glob(f"*/*{REMOVED}"):
            shutil.rmtree(path)
        return len(removed)

    def _segments(self, epoch: EpochPath, acknowledged_seq: int) -> list[_Segment]:
        found = segments(epoch)
        ends = [first_seq for first_seq, _ in found[1:]] + [synced_seq(epoch)]
        out = []
        for (_, path), end_seq in zip(found, ends, strict=False):
            stat = path.stat()
            sent = not self._held or acknowledged_seq >= end_seq
            out.append(_Segment(path, stat.st_mtime, stat.st_size, sent))
        return out

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


def _remove_empty(path: Path) -> None:
    """Remove the directory of an epoch that is over and has no segment left; the last number of a source
    is in its `epoch` file."""
    names = {entry.name for entry in path.iterdir()}
    if "closed" not in names or any(name.endswith(".log") for name in names):
        return
    # Renamed first: half removed it would look like an epoch whose ring was lost.
    shutil.rmtree(path.rename(path.with_suffix(REMOVED)))
