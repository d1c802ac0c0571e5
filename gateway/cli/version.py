"""`tidegate version`."""

from __future__ import annotations

import platform

import click

import gateway
from gateway.cli.screen import json_option, print_json, say


@click.command("version")
@json_option
def command(as_json: bool) -> None:
    """Print the version."""
    facts = {"tidegate": gateway.__version__, "python": platform.python_version()}
    if as_json:
        print_json(facts)
    else:
        say(f"tidegate {facts['tidegate']} (Python {facts['python']})")
