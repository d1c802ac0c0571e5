"""`tidegate shadow`: what versions say beside the one that answers, from the log alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
import rich.console

from gateway.cli.audit import KAFKA_QUIET_MS
from gateway.cli.failures import NO, Stop
from gateway.cli.screen import json_option, print_json, say, table
from gateway.cli.tailing import up_to_now
from shadow.bundles import Bundles
from shadow.cli.reading import Reading, reading_options
from shadow.compare import Comparison
from shadow.report import Pair, Report, shown


@click.group("shadow")
def command() -> None:
    """Compare shadows with what was answered."""


@command.command("report")
@click.option("--model", help="Only this model.")
@click.option("--worst", type=click.IntRange(0), default=5, show_default=True, help="Rows far apart to show.")
@reading_options
@json_option
@click.pass_context
def report(ctx: click.Context, model: str | None, worst: int, reading: Reading, as_json: bool) -> None:
    """What each shadow says against each version that answered; exit 1 when there is nothing to compare."""
    found = _folded(reading, model)
    pairs = list(shown(found))
    if as_json:
        print_json({"pairs": [_document(*of) for of in pairs], "unread": found.unread})
    for pair, comparison, unanswered in [] if as_json else pairs:
        _print(pair, comparison, unanswered, found.class_names(pair), worst)
    for name, reason in {} if as_json else found.unread.items():
        say(f"{name} was read without its bundle.toml: {reason}")
    if any(comparison.pairs for _, comparison, _ in pairs):
        return
    if pairs:
        raise Stop("nothing to compare: shadows were named and none has answered; see above why", NO)
    what = f"of {model} " if model else ""
    msg = (
        f"nothing to compare: no request {what}was to be shadowed. Name one with `tidegate route set MODEL"
        " --variant primary=1:primary --variant next=2:shadow:100% --reason ...`"
    )
    raise Stop(msg, NO)


def _folded(reading: Reading, model: str | None) -> Report:
    """The whole log, with a count on stderr where a person looks."""
    found = Report(Bundles(reading.models), model, reading.gateway_id)
    console = rich.console.Console(stderr=True)
    feed = reading.place.feed()
    try:
        with console.status("reading the log") as status:
            count = 0
            for events in up_to_now(feed, KAFKA_QUIET_MS if reading.place.kafka else 0):
                for event in events:
                    found.take(event)
                count += len(events)
                status.update(f"reading the log: {count:,} records")
    finally:
        feed.close()
    found.close()
    return found


def _document(pair: Pair, comparison: Comparison, unanswered: int) -> dict[str, Any]:
    return {**pair._asdict(), **comparison.summary(), "unanswered": unanswered}


def _print(pair: Pair, comparison: Comparison, unanswered: int, names: Sequence[str], worst: int) -> None:
    figures = comparison.summary()
    say(f"{pair.model}: version {pair.primary} answered, version {pair.shadow} beside it")
    nonfinite = figures["nonfinite"]
    table(
        ("what", "count", "which"),
        [
            ("compared", f"{comparison.pairs:,}", f"{comparison.rows:,} rows"),
            ("failed", f"{sum(comparison.failed.values()):,}", _counts(comparison.failed)),
            ("skipped", f"{sum(comparison.skipped.values()):,}", _counts(comparison.skipped)),
            ("cannot be judged", f"{sum(comparison.unjudged.values()):,}", _counts(comparison.unjudged)),
            ("unanswered", f"{unanswered:,}", "on their way, or no mirror ran" if unanswered else ""),
            (
                "rows not finite",
                f"{nonfinite['primary'] + nonfinite['shadow'] - nonfinite['both']:,}",
                _counts({name: count for name, count in nonfinite.items() if count}),
            ),
        ],
    )
    if comparison.decided:
        rows = [
            (
                _class(flip["from"], names),
                _class(flip["to"], names),
                f"{flip['rows']:,}",
                f"{flip['share']:.3%}",
            )
            for flip in figures["flips"]
        ]
        share = comparison.flipped / comparison.decided
        say(f"  decisions: {comparison.flipped:,} of {comparison.decided:,} rows differ ({share:.3%})")
        if rows:
            table(("answered", "shadow says", "rows", "share"), rows)
    if figures["score"]["rows"]:
        _print_scores(figures["score"])
    if worst and comparison.worst:
        table(
            ("furthest apart", "row", "answered", "shadow", "shift"),
            [
                (w.prediction_id, w.row, w.primary, w.shadow, f"{w.shift:+.6g}")
                for w in comparison.worst[:worst]
            ],
        )


def _print_scores(score: dict[str, Any]) -> None:
    """Shadow less primary: in the score's own units, and in standard deviations of the primary's."""
    say("  score shift (shadow less answered):")
    sd = score["primary_sd"]
    shares = score["quantiles"]
    headers = ("in", "mean", "sd", "least", *(f"{float(share):.0%}" for share in shares), "most")
    plain = [score["mean"], score["sd"], score["min"], *shares.values(), score["max"]]
    rows = [("units", *(f"{value:+.4g}" for value in plain))]
    if sd:
        rows.append(("sd", *(f"{value / sd:+.4g}" for value in plain)))
    table(headers, rows)


def _class(number: int, names: Sequence[str]) -> str:
    return names[number] if 0 <= number < len(names) else str(number)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
