"""The bench commands: `python -m bench.cli NAME`, also reached as `tidegate bench NAME`.

Each prints a table, or with --json everything that it measured. Exit codes: 0 goals met, 1 a goal
missed, 2 something is missing or wrong, 3 nothing answered.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import click
import msgspec

from bench import beside as beside_
from bench import limits as limits_
from bench import report
from bench.load import Target, Wrk, write_requests
from bench.models import write_mlp
from gateway.errors import ConfigInvalid

MLP = Target(model="mlp", input_name="X", width=30)
"""The model of figures that name none: 30 FP32 inputs, two hidden layers of 256, two outputs."""


@click.group("bench", help="Measure this machine: every published figure is one of these commands.")
def main() -> None:
    """The group."""


@main.command("profile", help="Where the microseconds of one request go, without a socket.")
@click.option("--json", "as_json", is_flag=True, help="print everything as JSON")
def profile(*, as_json: bool) -> None:
    """See the command's help."""
    from bench.profile import profile as measure

    parts = measure()
    if as_json:
        click.echo(msgspec.json.encode([part._asdict() for part in parts]).decode())
        return
    click.echo("| stage | what | us per request |\n|---|---|---|")
    for part in parts:
        click.echo(f"| {part.stage} | {part.what} | {part.us:.2f} |")


@main.command("limits", help="CPU per request of one worker against nginx's static reply.")
@click.option("--seconds", default=3.0, show_default=True, help="of each load")
@click.option("--rounds", default=11, show_default=True, help="each loads both servers once")
@click.option("--connections", default=32, show_default=True)
@click.option("--door", type=click.Choice(["fast", "starlette"]), default="fast", show_default=True)
@click.option("--varying-heads", is_flag=True, help="every request with ids of its own in its head")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="gateway settings")
@click.option("--json", "as_json", is_flag=True, help="print everything as JSON")
def limits(
    *,
    seconds: float,
    rounds: int,
    connections: int,
    door: str,
    varying_heads: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """See the command's help."""
    options = limits_.Options(
        seconds=seconds,
        rounds=rounds,
        connections=connections,
        door="starlette" if door == "starlette" else "fast",
        varying_heads=varying_heads,
        settings=settings,
    )
    with tempfile.TemporaryDirectory(prefix="tidegate-models-") as name:
        models = Path(name)
        write_mlp(models)
        try:
            result = limits_.measure(options, models, MLP, lambda line: click.echo(line, err=True))
        except ConfigInvalid as exc:
            _end(2, str(exc))
        except (ValueError, OSError) as exc:
            _end(3, str(exc))
    rows = limits_.rows(result)
    if as_json:
        click.echo(report.to_json(result))
    else:
        report.print_table("Limits: one worker, one row as JSON, everything on", rows, result.machine)
    sys.exit(0 if all(row.met is not False for row in rows) else 1)


@main.command("shadow", help="What mirror and sidecar cost the worker that they follow.")
@click.option("--seconds", default=3.0, show_default=True, help="of each load")
@click.option(
    "--rounds", default=11, show_default=True, help="each loads with both at work and with both stopped"
)
@click.option("--connections", default=32, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="print everything as JSON")
def shadow(*, seconds: float, rounds: int, connections: int, as_json: bool) -> None:
    """See the command's help."""
    options = beside_.Options(seconds=seconds, rounds=rounds, connections=connections)
    try:
        result = beside_.measure(options, MLP, lambda line: click.echo(line, err=True))
    except ConfigInvalid as exc:
        _end(2, str(exc))
    except (ValueError, OSError) as exc:
        _end(3, str(exc))
    rows = beside_.rows(result)
    if as_json:
        click.echo(report.to_json(result))
    else:
        report.print_table("Beside: mirror and sidecar at work against stopped", rows, result.machine)
    sys.exit(0 if all(row.met is not False for row in rows) else 1)


@main.command("load", help="Load a running gateway in a closed loop and say what came back.")
@click.option("--url", default="http://127.0.0.1:8080", show_default=True)
@click.option("--model", default=MLP.model, show_default=True)
@click.option("--input", "input_name", default=MLP.input_name, show_default=True, help="one FP32 input")
@click.option("--width", default=MLP.width, show_default=True, help="values of a row")
@click.option("--seconds", default=10.0, show_default=True)
@click.option("--connections", default=32, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="print everything as JSON")
def load(
    *,
    url: str,
    model: str,
    input_name: str,
    width: int,
    seconds: float,
    connections: int,
    as_json: bool,
) -> None:
    """See the command's help."""
    target = Target(model=model, input_name=input_name, width=width)
    with tempfile.TemporaryDirectory(prefix="tidegate-load-") as name:
        requests_file = Path(name) / "requests"
        write_requests(requests_file, target)
        try:
            seen = Wrk(Path(name), requests_file, None).run(url, connections=connections, seconds=seconds)
        except ConfigInvalid as exc:
            _end(2, str(exc))
        except OSError as exc:
            _end(3, str(exc))
    if as_json:
        click.echo(report.to_json(seen))
    else:
        rows = [
            report.Row("throughput", f"{seen.per_second:,.0f} requests/s"),
            report.Row("latency", f"p50 {seen.p50_us / 1e3:.2f} ms, p99 {seen.p99_us / 1e3:.2f} ms"),
            report.Row("not 2xx", str(seen.status_errors), "0", seen.status_errors == 0),
            report.Row("socket errors", str(seen.socket_errors), "0", seen.socket_errors == 0),
        ]
        report.print_table(f"Load: {model}, {connections} connections", rows, report.machine())
    sys.exit(1 if seen.status_errors or seen.socket_errors else 0)


def _end(status: int, message: str) -> NoReturn:
    click.echo(f"bench: {message}", err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
