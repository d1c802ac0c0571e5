"""`tidegate bench peers`: how it compares with other products, from one command.

Exit codes as of bench.cli: 0 all goals met (or none decided), 1 one missed, 2 something is missing or wrong, 3 nothing
was measured.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import rich.console
import rich.progress

from bench import plot, report
from bench.cli_load import end, unwind_by_signals
from bench.peers import calibration, catalog, page, summary
from bench.peers import run as runs
from bench.peers.comparison import Passed
from bench.peers.figures import How, Result
from bench.peers.peer import Say, Unavailable
from bench.peers.probes.command import features, loss
from bench.peers.run import Wanted
from gateway.errors import ConfigInvalid

_PATH: Any = click.Path(path_type=Path)
_SHARED = (
    click.option("--peer", "peers", multiple=True, metavar="NAME", help="may be given several times  [all]"),
    click.option(
        "--model", "models", multiple=True, type=click.Choice(catalog.MODELS), help="likewise  [all]"
    ),
    click.option("--seconds", type=float, default=How().seconds, show_default=True, help="of each load"),
    click.option("--server-cpu", default=0, show_default=True, help="processor of all servers"),
    click.option("--generator-cpu", default=1, show_default=True, help="processor of the load"),
    click.option(
        "--resume", type=_PATH, metavar="DIR", help="go on with a run that was cut, in its directory"
    ),
    click.option("--json", "as_json", is_flag=True, help="print everything as JSON"),
)
_RUN = (
    click.option("--quick", is_flag=True, help="headline cells only, 3 rounds"),
    click.option("--rounds", type=click.IntRange(1), help="of each cell  [headline 11, others 3]"),
    click.option("--calibrate", is_flag=True, help="find all settings anew"),
    click.option("--settings", default="", metavar="FILE", help="settings instead of the committed ones"),
    click.option("--ours-as-theirs", "pinned", is_flag=True, help="ours pinned to each peer's settings"),
    click.option("--write", type=_PATH, metavar="PAGE", help="put it into a page, between its markers"),
    click.option("--out", type=_PATH, metavar="FILE", help="write everything as JSON"),
)


def _with(*options: Any) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


class _RunByDefault(click.Group):
    """A group whose `run` needs not be named: `peers --quick` is `peers run --quick`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click.Group."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group("peers", cls=_RunByDefault, help="Beside other products; `peers` alone is `peers run`.")
def main() -> None:
    """The group."""


@main.command("run", help="Environments, settings, rounds, page and JSON: everything.")
@_with(*_SHARED, *_RUN)
def run(*, resume: Path | None, as_json: bool, write: Path | None, out: Path | None, **given: Any) -> None:
    """See the command's help."""
    with _ending():
        wanted = _wanted(**given)
        if write is not None:
            page.demand_markers(write.read_text(), pinned=wanted.pinned)
            plot.demand()
        directory = _directory(resume)
        with _progress() as (say, passed):
            result = runs.run(wanted, directory, say, passed)
        if write is not None:
            runs.write_page(write, result)
        if out is not None:
            out.write_text(report.to_json(result))
    _show(result, as_json=as_json)


@main.command(
    "calibrate", help="Find best settings, of ours (tidegate) too, and keep them with their reasons."
)
@_with(*_SHARED)
@click.option("--out", type=_PATH, default=calibration.COMMITTED, help="where they go  [beside the code]")
def calibrate(*, resume: Path | None, as_json: bool, out: Path, **given: Any) -> None:
    """See the command's help."""
    with _ending():
        wanted = _wanted(calibrate=True, **given)
        # Now rather than after an hour: what is there already stays in it.
        calibration.read(out)
        directory = _directory(resume)
        with _progress() as (say, _):
            found, failed = runs.calibrate(wanted, directory, say)
        merged = calibration.read(out).classes.get(calibration.machine_class()) or found
        merged.at, merged.machine = found.at, found.machine
        for name, models in found.peers.items():
            merged.peers.setdefault(name, {}).update(models)
        calibration.write(out, merged)
    for one in failed:
        click.echo(f"bench: {one.peer}: {one.what}: {one.why}\n{one.last_lines}", err=True)
    if as_json:
        click.echo(report.to_json(found))
        return
    for name, models in found.peers.items():
        for model, chosen in models.items():
            click.echo(f"{name}, {model}: {chosen.setting.text()}: {chosen.reason}")


@main.command("page", help="Write the page of a run again, from its JSON.")
@click.argument("json_file", type=_PATH)
@click.option("--write", type=_PATH, required=True, metavar="PAGE", help="between its markers")
def page_again(*, json_file: Path, write: Path) -> None:
    """See the command's help."""
    with _ending():
        runs.write_page(write, runs.read_result(json_file))


@main.command("agree", help="Whether two runs agree: where their intervals overlap.")
@click.argument("first", type=_PATH)
@click.argument("second", type=_PATH)
def agree(*, first: Path, second: Path) -> None:
    """See the command's help; exit code 1 where one ratio of requests per CPU second does not."""
    with _ending():
        found = summary.agreement(runs.read_result(first).found, runs.read_result(second).found)
    for row in found:
        click.echo(f"{row.name}: {row.measured}, {row.verdict}")
    if not found:
        end(3, "the runs have no cell in common")
    sys.exit(0 if all(row.met for row in found) else 1)


main.add_command(features)
main.add_command(loss)


def _directory(resume: Path | None) -> Path:
    """Where a run keeps what it has; told, and so is a run to resume of which nothing is there."""
    directory = resume or runs.new_directory()
    if resume is not None and not (resume / runs.SETTINGS_FILE).exists():
        click.echo(f"bench: nothing is kept in {resume}: it begins anew there", err=True)
    click.echo(f"bench: results go to {directory}; --resume {directory} goes on there", err=True)
    return directory


def _wanted(*, models: tuple[str, ...], seconds: float, server_cpu: int, generator_cpu: int,
            **given: Any) -> Wanted:  # fmt: skip
    how = How(seconds=seconds, server_cpu=server_cpu, generator_cpu=generator_cpu)
    return Wanted(models=models or catalog.MODELS, how=how, **given)


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    """A user's mistake and a product that does not run end with one message and their status.

    A signal ends the servers, too: they have sessions of their own, and no terminal would end them.
    """
    unwind_by_signals()
    try:
        yield
    except ConfigInvalid as exc:
        end(2, str(exc))
    except OSError as exc:
        end(2, str(exc))
    except Unavailable as exc:
        end(3, str(exc))
    except KeyboardInterrupt:
        end(130, "cut; --resume goes on where it was")


def _show(result: Result, *, as_json: bool) -> None:
    rows = page.goals(result)
    if as_json:
        click.echo(report.to_json(result))
    else:
        click.echo(page.markdown(result))
    if not result.found.rounds:
        end(3, "nothing was measured")
    sys.exit(0 if all(row.met is not False for row in rows) else 1)


@contextlib.contextmanager
def _progress() -> Iterator[tuple[Say, Passed]]:
    """Lines on stderr, and below them a bar where that is a terminal."""
    console = rich.console.Console(stderr=True)
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("rounds", total=None)

        def passed(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of)

        def say(line: str) -> None:
            if console.is_terminal:
                bar.console.print(line, highlight=False, markup=False)
            else:
                click.echo(line, err=True)

        yield say, passed
