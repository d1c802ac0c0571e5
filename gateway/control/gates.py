"""Gates: what a change of traffic must pass beyond being well formed. Pure.

changes -> **gates** -> engine logs. A gate answers with a `StateConflict` that says what stands in the way and what
ends that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.audit.drained import sources_of
from gateway.audit.identity import parse_event_id
from gateway.control.changes import leased
from gateway.errors import ChangeInvalid, EvidenceStale, StateConflict
from gateway.routing import Change, Route, iso_time
from gateway.settings import Policy

LEASING = frozenset(("route", "shift", "promote", "rollback", "thaw"))
"""Kinds of change that begin the leases of the canaries which they leave with weight."""
HOLDS = frozenset(("freeze", "stop"))
"""Kinds that go ahead whatever the log does: a hold on the route, and the end of its answers."""
AHEAD_S = 60
"""Evidence may be so far in the future: clocks of two hosts differ."""

Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
LoadStates = dict[int, tuple[str, str]]
"""State word and reason of a version by worker."""
StatesOf = Callable[[str], LoadStates | None]
"""Of a version, over the workers that take requests; None when no worker is to hold it."""


class Evidence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a change rests on: the id of the event that says so, and until when the log was read for it."""

    event: Annotated[str, Meta(min_length=1, max_length=100)]
    at_ns: Int64


def check_evidence(evidence: Evidence, policy: Policy, now_ns: int) -> None:
    """Only young evidence moves weight.

    Raises:
        EvidenceStale: older than `max_staleness_s`, or from the future.
    """
    age_s = (now_ns - evidence.at_ns) / 1e9
    if not -AHEAD_S <= age_s <= policy.max_staleness_s:
        what = f"{age_s:.1f} s old" if age_s >= 0 else f"{-age_s:.1f} s in the future"
        msg = (
            f"evidence {evidence.event} is {what}; expected at most {policy.max_staleness_s} s old"
            f" (policy max_staleness_s) and {AHEAD_S} s ahead: judge again on newer records"
        )
        raise EvidenceStale(msg)


def check_sidecar(evidence: Evidence, policy: Policy, gateway_id: str) -> None:
    """What the sidecar's token may do on its evidence: whoever else holds that token shall not move traffic with it.

    Only `dry-run` forbids its rollbacks. The sidecar itself keeps to `on_harm` and `on_relative_drift`; here they
    forbid nothing, since a version that fails hard may go back whatever they say about statistics.

    Raises:
        ChangeInvalid: the evidence is no event that a sidecar of this gateway has written.
        StateConflict: the policy lets nothing move by itself.
    """
    try:
        ours = parse_event_id(evidence.event).source in sources_of(gateway_id, "sidecar")
    except ValueError:
        ours = False
    if not ours:
        msg = (
            f"evidence {evidence.event!r} is no event of this gateway's sidecar; expected the id of its decision,"
            " 16-8-16 hex digits"
        )
        raise ChangeInvalid(msg)
    if policy.ramp == "dry-run":
        msg = (
            'policy ramp is "dry-run": the sidecar says what it would do and moves nothing; set ramp to "manual" or'
            ' "auto", or roll back by hand'
        )
        raise StateConflict(msg)


def check_latches(route: Route) -> None:
    """No weight to a latched version, whatever the change.

    Raises:
        StateConflict: names the version, why and since when it is latched, and how that ends.
    """
    for variant in route.variants:
        since = route.latches.get(variant.version)
        if since is not None and variant.role != "shadow" and variant.weight_bp:
            event = f", event {since.event}" if since.event else ""
            msg = (
                f"variant {variant.name}: version {variant.version} is latched since {iso_time(since.at_ns)}:"
                f" rolled back by {since.by} ({since.reason}{event}); it gets no weight until"
                f" `tidegate route rearm {route.model} {variant.version}`"
            )
            raise StateConflict(msg)


