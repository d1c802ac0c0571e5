"""Continuity: in every epoch, is each number an event or covered by a gap record, and is each byte what it was?

Behind the spool, beside the feeds; offline and read-only, so that an auditor needs nothing but the files.
A gap may stand in any source: the owner logs what its ring had no room for, the recorder what the dead lost.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from gateway.audit import witnesses
from gateway.audit.epoch_check import EpochCheck, EpochReport, Finding
from gateway.audit.event import Gap
from gateway.audit.frame import expand
from gateway.audit.ring import Ring
from gateway.audit.spool import EpochPath, epochs, segments, synced_seq
from gateway.audit.witnesses import Known, Witnesses
from gateway.errors import FrameCorrupt


class Gone(msgspec.Struct, kw_only=True):
    """An epoch that a witness knows and of which no segment is in the spool."""

    key: str
    next_seq: int
    by: str
    told: bool
    """A gap of cause `retention` covers it."""


class Report(msgspec.Struct, kw_only=True):
    """Continuity of a whole spool."""

    epochs: list[EpochReport]
    gone: list[Gone] = []

    @property
    def ok(self) -> bool:
        """Every epoch is, and none is gone untold."""
        return all(epoch.ok for epoch in self.epochs) and all(epoch.told for epoch in self.gone)


def verify(
    spool: Path, known: Witnesses | None = None, advance: Callable[[int], None] = lambda _: None
) -> Report:
    """Read everything and check. Streams: memory does not grow with the spool.

    Args:
        known: what witnesses elsewhere say; those in the spool and beside it are asked in any case.
        advance: told the bytes read, as it goes.
    """
    forwarder = witnesses.in_forwarder(spool.parent / "forwarder" / "positions.json")
    known = witnesses.merged(witnesses.in_spool(spool), forwarder, known or {})
    checks: dict[str, EpochCheck] = {}
    gaps: list[Gap] = []
    for epoch in epochs(spool):
        check = EpochCheck(epoch, known.get(epoch.key, ()), advance)
        check.run()
        checks[epoch.key] = check
        gaps.extend(check.gaps)
    missing = {key: listed for key, listed in known.items() if key not in checks or checks[key].is_emptied}
    if missing or any(check.holes for check in checks.values()):
        gaps.extend(_told_meanwhile(spool, checks))
    for gap in gaps:
        about = checks.get(f"{gap.source}-{gap.epoch:08x}")
        entry = (gap.from_seq, gap.to_seq, gap.cause)
        # What left the spool before the first number that is here is no gap in what is here.
        went = gap.cause == "retention" and about is not None and (gap.to_seq or 0) < about.report.first_seq
        if about is not None and entry not in about.report.gaps and not went:
            about.report.gaps.append(entry)
    for check in checks.values():
        _conclude(check)
    return Report(
        epochs=[check.report for check in checks.values()],
        gone=[_gone(key, listed[-1], gaps) for key, listed in missing.items()],
    )


def _told_meanwhile(spool: Path, checks: dict[str, EpochCheck]) -> Iterator[Gap]:
    """What the recorder told since its epochs were read: of those that ended, and of what went, behind our back."""
    for epoch in witnesses.recorders(spool):
        check = checks.get(epoch.key)
        from_seq = 0 if check is None else check.report.next_seq
        for frame in witnesses.readable(epoch, from_seq):
            with contextlib.suppress(FrameCorrupt):
                events = expand(epoch.source, epoch.epoch, frame)
                yield from (event for event in events if isinstance(event, Gap))


def bytes_of(spool: Path) -> int:
    """About how much `verify` reads."""
    total = 0
    for epoch in epochs(spool):
        for _, path in segments(epoch):
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                continue
    return total


def _conclude(check: EpochCheck) -> None:
    """Holes that no gap covers are findings; what they explain is none of its own."""
    report = check.report
    for hole in check.holes:
        for first, last in _uncovered((hole.from_seq, hole.to_seq), report.gaps):
            report.missing.append((first, last))
            numbers = f"number {first}" if first == last else f"numbers {first} to {last}"
            finding = Finding(
                kind="missing",
                seq=first,
                to_seq=last,
                segment=hole.segment,
                offset=hole.offset,
                expected=numbers,
                found="neither a frame nor a gap",
            )
            report.findings.append(finding)
    exact = [finding for finding in report.findings if finding.kind != "altered"]
    report.findings = [
        finding
        for finding in report.findings
        if finding.kind != "altered" or not any(_within(other, finding) for other in exact)
    ]
    # What is wrong in itself before what merely follows from it.
    report.findings.sort(
        key=lambda finding: (finding.seq, finding.kind in {"altered", "missing", "cut_short"})
    )


def _within(exact: Finding, wide: Finding) -> bool:
    return wide.to_seq is not None and wide.seq <= exact.seq <= wide.to_seq


def _gone(key: str, last: Known, gaps: list[Gap]) -> Gone:
    told = any(
        gap.cause == "retention"
        and f"{gap.source}-{gap.epoch:08x}" == key
        and (gap.to_seq is None or gap.to_seq >= last.next_seq - 1)
        for gap in gaps
    )
    return Gone(key=key, next_seq=last.next_seq, by=last.by, told=told)


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
