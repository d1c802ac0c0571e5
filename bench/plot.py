"""Plot: a load as a picture. Needs matplotlib (`pip install 'tidegate[plots]'`)."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from bench.outcome import Outcome
from gateway.errors import ConfigInvalid


def plot(seen: Outcome, title: str, file: Path) -> None:
    """Draw latency by percentile, and latency and goodput over time; an SVG.

    Raises:
        ConfigInvalid: matplotlib is not installed.
    """
    figure = empty(11, 4.2)
    by_percentile, over_time = figure.subplots(1, 2)
    shares = [100 / max(100 - share, 1e-9) for share, _ in seen.curve]
    by_percentile.plot(shares, [value for _, value in seen.curve], marker=".", color="#1f5fa8")
    by_percentile.set(xscale="log", yscale="log", xlabel="percentile", ylabel="ms from due time")
    ticks = (1, 2, 10, 100, 1000, 10_000)
    by_percentile.set_xticks(ticks, ["0", "50", "90", "99", "99.9", "99.99"])
    at = [one.at_s for one in seen.slices]
    over_time.plot(at, [one.p99_ms for one in seen.slices], color="#b4442c", label="p99 ms")
    over_time.plot(at, [one.p50_ms for one in seen.slices], color="#1f5fa8", label="p50 ms")
    over_time.set(yscale="log", xlabel="due at, s", ylabel="ms from due time")
    rate = over_time.twinx()
    rate.fill_between(
        at, [one.ok_per_second for one in seen.slices], color="#888888", alpha=0.25, step="post"
    )
    rate.set_ylim(bottom=0)
    rate.set_ylabel("2xx a second")
    over_time.legend(loc="upper left")
    for axes in (by_percentile, over_time):
        axes.grid(alpha=0.3, which="both")
    figure.suptitle(textwrap.fill(title, 120), fontsize=10)
    write(figure, file)


def write(figure: Any, file: Path) -> None:
    """Write a figure as an SVG; the same figure gives the same bytes, so that a page changes only when its data did."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "tidegate"}):
        figure.savefig(file, format="svg", metadata={"Date": None})


def demand() -> None:
    """Raise ConfigInvalid now rather than after a long load, when there is no matplotlib."""
    _figure()


def empty(width: float, height: float) -> Any:
    """An empty figure of so many inches.

    Raises:
        ConfigInvalid: matplotlib is not installed.
    """
    return _figure()(figsize=(width, height), layout="constrained")


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        msg = "the plot needs matplotlib, which is not installed: pip install 'tidegate[plots]'"
        raise ConfigInvalid(msg) from None
    return Figure
