"""Control state and how a control event changes it. Pure.

The state is the snapshot's two parts. `applied` takes one logged event and gives the next state; the engine
uses it for a change it just logged, recovery for those it finds behind a snapshot: one function, so both
come to the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.audit.event import Control
from gateway.control.changes import without_latched
from gateway.control.idempotency import Done, remembered
from gateway.control.snapshot import (
    HISTORY_REVISIONS,
    DesiredVersion,
    Ledger,
    Serving,
)
from gateway.errors import StateConflict, UnknownModel
from gateway.fleet import SLOTS
from gateway.routing import Route, iso_time

ROUTE_KINDS = frozenset(
    ("route", "shift", "promote", "rollback", "rearm", "freeze", "thaw", "stop", "resume", "bounds")
)
"""Changes that make a revision. A `lease` renews one and is none."""

EVERY = "*"
"""Stands for all versions of a model in `load` and `unload`: while such an unload holds, none is loaded. In `routes` it
stands beside the models (no model has such a name) and holds what the state has besides routes."""
WHOLE_MAX_BYTES = 128 * 1024
"""A `routes` event is about so large at most, or holds one model: it must fit a frame of control's ring."""


class State(msgspec.Struct, frozen=True):
    """Both parts of a snapshot."""

    serving: Serving
    ledger: Ledger


def route_document(route: Route) -> dict[str, object]:
    """The route as plain data, as it stands in events; of the salt its name, unless the route is older than names."""
    return {**msgspec.to_builtins(route), "latched": list(route.latched)}


def public_document(route: Route) -> dict[str, object]:
    """The route as the API shows it: without salt and buckets, ends of leases as text too."""
    content = route_document(route)
    del content["salt"], content["salt_id"]
    for name in ("latches", "stopped", "bounds"):
        if not content[name]:
            del content[name]
    for variant in content["variants"]:  # type: ignore[attr-defined]
        variant.pop("buckets", None)
        if "lease_until_ns" in variant:
            variant["lease_until"] = iso_time(variant["lease_until_ns"])
        if variant["role"] == "shadow":
            variant.setdefault("sample_bp", 0)
        else:
            variant.setdefault("weight_bp", 0)
    return content


def applied(state: State, event: Control) -> State:
    """The state after a logged control event; unknown kinds only move `last_event` on."""
    if event.after is not None:
        if event.kind in ROUTE_KINDS:
            state = _with_revision(state, _known_as(msgspec.convert(event.after, Route), event.id or None))
        elif event.kind == "lease":
            state = _with_lease(state, msgspec.convert(event.after, Route))
        elif event.kind in {"load", "unload"}:
            state = _with_loaded(state, event)
        elif event.kind == "lease_over" and event.model is not None:
            over = {**state.ledger.leases_over, event.model: int(event.after["until_ns"])}
            state = State(state.serving, msgspec.structs.replace(state.ledger, leases_over=over))
        elif event.kind == "routes":
            state = with_whole(state, event.after)
    if event.key is not None and not _is_overtaken(state, event):
        digest = (event.via or {}).get("digest", "")
        done = Done(
            digest=digest, kind=event.kind, model=event.model, revision=event.revision, at_ns=event.at_ns
        )
        known = remembered(state.ledger.done, event.by, event.key, done)
        state = State(state.serving, msgspec.structs.replace(state.ledger, done=known))
    owed = tuple(d for d in state.ledger.unlogged if not _is_logged(d, event))
    return State(
        state.serving, msgspec.structs.replace(state.ledger, last_event=event.id or None, unlogged=owed)
    )


def _is_logged(owed: Mapping[str, Any], event: Control) -> bool:
    """Whether a change that is owed to the log is the one that it has now. What has no revision is told by its time."""
    change = (event.kind, event.model, event.revision)
    same = (owed["kind"], owed["model"], owed["revision"]) == change
    return same and (event.model is not None or owed["at_ns"] == event.at_ns)


def _is_overtaken(state: State, event: Control) -> bool:
    """Whether a revision never came into effect, since one that could not be logged did before it: who asks for it
    again shall not be told that it was made."""
    if event.kind not in ROUTE_KINDS or event.revision is None:
        return False
    present = state.serving.routes.get(str(event.model))
    return present is not None and event.revision < present.revision


def _with_revision(state: State, route: Route) -> State:
    """The state with a revision in effect and in the history."""
    serving, ledger = state.serving, state.ledger
    present = serving.routes.get(route.model)
    # An older revision was overtaken by one that could not be logged before it; the same one is read again.
    if present is not None and route.revision < present.revision:
        return state
    serving = msgspec.structs.replace(serving, routes={**serving.routes, route.model: route})
    kept = tuple(r for r in ledger.history.get(route.model, ()) if r.revision < route.revision)
    kept = (*kept, route)[-HISTORY_REVISIONS:]
    return State(serving, msgspec.structs.replace(ledger, history={**ledger.history, route.model: kept}))


