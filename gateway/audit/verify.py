"""Continuity: in every epoch, is each number an event or covered by a gap record?

Behind the spool, beside the feeds; offline and read-only, so that an auditor needs nothing but the files.
A gap may stand in any source: the owner logs what its ring had no room for, the recorder what the dead lost.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from gateway.audit.event import EpochOpen, Gap
from gateway.audit.frame import Events, decode_payload, expand
from gateway.audit.ring import Ring
from gateway.audit.spool import EpochPath, closed, epochs, read_epoch, segments, synced_seq
from gateway.errors import FrameCorrupt


class EpochReport(msgspec.Struct, kw_only=True):
    """What one epoch holds. Ranges are (from, to), both included; to is None for an open gap."""

    source: str
    epoch: int
    role: str | None = None
    first_seq: int = 0
    """The oldest number that retention left."""
    next_seq: int = 0
    events: int = 0
    gaps: list[tuple[int, int | None, str]] = []
    """Gap records about this epoch, its own and the recorder's."""
    missing: list[tuple[int, int]] = []
    """Numbers with neither a record nor a gap."""
    twice: int = 0
    """Numbers with more than one record."""
    unreadable: int = 0
    """Frames whose CRC matches and whose content cannot be read."""
    closed: str | None = None
    """Why the epoch is over; None while it is open."""

    @property
    def ok(self) -> bool:
        """Nothing is missing, unreadable or there twice."""
        return not self.missing and not self.twice and not self.unreadable


class Report(msgspec.Struct, kw_only=True):
    """Continuity of a whole spool."""

    epochs: list[EpochReport]

    @property
    def ok(self) -> bool:
        """Every epoch is."""
        return all(epoch.ok for epoch in self.epochs)


def verify(spool: Path) -> Report:
    """Read everything and check. Cost: one pass; only frames of whole events are expanded."""
    reports: dict[str, EpochReport] = {}
    gaps: list[Gap] = []
    holes: dict[str, list[tuple[int, int]]] = {}
    for epoch in epochs(spool):
        report, holes[epoch.key], found = _check_epoch(epoch)
        reports[epoch.key] = report
        gaps.extend(found)
    for gap in gaps:
        about = reports.get(f"{gap.source}-{gap.epoch:08x}")
        entry = (gap.from_seq, gap.to_seq, gap.cause)
        # What left the spool before the first number that is here is no gap in what is here.
        went = gap.cause == "retention" and about is not None and (gap.to_seq or 0) < about.first_seq
        if about is not None and entry not in about.gaps and not went:
            about.gaps.append(entry)
    for key, ranges in holes.items():
        for hole in ranges:
            reports[key].missing.extend(_uncovered(hole, reports[key].gaps))
    return Report(epochs=list(reports.values()))


def _check_epoch(epoch: EpochPath) -> tuple[EpochReport, list[tuple[int, int]], list[Gap]]:
    """One epoch's report without gaps, its holes, and the gap events that stand in it."""
    # Both before the segments: what is appended meanwhile must not look lost.
    mark = synced_seq(epoch)
    over = closed(epoch)
    found = segments(epoch)
    expected = found[0][0] if found else mark
    report = EpochReport(source=f"{epoch.source:016x}", epoch=epoch.epoch, first_seq=expected)
    holes: list[tuple[int, int]] = []
    gaps: list[Gap] = []
    for frame in read_epoch(epoch, 0):
        if frame.first_seq > expected:
            holes.append((expected, frame.first_seq - 1))
        report.twice += max(min(expected, frame.next_seq) - frame.first_seq, 0)
        expected = max(expected, frame.next_seq)
        report.events += frame.count
        try:
            content = decode_payload(frame.payload)
            whole = expand(epoch.source, epoch.epoch, frame) if isinstance(content, Events) else []
        except FrameCorrupt:
            report.unreadable += 1
            continue
        for event in whole:
            if isinstance(event, Gap):
                gaps.append(event)
            elif isinstance(event, EpochOpen):
                report.role = event.role
    end = mark
    if over is not None:
        report.closed = str(over.get("cause"))
        end = max(end, int(str(over.get("next_seq", 0))))
    if end > expected:
        holes.append((expected, end - 1))
    report.next_seq = max(expected, end)
    return report, holes, gaps


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
    """Where one source stands: its newest epoch, and the disk that all of its epochs take."""

    source: str
    epoch: int
    next_seq: int
    spool_bytes: int
    ring_bytes: int | None
    """Appended and not yet on disk; None when the epoch is over."""
    age_s: float
    """Since the last record was written."""
    oldest_age_s: float = 0.0
    """Since the oldest segment was last written."""
    bytes_per_h: float = 0.0
    """Over the time between the two; what the limit allows divided by it is the hours left."""


def status(spool: Path, ring_dir: Path | None) -> list[SourceStatus]:
    """Every source; looks at sizes, times and marks only."""
    by_source: dict[int, list[EpochPath]] = {}
    for epoch in epochs(spool):
        by_source.setdefault(epoch.source, []).append(epoch)
    now_s = time.time()
    out = []
    for listed in by_source.values():
        newest = listed[-1]
        files = [path.stat() for epoch in listed for _, path in segments(epoch)]
        size = sum(stat.st_size for stat in files)
        last_s = max((stat.st_mtime for stat in files), default=now_s)
        first_s = min((stat.st_mtime for stat in files), default=now_s)
        span_h = (last_s - first_s) / 3600
        out.append(
            SourceStatus(
                source=f"{newest.source:016x}",
                epoch=newest.epoch,
                next_seq=synced_seq(newest),
                spool_bytes=size,
                ring_bytes=None if ring_dir is None else _ring_bytes(ring_dir, newest.key),
                age_s=round(now_s - last_s, 3),
                oldest_age_s=round(now_s - first_s, 3),
                bytes_per_h=round(size / span_h) if span_h else 0.0,
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
