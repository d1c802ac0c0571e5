"""Verdicts: who is ahead, of a ratio and its interval. Pure.

figures -> **verdicts** -> summary -> page. A ratio above 1 is in our favour, always.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from bench import report

Verdict = Literal["ours", "theirs", "cannot tell", "busy", "failed", "late", "wrong"]
"""`failed`: the side that would be ahead failed too often. `late`: the generator was. `wrong`: an answer was wrong."""
WIDE = 3.0
"""An interval whose ends are further apart than this factor does not put us ahead; a peer, it does."""
ROUNDS_MIN = 3
"""Of fewer rounds, or open loops, no verdict is drawn."""
FAILED_SHARE_MAX = 0.001
"""A side of whose requests more failed is ahead in nothing: to refuse is quick."""


class Shares(NamedTuple):
    """Of a side's requests those that failed, 0 to 1."""

    ours: float = 0.0
    theirs: float = 0.0


NONE_FAILED = Shares()


def ratio(top: Sequence[float | None], bottom: Sequence[float | None]) -> report.Interval | None:
    """Of pairs; None where there is none, or where one has no figure."""
    found = [a / b if a is not None and b else math.inf for a, b in zip(top, bottom, strict=True)]
    return report.interval(found) if found and all(map(math.isfinite, found)) else None


def verdict(
    found: report.Interval | None, rounds: int, foreign_cpus: float = 0.0, *,
    failed: Shares = NONE_FAILED, late: bool = False, wrong: bool = False,
) -> Verdict:  # fmt: skip
    """Who is ahead, of so many rounds' ratio above 1 in our favour.

    Args:
        found: None: one of the rounds has no ratio.
        failed: either side's share.
        late: the generator was, in most of a side's loops.
        wrong: an answer of either side was.
    """
    if wrong:
        return "wrong"
    if foreign_cpus > report.FOREIGN_CPUS_MAX:
        return "busy"
    if rounds < ROUNDS_MIN or found is None:
        return "cannot tell"
    if late:
        return "late"
    if found.high < 1.0:
        return "failed" if failed.theirs > FAILED_SHARE_MAX else "theirs"
    if found.low <= 1.0 or found.high / found.low > WIDE:
        return "cannot tell"
    return "failed" if failed.ours > FAILED_SHARE_MAX else "ours"
