"""`tidegate route`: show and change which version answers.

Every change is a compare-and-set (`changing`): it names the revision it was decided on (by default the one that this
command has just read), and the gateway refuses it when the route has moved on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from gateway.cli import route_bounds, route_history
from gateway.cli.changing import Asked, change_options, read_route
from gateway.cli.client import Client, admin_options
from gateway.cli.completion import model_argument, variant_names, version_names
from gateway.cli.failures import Stop
from gateway.cli.screen import Piece, json_option, made_table, moment, percent, print_json, show
from gateway.cli.watching import watch, watch_option
from gateway.cli.weights import parse_assignment, parse_variant, plan, with_rest


@click.group("route")
def command() -> None:
    """Show and change which version answers."""


command.add_command(route_bounds.command)
command.add_command(route_history.command)


@command.command("show")
@model_argument(required=False)
@watch_option
@admin_options
@json_option
def show_route(model: str | None, watch_it: bool, as_json: bool, admin: Client) -> None:
    """Show the route of MODEL, or of every model."""

    def fetch() -> Any:
        return admin.get("/admin/v1/routes").body if model is None else read_route(admin, model)

    if watch_it:
        watch(fetch, _pieces, as_json)
        return
    body = fetch()
    if as_json:
        print_json(body)
    else:
        show(_pieces(body))


def _pieces(body: Any) -> Iterator[Piece]:
    """One route, or all of them."""
    if "variants" in body:
        yield from _drawn(body)
        return
    if not body["routes"]:
        yield "no routes: put a model at <repository>/NAME/1/model.onnx, then `tidegate model refresh`"
    for route in body["routes"]:
        yield from _drawn(route)


@command.command("shift")
@model_argument()
@click.argument(
    "weights", nargs=-1, required=True, metavar="VARIANT=WEIGHT...", shell_complete=variant_names("=")
)
@change_options
def shift(model: str, weights: tuple[str, ...], asked: Asked) -> None:
    """Set the weight of canaries, as in canary=10% or canary=1000; the primary has the rest.

    On the left may stand a version number; a version that has no variant yet becomes a new canary.
    """
    wanted = [parse_assignment(text) for text in weights]
    change = plan(model, asked.route(model)["variants"], wanted)
    if change.variants is None:
        asked.send(model, "shift", {"weights_bp": change.weights_bp})
    else:
        asked.send(model, "", {"variants": change.variants})


@command.command("set")
@model_argument()
@click.option(
    "--variant", "variants", multiple=True, required=True, metavar="NAME=VERSION:ROLE:WEIGHT",
    help="A variant; give all of them.",
)  # fmt: skip
@change_options
def set_route(model: str, variants: tuple[str, ...], asked: Asked) -> None:
    """Replace all variants of MODEL's route.

    The primary's weight may be left out: it has the rest.
    """
    asked.send(model, "", {"variants": with_rest([parse_variant(text) for text in variants])})


@command.command("promote")
@model_argument()
@click.argument("variant", default="canary", shell_complete=variant_names())
@change_options
def promote(model: str, variant: str, asked: Asked) -> None:
    """Make VARIANT's version [default: canary's] the primary; the old one is kept warm."""
    asked.send(model, "promote", {"variant": variant})


@command.command("rollback")
@model_argument()
@click.option("--to", "to_revision", type=int, metavar="REV", help="[default: the one before]")
@click.option("--variant", metavar="CANARY", help="Only this canary: its weight to 0, its version latched.")
@change_options
def rollback(model: str, to_revision: int | None, variant: str | None, asked: Asked) -> None:
    """Bring back the content of an older revision, as a new one; or take a canary's traffic away.

    A latched version gets no weight, from nobody, until `tidegate route rearm`.
    """
    if to_revision is not None and variant is not None:
        msg = "--to brings back a revision, --variant rolls back a canary: give one of them"
        raise Stop(msg)
    given = {"to_revision": to_revision, "variant": variant}
    asked.send(model, "rollback", {key: value for key, value in given.items() if value is not None})


@command.command("rearm")
@model_argument()
@click.argument("version", shell_complete=version_names)
@change_options
def rearm(model: str, version: str, asked: Asked) -> None:
    """Let a latched VERSION have weight again; it has none until it is shifted to."""
    asked.send(model, "rearm", {"version": version})


@command.command("freeze")
@model_argument()
@change_options
def freeze(model: str, asked: Asked) -> None:
    """Hold the route: no change, by nobody, until it is thawed."""
    asked.send(model, "freeze", {})


@command.command("thaw")
@model_argument()
@change_options
def thaw(model: str, asked: Asked) -> None:
    """End a freeze."""
    asked.send(model, "thaw", {})


def _drawn(route: dict[str, Any]) -> Iterator[Piece]:
    """A route as a table and what is to be said of it."""
    model = route["model"]
    stopped = route.get("stopped")
    held = (", frozen" if route.get("frozen") else "") + (", stopped" if stopped else "")
    variants = route["variants"]
    headers = ["variant", "version", "role", "weight", "state"]
    rows = [[v["name"], v["version"], v["role"], _weight(v), v.get("state")] for v in variants]
    if any("lease_until" in v for v in variants):
        headers.append("lease")
        rows = [[*row, _lease(v)] for row, v in zip(rows, variants, strict=True)]
    yield made_table(headers, rows, title=f"{model}  revision {route['revision']}{held}")
    if stopped:
        yield f"  stopped {_by_whom(stopped)}; `tidegate model resume {model}` ends it"
    for version in route.get("latched", ()):
        since = route.get("latches", {}).get(version, {})
        event = f", event {since['event']}" if since.get("event") else ""
        yield (
            f"  version {version} is latched since {moment(since.get('at_ns', 0))} by {since.get('by')}:"
            f" {since.get('reason')}{event}; `tidegate route rearm {model} {version}` ends it"
        )
    if route.get("bounds"):
        yield f"  automata are held to {route_bounds.in_words(route['bounds'])}"
    changed = route.get("changed")
    if changed:
        yield f"  changed by {changed.get('by')}: {changed.get('reason')}"


def _by_whom(change: Any) -> str:
    """Since when, by whom and why."""
    if not isinstance(change, dict):
        return ""
    return f"since {moment(change.get('at_ns', 0))} by {change.get('by')}: {change.get('reason')}"


def _lease(variant: dict[str, Any]) -> str | None:
    until = variant.get("lease_until")
    if until is None:
        return None
    return f"over since {until}: the primary has its share" if variant.get("lease_over") else f"until {until}"


def _weight(variant: dict[str, Any]) -> str:
    if variant["role"] == "shadow":
        return f"sees {percent(variant.get('sample_bp', 0))}"
    return percent(variant.get("weight_bp", 0))
