"""Continuity: in every epoch, is each number an event or covered by a gap record, and is each byte what it was?

Behind the spool, beside the feeds; offline and read-only, so that an auditor needs nothing but the files.
A gap may stand in any source: the owner logs what its ring had no room for, the recorder what the dead lost.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from gateway.audit import witnesses
from gateway.audit.epoch_check import EpochCheck, EpochReport, Finding
from gateway.audit.event import Gap
from gateway.audit.frame import expand
from gateway.audit.ring import Ring
from gateway.audit.spool import EpochPath, closed, epochs, segments, synced_seq
from gateway.audit.witnesses import Known, Witnesses
from gateway.errors import FrameCorrupt

LATE_S = 1.5
"""A living recorder tells within a second what retention removed."""
_GAP = b"\xa3gap"


class Gone(msgspec.Struct, kw_only=True):
    """An epoch that a witness knows and of which no segment is in the spool."""

    key: str
    next_seq: int
    by: str
    told: bool
    """A gap of cause `retention` covers it."""
    says: str | None = None
    """That gap's id. It is as good as the recorder's epoch that holds it."""


class Report(msgspec.Struct, kw_only=True):
    """Continuity of a whole spool."""

    epochs: list[EpochReport]
    gone: list[Gone] = []

    @property
    def ok(self) -> bool:
        """Every epoch is, and none is gone untold."""
        return all(epoch.ok for epoch in self.epochs) and all(epoch.told for epoch in self.gone)


def verify(
    spool: Path,
    known: Witnesses | None = None,
    advance: Callable[[int], None] = lambda _: None,
    trims: Sequence[Gap] = (),
) -> Report:
    """Read everything and check. Streams: memory does not grow with the spool.

    Args:
        known: what witnesses elsewhere say; those in the spool and beside it are asked in any case.
        advance: told the bytes read, as it goes.
        trims: gaps of retention that the topic holds: those here go in their turn.
    """
    forwarder = witnesses.in_forwarder(spool.parent / "forwarder" / "positions.json")
    here = witnesses.in_spool(spool)
    known = witnesses.merged(here, forwarder, known or {})
    of_recorder = {epoch.key for epoch in witnesses.recorders(spool)}
    checks: dict[str, EpochCheck] = {}
    gaps: list[Gap] = [*trims]
    for epoch in epochs(spool):
        check = EpochCheck(epoch, known.get(epoch.key, ()), advance)
        check.run()
        checks[epoch.key] = check
        # Who may write in one epoch excuses nothing in another's; the recorder tells of all.
        gaps += [gap for gap in check.gaps if epoch.key in of_recorder or _about(gap) == epoch.key]
    missing = {key: listed for key, listed in known.items() if key not in checks or checks[key].is_emptied}
    gaps += _late_gaps(spool, checks, missing, gaps)
    for gap in gaps:
        about = checks.get(_about(gap))
        entry = (gap.from_seq, gap.to_seq, gap.cause)
        # What left the spool before the first number that is here is no gap in what is here.
        went = gap.cause == "retention" and about is not None and (gap.to_seq or 0) < about.report.first_seq
        if about is not None and entry not in about.report.gaps and not went:
            about.report.gaps.append(entry)
    for key, check in checks.items():
        if not check.is_emptied:
            _begin(check, gaps, here.get(key, []))
        _conclude(check)
    return Report(
        epochs=[check.report for check in checks.values()],
        gone=[_gone(key, listed[-1], gaps) for key, listed in missing.items()],
    )


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


def _about(gap: Gap) -> str:
    return f"{gap.source}-{gap.epoch:08x}"


def _late_gaps(spool: Path, checks: dict[str, EpochCheck], missing: Witnesses, gaps: list[Gap]) -> list[Gap]:
    """What the recorder told while we read: epochs end and records go meanwhile, and it tells within a second."""
    late: list[Gap] = []
    for wait_s in (0.0, LATE_S):
        told = [*gaps, *late]
        explained = all(_is_explained(check, told) for check in checks.values())
        if explained and all(_tellers(key, listed[-1], told) for key, listed in missing.items()):
            break
        own = list(witnesses.recorders(spool))
        if wait_s and all(closed(epoch) is not None for epoch in own):
            break
        time.sleep(wait_s)
        seen = {gap.id for gap in told}
        late += [
            gap for epoch in own for gap in _gaps_since(epoch, checks.get(epoch.key)) if gap.id not in seen
        ]
    return late


def _gaps_since(epoch: EpochPath, check: EpochCheck | None) -> Iterator[Gap]:
    """Gaps of an epoch that were not there when it was read."""
    for frame in witnesses.readable(epoch, 0 if check is None else check.report.next_seq):
        if _GAP not in frame.payload:
            continue
        with contextlib.suppress(FrameCorrupt):
            yield from (e for e in expand(epoch.source, epoch.epoch, frame) if isinstance(e, Gap))


def _is_explained(check: EpochCheck, gaps: list[Gap]) -> bool:
    """Whether its beginning and its holes are told of."""
    if not _begins_told(check.report, gaps):
        return False
    key = f"{check.report.source}-{check.report.epoch:08x}"
    ranges = [(gap.from_seq, gap.to_seq, gap.cause) for gap in gaps if _about(gap) == key]
    return not any(_uncovered((hole.from_seq, hole.to_seq), ranges) for hole in check.holes)


def _begins_told(report: EpochReport, gaps: list[Gap]) -> bool:
    key, last = f"{report.source}-{report.epoch:08x}", report.first_seq - 1
    return last < 0 or any(
        _about(gap) == key and gap.from_seq <= last and (gap.to_seq is None or gap.to_seq >= last)
        for gap in gaps
    )


def _tellers(key: str, last: Known, gaps: list[Gap]) -> list[Gap]:
    return [
        gap
        for gap in gaps
        if gap.cause == "retention"
        and _about(gap) == key
        and (gap.to_seq is None or gap.to_seq >= last.next_seq - 1)
    ]


def _begin(check: EpochCheck, gaps: list[Gap], here: list[Known]) -> None:
    """What is before the first number that is left: somebody has to say that it went.

    A finding where a recorder's record of those numbers is still here: retention takes the oldest first, and its gap
    is younger than that. Elsewhere the gap may have gone in its turn.
    """
    report = check.report
    if _begins_told(report, gaps):
        return
    report.untold, last = True, report.first_seq - 1
    witness = next((known for known in here if known.next_seq <= report.first_seq), None)
    if witness is not None:
        report.missing.append((0, last))
        report.findings.append(
            Finding(
                kind="missing",
                seq=0,
                to_seq=last,
                expected=f"numbers 0 to {last}, or a gap that says that retention took them; {witness.by} knows them",
                found="neither",
            )
        )


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
    telling = _tellers(key, last, gaps)
    says = telling[0].id if telling else None
    return Gone(key=key, next_seq=last.next_seq, by=last.by, told=bool(telling), says=says)


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
