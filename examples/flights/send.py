"""The sender's command: `python -m examples.flights.send --url http://127.0.0.1:8080`.

data -> replay -> wire -> gateway, seen from a terminal: progress on stderr, what became of it on stdout. Exit codes:
0 all was answered, 1 something was not, 2 data or options, 3 unreachable.
"""

from __future__ import annotations

import asyncio
import math
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import click
import orjson
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.flights.data import DataMissing, load
from examples.flights.replay import Plan, Replay, Unreachable


class Speed(click.ParamType):
    """A number above 0, or "max" (None)."""

    name = "speed"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | None:
        """See the class."""
        if value == "max" or value is None:
            return None
        try:
            speed = float(str(value))
        except ValueError:
            speed = 0.0
        if not speed > 0 or math.isinf(speed):
            self.fail(
                f"{value!r} is no speed: a number above 0 (3600 replays an hour a second), or max", param, ctx
            )
        return speed


@click.command()
@click.option("--url", default="http://127.0.0.1:8080", show_default=True, help="The data listener.")
@click.option("--model", default="flights", show_default=True)
@click.option("--from", "start", type=click.DateTime(["%Y-%m-%d"]), default="2013-07-01", show_default=True)
@click.option("--to", "end", type=click.DateTime(["%Y-%m-%d"]), default="2013-10-01", show_default=True,
              help="The first day that is not replayed.")  # fmt: skip
@click.option("--speed", type=Speed(), default="max", show_default=True,
              help="Replayed seconds a second: 3600 replays an hour a second.")  # fmt: skip
@click.option("--connections", type=click.IntRange(1, 1024), default=8, show_default=True)
@click.option("--labels/--no-labels", default=True, show_default=True, help="Send labels as flights land.")
@click.option("--event-time/--wall-time", default=True, show_default=True,
              help="Whether requests and labels carry the replayed time.")  # fmt: skip
@click.option("--connect-for", "connect_for_s", type=click.FloatRange(0), default=10.0, show_default=True,
              help="Seconds that connecting is tried again while it is refused.")  # fmt: skip
@click.option("--token", help="Sent as a bearer token.")
@click.option("--ledger", type=click.Path(dir_okay=False, path_type=Path),
              help="Append the id of each prediction answered to this file.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.pass_context
def command(
    ctx: click.Context,
    url: str,
    model: str,
    start: datetime,
    end: datetime,
    speed: float | None,
    connections: int,
    labels: bool,  # noqa: FBT001
    event_time: bool,  # noqa: FBT001
    connect_for_s: float,
    token: str | None,
    ledger: Path | None,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Replay the flights of 2013 against a gateway, labels behind them."""
    try:
        flights = load().between(start.date(), end.date())
    except DataMissing as exc:
        click.echo(f"tidegate: {exc}", err=True)
        ctx.exit(2)
    if not len(flights.rows):
        click.echo(
            f"tidegate: no flights from {start:%Y-%m-%d} to {end:%Y-%m-%d}: they are of 2013", err=True
        )
        ctx.exit(2)
    headers = (("authorization", f"Bearer {token}"),) if token else ()
    plan = Plan(url, model, speed, connections, event_time, labels, headers, connect_for_s)
    ctx.exit(uvloop.run(_run(Replay(flights, plan, ledger=ledger), as_json=as_json)))


async def _run(replay: Replay, *, as_json: bool) -> int:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, replay.stop)
    began_s = time.monotonic()
    shown = asyncio.create_task(_show(replay))
    code = 0
    try:
        await replay.run()
    except Unreachable as exc:
        click.echo(f"tidegate: {exc}", err=True)
        code = 3
    finally:
        shown.cancel()
        await asyncio.gather(shown, return_exceptions=True)
    counters = replay.counters
    took_s = time.monotonic() - began_s
    summary = {**counters.summary(), "seconds": round(took_s, 2), "per_s": round(counters.answered / took_s)}
    if as_json:
        click.echo(orjson.dumps(summary, option=orjson.OPT_INDENT_2).decode())
    else:
        for name, value in summary.items():
            click.echo(f"{name:16} {_cell(value)}")
    troubled = counters.unknown or counters.failed or counters.labels_failed or counters.labels_unknown
    return code or int(bool(troubled))


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count:,} of status {status}" for status, count in value.items()) or "0"
    return f"{value:,}"


async def _show(replay: Replay) -> None:
    """Progress on stderr, twice a second; only on a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return
    columns = (TextColumn("{task.fields[clock]}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("{task.fields[counts]}"))  # fmt: skip
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("flights", total=len(replay.flights.rows), clock="", counts="")
        while True:
            counters = replay.counters
            clock = datetime.fromtimestamp(replay.clock_ns / 1e9, UTC)
            failed = sum(counters.failed.values()) + counters.unknown
            progress.update(
                task, completed=replay.taken, clock=f"{clock:%Y-%m-%d %H:%M} UTC",
                counts=f"{counters.labels_sent:,} labels, {failed:,} failed", refresh=True,
            )  # fmt: skip
            await asyncio.sleep(0.5)


if __name__ == "__main__":
    command()
