"""The bench commands: `python -m bench.cli NAME`, also reached as `tidegate bench NAME`.

Each prints a table, or with --json everything that it measured. Exit codes: 0 goals met, 1 a goal
missed, 2 something is missing or wrong, 3 nothing answered.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bench import beside as beside_
from bench import limits as limits_
from bench import report
from bench.cases.case import MLP, Options
from bench.cli_load import command as load
from bench.cli_load import end
from bench.cli_peers import main as peers
from bench.requests import DISTINCT_REQUESTS, Target
from gateway.errors import ConfigInvalid


@click.group("bench", help="Measure this machine: every published figure is one of these commands.")
def main() -> None:
    """The group."""


main.add_command(load)
main.add_command(peers)


@main.command("profile", help="Where the microseconds of one request go, without a socket.")
@click.option("--json", "as_json", is_flag=True, help="print everything as JSON")
def profile(*, as_json: bool) -> None:
    """See the command's help."""
    from bench.profile import profile as measure

    found = measure()
    if as_json:
        click.echo(report.to_json(found))
        return
    click.echo("| stage | what | us per request |\n|---|---|---|")
    for part in found.parts:
        click.echo(f"| {part.stage} | {part.what} | {part.us:.2f} |")
    click.echo(f"\nothers took {found.foreign_cpus:.2f} processors; {found.machine.text()}")


@main.command(
    "limits", help="The figures of the request path, against nginx, a bare loop and ONNX Runtime alone."
)
@click.option(
    "--case",
    "names",
    multiple=True,
    type=click.Choice([*limits_.CASES, *limits_.ALIASES]),
    help="may be given several times  [single]",
)
@click.option("--all", "everything", is_flag=True, help="every case, one after another")
@click.option("--seconds", default=3.0, show_default=True, help="of each load")
@click.option("--rounds", default=11, show_default=True, help="each loads every side once")
@click.option("--connections", default=32, show_default=True, help="per worker")
@click.option("--door", type=click.Choice(["fast", "starlette"]), default="fast", show_default=True)
@click.option("--varying-heads", is_flag=True, help="every request with ids of its own in its head")
@click.option("--distinct", default=DISTINCT_REQUESTS, show_default=True, help="requests made before a load")
@click.option("--memory-seconds", default=600.0, show_default=True, help="how long `memory` watches")
@click.option("--away-seconds", default=60.0, show_default=True, help="how long `kafka-away` goes without")
@click.option("--server-cpu", default=0, show_default=True, help="processor of the servers")
@click.option("--generator-cpu", default=1, show_default=True, help="processor of the load")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="gateway settings")
@click.option("--json", "as_json", is_flag=True, help="print everything as JSON")
@click.option("--out", type=click.Path(path_type=Path), help="write everything as JSON to a file")
@click.option(
    "--write",
    type=click.Path(path_type=Path, exists=True),
    help="put the figures into this page, between its markers",
)
def limits(
    *,
    names: tuple[str, ...],
    everything: bool,
    as_json: bool,
    out: Path | None,
    write: Path | None,
    memory_seconds: float,
    away_seconds: float,
    door: str,
    **given: object,
) -> None:
    """See the command's help."""
    options = Options(
        door="starlette" if door == "starlette" else "fast",
        memory_s=memory_seconds,
        away_s=away_seconds,
        **given,  # type: ignore[arg-type]
    )
    chosen = tuple(limits_.CASES) if everything else names or ("single",)
    try:
        if write is not None:
            limits_.demand_markers(write.read_text())
        result = limits_.measure(chosen, options, lambda line: click.echo(line, err=True), _say_done)
    except ConfigInvalid as exc:
        end(2, str(exc))
    except (ValueError, OSError) as exc:
        end(3, str(exc))
    if out is not None:
        out.write_text(report.to_json(result))
    if write is not None:
        write.write_text(limits_.written(write.read_text(), result))
    if as_json:
        click.echo(report.to_json(result))
    else:
        limits_.print_result(result)
    sys.exit(0 if result.met else 1)


def _say_done(case: limits_.Case) -> None:
    for row in case.rows:
        if row.goal:
            click.echo(f"{case.name}: {row.name}: {row.measured}, {row.verdict} ({row.goal})", err=True)


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
        result = beside_.measure(options, Target("mlp", (MLP,)), lambda line: click.echo(line, err=True))
    except ConfigInvalid as exc:
        end(2, str(exc))
    except (ValueError, OSError) as exc:
        end(3, str(exc))
    rows = beside_.rows(result)
    if as_json:
        click.echo(report.to_json(result))
    else:
        report.print_table("Beside: mirror and sidecar at work against stopped", rows, result.machine)
    sys.exit(0 if all(row.met is not False for row in rows) else 1)


if __name__ == "__main__":
    main()
