"""Wording: how ratios, verdicts and tables are written in Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench import report
from bench.peers.probes.table import without_paths
from bench.peers.verdicts import FAILED_SHARE_MAX, NONE_FAILED, Shares, Verdict

NEAR_ONE = 0.95
SAYS: dict[Verdict, str] = {
    "ours": "",
    "theirs": " **(theirs ahead)**",
    "cannot tell": " (too wide to tell)",
    "busy": " (the machine was busy: too wide to tell)",
    "failed": " (no verdict: too many failed)",
    "late": " (no verdict: the generator was late)",
    "wrong": " (ended by a wrong answer: no verdict)",
}


def times(found: report.Interval | None, said: Verdict, failed: Shares = NONE_FAILED) -> str:
    """A ratio with its interval, and who is ahead where it is not us."""
    if found is None:
        return f"no figure{remark(said, failed)}"
    return f"{ratio(found)}{remark(said, failed)}"


def ratio(found: report.Interval) -> str:
    """A ratio with its interval."""
    return found.text(digits(found.low, found.median, found.high))


def digits(*ratios: float) -> int:
    """Decimals of ratios that stand together: near to 1 more of them, so that 0.998 is not 1."""
    if any(NEAR_ONE <= one <= 1 / NEAR_ONE for one in ratios):
        return 3
    return 1 if max(ratios) >= 10 else 2


def remark(said: Verdict, failed: Shares) -> str:
    """Who is ahead where it is not us, and whose requests failed too often."""
    shares = (("ours", failed.ours), ("theirs", failed.theirs))
    which = [f"{share:.2%} of {side} failed" for side, share in shares if share > FAILED_SHARE_MAX]
    return SAYS[said] + (f" ({', '.join(which)})" if which else "")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join(_cell(text) for text in row)} |" for row in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def one_line(text: str) -> str:
    """What a product or this machine said, in one line and without this machine's directories."""
    return " ".join(without_paths(text).split())
