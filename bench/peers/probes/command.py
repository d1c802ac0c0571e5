"""`tidegate bench peers features` and `loss`: the command line of the probes.

Exit codes as in bench.cli: 0, 1 where our own answer is no, 2 something is missing or wrong. What other products do
changes no exit code.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import rich.console
import rich.progress

from bench import report
from bench.cli_load import end, unwind_by_signals
from bench.peers.adapters import PEERS
from bench.peers.peer import Peer
from bench.peers.probes import features as features_
from bench.peers.probes import loss as loss_
from bench.peers.probes import table
from gateway.errors import ConfigInvalid

OURS = "tidegate"
SERVER_VARIABLE = "BENCH_ONNXRUNTIME_SERVER"
_peer_option = click.option(
    "--peer", "names", multiple=True, type=click.Choice([peer.name for peer in PEERS]),
    help="may be given several times  [all]",
)  # fmt: skip
_server_option = click.option(
    "--onnxruntime-server", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"its binary, as its README builds it  [{SERVER_VARIABLE}]",
)  # fmt: skip
_json_option = click.option("--json", "as_json", is_flag=True, help="print everything as JSON")
_out_option = click.option(
    "--out", type=click.Path(path_type=Path), help="write everything as JSON to a file"
)
_write_option = click.option(
    "--write",
    type=click.Path(path_type=Path, exists=True),
    help="put the table into this page, between its markers",
)


def chosen(names: Sequence[str], server: Path | None = None) -> list[Peer]:
    """The peers of these names, in the fixed order; all where none is named."""
    if server is not None:
        os.environ[SERVER_VARIABLE] = str(server.resolve())
    return [peer for peer in PEERS if not names or peer.name in names]


@click.command(
    "features", help="What each product answers, refuses, logs and survives: every cell is a probe."
)
@_peer_option
@_server_option
@click.option("--probe", "probes", multiple=True, metavar="NAME", help="only these rows, by name")
@_json_option
@_out_option
@_write_option
def features(
    *,
    names: tuple[str, ...],
    onnxruntime_server: Path | None,
    probes: tuple[str, ...],
    as_json: bool,
    out: Path | None,
    write: Path | None,
) -> None:
    """See the command's help."""
    known = {probe.name: probe for probe in features_.PROBES}
    if unknown := [name for name in probes if name not in known]:
        end(2, f"there is no probe {unknown[0]!r}: expected one of {', '.join(known)}")
    _demand_place(write, "features")
    asked = [probe for name, probe in known.items() if not probes or name in probes]
    with _progress() as (say, progress):
        found = features_.probe_all(chosen(names, onnxruntime_server), say, probes=asked, progress=progress)
    _publish(table.markdown(found), report.to_json(found), "features", as_json, out, write)
    sys.exit(1 if any(cell.cells.get(OURS, table.Seen("yes")).answer == "no" for cell in found.rows) else 0)


@click.command("loss", help="What each product's log lost while its receiver was killed with -9.")
@_peer_option
@_server_option
@click.option(
    "--requests", default=loss_.REQUESTS, show_default=True, type=click.IntRange(10, loss_.REQUESTS)
)
@click.option("--outage-seconds", default=loss_.OUTAGE_S, show_default=True)
@_json_option
@_out_option
@_write_option
def loss(
    *,
    names: tuple[str, ...],
    onnxruntime_server: Path | None,
    requests: int,
    outage_seconds: float,
    as_json: bool,
    out: Path | None,
    write: Path | None,
) -> None:
    """See the command's help."""
    _demand_place(write, "loss")
    with _progress() as (say, _):
        peers = chosen(names, onnxruntime_server)
        found = loss_.measure_all(peers, say, requests=requests, outage_s=outage_seconds)
    when = time.strftime("%Y-%m-%d", time.gmtime())
    made = f"{when}: {requests:,} requests, the receiver killed for {outage_seconds:g} s; {report.machine().text()}"
    _publish(
        f"{made}\n\n{loss_.markdown(found)}",
        report.to_json(loss_.Losses(tuple(found))),
        "loss",
        as_json,
        out,
        write,
    )
    sys.exit(1 if any(one.lost for one in found if one.peer == OURS) else 0)


class _progress:  # noqa: N801 (used as a function is)
    """A bar on stderr, with the last thing said beside it; a line for each where nobody looks."""

    def __init__(self) -> None:
        self._console = rich.console.Console(stderr=True)
        self._bar = rich.progress.Progress(console=self._console, transient=True)

    def __enter__(self) -> tuple[Callable[[str], None], Callable[[int, int], None]]:
        # Servers have sessions of their own, and no terminal would end them: a signal unwinds, and they end with that.
        unwind_by_signals()
        self._bar.start()
        task = self._bar.add_task("probes", total=None)

        def say(line: str) -> None:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

        def progress(done: int, count: int) -> None:
            self._bar.update(task, completed=done, total=count)

        return say, progress

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._bar.stop()
        if kind is KeyboardInterrupt:
            end(130, "cut; nothing was written")


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def _demand_place(page: Path | None, name: str) -> None:
    """End with 2 now rather than after a long run, when a page has no place for the table."""
    if page is not None:
        try:
            put(page.read_text(), name, "")
        except ConfigInvalid as exc:
            end(2, str(exc))


def put(page: str, name: str, block: str) -> str:
    """A page with a block between its markers.

    Raises:
        ConfigInvalid: it has none.
    """
    begin, finish = _markers(name)
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(finish)
    if not found:
        msg = f"the page has no place for the table: expected a line {begin} and below it a line {finish}"
        raise ConfigInvalid(msg)
    return f"{before}{begin}\n\n{block}\n{finish}{after}"


def _publish(
    block: str, everything: str, name: str, as_json: bool, out: Path | None, page: Path | None
) -> None:
    if out is not None:
        out.write_text(everything)
    if page is not None:
        page.write_text(put(page.read_text(), name, block))
    click.echo(everything if as_json else block)
