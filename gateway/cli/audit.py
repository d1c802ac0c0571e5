"""`tidegate audit`: read and verify the log, straight from the spool or from the topic.

No gateway needs to run: the log is files. With `--kafka` the same records come from the topic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from gateway.audit.event import Event, encode_event
from gateway.audit.feed import Feed
from gateway.audit.standing import read_status
from gateway.audit.verify import status as spool_status
from gateway.cli import records, verifying
from gateway.cli.client import repository
from gateway.cli.export import held_records, opened, suffix_format
from gateway.cli.failures import INPUT, NO, Stop
from gateway.cli.filters import Filter, filter_options
from gateway.cli.forwarding import forwarder_status, in_words
from gateway.cli.lookup import found_in
from gateway.cli.places import Place, place_options, spool_options
from gateway.cli.progress import reading
from gateway.cli.screen import json_option, print_json, print_json_line, say, table
from gateway.cli.standing import in_words as recorder_in_words
from gateway.cli.tailing import Missed, last, up_to_now

READ_EVENTS = 1000
FOLLOW_WAIT_MS = 500
KAFKA_QUIET_MS = 3000
"""A topic that yields nothing for this long has been read to its end."""


@click.group("audit")
def command() -> None:
    """Read and verify the log of predictions."""


@command.command("tail")
@click.option("-n", "count", type=click.IntRange(0), help="How many.  [default: 10]")
@click.option("--follow", "-f", is_flag=True, help="Go on as records come; Ctrl-C ends.")
@click.option(
    "--group",
    metavar="NAME",
    help="With --kafka: all that this consumer group has not read yet, and remember that.",
)
@filter_options
@place_options
@json_option
def tail(
    count: int | None, follow: bool, group: str | None, wanted: Filter, place: Place, as_json: bool
) -> None:
    """Print the last records, one a line. Heartbeats only with --type heartbeat.

    With --group: what the group has not read yet, oldest first, from whichever machine; each record at least once.
    """
    keep, missed = wanted.keeps, Missed()
    feed: Feed | None = None
    found: list[Event] = []
    if group is not None:
        if place.kafka is None or count is not None:
            msg = "a group reads a topic, from where it ended: give --group with --kafka and without -n"
            raise Stop(msg)
    elif place.kafka is None:
        found, positions = last(place.spool, 10 if count is None else count, keep, wanted.since_ns)
    try:
        if place.kafka is not None:
            feed = place.feed(since_ns=wanted.since_ns, group=group)
        elif follow:
            feed = place.feed(positions)
        if group is None and place.kafka is not None:
            found = _last_of(feed, 10 if count is None else count, keep, missed)  # type: ignore[arg-type]
        _print(found, as_json)
        for events in _following(feed, follow, group is not None, missed):
            _print(filter(keep, events), as_json)
            if group is not None:
                # Behind the print: what was not shown is not read.
                feed.commit()  # type: ignore[union-attr]
    except KeyboardInterrupt:
        return
    finally:
        if feed is not None:
            feed.close()
        _tell(missed)


@command.command("get")
@click.argument("prediction_id", metavar="ID")
@click.option(
    "--wait-ms", type=click.IntRange(0), default=1000, show_default=True,
    help="How long a record that is on its way to the disk is waited for.",
)  # fmt: skip
@place_options
@json_option
def get(prediction_id: str, wait_ms: int, place: Place, as_json: bool) -> None:
    """Print the record of ID, as in a reply's x-prediction-id; exit 1 when there is none."""
    found = found_in(place, prediction_id, wait_ms)
    if as_json:
        print_json(msgspec.Raw(encode_event(found, "json")))
    else:
        records.show(found)


