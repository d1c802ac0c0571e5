"""Wording: how ratios, verdicts and tables are written in Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench import report
from bench.peers.verdicts import Verdict

SAYS: dict[Verdict, str] = {
    "ours": "",
    "theirs": " **(theirs ahead)**",
    "cannot tell": " (too wide to tell)",
    "busy": " (the machine was busy: too wide to tell)",
}


def times(found: report.Interval, said: Verdict) -> str:
    """A ratio with its interval, and who is ahead where it is not us."""
    digits = 1 if found.median >= 10 else 2
    return f"{found.text(digits)}{SAYS[said]}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join(lines)