def _with_earlier(state: State, route: Route) -> State:
    """The state with a revision in the history that is older than all that it knows."""
    history = state.ledger.history.get(route.model, ())
    if history and history[0].revision <= route.revision:
        return state
    kept = (route, *history)[-HISTORY_REVISIONS:]
    ledger = msgspec.structs.replace(state.ledger, history={**state.ledger.history, route.model: kept})
    return State(state.serving, ledger)


def _with_lease(state: State, route: Route) -> State:
    """The state with other ends of leases; of an older revision they say nothing."""
    present = state.serving.routes.get(route.model)
    if present is None or route.revision != present.revision:
        return state
    present = msgspec.structs.replace(present, variants=route.variants)
    routes = {**state.serving.routes, route.model: present}
    return State(msgspec.structs.replace(state.serving, routes=routes), state.ledger)


def _with_loaded(state: State, event: Control) -> State:
    """The state after an operator's load or unload."""
    serving, ledger = state.serving, state.ledger
    model, version = pair = (str(event.model), str((event.after or {})["version"]))
    gone = (pair, (model, EVERY)) if event.kind == "load" else (pair,)
    unloaded = tuple(p for p in ledger.unloaded if p not in gone and (version != EVERY or p[0] != model))
    loaded = tuple(p for p in ledger.loaded if p != pair)
    if event.kind == "unload":
        unloaded = (*unloaded, pair)
    else:
        if version != EVERY:
            loaded = (*loaded, pair)
        again = tuple(
            msgspec.structs.replace(d, load_event=event.id)
            if d.model == model and version in {d.version, EVERY}
            else d
            for d in serving.versions
        )
        serving = msgspec.structs.replace(serving, versions=again)
    return State(serving, msgspec.structs.replace(ledger, unloaded=unloaded, loaded=loaded))


def whole(state: State) -> list[dict[str, object]]:
    """What the state would be lost without, as the `after` of one or more `routes` events.

    Each holds the documents of some models, and under `EVERY` the revisions that they would be rolled back to; the
    first, what operators loaded and unloaded besides.
    """
    ledger = state.ledger
    rest: dict[str, object] = {
        "loaded": list(ledger.loaded),
        "unloaded": list(ledger.unloaded),
        "leases_over": dict(ledger.leases_over),
    }
    parts: list[dict[str, object]] = []
    part: dict[str, object] = {}
    targets: dict[str, object] = {}
    size = 0
    for name in sorted(state.serving.routes):
        document, target = route_document(state.serving.routes[name]), target_revision(ledger, name)
        earlier = None if target is None else route_document(target)
        added = len(msgspec.msgpack.encode((document, earlier)))
        if part and size + added > WHOLE_MAX_BYTES:
            parts.append({**part, EVERY: {**rest, "targets": targets}})
            part, targets, rest, size = {}, {}, {}, 0
        part[name] = document
        if earlier is not None:
            targets[name] = earlier
        size += added
    parts.append({**part, EVERY: {**rest, "targets": targets}})
    return parts


def with_whole(state: State, after: Mapping[str, Any]) -> State:
    """The state after a `routes` event: all of it that is not known from events before."""
    rest: dict[str, Any] = after.get(EVERY, {})
    targets = rest.get("targets", {})
    for model, document in after.items():
        if model == EVERY:
            continue
        route = msgspec.convert(document, Route)
        if model in targets:
            state = _with_earlier(state, msgspec.convert(targets[model], Route))
        present = state.serving.routes.get(model)
        if present is not None and present.revision == route.revision:
            state = _with_lease(state, route)
        else:
            state = _with_revision(state, route)
    found: dict[str, Any] = {
        name: tuple((str(model), str(version)) for model, version in rest[name])
        for name in ("loaded", "unloaded")
        if name in rest
    }
    if "leases_over" in rest:
        found["leases_over"] = {str(model): int(until) for model, until in rest["leases_over"].items()}
    return State(state.serving, msgspec.structs.replace(state.ledger, **found))


def forced(state: State, event: Control) -> State:
    """The state after a change that could not be logged: it is owed to the log, whose last event stays."""
    after = applied(state, event)
    owed = (*state.ledger.unlogged, msgspec.to_builtins(event))
    ledger = msgspec.structs.replace(after.ledger, last_event=state.ledger.last_event, unlogged=owed)
    return State(after.serving, ledger)


def rollback_target(ledger: Ledger, model: str) -> Route | None:
    """The newest kept revision that would change traffic if it came back, as it would come back.

    Holds, leases and latches in between change none; what a latched version had is the primary's; a revision whose
    primary is latched now cannot come back.
    """
    revision = target_revision(ledger, model)
    if revision is None:
        return None
    variants = without_latched(revision.variants, ledger.history[model][-1].latched)
    return msgspec.structs.replace(revision, variants=variants)


