"""`tidegate bench peers features` and `loss`: the command line of the probes.

Exit codes: 0; 1 where our own answer is no, or our log lost anything; 2 something is missing or wrong (a product that
could not be asked, a request of ours that failed), which goes before 1; 130 cut. What other products answer or lose
changes no exit code.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import click
import rich.console
import rich.progress

from bench import report
from bench.cli_load import end
from bench.peers.adapters import PEERS
from bench.peers.ending import WRONG, Seconds, demand_writable, ending, status
from bench.peers.keeping import write_whole
from bench.peers.peer import Peer, Say
from bench.peers.probes import features as features_
from bench.peers.probes import loss as loss_
from bench.peers.probes import table
from bench.peers.probes.gathering import AskedFeatures, AskedLosses, Features, Losses, Made
from bench.peers.probes.started import Probe
from gateway.errors import ConfigInvalid

OURS = "tidegate"
SERVER_VARIABLE = "BENCH_ONNXRUNTIME_SERVER"
_KEPT = "what was seen until then is printed, and in --out"
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
    command = _command("features", onnxruntime_server, peer=names, probe=probes)
    with ending(_KEPT):
        if unknown := [name for name in probes if name not in known]:
            msg = f"there is no probe {unknown[0]!r}: expected one of {', '.join(known)}"
            raise ConfigInvalid(msg)
        _demand_whole(write, "--peer", names, [peer.name for peer in PEERS])
        _demand_whole(write, "--probe", probes, list(known))
        _demand_places(out, write, "features")
        peers = chosen(names, onnxruntime_server)
        wanted = [probe for name, probe in known.items() if not probes or name in probes]
        asked = AskedFeatures(features_.probe_all([], click.echo, probes=wanted), command)

        def publish(ended: str, page: Path | None) -> Features:
            found = asked.found(ended)
            if ended and asked.is_empty:
                return found
            _publish(table.markdown(found), report.to_json(found), "features", as_json, out, page)
            return found

        with _kept_in_part(publish), _progress() as (say, asked.progress):
            asked.ask(peers, lambda peer: _ask_one(peer, wanted, say), say)
        found = publish("", write)
    _finish_features(found)


def _ask_one(
    peer: Peer, probes: Sequence[Probe], say: Say
) -> tuple[table.Column, Iterable[tuple[Probe, table.Seen]]]:
    (column,) = features_.probe_all([peer], say, probes=()).columns
    return column, () if column.unavailable else features_.ask_one(peer, probes, say)


def _finish_features(found: Features) -> NoReturn:
    ours = [row.cells[OURS].answer for row in found.rows if OURS in row.cells]
    missing = [f"{column.title} could not be asked" for column in found.columns if column.unavailable]
    missing += [f"{OURS} could not be asked: {row.name}" for row in found.rows
                if OURS in row.cells and row.cells[OURS].answer == "not seen"]  # fmt: skip
    if missing:
        end(WRONG, "; ".join(missing))
    sys.exit(status(is_missing=False, is_missed="no" in ours))


@click.command("loss", help="What each product's log lost while its receiver was killed with -9.")
@_peer_option
@_server_option
@click.option(
    "--requests", default=loss_.REQUESTS, show_default=True, type=click.IntRange(10, loss_.REQUESTS)
)
@click.option("--outage-seconds", type=Seconds(), default=loss_.OUTAGE_S, show_default=True)
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
    less = {"requests": (requests, loss_.REQUESTS), "outage-seconds": (outage_seconds, loss_.OUTAGE_S)}
    given = {name: (f"{value:g}",) for name, (value, usual) in less.items() if value != usual}
    command = _command("loss", onnxruntime_server, peer=names, **given)
    with ending(_KEPT):
        _demand_whole(write, "--peer", names, [peer.name for peer in PEERS])
        _demand_places(out, write, "loss")
        when = time.strftime("%Y-%m-%d", time.gmtime())
        made = f"{when}: {requests:,} requests, the receiver killed for {outage_seconds:g} s"
        peers = chosen(names, onnxruntime_server)
        asked = AskedLosses(made, command)

        def publish(ended: str, page: Path | None) -> Losses:
            found = asked.found(ended)
            if ended and asked.is_empty:
                return found
            _publish(found.markdown(), report.to_json(found), "loss", as_json, out, page)
            return found

        with _kept_in_part(publish), _progress() as (say, _):
            asked.ask(peers, say, requests=requests, outage_s=outage_seconds)
        found = publish("", write)
    _finish_losses(found)


def _finish_losses(found: Losses) -> NoReturn:
    missing = [f"{one.title} could not be measured" for one in found.losses if one.unavailable]
    ours = [one for one in found.losses if one.peer == OURS and not one.unavailable]
    missing += [
        f"{one.title}: {one.sent - one.answered:,} of {one.sent:,} requests failed"
        for one in ours
        if one.answered < max(1, one.sent)
    ]
    if missing:
        end(WRONG, "; ".join(missing))
    sys.exit(status(is_missing=False, is_missed=any(one.lost for one in ours)))


def _command(name: str, server: Path | None, **given: Sequence[str]) -> Made:
    """What makes a table: the commit that is there now, and what asks for the same, without places on this machine."""
    parts = [f"--{option} {shlex.quote(value)}" for option, values in given.items() for value in values]
    parts += ["--onnxruntime-server FILE"] if server is not None else []
    return Made(report.commit(), " ".join(("tidegate bench peers", name, *parts)))


@contextlib.contextmanager
def _kept_in_part(publish: Callable[[str, Path | None], object]) -> Iterator[None]:
    """However asking ends, what was seen until then is published; the page alone stays as it is."""
    try:
        yield
    except KeyboardInterrupt:
        publish("cut", None)
        raise
    except Exception as exc:
        publish(f"ended ({exc})", None)
        raise


class _progress:  # noqa: N801 (used as a function is)
    """A bar on stderr, with the last thing said beside it; a line for each where nobody looks."""

    def __init__(self) -> None:
        self._console = rich.console.Console(stderr=True)
        self._bar = rich.progress.Progress(console=self._console, transient=True)

    def __enter__(self) -> tuple[Callable[[str], None], Callable[[int, int], None]]:
        self._bar.start()
        task = self._bar.add_task("probes", total=None)

        def say(line: str) -> None:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

        def progress(done: int, count: int) -> None:
            self._bar.update(task, completed=done, total=count)

        return say, progress

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def _demand_places(out: Path | None, page: Path | None, name: str) -> None:
    """Raise ConfigInvalid now rather than after a long run, when what was seen would have no place."""
    demand_writable(out, page)
    if page is not None:
        put(page.read_text(), name, "")


def _demand_whole(page: Path | None, option: str, given: Sequence[str], every: Sequence[str]) -> None:
    """Raise ConfigInvalid where a part would replace all that a page has."""
    if page is not None and given and {*every} - {*given}:
        msg = f"--write replaces the whole table of a page, and {option} asks for a part of it: run it without --write"
        raise ConfigInvalid(msg)


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
    """Print it first: what follows may fail, and whoever reads what is printed may have enough of it."""
    try:
        click.echo(everything if as_json else block)
    finally:
        if out is not None:
            write_whole(out, everything.encode())
        if page is not None:
            write_whole(page, put(page.read_text(), name, block).encode())
