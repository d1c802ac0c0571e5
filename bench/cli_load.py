"""`tidegate bench load`: the command line of bench.load."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import click
import rich.console
import rich.progress

from bench import load, outcome, report
from bench import plot as plots
from bench.arrivals import LAWS
from bench.requests import Requests
from gateway.errors import ConfigInvalid


@click.command("load", help="Load a running gateway and say what came back.")
@click.option("--url", default="http://127.0.0.1:8080", show_default=True)
@click.option("--model", default="mlp", show_default=True, help="its inputs are read from its metadata")
@click.option(
    "--rate", type=float, help="requests a second, whatever comes back (open loop); none: closed loop"
)
@click.option("--arrivals", type=click.Choice(LAWS), default="poisson", show_default=True)
@click.option("--seconds", default=10.0, show_default=True)
@click.option("--connections", type=int, help="at most; closed loop: exactly  [256; closed 32]")
@click.option("--processes", default=1, show_default=True, help="generators that share the rate")
@click.option("--rows", default=1, show_default=True, help="of each request")
@click.option("--binary", is_flag=True, help="binary tensors instead of JSON")
@click.option("--varying-heads", is_flag=True, help="every request with trace and request ids of its own")
@click.option(
    "--distinct", default=load.DISTINCT_REQUESTS, show_default=True, help="bodies made before the run"
)
@click.option(
    "--bodies", type=click.Path(exists=True, dir_okay=False), help="send these: one JSON body a line"
)
@click.option(
    "--check", type=click.Path(exists=True, dir_okay=False), help="compare 1% of replies with this ONNX file"
)
@click.option("--seed", default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="print everything as JSON")
@click.option("--markdown", is_flag=True, help="print the table as Markdown")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="draw it: an SVG (extra `plots`)")
def command(
    *,
    url: str,
    model: str,
    rate: float | None,
    arrivals: str,
    seconds: float,
    connections: int | None,
    processes: int,
    rows: int,
    binary: bool,
    varying_heads: bool,
    distinct: int,
    bodies: str | None,
    check: str | None,
    seed: int,
    as_json: bool,
    markdown: bool,
    plot_file: Path | None,
) -> None:
    """See the command's help."""
    try:
        if plot_file is not None:
            plots.demand()
        plan = load.Plan(
            url=url,
            target=load.target_of(url, model, rows=rows, binary=binary),
            seconds=seconds,
            per_second=rate,
            law="constant" if arrivals == "constant" else "poisson",
            connections=connections or (32 if rate is None else 256),
            processes=processes,
            distinct=distinct,
            varying_heads=varying_heads,
            seed=seed,
            bodies_file=bodies,
            model_file=check,
        )
        requests = load.make_requests(plan)
        with progress(f"{model}, {seconds:g} s") as passed:
            seen = load.run(plan, passed, requests=requests)
        if plot_file is not None:
            plots.plot(seen, _title(plan, requests), plot_file)
    except ConfigInvalid as exc:
        end(2, str(exc))
    except ValueError as exc:
        end(1, str(exc))
    except OSError as exc:
        end(3, f"{url}: {exc}")
    table = outcome.rows(seen)
    if as_json:
        click.echo(report.to_json(seen))
    elif markdown:
        click.echo(report.markdown(table) + f"\n\n{report.machine().text()}")
    else:
        report.print_table(_title(plan, requests), table, report.machine())
    sys.exit(0 if all(row.met is not False for row in table) else 1)


def _title(plan: load.Plan, requests: Requests) -> str:
    form = "bodies of a file" if plan.bodies_file else f"{plan.target.rows} row(s) as {plan.target.form}"
    how = f"{plan.connections} connections, closed loop"
    if plan.per_second is not None:
        how = f"{plan.per_second:g} requests/s, {plan.law} arrivals"
    distinct = len(requests) * plan.processes
    return f"Load: {plan.target.model}, {form}, {distinct:,} distinct requests of {requests.body_bytes:,} bytes, {how}"


@contextlib.contextmanager
def progress(text: str) -> Iterator[Callable[[float], None]]:
    """A bar on stderr, where that is a terminal."""
    console = rich.console.Console(stderr=True)
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal, auto_refresh=False
    ) as bar:
        task = bar.add_task(text, total=1.0)

        def passed(share: float) -> None:
            bar.update(task, completed=share, refresh=True)

        yield passed


def end(status: int, message: str) -> NoReturn:
    """Say why, and leave with this status."""
    click.echo(f"bench: {message}", err=True)
    sys.exit(status)


def unwind_by_signals() -> None:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does; not what was ignored from the start (nohup)."""
    for kind in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(kind) is not signal.SIG_IGN:
            signal.signal(kind, signal.default_int_handler)
