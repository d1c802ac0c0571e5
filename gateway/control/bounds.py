"""Bounds: how far an automaton may move a route. Pure.

engine (a change that no person decided) -> **bounds**. They hold what adds weight to a canary or changes what the
variants are; taking weight off canaries is never in their way.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.control.gates import only_retreats
from gateway.errors import OutOfBounds
from gateway.routing import Change, Route, iso_time

HOUR_NS = 3_600 * 1_000_000_000


def check_bounds(before: Route, after: Route, change: Change, history: Sequence[Route]) -> None:
    """Hold a change of an automaton against the bounds that an operator set.

    Args:
        history: the route's revisions that are kept, for what the automaton has changed in the last hour.

    Raises:
        OutOfBounds: names the bound, what was asked, and what ends it.
    """
    bounds = before.bounds
    if bounds is None or only_retreats(before, after):
        return
    for variant in after.variants:
        if variant.role != "canary":
            continue
        if variant.weight_bp > bounds.max_canary_bp:
            raise _out(
                before,
                f"{variant.name} would have {variant.weight_bp} bp",
                "max_canary_bp",
                bounds.max_canary_bp,
            )
        held = before.weights_bp.get(variant.name, 0)
        if variant.weight_bp - held > bounds.max_step_bp:
            raise _out(
                before,
                f"{variant.name} would gain {variant.weight_bp - held} bp",
                "max_step_bp",
                bounds.max_step_bp,
            )
    if before.primary.version != after.primary.version and bounds.max_canary_bp < after.primary.weight_bp:
        # What a canary may not have it may not have as the primary either.
        what = (
            f"version {after.primary.version} would have {after.primary.weight_bp} bp as {after.primary.name}"
        )
        raise _out(before, what, "max_canary_bp", bounds.max_canary_bp)
    since_s = (change.at_ns - before.changed.at_ns) / 1e9
    if since_s < bounds.dwell_s:
        raise _out(before, f"its last change was {since_s:.1f} s ago", "dwell_s", bounds.dwell_s)
    if bounds.changes_per_h is not None:
        recent = [
            r.changed.at_ns
            for r in history
            if r.changed.by == change.by and r.changed.at_ns > change.at_ns - HOUR_NS
        ]
        if len(recent) >= bounds.changes_per_h:
            until = f" until {iso_time(min(recent) + HOUR_NS)}" if recent else ""
            what = f"{change.by} has made {len(recent)} changes in the last hour{until}"
            raise _out(before, what, "changes_per_h", bounds.changes_per_h)


def _out(route: Route, what: str, name: str, limit: float) -> OutOfBounds:
    msg = (
        f"route {route.model}: {what}; automata are bound to {name} = {limit:g}. A person may make the change, or set"
        f" other bounds: `tidegate route bounds {route.model}`"
    )
    return OutOfBounds(msg)
