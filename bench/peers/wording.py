"""Wording: how ratios, verdicts and tables are written in Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench import report
from bench.peers.verdicts import FAILED_SHARE_MAX, Shares, Verdict

SAYS: dict[Verdict, str] = {
    "ours": "",
    "theirs": " **(theirs ahead)**",
    "cannot tell": " (too wide to tell)",
    "busy": " (the machine was busy: too wide to tell)",
    "failed": " (no verdict: too many failed)",
    "late": " (no verdict: the generator was late)",
    "wrong": " (ended by a wrong answer: no verdict)",
}


def times(found: report.Interval | None, said: Verdict, failed: Shares) -> str:
    """A ratio with its interval, and who is ahead where it is not us."""
    if found is None:
        return f"no figure{remark(said, failed)}"
    digits = 1 if found.median >= 10 else 2
    return f"{found.text(digits)}{remark(said, failed)}"


def remark(said: Verdict, failed: Shares) -> str:
    """Who is ahead where it is not us, and whose requests failed too often."""
    shares = (("ours", failed.ours), ("theirs", failed.theirs))
    which = [f"{share:.2%} of {side} failed" for side, share in shares if share > FAILED_SHARE_MAX]
    return SAYS[said] + (f" ({', '.join(which)})" if which else "")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join(lines)
