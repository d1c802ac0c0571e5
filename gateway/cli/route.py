"""`tidegate route`: show and change which version answers.

Every change is a compare-and-set: it names the revision it was decided on (by default the one
that this command has just read), and the gateway refuses it when the route has moved on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from gateway.cli.client import Answer, Client, admin_options, quoted
from gateway.cli.failures import Stop
from gateway.cli.screen import json_option, moment, percent, print_json, say, table
from gateway.cli.weights import parse_assignment, parse_variant, plan, with_rest


@click.group("route")
def command() -> None:
    """Show and change which version answers."""


def change_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command what every change has: `--reason`, `--if-match`, `--dry-run`, and the rest."""

    @click.option("--reason", required=True, help="Why; it stands in the log.")
    @click.option("--if-match", type=int, metavar="REV", help="Only at this revision [default: now's].")
    @click.option("--dry-run", is_flag=True, help="Show what would change, change nothing.")
    @admin_options
    @json_option
    @functools.wraps(function)
    def wrapped(
        *args: Any,
        admin: Client,
        reason: str,
        if_match: int | None,
        dry_run: bool,
        as_json: bool,
        **rest: Any,
    ) -> None:
        asked = Asked(admin, reason, if_match, dry_run, as_json)
        function(*args, asked=asked, **rest)

    return wrapped


class Asked:
    """A change in the making: where it goes, why, on which revision."""

    def __init__(
        self, admin: Client, reason: str, if_match: int | None, dry_run: bool, as_json: bool
    ) -> None:
        self._admin = admin
        self._reason = reason
        self._if_match = if_match
        self._dry_run = dry_run
        self._as_json = as_json

    def route(self, model: str) -> dict[str, Any]:
        """The route now; a change is based on its revision unless `--if-match` says else."""
        route = _route(self._admin, model)
        if self._if_match is None:
            self._if_match = route["revision"]
        return route

    def send(self, model: str, action: str, body: dict[str, Any]) -> None:
        """Ask for the change and print what came of it; `action` "" replaces the route."""
        if self._if_match is None:
            self.route(model)
        path = f"/admin/v1/routes/{quoted(model)}" + (f"/{action}" if action else "")
        answer = self._admin.send(
            "POST" if action else "PUT",
            path,
            params={"dry_run": "true"} if self._dry_run else None,
            headers={"if-match": f'"{self._if_match}"'},
            body={**body, "reason": self._reason},
        )
        if self._as_json:
            print_json(answer.body)
            return
        self._print(model, answer)

    def _print(self, model: str, answer: Answer) -> None:
        body = answer.body
        before, after = body.get("before_bp") or {}, body.get("after_bp") or {}
        if after:
            names = list(dict.fromkeys([*before, *after]))
            table(
                ("variant", "before", "after"),
                [(n, *(_share(weights.get(n)) for weights in (before, after))) for n in names],
            )
        if self._dry_run:
            say(f"{model}: nothing changed (dry run); revision {self._if_match} stands")
            return
        applied = body.get("applied") or {}
        say(f"{model}: revision {self._if_match} -> {body.get('revision', '?')}{_applied(applied)}")
        if answer.status == 202:
            pending = ", ".join(str(index) for index in applied.get("pending", ())) or "?"
            say(f"accepted; some workers do not run it yet (index {pending})")


@command.command("show")
@click.argument("model", required=False)
@admin_options
@json_option
def show(model: str | None, as_json: bool, admin: Client) -> None:
    """Show the route of MODEL, or of every model."""
    if model is None:
        body = admin.get("/admin/v1/routes").body
        routes = body["routes"] if isinstance(body, dict) else body
        routes = list(routes.values()) if isinstance(routes, dict) else routes
    else:
        body = _route(admin, model)
        routes = [body]
    if as_json:
        print_json(body)
        return
    if not routes:
        say("no routes: put a model at <repository>/NAME/1/model.onnx, then `tidegate model refresh`")
    for route in routes:
        _print_route(route)


