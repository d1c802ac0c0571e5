"""`tidegate bench peers`: how it compares with other products, from one command.

Exit codes: 0 all goals met (or none decided), 1 one missed, 2 something is missing or wrong (also a cell or a product
that has no figure; it goes before 1), 3 nothing was measured, 130 cut.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import click
import rich.console
import rich.progress

from bench import plot, report
from bench.cli_load import end
from bench.peers import agreement, calibration, catalog, page
from bench.peers import run as runs
from bench.peers.comparison import Passed
from bench.peers.ending import NOTHING, WRONG, Seconds, demand_writable, ending, status
from bench.peers.figures import How, Result
from bench.peers.keeping import write_whole
from bench.peers.peer import Say
from bench.peers.probes.command import features, loss
from bench.peers.run import Wanted

_PATH: Any = click.Path(path_type=Path)
_GOES_ON = "--resume goes on where it was"
_SHARED = (
    click.option("--peer", "peers", multiple=True, metavar="NAME", help="may be given several times  [all]"),
    click.option(
        "--model", "models", multiple=True, type=click.Choice(catalog.MODELS), help="likewise  [all]"
    ),
    click.option("--seconds", type=Seconds(), default=How().seconds, show_default=True, help="of each load"),
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
    with ending(_GOES_ON):
        wanted = _wanted(**given)
        demand_writable(write, out)
        if write is not None:
            runs.demand_whole(wanted)
            page.demand_markers(write.read_text(), pinned=wanted.pinned)
            plot.demand()
        directory = _directory(resume)
        with _progress() as (say, passed):
            result = runs.run(wanted, directory, say, passed)
        try:
            click.echo(report.to_json(result) if as_json else page.markdown(result))
        finally:
            if write is not None:
                runs.write_page(write, result)
            if out is not None:
                write_whole(out, report.to_json(result).encode())
    _finish(result)


@main.command(
    "calibrate", help="Find best settings, of ours (tidegate) too, and keep them with their reasons."
)
@_with(*_SHARED)
@click.option("--out", type=_PATH, default=calibration.COMMITTED, help="where they go  [beside the code]")
def calibrate(*, resume: Path | None, as_json: bool, out: Path, **given: Any) -> None:
    """See the command's help."""
    with ending(_GOES_ON):
        wanted = _wanted(calibrate=True, **given)
        demand_writable(out)
        # Now rather than after an hour: what is there already stays in it.
        calibration.read(out)
        directory = _directory(resume)
        with _progress() as (say, _):
            found, failed = runs.calibrate(wanted, directory, say)
        if found.peers:
            before = calibration.read(out).classes.get(calibration.machine_class())
            calibration.write(out, runs.merged(before, found))
    if as_json:
        click.echo(report.to_json(found))
    else:
        for name, models in found.peers.items():
            for model, chosen in models.items():
                click.echo(f"{name}, {model}: {chosen.setting.text()}: {chosen.reason}")
    for one in failed:
        click.echo(f"bench: {one.peer}: {one.what}: {one.why}\n{one.last_lines}", err=True)
    if not found.peers:
        end(NOTHING, "no setting was found")
    sys.exit(status(is_missing=bool(failed), is_missed=False))


@main.command("page", help="Write the page of a run again, from its JSON.")
@click.argument("json_file", type=_PATH)
@click.option("--write", type=_PATH, required=True, metavar="PAGE", help="between its markers")
def page_again(*, json_file: Path, write: Path) -> None:
    """See the command's help."""
    with ending("the page is as it was"):
        runs.write_page(write, runs.read_result(json_file))


@main.command("agree", help="Whether two runs agree: where their intervals overlap, and what else differs.")
@click.argument("first", type=_PATH)
@click.argument("second", type=_PATH)
@click.option("--common", is_flag=True, help="cells that one run has alone are said, and count for nothing")
def agree(*, first: Path, second: Path, common: bool) -> None:
    """See the command's help; exit code 1 where two intervals do not overlap, 2 where one run has a cell alone."""
    with ending("nothing was compared"):
        found = agreement.compared(runs.read_result(first), runs.read_result(second))
    for row in found.rows:
        click.echo(f"{row.name}: {row.measured}: {'overlap' if row.met else 'do not overlap'}")
    alone = [("first", name) for name in found.only_first] + [("second", name) for name in found.only_second]
    for which, name in alone:
        click.echo(f"{name}: in the {which} run alone")
    for text in found.differences:
        click.echo(f"not the same: {text}")
    if not found.rows:
        end(NOTHING, "the runs have no cell in common")
    is_missing = bool(alone) and not common
    sys.exit(status(is_missing=is_missing, is_missed=not all(row.met for row in found.rows)))


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


def _finish(result: Result) -> NoReturn:
    if not result.found.rounds:
        end(NOTHING, "nothing was measured")
    if failed := [f"{one.peer}, {one.what}" for one in result.found.failed]:
        end(WRONG, f"without a figure: {'; '.join(failed)}")
    sys.exit(status(is_missing=False, is_missed=any(row.met is False for row in page.goals(result))))


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
