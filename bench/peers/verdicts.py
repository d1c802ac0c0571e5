"""Verdicts: who is ahead, of a ratio and its interval. Pure.

figures -> **verdicts** -> summary -> page. A ratio above 1 is in our favour, always.
"""

from __future__ import annotations

from typing import Literal

from bench import report

Verdict = Literal["ours", "theirs", "cannot tell", "busy"]
WIDE = 3.0
"""An interval whose ends are further apart than this factor does not put us ahead; a peer, it does."""
ROUNDS_MIN = 3
"""Of fewer rounds, or open loops, no verdict is drawn."""


def verdict(found: report.Interval, rounds: int, foreign_cpus: float = 0.0) -> Verdict:
    """Who is ahead, of so many rounds' ratio above 1 in our favour."""
    if foreign_cpus > report.FOREIGN_CPUS_MAX:
        return "busy"
    if rounds < ROUNDS_MIN:
        return "cannot tell"
    if found.high < 1.0:
        return "theirs"
    if found.low <= 1.0 or found.high / found.low > WIDE:
        return "cannot tell"
    return "ours"
