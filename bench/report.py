"""Report: what figures are made of, and how they are shown. Pure, but for printing.

Every published figure is a median of paired ratios with an interval that assumes nothing about the
distribution: the order statistics between which the median lies with at least 95% (sign test). The
machine's facts stand beside it, since figures of two machines do not compare.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

CONFIDENCE = 0.95
FOREIGN_CPUS_MAX = 0.2
"""Processors that others take: above it a machine is busy, and there is no figure."""


class Interval(msgspec.Struct, frozen=True):
    """A median and the two observations that hold it with probability `coverage`."""

    median: float
    low: float
    high: float
    coverage: float

    def __str__(self) -> str:
        return self.text(2)

    def text(self, digits: int) -> str:
        """Median and interval with so many decimals."""
        return f"{self.median:,.{digits}f} [{self.low:,.{digits}f}, {self.high:,.{digits}f}]"


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The median of `values` with its sign-test interval.

    Below six values no pair of observations reaches 95%: the whole range is given, with its
    coverage.

    Raises:
        ValueError: when there are no values.
    """
    if not values:
        msg = "no values: expected at least one round"
        raise ValueError(msg)
    ordered = sorted(values)
    n = len(ordered)
    best = 0
    for k in range(n // 2):
        if _coverage(n, k) >= confidence:
            best = k
    return Interval(statistics.median(ordered), ordered[best], ordered[n - 1 - best], _coverage(n, best))


def _coverage(n: int, k: int) -> float:
    """P(the median lies between the k-th smallest and the k-th largest of n), k from 0."""
    if n == 1:
        return 0.0
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2.0**n
    return max(0.0, 1.0 - 2.0 * tail)


class Machine(msgspec.Struct, frozen=True):
    """What must be known to compare a figure with another."""

    cpu: str
    cpus: int
    kernel: str
    python: str
    packages: dict[str, str]

    def text(self) -> str:
        """In one line."""
        packages = ", ".join(f"{name} {number}" for name, number in self.packages.items())
        return f"{self.cpu}, {self.cpus} CPUs, Linux {self.kernel}, Python {self.python}, {packages}"


def machine(
    packages: Sequence[str] = ("uvicorn", "uvloop", "onnxruntime", "msgspec", "numpy"),
) -> Machine:
    """This machine's facts; no host names, no paths."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return Machine(
        cpu=cpu,
        cpus=os.cpu_count() or 1,
        kernel=platform.release(),
        python=platform.python_version(),
        packages={name: version(name) for name in packages},
    )


def commit() -> str:
    """The tree that was measured, where this is one."""
    git = shutil.which("git")
    if git is None:
        return ""
    done = subprocess.run(  # noqa: S603
        [git, "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip()


class Row(msgspec.Struct, frozen=True):
    """One line of a table: a name, what was measured, the goal if there is one."""

    name: str
    measured: str
    goal: str = ""
    met: bool | None = None
    """None where there is no goal, or where the run cannot tell."""
    interval: Interval | None = None
    """What `measured` says, for programs."""

    @property
    def verdict(self) -> str:
        """In words."""
        if self.met is None:
            return "undecided" if self.goal else ""
        return "met" if self.met else "missed"


def at_most(name: str, found: Interval, bound: float, unit: str = " x", digits: int = 2) -> Row:
    """A figure whose median is to be at most `bound`."""
    return Row(name, found.text(digits) + unit, f"<= {bound:g}{unit}", found.median <= bound, found)


def at_least(name: str, found: Interval, bound: float, unit: str = " x", digits: int = 2) -> Row:
    """A figure whose median is to be at least `bound`."""
    return Row(name, found.text(digits) + unit, f">= {bound:g}{unit}", found.median >= bound, found)


def print_table(title: str, rows: Sequence[Row], facts: Machine) -> None:
    """Show rows on the terminal, the machine below them."""
    console = Console()
    if not console.is_terminal:
        # A pipe has no width; 80 columns would fold the figures.
        console = Console(width=140)
    table = Table(title=title, title_justify="left")
    for column in ("figure", "measured", "goal", ""):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(row.name, row.measured, row.goal, row.verdict)
    console.print(table)
    console.print(facts.text(), style="dim", highlight=False)


def markdown(rows: Sequence[Row], head: tuple[str, ...] = ("figure", "measured", "goal", "")) -> str:
    """Rows as a table in Markdown, without a line end behind the last."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cells = (row.name, row.measured, row.goal, f"**{row.verdict}**" if row.verdict else "")
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def to_json(result: msgspec.Struct) -> str:
    """A result as JSON text, indented."""
    return msgspec.json.format(msgspec.json.encode(result)).decode()
