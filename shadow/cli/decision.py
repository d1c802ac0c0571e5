"""`tidegate decision`: what the sidecar decided, why, and whether the log bears it out.

Read from the log alone: no gateway and no sidecar needs to run.
"""

from __future__ import annotations

import time
from typing import Any

import click
import msgspec

from gateway.audit.event import Verdict
from gateway.cli.failures import NO, Stop
from gateway.cli.screen import console, json_option, moment, percent, print_json, print_json_line, say, table
from gateway.cli.watching import watch_option
from shadow.cli.reading import Reading, reading_options
from shadow.replay import Compared

WATCH_EVERY_S = 2.0


@click.group("decision")
def command() -> None:
    """Show and recompute what the sidecar decided."""


@command.command("list")
@click.option("--model", help="Only decisions about this model.")
@watch_option
@reading_options
@json_option
def list_(model: str | None, watch_it: bool, reading: Reading, as_json: bool) -> None:
    """Every decision, oldest first."""
    if watch_it:
        _watch(reading, model, as_json or not console().is_terminal)
        return
    found = _decisions(reading, model)
    if as_json:
        print_json([_document(event) for event in found])
        return
    if not found:
        say("no decisions: nothing that a canary did called for one")
        return
    for event in found:
        _say(event)


def _watch(reading: Reading, model: str | None, as_json: bool) -> None:
    """Those that there are, then each as it comes; until Ctrl-C. Reads the verdicts anew at each look: a few a tick."""
    if reading.place.kafka is not None:
        msg = "--watch reads the spool: leave --kafka out, or run `tidegate audit tail --follow --type verdict --kafka`"
        raise Stop(msg)
    told: set[str] = set()
    try:
        while True:
            for event in _decisions(reading, model):
                if event.id not in told:
                    told.add(event.id)
                    if as_json:
                        print_json_line(msgspec.json.encode(_document(event)))
                    else:
                        _say(event)
            time.sleep(WATCH_EVERY_S)
    except KeyboardInterrupt:
        return


def _document(event: Verdict) -> dict[str, Any]:
    return {"id": event.id, "at_ns": event.at_ns, **event.body}


def _say(event: Verdict) -> None:
    say(f"{moment(event.at_ns)}  {event.model}  {_action(event.body)} ({event.body.get('cause')})")
    say(f"  {event.body.get('says')}")
    say(f"  id {event.id}")


@command.command("show")
@click.argument("decision_id", metavar="ID")
@reading_options
@json_option
def show(decision_id: str, reading: Reading, as_json: bool) -> None:
    """One decision: what it rests on and what it changed."""
    event = next((one for one in _decisions(reading, None) if one.id == decision_id), None)
    if event is None:
        msg = f"the log holds no decision {decision_id}; see `tidegate decision list`"
        raise Stop(msg, NO)
    if as_json:
        print_json({"id": event.id, "at_ns": event.at_ns, **event.body})
        return
    body = event.body
    say(str(body.get("says")))
    before, after = body.get("before_bp", {}), body.get("after_bp", {})
    weights = ", ".join(f"{name} {percent(before[name])} -> {percent(after.get(name, 0))}" for name in before)
    rows: list[tuple[str, Any]] = [
        ("at", moment(event.at_ns)),
        ("model", f"{event.model}, rollout {body.get('rollout')}, tick {body.get('tick')}"),
        ("action", _action(body)),
        ("cause", body.get("cause")),
        ("weights", weights),
        ("latched", ", ".join(body.get("latched", ()))),
        ("revision seen", body.get("observed_revision")),
        ("settings sha256", body.get("config_sha256")),
    ]
    table(("field", "value"), rows)
    table(
        ("evidence", "e-value"),
        [(name, float(value)) for name, value in body.get("evidence", {}).items()],
    )
    for arm, counts in body.get("counts", {}).items():
        say(f"  {arm}: " + ", ".join(f"{name} {value:,.6g}" for name, value in counts.items()))


@command.command("replay")
@reading_options
@json_option
def replay_(reading: Reading, as_json: bool) -> None:
    """Fold the log again, ignoring the stored decisions, and compare. Exit 1 when anything differs."""
    stored, replayed = reading.replay()
    differing = [one for one in replayed.decisions if one.differs is not None]
    if differing and (unread := reading.unread(replayed.state)):
        msg = f"cannot judge: {unread[0]} in {reading.models}; name the repository of that time with --models"
        raise Stop(msg)
    if as_json:
        print_json(
            {
                "ticks": replayed.ticks,
                "decisions": [_shown(one) for one in replayed.decisions],
                "differing": len(differing),
                "counts": replayed.state.counts,
                "labels": replayed.state.labels,
                "incomplete_ticks": replayed.state.incomplete_ticks,
            }
        )
    else:
        rows = [
            (one.tick, either.model, either.action, either.cause, one.differs or "the same")
            for one in replayed.decisions
            for either in (one.stored or one.made,)
            if either is not None
        ]
        if rows:
            table(("tick", "model", "action", "cause", "made again"), rows)
        events = sum(replayed.state.counts.values())
        said = f"{len(stored):,} ticks over {events:,} predictions and labels, {len(rows)} decisions"
        say(f"{said}: {'the log bears them out' if not differing else f'{len(differing)} differ'}")
    if differing:
        raise Stop(f"{len(differing)} decisions are not what the log gives", NO)


def _action(body: dict[str, Any]) -> str:
    return f"{body.get('action')}, dry run" if body.get("dry_run") else str(body.get("action"))


def _shown(one: Compared) -> dict[str, Any]:
    return {
        "tick": one.tick,
        "id": one.event,
        "differs": one.differs,
        "stored": msgspec.to_builtins(one.stored),
        "made": msgspec.to_builtins(one.made),
    }


def _decisions(reading: Reading, model: str | None) -> list[Verdict]:
    _, verdicts = reading.verdicts()
    return [
        event for event in verdicts if event.kind == "decision" and (model is None or event.model == model)
    ]
