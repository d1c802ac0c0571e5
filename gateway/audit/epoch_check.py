"""One epoch, frame by frame: are its numbers in order, is each byte what it was?

Behind the spool, for `verify`. Reads each segment once, in pieces of 1 MiB, and holds what it finds against the
chain file and the witnesses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from gateway.audit.chain import ZERO, extended, recorded
from gateway.audit.event import SCHEMA, EpochOpen, Gap
from gateway.audit.frame import Events, Frame, expand, look_at
from gateway.audit.spool import EpochPath, closed, next_of, segments, synced_seq
from gateway.audit.walk import Damage, Piece, walk
from gateway.audit.witnesses import Known
from gateway.errors import FrameCorrupt, FrameNewer

FINDINGS_MAX = 100
"""Of one epoch; what follows is counted."""


class Finding(msgspec.Struct, kw_only=True):
    """Something in an epoch that is not as it was written, or not there."""

    kind: str
    """missing | duplicate | reordered | foreign | damaged | altered | chain_file | cut_short | gone"""
    seq: int
    """The first number that it is about."""
    to_seq: int | None = None
    """The last one; None where that is not known."""
    segment: str | None = None
    """The segment file in which it shows."""
    offset: int | None = None
    """The byte in it."""
    expected: str
    found: str


class EpochReport(msgspec.Struct, kw_only=True):
    """What one epoch holds. Ranges are (from, to), both included; to is None for an open gap."""

    source: str
    epoch: int
    role: str | None = None
    first_seq: int = 0
    """The oldest number that retention left."""
    untold: bool = False
    """Numbers before that one are not here, and no gap says what became of them."""
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
    newer: int = 0
    """Frames that only a later version reads, or that it wrote; their numbers and hashes are checked all the same."""
    findings: list[Finding] = []
    """In order of number; the first is the first thing wrong."""
    proved_to: int = 0
    """All below this number is what a witness knew."""
    proved_by: str | None = None
    notes: list[str] = []
    """What could not be checked, and why."""
    closed: str | None = None
    """Why the epoch is over; None while it is open."""

    @property
    def ok(self) -> bool:
        """Nothing is missing, changed, unreadable or there twice."""
        return not (self.missing or self.twice or self.unreadable or self.findings)


class Hole(NamedTuple):
    """Numbers without a frame, and where they should stand."""

    from_seq: int
    to_seq: int
    segment: str | None
    offset: int | None


class EpochCheck:
    """The check of one epoch; `run` once, then `report`, `holes` and `gaps` are there.

    Args:
        known: what witnesses say of this epoch, in order of number.
        advance: told the bytes read.
    """

    def __init__(
        self, epoch: EpochPath, known: Sequence[Known], advance: Callable[[int], None] = lambda _: None
    ) -> None:
        self._epoch = epoch
        self._known = list(known)
        self._advance = advance
        self._lines = recorded(epoch)
        self._value: bytes | None = None
        self._sure = (0, "", 0)
        """The last number whose hash a witness knows, or where we begin; and the segment and byte behind it."""
        self._begun_at: int | None = None
        """Where the chain file alone says what the value is."""
        self._doubt: Finding | None = None
        """The chain file's first line that the frames did not lead to."""
        self._place: tuple[str | None, int | None] = (None, None)
        self._expected = 0
        self.is_emptied = False
        """No segment is left of it."""
        self.report = EpochReport(source=f"{epoch.source:016x}", epoch=epoch.epoch)
        self.holes: list[Hole] = []
        self.gaps: list[Gap] = []

    def run(self) -> None:
        """Read it all. Cost: see docs/log.md; what is appended meanwhile is left out."""
        # In this order: what is appended meanwhile must not look lost, nor what is before an end that comes meanwhile.
        over = closed(self._epoch)
        mark = synced_seq(self._epoch)
        listed = segments(self._epoch)
        if not listed:
            # Retention says that it went, or nobody does: no matter of one epoch.
            self.is_emptied, self._known = True, []
        report = self.report
        self._expected = report.first_seq = listed[0][0] if listed else mark
        for index, (first_seq, path) in enumerate(listed):
            end_seq = min(listed[index + 1][0], mark) if index + 1 < len(listed) else mark
            self._place = (path.name, 0)
            self._begin_segment(first_seq, first=not index)
            try:
                self._read(path, first_seq, end_seq)
            except FileNotFoundError:
                if listed[0][1].exists():
                    continue
                # Retention goes from the oldest on; what it took meanwhile is no hole.
                self._lose()
                self._expected = max(self._expected, end_seq)
        end = mark
        if over is not None:
            report.closed = str(over.get("cause"))
            end = max(end, next_of(over))
        # What went took with it what there was to say of its end, which the recorder's own epoch may have lost, too.
        went = self.is_emptied and mark > 0
        if end > self._expected and not went:
            self.holes.append(Hole(self._expected, end - 1, *self._place))
        report.next_seq = max(self._expected, end)
        self._end()

    def _read(self, path: Path, first_seq: int, end_seq: int) -> None:
        opening, name = True, path.name
        try:
            for piece in walk(path):
                frame = piece.frame
                self._place = (name, piece.offset)
                if opening and frame.first_seq != first_seq:
                    found = f"a first frame of number {frame.first_seq}"
                    self._find("foreign", first_seq, f"number {first_seq}, as the file's name says", found)
                opening = False
                if frame.first_seq >= end_seq:
                    break
                self._number(frame)
                self._content(frame)
                self._chain(piece)
                self._advance(len(piece.raw))
        except Damage as exc:
            if self._expected >= end_seq:
                # Behind what is synced, or what the next segment begins with.
                return
            self._place = (name, exc.offset)
            self._find(
                "damaged", self._expected, f"a frame of number {self._expected}", exc.found, end_seq - 1
            )
            self._lose()

    def _number(self, frame: Frame) -> None:
        report, expected = self.report, self._expected
        if frame.first_seq > expected:
            self.holes.append(Hole(expected, frame.first_seq - 1, *self._place))
        elif frame.first_seq < expected:
            last = min(expected, frame.next_seq) - 1
            late = [hole for hole in self.holes if hole.from_seq <= last and hole.to_seq >= frame.first_seq]
            kind = "reordered" if late else "duplicate"
            self._find(kind, frame.first_seq, f"number {expected}", f"number {frame.first_seq}", last)
            for hole in late:
                self.holes.remove(hole)
                self.holes += [part for part in _without(hole, frame) if part.from_seq <= part.to_seq]
            if not late:
                report.twice += last - frame.first_seq + 1
        self._expected = max(expected, frame.next_seq)
        report.events += frame.count

    def _content(self, frame: Frame) -> None:
        report = self.report
        try:
            content = look_at(frame.payload)
            if not isinstance(content, Events):
                report.newer += content.schema > SCHEMA
                return
            whole = expand(self._epoch.source, self._epoch.epoch, frame)
        except FrameNewer as exc:
            report.newer += 1
            if report.newer == 1:
                self._note(f"number {frame.first_seq}: {exc}")
            return
        except FrameCorrupt:
            report.unreadable += 1
            self._find("damaged", frame.first_seq, "a frame's content", "content that cannot be read")
            return
        report.newer += any(event.schema > SCHEMA for event in whole)
        for event in whole:
            if isinstance(event, Gap):
                self.gaps.append(event)
            elif isinstance(event, EpochOpen):
                report.role = event.role

    def _begin_segment(self, first_seq: int, *, first: bool) -> None:
        """Hold the value against the chain file's line, or take it from there."""
        line = self._lines.get(first_seq)
        if first:
            self._value = line if first_seq else ZERO
            if first_seq and line is None:
                witness = next((known for known in self._known if known.next_seq == first_seq), None)
                self._value = None if witness is None else witness.value
            if self._value is None:
                self._note(f"the chain file names no value for number {first_seq}, where what is left begins")
            self._begun_at = first_seq if first_seq else None
            self._sure = (first_seq, *self._spot())
            self._known = [known for known in self._known if known.next_seq >= first_seq]
        elif line == ZERO:
            self._note(f"the hash begins anew at number {first_seq}: no earlier value was known")
            self._value = ZERO
        elif self._value is None and line is not None:
            self._value = line
            self._sure, self._begun_at = (first_seq, *self._spot()), first_seq
        if line is not None and self._value is not None and line != self._value and self._doubt is None:
            self._doubt = self._mismatch("chain_file", first_seq, line, self._value, "the chain file")
        self._witness(first_seq)

    def _chain(self, piece: Piece) -> None:
        if self._value is not None:
            self._value = extended(self._value, piece.raw)
        if self._known and self._known[0].next_seq <= piece.frame.next_seq:
            self._place = (self._place[0], piece.offset + len(piece.raw))
            self._witness(piece.frame.next_seq)

    def _witness(self, at_seq: int) -> None:
        """Hold the value at a number against all who know it."""
        while self._known and self._known[0].next_seq <= at_seq:
            known = self._known.pop(0)
            if known.next_seq < at_seq and known.next_seq > self._sure[0]:
                expected = f"a frame that ends before number {known.next_seq}, as {known.by} says"
                self._find("altered", self._sure[0], expected, "none", known.next_seq - 1)
                self._lose()
            if known.next_seq != at_seq or self._value is None:
                continue
            if known.value != self._value:
                self._altered(known)
                # From here on it is held against what the witness says: what follows may be right.
                self._value = known.value
            else:
                self._settle_doubt(known)
                if not self.report.findings:
                    self.report.proved_to, self.report.proved_by = at_seq, known.by
            self._sure, self._begun_at = (at_seq, *self._spot()), None

    def _altered(self, known: Known) -> None:
        assert self._value is not None  # noqa: S101
        found = self._doubt
        if found is None:
            found = self._mismatch("altered", known.next_seq, known.value, self._value, known.by)
        else:
            # The chain file says nearer where it begins.
            found.kind = "altered"
            found.found += f", nor do they lead to what {known.by} says of number {known.next_seq}"
        if self._begun_at is not None:
            found.found += f"; or the chain file's value at number {self._begun_at} was changed"
        self._add(found)
        self._doubt = None

    def _lose(self) -> None:
        """The value is not known any more; with it goes what could clear the frames of a doubt."""
        self._value = None
        if self._doubt is not None:
            self._doubt.kind = "altered"
            self._add(self._doubt)
            self._doubt = None

    def _settle_doubt(self, known: Known | None) -> None:
        """The chain file said otherwise before: by now it is known whose fault that is."""
        if self._doubt is None:
            return
        if known is not None:
            self._doubt.found += f", and they lead to what {known.by} says of number {known.next_seq}"
        else:
            self._doubt.kind = "altered"
            self._doubt.found += (
                "; no witness knows a later value, so it may be the chain file that was changed"
            )
        self._add(self._doubt)
        self._doubt = None

    def _end(self) -> None:
        report = self.report
        for known in self._known[:1]:
            what = f"number {known.next_seq - 1}, which {known.by} knows"
            self._find(
                "cut_short",
                self._expected,
                what,
                f"an end before number {self._expected}",
                known.next_seq - 1,
            )
        self._settle_doubt(None)
        if report.newer and not any("later version" in note for note in report.notes):
            self._note(f"{report.newer} frames have a schema above {SCHEMA}: a later version wrote them")
        if self._value is None and not report.findings and report.events:
            self._note("records are not held against any hash")

    def _mismatch(self, kind: str, at_seq: int, expected: bytes, found: bytes, by: str) -> Finding:
        seq, segment, offset = self._sure
        return Finding(
            kind=kind,
            seq=seq,
            to_seq=max(at_seq - 1, seq),
            segment=segment or None,
            offset=offset if segment else None,
            expected=f"hash {expected.hex()} at number {at_seq}, as {by} says",
            found=f"frames that lead to {found.hex()}",
        )

    def _spot(self) -> tuple[str, int]:
        return self._place[0] or "", self._place[1] or 0

    def _find(self, kind: str, seq: int, expected: str, found: str, to_seq: int | None = None) -> None:
        segment, offset = self._place
        self._add(
            Finding(
                kind=kind,
                seq=seq,
                to_seq=to_seq,
                segment=segment,
                offset=offset,
                expected=expected,
                found=found,
            )
        )

    def _add(self, finding: Finding) -> None:
        if len(self.report.findings) < FINDINGS_MAX:
            self.report.findings.append(finding)

    def _note(self, text: str) -> None:
        if text not in self.report.notes:
            self.report.notes.append(text)


def _without(hole: Hole, frame: Frame) -> list[Hole]:
    """What is left of a hole when a frame turns up late."""
    return [hole._replace(to_seq=frame.first_seq - 1), hole._replace(from_seq=frame.next_seq)]