def target_revision(ledger: Ledger, model: str) -> Route | None:
    """The revision behind `rollback_target`, as it was."""
    history = ledger.history.get(model, ())
    if not history:
        return None
    latched = history[-1].latched
    present = without_latched(history[-1].variants, latched)
    for revision in reversed(history):
        if without_latched(revision.variants, latched) != present and revision.primary.version not in latched:
            return revision
    return None


def check_loading(
    state: State, found: Mapping[str, tuple[str, ...]], model: str, version: str, kind: str
) -> None:
    """Whether a version may be loaded, or let go: what answers, and what would after a rollback, stays loaded.

    Args:
        found: versions on disk by model.

    Raises:
        UnknownModel: it is not in the repository.
        StateConflict: it is in the route or in what that would be rolled back to (unload).
    """
    route = state.serving.routes.get(model)
    if version == EVERY:
        if route is None and model not in found:
            raise UnknownModel(model)
        return
    if version not in found.get(model, ()):
        raise UnknownModel(model, version)
    if kind != "unload" or route is None:
        return
    if version in route.versions:
        msg = f"{model} version {version} is in the route; take it out first"
        raise StateConflict(msg)
    target = rollback_target(state.ledger, model)
    if target is not None and version in target.versions:
        msg = (
            f"{model} version {version} is what the route would be rolled back to (revision {target.revision}),"
            " so it stays loaded"
        )
        raise StateConflict(msg)


def placed(
    state: State, found: Mapping[str, tuple[str, ...]], chosen: Mapping[str, tuple[str, ...]] | None = None
) -> State:
    """The state with the versions that every worker shall hold: per model those in the route, those of
    the rollback target and the newest on disk, less what an operator unloaded.

    Args:
        found: versions on disk, ascending, by model.
        chosen: those that a model's settings want instead of the newest, where it has such settings.

    Raises:
        StateConflict: more versions than there are slots.
    """
    wanted = _wanted(state, found, chosen or {})
    held = {(d.model, d.version): d for d in state.serving.versions}
    # Round and round, so that a slot rests as long as can be before it is another's; those that become free only now
    # last of all.
    resting = set(held) - set(wanted)
    used = {d.slot for d in held.values()}
    order = [(state.ledger.next_slot + i) % SLOTS for i in range(SLOTS)]
    free = iter([s for s in order if s not in used] + sorted(held[key].slot for key in resting))
    next_slot = state.ledger.next_slot
    desired = []
    for model, version in wanted:
        one = held.get((model, version))
        if one is None:
            slot = next(free, None)
            if slot is None:
                msg = f"{SLOTS} versions are loaded; unload some to load more"
                raise StateConflict(msg)
            one = DesiredVersion(model=model, version=version, slot=slot)
            next_slot = (slot + 1) % SLOTS
        desired.append(one)
    serving = msgspec.structs.replace(state.serving, versions=tuple(desired))
    return State(serving, msgspec.structs.replace(state.ledger, next_slot=next_slot))


def _wanted(
    state: State, found: Mapping[str, tuple[str, ...]], chosen: Mapping[str, tuple[str, ...]]
) -> list[tuple[str, str]]:
    """Model and version of what shall be loaded, in order."""
    wanted: list[tuple[str, str]] = []
    for model in sorted({*found, *state.serving.routes}):
        on_disk = found.get(model, ())
        if (model, EVERY) in state.ledger.unloaded:
            continue
        route = state.serving.routes.get(model)
        versions = set(chosen.get(model, on_disk[-1:]))
        if route is not None:
            target = rollback_target(state.ledger, model)
            if target is not None:
                versions.update(target.versions)
            else:
                # Nothing to roll back to yet: the version before the primary is the likely target.
                older = [v for v in on_disk if int(v) < int(route.primary.version)]
                versions.update(older[-1:])
            versions.update(v for m, v in state.ledger.loaded if m == model and v in on_disk)
            versions = {v for v in versions if (model, v) not in state.ledger.unloaded}
            versions.update(route.versions)
        else:
            # No route yet: every version is a candidate for first sight.
            versions = {v for v in chosen.get(model, on_disk) if (model, v) not in state.ledger.unloaded}
        wanted.extend((model, v) for v in sorted(versions, key=int))
    return wanted


def renumbered(state: State) -> State:
    """Slots from 0 again: at the start of a fleet whose shared memory is new."""
    versions = tuple(
        msgspec.structs.replace(desired, slot=slot) for slot, desired in enumerate(state.serving.versions)
    )
    return State(
        msgspec.structs.replace(state.serving, versions=versions),
        msgspec.structs.replace(state.ledger, next_slot=len(versions)),
    )


def _known_as(route: Route, event_id: str | None) -> Route:
    """The route with its event's id in the change that made it, and in the latch or the stop that this change set."""
    changed = msgspec.structs.replace(route.changed, event=event_id)
    latches = {
        version: changed if since == route.changed else since for version, since in route.latches.items()
    }
    stopped = changed if route.stopped == route.changed else route.stopped
    return msgspec.structs.replace(route, changed=changed, latches=latches, stopped=stopped)
