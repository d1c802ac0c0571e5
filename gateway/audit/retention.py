"""Retention: how long records stay in the spool, and how much of the disk they take.

Behind the spool, in the recorder's process (`upkeep`). Oldest segments go first. Only a configured forwarder may hold
them back, by what it has acknowledged, and it does so at the size limit too: then `at_limit` is set, and the
recorder leaves workers' records in their rings until there is room (decision 0017).
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gateway.audit.spool import EpochPath, closed, epochs, segments, synced_seq
from gateway.audit.storage import DISK
from gateway.settings import Config

log = logging.getLogger("tidegate.recorder")

DEFAULT_MAX_BYTES = 20 * 1024**3
DEFAULT_SHARE = 5
"""A fifth of the file system."""
SLACK_SHARE = 16
"""Over the limit it is trimmed to so much (1/16) below it, and what waited at the limit goes on there: between the two
lies what keeps one from following on the other at once."""
ACTIVE_SHARE = 8
"""Segments that are being written take at most this part (1/8) of the limit together: they cannot be trimmed."""
OTHER_SOURCES = 4
"""Control, sidecar, mirror, recorder."""
SEGMENT_FLOOR_BYTES = 4096
REMOVED = ".removed"


class Trim(NamedTuple):
    """Numbers of an epoch that left this spool with one pass: from_seq..to_seq, both included."""

    epoch: EpochPath
    from_seq: int
    to_seq: int
    segments: int
    size_bytes: int


class _Segment(NamedTuple):
    epoch: EpochPath
    path: Path
    seqs: tuple[int, int]
    """First number, and the one behind the last."""
    mtime_s: float
    size_bytes: int
    sent: bool
    """The forwarder does not need it (any more)."""


class Retention:
    """Trims one spool.

    Args:
        spool: its directory.
        config: `audit.max_bytes`, `audit.keep_h`, and whether there is a forwarder.

    Attributes:
        max_bytes: the limit.
        total_bytes: what the spool takes, as of the last `apply` and what was `wrote` since.
        held_bytes: of that, what a forwarder has not sent; without one 0.
        oldest_s: when the oldest segment was last written (epoch); None where there is none.
        at_limit: nothing that may go is left over the limit: workers' records are not to be written.

    Threading: one thread. Cost: `apply` looks at every segment's size and time; `wrote` is two additions.
    """

    def __init__(self, spool: Path, config: Config) -> None:
        self._spool = spool
        self._positions = spool.parent / "forwarder" / "positions.json"
        self.held = config.kafka is not None
        """Whether a forwarder is configured."""
        self._keep_s = config.audit.keep_h * 3600
        self.max_bytes = config.audit.max_bytes or default_max_bytes(spool.parent)
        self._low_bytes = self.max_bytes - self.max_bytes // SLACK_SHARE
        self.total_bytes = self.held_bytes = 0
        self.oldest_s: float | None = None
        self.at_limit = False
        self._emptied: set[str] = set()
        """Epochs of which an earlier pass said that all went."""
        self._went: list[Trim] = []

    @property
    def is_over(self) -> bool:
        """Something is to be done before the next regular pass."""
        return self.at_limit or self.total_bytes > self.max_bytes

    def wrote(self, size_bytes: int) -> None:
        """So much came to the spool. At the limit nothing more is to, until a look says what may go."""
        self.total_bytes += size_bytes
        if self.held:
            self.held_bytes += size_bytes
            self.at_limit = self.at_limit or self.held_bytes > self.max_bytes

    def apply(self, now_s: float | None = None, *, told: bool = True) -> list[Trim]:
        """Remove what is over, never the segment being written; returns what went, one entry an epoch and range.

        The directory of an epoch that is over goes a pass after its last segment, once that was told: a kill in between
        leaves it to the next life, which tells all of it.

        Args:
            told: what earlier passes returned is in the log.

        Raises:
            OSError: a file cannot be looked at or removed; what was done stays done.
        """
        now_s = time.time() if now_s is None else now_s
        listed, active, emptied = self._look()
        total = sum(segment.size_bytes for segment in (*listed, *active))
        over = total > self.max_bytes or self.at_limit
        removed: list[_Segment] = []
        kept: list[_Segment] = [*active]
        try:
            for segment in sorted(listed, key=lambda s: s.mtime_s):
                old = now_s - segment.mtime_s > self._keep_s
                if not segment.sent or not (old or (over and total > self._low_bytes)):
                    kept.append(segment)
                    continue
                segment.path.with_suffix(".idx").unlink(missing_ok=True)
                segment.path.unlink(missing_ok=True)
                total -= segment.size_bytes
                removed.append(segment)
        finally:
            # Returned by a later pass, should this one not end.
            self._went += _ranges(removed)
        self._clear(emptied, told=told)
        self._emptied = {epoch.key for epoch, _ in emptied} | {segment.epoch.key for segment in removed}
        self.total_bytes = total
        self.oldest_s = min((segment.mtime_s for segment in kept), default=None)
        self.held_bytes = sum(s.size_bytes for s in kept if not s.sent) if self.held else 0
        # What is sent and only still being written to cannot go, and must not hold up what would roll it.
        stuck = total - sum(s.size_bytes for s in active if s.sent)
        self.at_limit = self.held and stuck > (self._low_bytes if self.at_limit else self.max_bytes)
        trims, self._went = self._went, []
        return trims

    def _clear(self, emptied: list[tuple[EpochPath, int]], *, told: bool) -> None:
        """Remove the directories of epochs that an earlier pass emptied; tell those that an earlier life did."""
        for epoch, next_seq in emptied:
            if epoch.key not in self._emptied:
                self._went += [Trim(epoch, 0, next_seq - 1, 0, 0)] if next_seq else []
            elif told:
                _aside(epoch.path)
        for path in self._spool.glob(f"*/*{REMOVED}"):
            # Never through a link: what lies behind one is not ours.
            if not path.is_symlink() and not path.parent.is_symlink():
                shutil.rmtree(path, onerror=_not_removed)

    def _look(self) -> tuple[list[_Segment], list[_Segment], list[tuple[EpochPath, int]]]:
        """Segments that may go if they are sent, those being written, and epochs that are over and have none left, with
        the number behind their last."""
        positions = self._acknowledged()
        listed: list[_Segment] = []
        active: list[_Segment] = []
        emptied: list[tuple[EpochPath, int]] = []
        for epoch in epochs(self._spool):
            found = self._segments(epoch, positions.get(epoch.key, {}).get("next_seq", 0))
            over = closed(epoch)
            if over is None:
                active += found[-1:]
                found = found[:-1]
            elif not found:
                next_seq = over.get("next_seq")
                emptied.append((epoch, next_seq if isinstance(next_seq, int) else 0))
            listed.extend(found)
        return listed, active, emptied

    def _segments(self, epoch: EpochPath, acknowledged_seq: int) -> list[_Segment]:
        found = segments(epoch)
        ends = [first_seq for first_seq, _ in found[1:]] + [synced_seq(epoch)]
        out = []
        for (first_seq, path), end_seq in zip(found, ends, strict=False):
            stat = path.stat()
            sent = not self.held or acknowledged_seq >= end_seq
            out.append(_Segment(epoch, path, (first_seq, end_seq), stat.st_mtime, stat.st_size, sent))
        return out

    def _acknowledged(self) -> dict[str, dict[str, int]]:
        if not self.held:
            return {}
        try:
            return msgspec.json.decode(self._positions.read_bytes(), type=dict[str, dict[str, int]])
        except (OSError, msgspec.MsgspecError, ValueError):
            # As the forwarder takes it: nothing was sent.
            return {}


def default_max_bytes(directory: Path) -> int:
    """The lesser of 20 GiB and a fifth of the file system."""
    stat = os.statvfs(directory)
    return min(DEFAULT_MAX_BYTES, stat.f_blocks * stat.f_frsize // DEFAULT_SHARE)


def segment_bytes(config: Config, max_bytes: int) -> int:
    """Where a segment rolls: as configured, less where the limit is small."""
    sources = config.workers + OTHER_SOURCES
    return max(min(config.audit.segment_bytes, max_bytes // (ACTIVE_SHARE * sources)), SEGMENT_FLOOR_BYTES)


def _ranges(removed: list[_Segment]) -> list[Trim]:
    """What went, joined where one segment begins with the number behind another's last."""
    trims: list[Trim] = []
    for segment in sorted(removed, key=lambda s: (s.epoch.key, s.seqs)):
        first_seq, end_seq = segment.seqs
        last = trims[-1] if trims else None
        if last is not None and last.epoch == segment.epoch and last.to_seq + 1 == first_seq:
            size_bytes = last.size_bytes + segment.size_bytes
            trims[-1] = last._replace(to_seq=end_seq - 1, segments=last.segments + 1, size_bytes=size_bytes)
        elif end_seq > first_seq:
            trims.append(Trim(segment.epoch, first_seq, end_seq - 1, 1, segment.size_bytes))
    return trims


def _aside(path: Path) -> None:
    """Begin to remove the directory of an epoch that is over and has no segment left; the last number of a source is
    in its `epoch` file."""
    # Renamed first, for good: half removed it would look like an epoch whose ring was lost.
    try:
        path.rename(path.with_suffix(REMOVED))
        DISK.sync_directory(path.parent)
    except OSError as exc:
        log.warning("retention_failed", extra={"directory": str(path), "why": exc.strerror})


def _not_removed(_: object, path: str, failure: Any) -> None:
    log.warning("retention_failed", extra={"directory": path, "why": str(failure[1])})
