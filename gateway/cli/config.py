"""`tidegate config`: what a gateway would run with here, and where each value comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

import gateway.config
from gateway.budget import effective_cpus, in_words
from gateway.cli.screen import json_option, print_json, say, table

file_option = click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    help="A TOML file [default: ./tidegate.toml].",
)
set_option = click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="A setting, as in audit.level=fsync.",
)


@click.group("config")
def command() -> None:
    """Check and show the configuration."""


@command.command("check")
@file_option
@set_option
@json_option
def check(file: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say whether the configuration is valid; exit 2 names the first mistake."""
    _, origins = gateway.config.load(file, overrides)
    if as_json:
        print_json({"ok": True, "set": origins})
    else:
        say(f"configuration is valid: {len(origins)} set, the rest are defaults")


@command.command("show")
@file_option
@set_option
@json_option
def show(file: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show every setting, its value and its origin."""
    config, origins = gateway.config.load(file, overrides)
    values = msgspec.to_builtins(config)
    if as_json:
        print_json({"config": values, "origins": origins})
        return
    rows = [(key, _text(value), origins.get(key, "default")) for key, value in leaves(values)]
    table(("setting", "value", "from"), rows)
    say(in_words(config, effective_cpus()))


def leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The tree as (dotted key, value), in its order."""
    out: list[tuple[str, Any]] = []
    for name, value in tree.items():
        key = f"{prefix}{name}"
        out.extend(leaves(value, f"{key}.") if isinstance(value, dict) else [(key, value)])
    return out


def _text(value: Any) -> str | None:
    return None if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode()
