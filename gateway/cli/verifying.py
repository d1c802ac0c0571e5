"""`tidegate audit verify` and `positions`: is the log what it was, and what to keep so as to ask again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click

from gateway.audit import witnesses
from gateway.audit.chain import Position, read_position
from gateway.audit.epoch_check import EpochReport
from gateway.audit.event import Event, Gap
from gateway.audit.spool import epochs
from gateway.audit.verify import Report, bytes_of
from gateway.audit.verify import verify as verify_spool
from gateway.audit.witnesses import Witnesses
from gateway.cli.failures import NO
from gateway.cli.places import DEFAULT_TOPIC, Place, spool_options
from gateway.cli.progress import reading
from gateway.cli.screen import json_option, print_json, say, table


@click.command("verify")
@click.option(
    "--against", metavar="FILE", type=click.Path(dir_okay=False, exists=True, path_type=Path), multiple=True,
    help="Positions that were kept elsewhere: what `audit positions --json` printed. May be given more than once.",
)  # fmt: skip
@click.option("--kafka", metavar="HOST:PORT", help="Hold it against the positions in the topic, too.")
@click.option("--topic", default=DEFAULT_TOPIC, show_default=True, help="Which topic.")
@spool_options
@json_option
@click.pass_context
def verify(  # noqa: PLR0913
    ctx: click.Context, where: Path, against: Sequence[Path], kafka: str | None, topic: str, as_json: bool
) -> None:
    """Check that every number drawn has a record or a gap that says why not, and that none was changed; exit 1 if not.

    Records are held against the hashes that the recorder logged, and against those given.
    """
    known: Witnesses = witnesses.merged(*(witnesses.in_file(path) for path in against))
    trims: list[Gap] = []
    if kafka is not None:
        events = _in_topic(kafka, topic)
        known = witnesses.merged(known, witnesses.of_spool(where, witnesses.in_events(events)))
        trims = witnesses.trims_in(where, events)
    with reading(lambda: bytes_of(where), "verifying") as advance:
        report = verify_spool(where, known, advance, trims)
    if as_json:
        print_json({"ok": report.ok, "epochs": report.epochs, "gone": report.gone})
    else:
        _show(report)
    if not report.ok:
        ctx.exit(NO)


@click.command("positions")
@spool_options
@json_option
def positions(where: Path, as_json: bool) -> None:
    """Print how far each epoch is and the hash of all of it: keep the output where nobody of this host can write.

    `tidegate audit verify --against FILE` then finds whatever was changed below.
    """
    found: dict[str, Position] = {}
    with reading(lambda: None, "reading", after_s=1.0) as advance:
        for epoch in epochs(where):
            position = read_position(epoch)
            advance(0)
            if position is not None and position.next_seq:
                found[epoch.key] = position
    if as_json:
        kept = {key: (at.next_seq, at.value.hex()) for key, at in found.items()}
        print_json({"at_ns": time.time_ns(), "positions": kept})
        return
    table(("source-epoch", "next", "hash"), [(key, at.next_seq, at.value.hex()) for key, at in found.items()])
    say(f"{len(found)} epochs; keep them: tidegate audit positions --json > positions.json")


def _in_topic(kafka: str, topic: str) -> list[Event]:
    look = Place(Path(), kafka, topic).look()
    try:
        with reading(look.records, "records") as advance:
            return look.positions(advance)
    finally:
        look.close()


def _show(report: Report) -> None:
    table(
        ("source", "epoch", "role", "first", "next", "events", "in gaps", "missing", "proved to", "state"),
        [
            (
                e.source,
                f"{e.epoch:08x}",
                e.role,
                e.first_seq,
                e.next_seq,
                e.events,
                _ranges([gap[:2] for gap in e.gaps]),
                _ranges(e.missing) or (f"{e.twice} twice" if e.twice else "none"),
                e.proved_to or None,
                e.closed or "open",
            )
            for e in report.epochs
        ],
    )
    for epoch in report.epochs:
        for note in epoch.notes:
            say(f"{_name(epoch)}: {note}")
        if epoch.untold:
            say(
                f"{_name(epoch)}: numbers before {epoch.first_seq} are not here, and no gap here says who took them"
            )
    for gone in report.gone:
        if gone.told:
            say(f"{gone.key}: retention took it, says {gone.says}")
        else:
            say(f"{gone.key}: NOT HERE, and no gap says that retention took it; {gone.by} knows of it")
    for epoch in report.epochs:
        _show_first(epoch)
    if not report.ok:
        say("the log does NOT add up")
        return
    every = "every number has a record or a gap"
    if any(epoch.untold for epoch in report.epochs):
        every = "every number from an epoch's first here on has a record or a gap"
    if any(epoch.proved_to for epoch in report.epochs):
        say(f"{every}, and no record differs from what is known")
    else:
        say(f"{every}; no hash of them is logged yet: it is, about each minute")


def _show_first(epoch: EpochReport) -> None:
    if not epoch.findings:
        return
    first = epoch.findings[0]
    numbers = (
        f"number {first.seq}"
        if first.to_seq in {None, first.seq}
        else f"numbers {first.seq} to {first.to_seq}"
    )
    place = f", {first.segment} byte {first.offset}" if first.segment else ""
    say(f"{_name(epoch)}: {first.kind.replace('_', ' ').upper()}: {numbers}{place}")
    say(f"    expected {first.expected}")
    say(f"    found    {first.found}")
    if len(epoch.findings) > 1:
        say(f"    and {len(epoch.findings) - 1} more (--json)")


def _name(epoch: EpochReport) -> str:
    return f"{epoch.source}-{epoch.epoch:08x}" + (f" ({epoch.role})" if epoch.role else "")


def _ranges(ranges: Sequence[tuple[int, int | None]]) -> str:
    return ", ".join(f"{a}..{'?' if b is None else b}" for a, b in ranges)
