"""`tidegate rollout`: plan a rollout before it starts. Needs no gateway and no log."""

from __future__ import annotations

import re

import click
import msgspec

from gateway.cli.failures import Stop
from gateway.cli.screen import json_option, percent, print_json, say, table
from gateway.cli.weights import parse_weight
from shadow.harm import HARD_OMEGA, OMEGA
from shadow.power import Finding, Stage, plan

_PER_SECOND = {"s": 1.0, "min": 60.0, "h": 3_600.0}


@click.group("rollout")
def command() -> None:
    """Plan a rollout: what a stage can find, and how long that takes."""


@command.command("power")
@click.option("--rate", required=True, metavar="N/s", help="Requests, as 100/s, 6000/min or 20/h.")
@click.option("--weight", required=True, metavar="N%", help="The canary's share: 10% or 1000 (basis points).")
@click.option("--base", required=True, metavar="N%", help="How many requests are bad today: 0.5% or 0.005.")
@click.option("--margin", default="10%", show_default=True, help="How much worse a canary may be.")
@click.option(
    "--tolerance", default=0.05, show_default=True, type=click.FloatRange(min=0), metavar="SD",
    help="By how much its scores may shift (max_shift_sd).",
)  # fmt: skip
@click.option(
    "--alpha", default="1%", show_default=True, help="How often a healthy canary may be rolled back."
)
@click.option(
    "--kind", default="failed", show_default=True, type=click.Choice([k for k in OMEGA if k != "shift"]),
    help="The kind of bad request; each has its share of alpha.",
)  # fmt: skip
@json_option
def power(
    rate: str, weight: str, base: str, margin: str, tolerance: float, alpha: str, kind: str, as_json: bool
) -> None:
    """Print how many requests and minutes it takes, in the median, to find a fault of a given size."""
    stage = Stage(
        rate_per_s=parse_rate(rate),
        weight_bp=parse_weight(weight),
        base_rate=parse_share("--base", base),
        margin=parse_share("--margin", margin),
        tolerance_sd=tolerance,
        omega=OMEGA[kind],
        alpha=parse_share("--alpha", alpha),
    )
    if not 1 <= stage.weight_bp <= 9_999:
        raise Stop(
            f"--weight {weight}: two versions compare at 0.01% to 99.99%; at {weight} one has no traffic"
        )
    if not 0 < stage.alpha < 1:
        raise Stop(f"--alpha {alpha}: expected more than 0% and less than 100%")
    found = plan(stage)
    if as_json:
        print_json({"stage": msgspec.to_builtins(stage), "findings": msgspec.to_builtins(found)})
        return
    headers = ("fault of the canary", "requests", "of the canary", "time")
    table(headers, [_row(finding, stage) for finding in found])
    say(
        f"Medians at {stage.rate_per_s:.4g} requests a second, {percent(stage.weight_bp)} to the canary,"
        f" {stage.base_rate * 100:.4g}% of requests bad today; no sooner than the second tick ends.\n"
        f"A healthy canary is rolled back in at most {stage.alpha * (1 + HARD_OMEGA) * 100:.4g}% of rollouts, all"
        f" kinds of evidence together, however long they take."
    )


def _row(finding: Finding, stage: Stage) -> tuple[str, int | None, int | None, str]:
    fault = {
        "ratio": f"bad {finding.size:g} times as often",
        "rate": f"{finding.size * 100:g}% of requests bad",
        "shift": f"scores shifted {finding.size:g} sd beyond the tolerance",
    }[finding.kind]
    if finding.requests is None or finding.minutes is None:
        return fault, None, None, "never"
    canary = max(1, round(finding.requests * stage.weight_bp / 10_000))
    return fault, finding.requests, canary, duration(finding.minutes)


def parse_rate(text: str) -> float:
    """Requests per second of "100/s", "6000/min", "20/h" or "100".

    Raises:
        Stop: not of that form, or 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:/(s|min|h))?", text)
    if not match or not float(match[1]):
        raise Stop(
            f"--rate {text!r}: expected requests per s, min or h, more than 0, as in 100/s or 6000/min"
        )
    return float(match[1]) / _PER_SECOND[match[2] or "s"]


def parse_share(option: str, text: str) -> float:
    """A share between 0 and 1 of "0.5%" or "0.005".

    Raises:
        Stop: neither form, or out of range.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text)
    share = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= share <= 1:
        raise Stop(f"{option} {text!r}: expected a percentage or a share up to 1, as in 0.5% or 0.005")
    return share


def duration(minutes: float) -> str:
    """Minutes for a person: "12 s", "8.3 min", "2.5 h", "12 d"."""
    for unit, length, below in (("s", 1 / 60, 1.0), ("min", 1.0, 100.0), ("h", 60.0, 2_880.0)):
        if minutes < below:
            return f"{minutes / length:.2g} {unit}"
    return f"{minutes / 1_440:,.0f} d"
