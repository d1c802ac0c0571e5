"""A group that imports its sub-commands when they are used, and ends the process in one way.

click would import each command to list it; here the table carries the one line that `--help`
prints.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, NoReturn

import click
from click.shell_completion import CompletionItem

from gateway.cli.failures import explain
from gateway.cli.plain import lines


class Entry(NamedTuple):
    """A sub-command: "module:attribute", its line of help, a module it cannot do without."""

    target: str
    summary: str
    needs: str | None = None

    @property
    def usable(self) -> bool:
        """Whether the module that it needs is there; imports that module's parents only."""
        if self.needs is None:
            return True
        try:
            return find_spec(self.needs) is not None
        except ModuleNotFoundError:
            return False

    def load(self) -> click.Command:
        """Import and return the command."""
        module, _, attribute = self.target.partition(":")
        found = getattr(import_module(module), attribute)
        assert isinstance(found, click.Command)
        return found


class LazyGroup(click.Group):
    """The root of the command line.

    Args:
        table: sub-commands by name, in the order that `--help` lists them.
    """

    def __init__(self, *, table: dict[str, Entry], **settings: Any) -> None:
        super().__init__(**settings)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of what works here."""
        return [name for name, entry in self.table.items() if entry.usable]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now; None when there is none."""
        entry = self.table.get(cmd_name)
        return entry.load() if entry is not None and entry.usable else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `--help`, from the table alone."""
        rows = [(name, self.table[name].summary) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """What a shell offers behind `tidegate`: from the table alone, and options behind a dash."""
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        return [CompletionItem(name, help=self.table[name].summary) for name in names]

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, **settings: Any
    ) -> NoReturn:
        """Parse, run, and exit with the code documented in docs/cli.md."""
        settings["standalone_mode"] = False
        try:
            code = super().main(args, **settings)
        except Exception as exc:
            told = explain(exc)
            if told is None:
                raise
            click.echo(lines(told[0]), err=True)
            sys.exit(told[1])
        sys.exit(code if isinstance(code, int) else 0)
