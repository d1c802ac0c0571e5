"""`--watch`: look again and again, and show what changed. For people a picture that stays in its place, for programs
one JSON line a change.

Where stdout is no terminal (or `--json` is given) each line is the whole answer, as the command prints it once; the
first comes at once. Ctrl-C ends it with exit code 0. A gateway that goes away meanwhile is told once on stderr, and
looked for until it is back: an upgrade must not end what somebody watches through the night.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import msgspec

from gateway.cli.failures import UNREACHABLE, Stop
from gateway.cli.plain import lines
from gateway.cli.screen import Piece, console, print_json_line, show

EVERY_S = 1.0

watch_option = click.option(
    "--watch",
    "-w",
    "watch_it",
    is_flag=True,
    help="Go on showing it as it changes; Ctrl-C ends. JSON lines without a terminal.",
)

Draw = Callable[[Iterable[Piece]], None]


def watch(
    fetch: Callable[[], Any],
    draw: Callable[[Any], Iterable[Piece]],
    as_json: bool,
    every_s: float = EVERY_S,
) -> None:
    """Until Ctrl-C.

    Args:
        fetch: what is to be shown, anew at each call; JSON can hold it.
        draw: that as tables and lines; not called for JSON.
        every_s: seconds between two looks.

    Raises:
        Stop: the first look is refused or reaches nothing; a later one is refused.
    """
    try:
        if as_json or not console().is_terminal:
            for found in _changes(fetch, every_s):
                print_json_line(msgspec.json.encode(found))
            return
        with _picture() as shown:
            for found in _changes(fetch, every_s):
                shown(draw(found))
    except KeyboardInterrupt:
        return


def _changes(fetch: Callable[[], Any], every_s: float) -> Iterator[Any]:
    """What is found, whenever it is other than before."""
    before: Any = None
    away = False
    while True:
        try:
            found = fetch()
            away = False
        except Stop as exc:
            if before is None or exc.exit_code != UNREACHABLE:
                raise
            if not away:
                click.echo(lines(f"tidegate: {exc}; looking on"), err=True)
            away, found = True, before
        if found != before:
            yield found
            before = found
        time.sleep(every_s)


@contextmanager
def _picture() -> Iterator[Draw]:
    """What draws over what it drew before; on a terminal that cannot, below it."""
    import rich.console
    import rich.live
    import rich.text

    stdout = console()
    if stdout.is_dumb_terminal:
        yield show
        return
    with rich.live.Live(console=stdout, auto_refresh=False, vertical_overflow="ellipsis") as live:

        def draw(pieces: Iterable[Piece]) -> None:
            parts = [rich.text.Text(lines(one)) if isinstance(one, str) else one for one in pieces]
            live.update(rich.console.Group(*parts), refresh=True)

        yield draw