@command.command("shift")
@click.argument("model")
@click.argument("weights", nargs=-1, required=True, metavar="VARIANT=WEIGHT...")
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
@click.argument("model")
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
@click.argument("model")
@click.argument("variant", default="canary")
@change_options
def promote(model: str, variant: str, asked: Asked) -> None:
    """Make VARIANT's version [default: canary's] the primary; the old one is kept warm."""
    asked.send(model, "promote", {"variant": variant})


@command.command("rollback")
@click.argument("model")
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
@click.argument("model")
@click.argument("version")
@change_options
def rearm(model: str, version: str, asked: Asked) -> None:
    """Let a latched VERSION have weight again; it has none until it is shifted to."""
    asked.send(model, "rearm", {"version": version})


@command.command("freeze")
@click.argument("model")
@change_options
def freeze(model: str, asked: Asked) -> None:
    """Hold the route: no change, by nobody, until it is thawed."""
    asked.send(model, "freeze", {})


@command.command("thaw")
@click.argument("model")
@change_options
def thaw(model: str, asked: Asked) -> None:
    """End a freeze."""
    asked.send(model, "thaw", {})


@command.command("history")
@click.argument("model")
@admin_options
@json_option
def history(model: str, as_json: bool, admin: Client) -> None:
    """Show the revisions of MODEL's route, who made them and why."""
    body = admin.get(f"/admin/v1/routes/{quoted(model)}/history").body
    if as_json:
        print_json(body)
        return
    revisions = body["revisions"] if isinstance(body, dict) else body
    table(
        ("revision", "at", "by", "variants", "reason", "event"),
        [
            (
                r["revision"],
                moment(c.get("at_ns", 0)),
                c.get("by"),
                _summary(r),
                c.get("reason"),
                c.get("event"),
            )
            for r in revisions
            for c in (r.get("changed") or {},)
        ],
    )


def _route(admin: Client, model: str) -> dict[str, Any]:
    body = admin.get(f"/admin/v1/routes/{quoted(model)}").body
    if not isinstance(body, dict) or "revision" not in body or "variants" not in body:
        msg = f"{admin.url} gave no route for {model}: is that a Tidegate's admin listener?"
        raise Stop(msg, 3)
    return body


def _print_route(route: dict[str, Any]) -> None:
    held = ", frozen" if route.get("frozen") else ""
    variants = route["variants"]
    headers = ["variant", "version", "role", "weight", "state"]
    rows = [[v["name"], v["version"], v["role"], _weight(v), v.get("state")] for v in variants]
    if any("lease_until" in v for v in variants):
        headers.append("lease")
        rows = [[*row, _lease(v)] for row, v in zip(rows, variants, strict=True)]
    table(headers, rows, title=f"{route['model']}  revision {route['revision']}{held}")
    for version in route.get("latched", ()):
        since = route.get("latches", {}).get(version, {})
        event = f", event {since['event']}" if since.get("event") else ""
        say(
            f"  version {version} is latched since {moment(since.get('at_ns', 0))} by {since.get('by')}:"
            f" {since.get('reason')}{event}; `tidegate route rearm {route['model']} {version}` ends it"
        )
    changed = route.get("changed")
    if changed:
        say(f"  changed by {changed.get('by')}: {changed.get('reason')}")


def _lease(variant: dict[str, Any]) -> str | None:
    until = variant.get("lease_until")
    if until is None:
        return None
    return f"over since {until}: the primary has its share" if variant.get("lease_over") else f"until {until}"


def _weight(variant: dict[str, Any]) -> str:
    if variant["role"] == "shadow":
        return f"sees {percent(variant.get('sample_bp', 0))}"
    return percent(variant.get("weight_bp", 0))


def _summary(route: dict[str, Any]) -> str:
    frozen = " (frozen)" if route.get("frozen") else ""
    return ", ".join(f"{v['version']}: {_weight(v)}" for v in route["variants"]) + frozen


def _share(weight_bp: int | None) -> str | None:
    return None if weight_bp is None else percent(weight_bp)


def _applied(applied: dict[str, Any]) -> str:
    if not applied:
        return ""
    took = f" in {applied['ms']} ms" if "ms" in applied else ""
    return f", run by {applied.get('workers', '?')} of {applied.get('of', '?')} workers{took}"
