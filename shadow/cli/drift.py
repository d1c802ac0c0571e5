"""`tidegate drift`: how versions do, from the log: accuracy by week, labels, evidence of each rollout."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from gateway.cli.screen import json_option, print_json, say, table
from shadow.bundles import Bundles
from shadow.cli.reading import Reading, reading_options
from shadow.decide import summary
from shadow.state import Accuracy, WatchState


@click.group("drift")
def command() -> None:
    """See how versions do: labels, shift, harm."""


@command.command("report")
@click.option("--model", help="Only this model.")
@reading_options
@json_option
def report(model: str | None, reading: Reading, as_json: bool) -> None:
    """Accuracy per version and week, what became of labels, and the evidence of every rollout."""
    _, replayed = reading.replay()
    state = replayed.state
    rollouts = [*state.rollouts.ended, *state.rollouts.active]
    rollouts = [rollout for rollout in rollouts if model in (None, rollout.model)]
    notes = _notes(state, model, Bundles(reading.models))
    if as_json:
        accuracy = msgspec.to_builtins(state.accuracy)
        print_json(
            {
                "accuracy": {name: found for name, found in accuracy.items() if model in (None, name)},
                "labels": state.labels,
                "rollouts": [summary(rollout) for rollout in rollouts],
                "incomplete_ticks": state.incomplete_ticks,
                "unread_scores": state.unread_scores,
                "not_joined": state.not_joined,
                "left_out": state.left_out,
                "ticks": replayed.ticks,
                "notes": notes,
            }
        )
        return
    _accuracy(state, model)
    _labels(state)
    if rollouts:
        rows = [_rollout(summary(rollout)) for rollout in rollouts]
        headers = ("model", "rollout", "version", "against", "requests", "shift sd", "strongest", "ended")
        table(headers, rows, title="Rollouts")
    if state.incomplete_ticks:
        say(f"{state.incomplete_ticks} of {replayed.ticks} ticks miss records and prove nothing")
    if state.not_joined:
        say(f"{state.not_joined:,} predictions wait for no labels: too many did already")
    if state.left_out:
        steps = ", ".join(f"{step} {count}" for step, count in sorted(state.left_out.items()))
        say(f"steps that broke on what a tick held, and were left out: {steps}; the sidecar's log says why")
    if state.unread_scores:
        say(f"{state.unread_scores} answers have no score: outputs by hash, or not as the bundle declares")
    for note in notes:
        say(note)


def _notes(state: WatchState, model: str | None, bundles: Bundles) -> list[str]:
    """What is not watched of versions that answered, and why."""
    notes = []
    for name, trees in sorted(state.trees.items()):
        if model not in (None, name):
            continue
        for version, tree in sorted(trees.items(), key=lambda item: (len(item[0]), item[0])):
            settings = bundles.settings(name, version, tree)
            if settings is None:
                reason = bundles.reason(name, version, tree)
                notes.append(f"{reason}; no labels and no declared outputs are read, failures count")
                continue
            if settings.labels is None:
                notes.append(f"{name}/{version} declares no labels: whether it is right is not watched")
            if bundles.reference(name, version, tree) is None:
                reason = bundles.reference_reason(name, version, tree)
                notes.append(f"{reason}; shifts are in units of the control's first rows")
    notes += [
        f"{rollout.model}/{rollout.version}: labels come for one version more often than for the other; wrong answers"
        " are not held against it"
        for rollout in state.rollouts.active
        if model in (None, rollout.model) and not rollout.labelled.is_even
    ]
    return notes


def _accuracy(state: WatchState, model: str | None) -> None:
    rows = [
        (name, version, week, found.rows, found.rows - found.unlabelled, *_quality(found))
        for name, versions in sorted(state.accuracy.items())
        if model in (None, name)
        for version, weeks in sorted(versions.items(), key=lambda item: (len(item[0]), item[0]))
        for week, found in sorted(weeks.items())
    ]
    if rows:
        headers = ("model", "version", "week of", "rows", "labelled", "accuracy", "mean error")
        table(headers, rows, title="Accuracy, by prediction week, of labels that came due")
    else:
        say(
            "no label has come due: declare [labels] in bundle.toml, and send them to /v2/models/MODEL/feedback"
        )


def _quality(found: Accuracy) -> tuple[str | None, float | None]:
    labelled = found.rows - found.unlabelled
    if not labelled:
        return None, None
    if found.absolute_error:
        return None, found.absolute_error / labelled
    return f"{1 - found.wrong / labelled:.2%}", None


def _labels(state: WatchState) -> None:
    if state.labels:
        say("Labels: " + ", ".join(f"{count:,} {name}" for name, count in sorted(state.labels.items())))


def _rollout(found: dict[str, Any]) -> tuple[Any, ...]:
    strongest = max(found["evidence"].items(), key=lambda item: item[1])
    decided = ", ".join(f"{action} ({cause})" for cause, action in found["decided"].items())
    return (
        found["model"],
        found["rollout"],
        found["version"],
        found["control_version"],
        found["requests"],
        _shift(found),
        f"{strongest[0]} {strongest[1]:.3g}",
        decided or found["ended"] or "running",
    )


def _shift(found: dict[str, Any]) -> str | None:
    """Estimate and plain standard error."""
    if found["shift_sd"] is None:
        return None
    error_sd = found["shift_error_sd"]
    return f"{found['shift_sd']:+.3f}" + ("" if error_sd is None else f" ± {error_sd:.3f}")
