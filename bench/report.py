"""Report: what figures are made of, and how they are shown. Pure, but for printing.

Every published figure is a median of paired ratios with an interval that assumes nothing about the
distribution: the order statistics between which the median lies with at least 95% (sign test). The
machine's facts stand beside it, since figures of two machines do not compare.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

CONFIDENCE = 0.95


class Interval(msgspec.Struct, frozen=True):
    """A median and the two observations that hold it with probability `coverage`."""

    median: float
    low: float
    high: float
    coverage: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


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


class Row(msgspec.Struct, frozen=True):
    """One line of a table: a name, what was measured, the goal if there is one."""

    name: str
    measured: str
    goal: str = ""
    met: bool | None = None


def print_table(title: str, rows: Sequence[Row], facts: Machine) -> None:
    """Show rows on the terminal, the machine below them."""
    console = Console()
    table = Table(title=title, title_justify="left")
    for column in ("figure", "measured", "goal", ""):
        table.add_column(column, overflow="fold")
    for row in rows:
        verdict = "" if row.met is None else ("met" if row.met else "missed")
        table.add_row(row.name, row.measured, row.goal, verdict)
    console.print(table)
    packages = ", ".join(f"{name} {number}" for name, number in facts.packages.items())
    console.print(
        f"{facts.cpu}, {facts.cpus} CPUs, Linux {facts.kernel}, Python {facts.python}, {packages}",
        style="dim",
        highlight=False,
    )


def to_json(result: msgspec.Struct) -> str:
    """A result as JSON text, indented."""
    return msgspec.json.format(msgspec.json.encode(result)).decode()
