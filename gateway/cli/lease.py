"""`tidegate lease`: keep a watched canary's traffic while the sidecar cannot.

A canary under `ramp = "auto"` has traffic only as long as somebody watches it. The sidecar renews its lease every few
seconds; with this a person does, once, for as long as a lease lasts.
"""

from __future__ import annotations

import click

from gateway.cli.changing import Asked, change_options
from gateway.cli.client import quoted
from gateway.cli.completion import model_argument
from gateway.cli.screen import print_json, say


@click.group("lease")
def command() -> None:
    """Renew the leases of watched canaries."""


@command.command("renew")
@model_argument()
@change_options
def renew(model: str, asked: Asked) -> None:
    """Renew the leases of MODEL's canaries now, each for as long as its policy says."""
    asked.route(model)
    body = asked.ask("POST", f"/admin/v1/routes/{quoted(model)}/lease", {}).body
    if asked.as_json:
        print_json(body)
        return
    until = body.get("lease_until") or {}
    for name, at in until.items():
        say(f"{model}: {name} has its lease until {at}")
    if not until:
        say(f"{model}: no canary holds a lease")
    if asked.dry_run:
        say(f"{model}: nothing changed (dry run)")
