"""Continuity: in every epoch, is each number an event or covered by a gap record?"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from gateway.audit.event import EpochOpen, Gap
from gateway.audit.frame import Events, decode_payload, expand
from gateway.audit.ring import Ring
from gateway.audit.spool import closed, epochs, read_epoch, segments, synced_seq


class EpochReport(msgspec.Struct, kw_only=True):
    """What one epoch holds. Ranges are (from, to), both included; to is None for an open gap."""

    source: str
    epoch: int
    role: str | None = None
    first_seq: int = 0
    next_seq: int = 0
    events: int = 0
    gaps: list[tuple[int, int | None, str]] = []
    missing: list[tuple[int, int]] = []
    twice: int = 0
    closed: str | None = None

    @property
    def ok(self) -> bool:
        """Nothing is missing and nothing stands twice."""
        return not self.missing and not self.twice


class Report(msgspec.Struct, kw_only=True):
    """Continuity of a whole spool."""

    epochs: list[EpochReport]

    @property
    def ok(self) -> bool:
        """Every epoch is."""
        return all(epoch.ok for epoch in self.epochs)


def verify(spool: Path) -> Report:
    """Read everything and check. Cost: one pass; only frames of whole events are decoded."""
    reports: dict[tuple[int, int], EpochReport] = {}
    gaps: list[Gap] = []
    holes: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for epoch in epochs(spool):
        key = (epoch.source, epoch.epoch)
        report = EpochReport(source=f"{epoch.source:016x}", epoch=epoch.epoch)
        reports[key] = report
        found = segments(epoch)
        report.first_seq = expected = found[0][0] if found else 0
        for frame in read_epoch(epoch, 0):
            if frame.first_seq > expected:
                holes.setdefault(key, []).append((expected, frame.first_seq - 1))
            elif frame.first_seq < expected:
                report.twice += expected - frame.first_seq
            expected = max(expected, frame.next_seq)
            report.events += frame.count
            content = decode_payload(frame.payload)
            if isinstance(content, Events):
                for event in expand(epoch.source, epoch.epoch, frame):
                    if isinstance(event, Gap):
                        gaps.append(event)
                    elif isinstance(event, EpochOpen):
                        report.role = event.role
        report.next_seq = expected
        over = closed(epoch)
        if over is not None:
            report.closed = str(over.get("cause"))
            end = int(str(over.get("next_seq", expected)))
            if end > expected:
                holes.setdefault(key, []).append((expected, end - 1))
                report.next_seq = end
    for gap in gaps:
        key = (int(gap.source, 16), gap.epoch)
        if key in reports:
            entry = (gap.from_seq, gap.to_seq, gap.cause)
            if entry not in reports[key].gaps:
                reports[key].gaps.append(entry)
    for key, ranges in holes.items():
        report = reports[key]
        for hole in ranges:
            report.missing.extend(_uncovered(hole, report.gaps))
    return Report(epochs=list(reports.values()))


def _uncovered(hole: tuple[int, int], gaps: list[tuple[int, int | None, str]]) -> list[tuple[int, int]]:
    at, end = hole
    left: list[tuple[int, int]] = []
    for start, stop, _ in sorted(gaps, key=lambda g: g[0]):
        last = end if stop is None else stop
        if last < at or start > end:
            continue
        if start > at:
            left.append((at, start - 1))
        at = max(at, last + 1)
    if at <= end:
        left.append((at, end))
    return left


class SourceStatus(msgspec.Struct, kw_only=True):
    """Where one source's newest epoch stands."""

    source: str
    epoch: int
    next_seq: int
    spool_bytes: int
    ring_bytes: int | None
    """Appended and not yet on disk; None when the epoch is over."""
    age_s: float
    """Since the last record was written."""


def status(spool: Path, ring_dir: Path | None) -> list[SourceStatus]:
    """The newest epoch of every source; looks at sizes and marks only."""
    newest = {epoch.source: epoch for epoch in epochs(spool)}
    out = []
    for epoch in newest.values():
        files = [path.stat() for _, path in segments(epoch)]
        ring = _ring_bytes(ring_dir, epoch.key) if ring_dir is not None else None
        last = max((stat.st_mtime for stat in files), default=time.time())
        out.append(
            SourceStatus(
                source=f"{epoch.source:016x}",
                epoch=epoch.epoch,
                next_seq=synced_seq(epoch),
                spool_bytes=sum(stat.st_size for stat in files),
                ring_bytes=ring,
                age_s=round(time.time() - last, 3),
            )
        )
    return out


def _ring_bytes(ring_dir: Path, key: str) -> int | None:
    try:
        fd = os.open(ring_dir / key, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        head = os.pread(fd, 4096, 0)
    finally:
        os.close(fd)
    # A copy of the header alone is enough to read the marks.
    words = memoryview(head).cast("Q")
    return int(words[Ring.COMMITTED_WORD] - words[Ring.SYNCED_WORD])
