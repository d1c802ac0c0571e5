"""Verdict events: what the sidecar writes of its ticks and decisions, and how it is read back.

A tick's record carries its number, its time, its cuts and, where they changed, the settings: enough for anyone with
the log to fold the same events again. Its decisions stand in the same frame, so the log has both or neither.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gateway.audit.event import Event, Verdict
from gateway.audit.feed import Positions
from gateway.audit.frame import expand
from gateway.audit.identity import ROLES, parse_event_id, source_of
from gateway.audit.spool import epochs, read_epoch
from gateway.errors import LogIncomplete
from shadow.decide import Decision, summary
from shadow.ratio import Alarm
from shadow.state import Settings, Tick, WatchState

SOURCES_A_ROLE = 1024
MISSING_SHOWN = 100


class Stored(NamedTuple):
    """A tick as it stands in the log, with the decisions made at it."""

    tick: Tick
    settings: Settings | None
    """Where they changed."""
    decisions: tuple[tuple[str, Decision], ...]
    """(event id, decision)"""
    missing: tuple[str, ...] = ()
    """What the tick lacked."""
    left_out: tuple[str, ...] = ()
    """Steps that broke on it."""


def tick_event(
    tick: Tick,
    state: WatchState,
    settings: Settings | None,
    missing: Sequence[str],
    left_out: Sequence[str] = (),
) -> Verdict:
    """The record of a tick.

    Args:
        settings: where this tick is the first to go by them.
        missing: numbers that the log should hold and does not; evidence leaves such a tick out.
        left_out: steps that broke on it; evidence leaves it out as well.
    """
    body: dict[str, Any] = {
        "tick": tick.number,
        "cuts": {key: list(cut) for key, cut in tick.cuts.items()},
        "clock_ns": state.clock_ns,
        "complete": not missing and not left_out,
        "config_sha256": state.settings.sha256,
        "rollouts": [summary(rollout) for rollout in state.rollouts.active],
    }
    if missing:
        body["missing"] = sorted(missing)[:MISSING_SHOWN]
    if left_out:
        body["left_out"] = list(left_out)
    if settings is not None:
        body["settings"] = msgspec.to_builtins(settings)
    return Verdict(kind="tick", at_ns=tick.at_ns, body=body)


def alarm_event(alarm: Alarm, tick: Tick) -> Verdict:
    """The record that traffic of a model is not split as its route says."""
    body = {
        "what": "ratio",
        "tick": tick.number,
        "observed_revision": alarm.revision,
        "counts": alarm.counts,
        "weights_bp": alarm.weights_bp,
        "evidence": alarm.evidence,
        "needed": alarm.needed,
        "says": alarm.says,
    }
    return Verdict(kind="alarm", at_ns=tick.at_ns, model=alarm.model, body=body)


def decision_event(decision: Decision, tick: Tick, state: WatchState) -> Verdict:
    """The record of a decision, with the cuts and the digest of the settings that it rests on."""
    body = {
        **msgspec.to_builtins(decision),
        "cuts": {key: list(cut) for key, cut in tick.cuts.items()},
        "config_sha256": state.settings.sha256,
    }
    return Verdict(kind="decision", at_ns=tick.at_ns, model=decision.model, body=body)


def slim(events: Sequence[Event]) -> list[Event]:
    """The same verdicts without what a replay does not need: summaries, the cuts of decisions, all but a few of the
    missing numbers. For a frame that takes no more."""
    found: list[Event] = []
    for event in events:
        if isinstance(event, Verdict):
            body = {key: value for key, value in event.body.items() if key != "rollouts"}
            if event.kind == "decision":
                body.pop("cuts", None)
            if "missing" in body:
                body["missing"] = body["missing"][:1]
            found.append(msgspec.structs.replace(event, body=body))
        else:
            found.append(event)
    return found


def stored_ticks(events: Iterable[Verdict]) -> list[Stored]:
    """Ticks in order, from one sidecar's verdicts in any order.

    Raises:
        ValueError: a tick or decision that is none of ours, or two ticks of one number.
    """
    ticks: dict[int, Stored] = {}
    decisions: dict[int, list[tuple[str, Decision]]] = {}
    for event in sorted(events, key=lambda each: parse_event_id(each.id)[1:]):
        body = event.body
        try:
            if event.kind == "tick":
                number = int(body["tick"])
                cuts = {str(key): (int(cut[0]), int(cut[1])) for key, cut in body["cuts"].items()}
                settings = body.get("settings")
                made = None if settings is None else msgspec.convert(settings, Settings)
                if number in ticks:
                    msg = f"tick {number} stands twice in the log, the second time as {event.id}"
                    raise ValueError(msg)
                missing = tuple(str(each) for each in body.get("missing", ()))
                left_out = tuple(str(each) for each in body.get("left_out", ()))
                ticks[number] = Stored(Tick(number, event.at_ns, cuts), made, (), missing, left_out)
            elif event.kind == "decision":
                decision = msgspec.convert(body, Decision)
                decisions.setdefault(decision.tick, []).append((event.id, decision))
        except (KeyError, TypeError, IndexError, msgspec.ValidationError) as exc:
            msg = f"verdict {event.id} cannot be read: {exc}"
            raise ValueError(msg) from exc
    return [
        stored._replace(decisions=tuple(decisions.get(number, ())))
        for number, stored in sorted(ticks.items())
    ]


def gateway_sources(gateway_id: str, roles: Sequence[str] = ROLES) -> frozenset[int]:
    """Every source that processes of one gateway may write as, or those of some roles."""
    return frozenset(source_of(gateway_id, role, i) for role in roles for i in range(SOURCES_A_ROLE))


def spool_verdicts(spool: Path, sources: Collection[int], cut: Positions) -> list[Verdict]:
    """The verdicts of sidecars in a spool from a cut on."""
    found: list[Verdict] = []
    for epoch in epochs(spool):
        if epoch.source not in sources:
            continue
        for frame in read_epoch(epoch, cut.get(epoch.key, 0)):
            events = expand(epoch.source, epoch.epoch, frame)
            found += [event for event in events if isinstance(event, Verdict)]
    return found


def stored_after(spool: Path, sources: Collection[int], cut: Positions) -> list[Stored]:
    """Ticks in a spool that were logged after a cut, as a successor finds them.

    Raises:
        LogIncomplete: one cannot be read.
    """
    try:
        return stored_ticks(spool_verdicts(spool, sources, cut))
    except ValueError as exc:
        raise LogIncomplete(str(exc)) from exc
