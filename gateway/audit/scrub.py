"""Scrub: while there is nothing to drain, the recorder reads older segments again, so that damage is known early.

recorder (idle) -> **scrub** -> gap events. Frames' CRCs, and each segment's hash from its recorded start to the next
one's. Numbers that cannot be read any more get a gap of cause `corrupt`, once; the file is kept, and readers go on with
what follows. What was told is remembered in `<state_dir>/scrub.json`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gateway.audit.chain import ZERO, extended, recorded
from gateway.audit.event import Event, Gap
from gateway.audit.spool import EpochPath, closed, epochs, segments, synced_seq
from gateway.audit.walk import Damage, walk

log = logging.getLogger("tidegate.recorder")

BYTES_PER_S = 8 * 1024 * 1024
PIECE_BYTES = 32 * 1024
"""Read in one pass of the recorder; more where a frame is larger."""
EVERY_S = 24 * 3600.0
"""From the beginning of one pass over the spool to that of the next."""
NAME = "scrub.json"

Tell = Callable[[Sequence[Event]], bool]
"""Logs events in the recorder's own epoch; False when they find no room now."""


class _Segment(NamedTuple):
    epoch: EpochPath
    first_seq: int
    path: Path
    end_seq: int
    """The number that the next one begins with, or the first that is not on disk."""
    start: bytes | None
    end: bytes | None
    """The hashes that the chain file names for the two."""

    @property
    def name(self) -> str:
        """As it is remembered."""
        return f"{self.epoch.key}/{self.first_seq:020d}"


class Scrub:
    """Goes through one spool again and again. Used by the recorder's one thread, `step` in each idle pass.

    Cost: 8 MiB/s of the disk and 2% of a core while nothing is drained, for as long as a pass takes.
    """

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._memory = spool.parent / NAME
        self._told: set[str] = set()
        self._after = ""
        """The last segment that was read in this pass."""
        self._begun_s = 0.0
        self._load()
        self._next_ns = 0
        self._steps: Iterator[int] | None = None
        self._tell: Tell = lambda _: False

    def step(self, tell: Tell) -> None:
        """Read a little, when it is time to; what is found is logged and told. Never raises."""
        now_ns = time.monotonic_ns()
        if now_ns < self._next_ns:
            return
        self._tell = tell
        if self._steps is None:
            if not self._after and time.time() - self._begun_s < EVERY_S:
                self._next_ns = now_ns + 1_000_000_000
                return
            self._steps = self._pass()
        try:
            read = next(self._steps, None)
        except OSError as exc:
            log.warning("scrub_failed", extra={"why": exc.strerror})
            read, self._after = None, ""
            self._begun_s = time.time()
        if read is None:
            self._steps, read = None, 0
        self._next_ns = now_ns + read * 1_000_000_000 // BYTES_PER_S

    def _pass(self) -> Iterator[int]:
        """Over all segments but those being written; yields the bytes read since the last time."""
        if not self._after:
            self._begun_s = time.time()
        present: set[str] = set()
        for epoch in epochs(self._spool):
            for segment in _listed(epoch):
                present.add(segment.name)
                if segment.name > self._after:
                    yield from self._check(segment)
                    self._after = segment.name
                    self._save()
        self._after = ""
        self._told &= present
        self._save()

    def _check(self, segment: _Segment) -> Iterator[int]:
        value, at_seq, unpaid = segment.start, segment.first_seq, 0
        damage: Damage | None = None
        try:
            for piece in walk(segment.path, read_bytes=PIECE_BYTES, keep_cached=False):
                if piece.frame.first_seq >= segment.end_seq:
                    break
                if value is not None:
                    value = extended(value, piece.raw)
                at_seq = piece.frame.next_seq
                unpaid += len(piece.raw)
                if unpaid >= PIECE_BYTES:
                    yield unpaid
                    unpaid = 0
        except Damage as exc:
            damage = exc
        except FileNotFoundError:
            # Retention's.
            return
        yield unpaid
        if damage is not None:
            if at_seq < segment.end_seq:
                yield from self._found(segment, at_seq, f"byte {damage.offset}: {damage.found}")
        elif value is not None and segment.end is not None and value != segment.end:
            why = "its frames do not lead to the hash of the next segment's start"
            # A hole with the right hash is one that was there when it was written.
            yield from self._found(
                segment, at_seq, why if at_seq == segment.end_seq else f"{why}, and some are missing"
            )

    def _found(self, segment: _Segment, from_seq: int, why: str) -> Iterator[int]:
        """Log it once: the numbers that cannot be read, if there are such, as a gap."""
        if segment.name in self._told:
            return
        lost = from_seq < segment.end_seq
        while lost and not self._tell([_gap(segment, from_seq)]):
            yield 0
        facts = {"from_seq": from_seq, "to_seq": segment.end_seq - 1} if lost else {}
        log.error(
            "segment_corrupt",
            extra={
                "segment": str(segment.path), "why": why, **facts,
                "meanwhile": "the file is kept; readers go on behind it",
            },
        )  # fmt: skip
        self._told.add(segment.name)
        self._save()

    def _load(self) -> None:
        try:
            content = json.loads(self._memory.read_bytes())
            self._told = {str(name) for name in content["told"]}
            self._after, self._begun_s = str(content["after"]), float(content["begun_s"])
        except (OSError, ValueError, KeyError, TypeError):
            # Told again at worst.
            return

    def _save(self) -> None:
        content = {"after": self._after, "begun_s": self._begun_s, "told": sorted(self._told)}
        temporary = self._memory.with_suffix(".new")
        try:
            temporary.write_text(json.dumps(content))
            temporary.rename(self._memory)
        except OSError as exc:
            log.warning("scrub_not_remembered", extra={"why": exc.strerror})


def _gap(segment: _Segment, from_seq: int) -> Gap:
    epoch = segment.epoch
    return Gap(
        source=f"{epoch.source:016x}",
        epoch=epoch.epoch,
        from_seq=from_seq,
        to_seq=segment.end_seq - 1,
        cause="corrupt",
        at_ns=time.time_ns(),
    )


def _listed(epoch: EpochPath) -> list[_Segment]:
    """The epoch's segments that nothing is appended to any more."""
    over = closed(epoch) is not None
    mark = synced_seq(epoch)
    found = segments(epoch)
    lines = recorded(epoch)
    out: list[_Segment] = []
    for index, (first_seq, path) in enumerate(found):
        last = index + 1 == len(found)
        if last and not over:
            break
        end_seq = mark if last else found[index + 1][0]
        start = ZERO if not first_seq else lines.get(first_seq)
        # Where the hash begins anew nothing leads to it.
        end = None if last or lines.get(end_seq) == ZERO else lines.get(end_seq)
        out.append(_Segment(epoch, first_seq, path, end_seq, start, end))
    return out
