"""Where a number stands on disk: its segment by name, its place by the segment's index, its frame by a look.

spool -> **locate**, for the commands. Nothing that an index says is believed before it is seen.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

from gateway.audit.frame import Frame
from gateway.audit.index import STEP_BYTES, IndexBuilder, read_index
from gateway.audit.spool import EpochPath, segments, synced_seq
from gateway.audit.walk import Damage, Piece, walk


class Sought:
    """What a look-up met on its way.

    Attributes:
        damage: the segment that is damaged before the number, and where; None where all could be read.
    """

    def __init__(self) -> None:
        self.damage: tuple[Path, Damage] | None = None


def frame_of(epoch: EpochPath, seq: int, sought: Sought | None = None) -> Frame | None:
    """The frame that holds a number, or the first behind it where none does; None when there is none on disk.

    Cost: about 1 ms; the newest segment, which has no index yet, is read from its beginning.
    """
    limit = synced_seq(epoch)
    if seq >= limit:
        return None
    listed = segments(epoch)
    begin = max(bisect_right([first_seq for first_seq, _ in listed], seq) - 1, 0)
    for at in range(begin, len(listed)):
        full = at + 1 < len(listed)
        end_seq = min(listed[at + 1][0], limit) if full else limit
        try:
            for piece in _from(*listed[at], seq, full=full):
                if piece.frame.first_seq >= end_seq:
                    break
                if piece.frame.next_seq > seq:
                    return piece.frame
        except Damage as exc:
            if sought is not None and sought.damage is None:
                sought.damage = (listed[at][1], exc)
        except FileNotFoundError:
            # Retention took it a moment ago.
            continue
    return None


def _from(segment_seq: int, path: Path, seq: int, *, full: bool) -> Iterator[Piece]:
    """Frames of a segment from a little before a number on."""
    if full and seq > segment_seq:
        found = read_index(path)
        if found is None:
            found = _make(path)
        place = bisect_right(found, (seq, 1 << 64)) - 1
        if place >= 0 and _is_there(path, *found[place]):
            return walk(path, found[place][1], STEP_BYTES)
    return walk(path)


def _is_there(path: Path, first_seq: int, offset: int) -> bool:
    """Whether an index says the truth: a whole frame of that number at that byte."""
    try:
        piece = next(walk(path, offset, STEP_BYTES), None)
    except Damage:
        return False
    return piece is not None and piece.frame.first_seq == first_seq


def _make(path: Path) -> list[tuple[int, int]]:
    """Index a segment that has none, and keep what is found for the next look-up."""
    builder = IndexBuilder()
    with contextlib.suppress(Damage):
        for piece in walk(path):
            builder.add(piece.frame.first_seq, len(piece.raw))
    builder.write(path)
    return builder.entries
