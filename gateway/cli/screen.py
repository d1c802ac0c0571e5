"""What commands print: tables for people, JSON for programs; on stdout the answer alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

from gateway.cli.plain import lines, one_line

if TYPE_CHECKING:
    import rich.console
    import rich.table

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


_UNESCAPED = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters that JSON lets stand in a string."""


def print_json(value: Any) -> None:
    """One JSON document on stdout, indented."""
    print_json_line(msgspec.json.format(msgspec.json.encode(value), indent=2))


def print_json_line(document: bytes) -> None:
    """One encoded JSON document as it is formatted; its control characters as JSON escapes."""
    click.echo(_UNESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", document.decode()).encode())


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> None:
    """A table on stdout; cells are shown as text, None as a dash. Numbers keep to the right."""
    show([made_table(headers, rows, title=title)])


def made_table(
    headers: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None
) -> rich.table.Table:
    """The same, to be shown later, and again (`show`, `watching`)."""
    # Imported by who draws one: `serve` does not, and starts sooner.
    import rich.box
    import rich.table
    import rich.text

    rows = [[_cell(value) for value in row] for row in rows]
    shown_title = rich.text.Text(one_line(title)) if title is not None else None
    made = rich.table.Table(title=shown_title, title_justify="left", box=rich.box.SIMPLE_HEAD)
    for index, header in enumerate(headers):
        column = [row[index] for row in rows]
        numeric = bool(column) and all(_is_numeric(text) for text in column)
        made.add_column(header, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        # Text, not markup: a model may be called "[red]".
        made.add_row(*(rich.text.Text(text) for text in row))
    return made


Piece = Any
"""What is shown: a table of `made_table`, or a text of whole lines."""


def show(pieces: Iterable[Piece]) -> None:
    """Tables and lines on stdout, in their order."""
    for piece in pieces:
        if isinstance(piece, str):
            say(piece)
        else:
            console().print(piece)


def say(text: str) -> None:
    """A line for a person on stdout."""
    click.echo(lines(text))


def percent(weight_bp: int) -> str:
    """Basis points as a percentage: 1000 is "10%", 25 is "0.25%"."""
    return f"{weight_bp / 100:g}%"


def moment(at_ns: int) -> str:
    """Epoch nanoseconds as UTC to the millisecond; a dash for 0."""
    if not at_ns:
        return "-"
    at = datetime.fromtimestamp(at_ns // 1_000_000_000, UTC)
    return f"{at:%Y-%m-%d %H:%M:%S}.{at_ns // 1_000_000 % 1000:03d}Z"


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return one_line(str(value))


def _is_numeric(text: str) -> bool:
    return text.rstrip("%").replace(".", "", 1).lstrip("-").isdigit()


def console() -> rich.console.Console:
    """Stdout, as wide as it is; where it is no terminal, wide enough that nothing is folded."""
    import rich.console

    # A pipe has no width; 80 columns would fold identifiers that are meant to be copied.
    found = rich.console.Console(highlight=False)
    if not found.is_terminal:
        found = rich.console.Console(highlight=False, width=200)
    return found