@command.command("replay")
@click.argument("prediction_id", metavar="ID")
@click.option("--models", metavar="DIR", help="The model repository [default: what the gateway served].")
@place_options
@json_option
@click.pass_context
def replay(ctx: click.Context, prediction_id: str, models: str | None, place: Place, as_json: bool) -> None:
    """Run prediction ID again on the inputs in the log; exit 1 when one bit of the answer differs, 2 when it cannot be
    run again.

    Facts of then that are not so now are named: files, settings, ONNX Runtime, provider, threads, processor, rows of
    the run.
    """
    # Here, not above: no other command of this group needs ONNX Runtime.
    from gateway.cli.replay import replay as run_again  # noqa: PLC0415

    try:
        event = found_in(place, prediction_id, 1000)
    except Stop as exc:
        # 1 is for an answer that differs.
        raise Stop(str(exc), INPUT if exc.exit_code == NO else exc.exit_code) from exc
    made = run_again(event, Path(models) if models is not None else repository(place.spool.parent))
    if as_json:
        print_json(made)
    else:
        table(
            ("output", "bits", "largest difference"),
            [(one.name, "the same" if one.same else "differ", one.differs_by) for one in made.outputs],
        )
        for fact in made.facts:
            say(fact)
        if made.same:
            say(f"{made.id}: the same answer, bit for bit")
        else:
            say(f"{made.id}: NOT the same answer" + ("" if made.facts else ", and nothing known has changed"))
    if not made.same:
        ctx.exit(NO)


@command.command("export")
@click.argument("path", metavar="[FILE]", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--format", "form", type=click.Choice(("jsonl", "parquet")), help="[default: by FILE's name, else jsonl]"
)
@filter_options
@place_options
def export(path: Path | None, form: str | None, wanted: Filter, place: Place) -> None:
    """Write records to FILE, or as JSON Lines to stdout: all that are there now, each source in its order.

    JSON Lines hold every record whole. Parquet (extra `parquet`) has a row for each prediction. Without Kafka, what
    retention removed is not there; `tidegate audit verify` tells what is missing beside that.
    """
    feed = place.feed(since_ns=wanted.since_ns)
    kept, missed, form = 0, Missed(), suffix_format(path, form)
    try:
        with (
            opened(path, form) as take,
            reading(lambda: None if place.kafka else held_records(place.spool), "records") as read,
        ):
            for events in up_to_now(feed, KAFKA_QUIET_MS if place.kafka else 0, missed):
                read(len(events))
                kept += sum(map(take, filter(wanted.keeps, events)))
    finally:
        feed.close()
        _tell(missed)
    if path is not None:
        say(f"{kept} {'predictions' if form == 'parquet' else 'records'} in {path}")


command.add_command(verifying.verify)
command.add_command(verifying.positions)


@command.command("status")
@spool_options
@json_option
def status(where: Path, as_json: bool) -> None:
    """Show where the newest epoch of every source stands, how full the spool is, what is not in the topic, and why."""
    sources, forwarder = spool_status(where, None), forwarder_status(where.parent)
    recorder = read_status(where.parent)
    if as_json:
        print_json({"sources": sources, "recorder": recorder, "forwarder": forwarder})
        return
    table(
        ("source", "epoch", "on disk up to", "MiB", "last write"),
        [
            (
                s.source,
                f"{s.epoch:08x}",
                s.next_seq,
                f"{s.spool_bytes / 2**20:.1f}",
                f"{s.age_s:g} s ago",
            )
            for s in sources
        ],
    )
    say(f"{sum(s.spool_bytes for s in sources) / 2**20:.1f} MiB in {len(sources)} sources")
    for line in recorder_in_words(recorder):
        say(line)
    if forwarder is not None:
        say(in_words(forwarder))


def _last_of(feed: Feed, count: int, keep: Callable[[Event], bool], missed: Missed) -> list[Event]:
    found: deque[Event] = deque(maxlen=count)
    for events in up_to_now(feed, KAFKA_QUIET_MS, missed):
        found.extend(filter(keep, events))
    return list(found)


def _following(feed: Feed | None, follow: bool, is_group: bool, missed: Missed) -> Iterator[list[Event]]:
    """What is read onward: for a group all up to now, and with `follow` what comes."""
    if feed is not None and is_group and not follow:
        yield from up_to_now(feed, KAFKA_QUIET_MS, missed)
    while feed is not None and follow:
        delivery = feed.read(READ_EVENTS, FOLLOW_WAIT_MS)
        missed.note(delivery)
        yield delivery.events


def _tell(missed: Missed) -> None:
    for each in missed.lines():
        click.echo(each, err=True)


def _print(events: Any, as_json: bool) -> None:
    for event in events:
        if as_json:
            print_json_line(encode_event(event, "json"))
        else:
            say(records.line(event))
