"""`tidegate route history`: what happened to a route, newest first: its revisions, and what changed no revision.

A lease that ran out, a breaker that opened, a change that the bounds refused: they move traffic, or say why none was
moved, and stand between the revisions in the order of the log.
"""

from __future__ import annotations

from typing import Any

import click

from gateway.cli.client import Client, admin_options, quoted
from gateway.cli.completion import model_argument
from gateway.cli.screen import json_option, moment, percent, print_json, say, table

LIMIT = 50


@click.command("history")
@model_argument()
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=LIMIT, show_default=True, help="At most so many."
)
@click.option("--before", type=click.IntRange(1), metavar="REV", help="Only what was before this revision.")
@admin_options
@json_option
def command(model: str, limit: int, before: int | None, as_json: bool, admin: Client) -> None:
    """Show what happened to MODEL's route, newest first: who, when, why."""
    asked = {"limit": limit} if before is None else {"limit": limit, "before": before}
    body = admin.get(f"/admin/v1/routes/{quoted(model)}/history", **asked).body
    if as_json:
        print_json(body)
        return
    entries = _entries(body)
    table(("revision", "at", "by", "what", "reason", "event"), [_row(entry) for entry in entries])
    last = next((e["revision"] for e in reversed(entries) if e.get("revision") is not None), None)
    if len(entries) >= limit and last is not None and last > 1:
        say(f"older: `tidegate route history {model} --before {last}`")


def _entries(body: Any) -> list[dict[str, Any]]:
    if not isinstance(body, dict):
        return list(body)
    found: list[dict[str, Any]] = body.get("entries") or body.get("revisions") or []
    return found


def _row(entry: dict[str, Any]) -> tuple[Any, ...]:
    change = entry.get("changed") or entry
    at, kind = moment(change.get("at_ns") or 0), entry.get("kind")
    after = entry if "variants" in entry else entry.get("after")
    is_route = isinstance(after, dict) and "variants" in after and entry.get("is_revision", True)
    what = _summary(after) if is_route else _told(after)
    words = [word for word in (kind, what) if word]
    times = f" ({entry['count']} times)" if entry.get("count", 1) > 1 else ""
    return (
        entry.get("revision"), at, change.get("by"), ": ".join(words) + times, change.get("reason"),
        change.get("event"),
    )  # fmt: skip


def _summary(route: Any) -> str:
    marks = [word for word in ("frozen", "stopped") if route.get(word)]
    shown = ", ".join(f"{v['version']}: {_weight(v)}" for v in route["variants"])
    return shown + (f" ({', '.join(marks)})" if marks else "")


def _told(after: Any) -> str:
    """The plain facts of what is no revision."""
    facts = after.items() if isinstance(after, dict) else ()
    return ", ".join(f"{name} {value}" for name, value in facts if isinstance(value, str | int | float))


def _weight(variant: dict[str, Any]) -> str:
    if variant["role"] == "shadow":
        return f"sees {percent(variant.get('sample_bp', 0))}"
    return percent(variant.get("weight_bp", 0))
