"""`tidegate doctor`: what this machine offers, and how to get what is missing."""

from __future__ import annotations

from typing import Any

import click

from gateway.cli.failures import NO
from gateway.cli.screen import json_option, print_json, say, table


@click.command("doctor")
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Check what this machine offers; exit 1 when serving needs something that is missing."""
    from gateway.doctor import checks

    found = [check._asdict() for check in checks()]
    if as_json:
        print_json(found)
    else:
        names = list(dict.fromkeys(name for check in found for name in check))
        table(names, [[check.get(name) for name in names] for check in found])
    missing = [check for check in found if not _passed(check)]
    if missing and not as_json:
        say(f"{len(missing)} of {len(found)} are missing")
    if missing:
        ctx.exit(NO)


def _passed(check: dict[str, Any]) -> bool:
    return bool(check.get("ok", True)) or not check.get("required", True)