def check_ready(route: Route, before: Route, on_disk: Sequence[str] | None, states_of: StatesOf) -> None:
    """More weight only to versions that are ready in every worker that takes requests.

    What a version has already, and what falls to the present primary, is not asked for: taking weight off a
    version that kills workers, or holding the route, must go through while a worker starts again.

    Args:
        on_disk: versions in the repository; None when it was not looked at.
        states_of: load states of a version by worker.

    Raises:
        StateConflict: names the version, the worker, its state and the reason; or the version is not there at all.
    """
    held = _weights_by_version(before)
    wanted = _weights_by_version(route)
    for variant in route.variants:
        version = variant.version
        known = on_disk is None or version in (*on_disk, *before.versions)
        # What a rollback would bring back stays loaded, also when its directory is gone.
        if not known and states_of(version) is None:
            has = ", ".join(on_disk or ()) or "none"
            msg = (
                f"variant {variant.name}: {route.model} has no version {version} (the repository has {has});"
                " put it there and `tidegate model refresh`"
            )
            raise StateConflict(msg)
        if variant.role == "shadow" or not variant.weight_bp or version == before.primary.version:
            continue
        if variant.role == "primary" or wanted[version] > held.get(version, 0):
            _check_version(f"variant {variant.name}: version {version}", states_of(version))


def check_way_back(before: Route, after: Route, states_of: StatesOf) -> None:
    """A promotion leaves a way back that works: the version that was the primary's is ready everywhere.

    Asked at promotion, not at rollback, where it would be too late.

    Raises:
        StateConflict: names the version, the worker, its state and the reason, and how to go on without.
    """
    version = before.primary.version
    if version == after.primary.version:
        return
    try:
        _check_version(f"the way back: version {version} of {before.primary.name}", states_of(version))
    except StateConflict as exc:
        msg = f"{exc}. A rollback could not serve it; to go on without a way back, `tidegate route set {before.model}`"
        raise StateConflict(msg) from exc


def _check_version(what: str, states: LoadStates | None) -> None:
    if states is None:
        msg = f"{what} is not loaded; load it first"
        raise StateConflict(msg)
    if not states:
        msg = f"{what}: no worker takes requests at present, so none can say that it is ready; try again soon"
        raise StateConflict(msg)
    for worker, (state, reason) in states.items():
        if state != "ready":
            why = f" ({reason})" if reason else ""
            msg = f"{what} is {state} in worker {worker}{why}; weight goes only to versions that are ready everywhere"
            raise StateConflict(msg)


def with_leases(kind: str, route: Route, policy: Policy, change: Change) -> Route:
    """The route with the leases that a change of this kind begins, or ends where the policy has none."""
    if kind not in LEASING:
        return route
    return leased(route, change.at_ns + policy.lease_s * 1_000_000_000 if policy.ramp == "auto" else None)


def goes_ahead(kind: str, before: Route, after: Route, target: Route | None) -> bool:
    """Whether a change is made though nothing can be logged: a hold, or the way back to the traffic before or to the
    primary.

    Args:
        target: what a rollback would bring back.
    """
    back = target is not None and (target.weights_bp, target.versions) == (after.weights_bp, after.versions)
    return kind in HOLDS or (kind == "rollback" and (back or only_retreats(before, after)))


def only_retreats(before: Route, after: Route) -> bool:
    """Whether a change does nothing but take weight off canaries."""
    names = [(v.name, v.version, v.role) for v in before.variants]
    if names != [(v.name, v.version, v.role) for v in after.variants]:
        return False
    canaries = [v.name for v in before.variants if v.role == "canary"]
    return all(after.weights_bp[name] <= before.weights_bp[name] for name in canaries)


def _weights_by_version(route: Route) -> dict[str, int]:
    weights: dict[str, int] = {}
    for variant in route.variants:
        if variant.role != "shadow":
            weights[variant.version] = weights.get(variant.version, 0) + variant.weight_bp
    return weights
