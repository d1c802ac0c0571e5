"""`tidegate route bounds`: what automata may do to a route while nobody looks.

Bounds hold for tokens of automata (the sidecar's, and those that `token new --automaton` made); a person's are free of
them. They are part of the route: set by compare-and-set, kept in its history, brought back by a rollback of it.
"""

from __future__ import annotations

from typing import Any

import click

from gateway.cli.changing import Asked, Wanted, read_route
from gateway.cli.client import Client, admin_options, quoted
from gateway.cli.completion import model_argument
from gateway.cli.failures import Stop
from gateway.cli.screen import json_option, percent, print_json, say
from gateway.cli.weights import parse_weight
from gateway.routing import TOTAL_BP

FIELDS = ("max_canary_bp", "max_step_bp", "changes_per_h", "dwell_s")
NONE = dict.fromkeys(FIELDS, (None,)) | {
    "max_canary_bp": (None, TOTAL_BP),
    "max_step_bp": (None, TOTAL_BP),
    "dwell_s": (None, 0),
}
"""Values that bind nobody."""


@click.command("bounds")
@model_argument()
@click.option("--max-canary", metavar="WEIGHT", help="A canary gets at most this, as in 20%.")
@click.option("--max-step", metavar="WEIGHT", help="One change gives a canary at most this more.")
@click.option(
    "--changes-per-h", type=click.IntRange(0), metavar="N", help="At most so many changes in an hour."
)
@click.option(
    "--dwell-s", type=click.IntRange(0), metavar="S", help="At least so long after the last change."
)
@click.option("--clear", is_flag=True, help="No bounds any more.")
@click.option("--reason", help="Why; it stands in the log. A change needs it.")
@click.option("--if-match", type=int, metavar="REV", help="Only at this revision [default: now's].")
@click.option("--dry-run", is_flag=True, help="Show what would change, change nothing.")
@admin_options
@json_option
def command(model: str, admin: Client, as_json: bool, **given: Any) -> None:
    """Show what automata are held to on MODEL's route, or change it; what is not named stays as it is."""
    asked = Asked(admin, Wanted(given["reason"] or "", given["if_match"], given["dry_run"], None, as_json))
    named = _named(given)
    if not named and not given["clear"]:
        body = admin.get(f"/admin/v1/routes/{quoted(model)}/bounds").body
        if as_json:
            print_json(body)
        else:
            say(f"{model}: automata are held to {in_words(_held(body))}")
        return
    if named and given["clear"]:
        msg = "--clear takes all bounds away: give it alone"
        raise Stop(msg)
    if not given["reason"]:
        msg = "a change of bounds needs --reason: it stands in the log"
        raise Stop(msg)
    held = _held(read_route(admin, model).get("bounds")) if named else {}
    wanted = {**held, **named}
    # What is not named is no bound: the gateway takes all of them at once.
    asked.send(model, "bounds", {field: wanted[field] for field in FIELDS if wanted.get(field) is not None})


def in_words(bounds: Any) -> str:
    """What bounds say, for people."""
    held = _held(bounds)
    words = {
        "max_canary_bp": lambda value: f"at most {percent(value)} for a canary",
        "max_step_bp": lambda value: f"steps of at most {percent(value)}",
        "changes_per_h": lambda value: f"{value} changes in an hour",
        "dwell_s": lambda value: f"{value:g} s after the last change",
    }
    told = [word(held[field]) for field, word in words.items() if held.get(field) not in NONE[field]]
    return ", ".join(told) or "no bounds"


def _named(given: dict[str, Any]) -> dict[str, int]:
    """The bounds that options name, as the gateway calls them."""
    weights = {"max_canary_bp": given["max_canary"], "max_step_bp": given["max_step"]}
    found = {field: parse_weight(text) for field, text in weights.items() if text is not None}
    return found | {field: given[field] for field in ("changes_per_h", "dwell_s") if given[field] is not None}


def _held(bounds: Any) -> dict[str, Any]:
    """Bounds as they come, alone or within what names the model."""
    if not isinstance(bounds, dict):
        return {}
    return bounds["bounds"] or {} if "bounds" in bounds else bounds
