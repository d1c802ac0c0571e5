"""Leasing: the leases of canaries under an automatic ramp: renewed, taken off, and told when they end. Pure.

engine -> **leasing** -> engine logs. A lease ends in each worker by its own clock, whether control lives or not; here
its end gets its place in the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.control.changes import released, renewed
from gateway.control.state import State
from gateway.errors import StateConflict
from gateway.routing import Change, Route
from gateway.settings import Policy

S_NS = 1_000_000_000
SETTLED_NS = S_NS
"""So long after its end a lease counts as not renewed: one that came in time is in the state by then."""


def renewal(route: Route, change: Change, policy: Policy) -> Route:
    """The route with leases of full length from the change on.

    Raises:
        StateConflict: the model's ramp is not automatic, the route is frozen, or no canary has weight.
    """
    if policy.ramp != "auto":
        msg = f'route {route.model}: ramp is "{policy.ramp}"; only canaries under policy ramp = "auto" carry leases'
        raise StateConflict(msg)
    return renewed(route, change.at_ns + policy.lease_s * S_NS)


def releases(state: State, policy_of: Callable[[str], Policy]) -> list[tuple[Route, Change]]:
    """Routes whose policy asks for no lease any more, without those that they have; and why."""
    change = Change(by="gateway", reason="the model's ramp is not automatic", at_ns=time.time_ns())
    found = [(released(route, change.at_ns), route) for route in state.serving.routes.values()]
    return [
        (after, change) for after, route in found if after != route and policy_of(route.model).ramp != "auto"
    ]


def ends(state: State, now_ns: int) -> list[tuple[Route, dict[str, object]]]:
    """Routes whose canaries lost their traffic by the end of a lease which is not logged yet.

    With each the `after` of its event: when that was, and what weight they lost.
    """
    found: list[tuple[Route, dict[str, object]]] = []
    for model, route in state.serving.routes.items():
        leased = [
            (v, v.lease_until_ns) for v in route.variants if v.lease_until_ns is not None and v.weight_bp
        ]
        over_ns = max((end_ns for _, end_ns in leased if end_ns <= now_ns - SETTLED_NS), default=None)
        if over_ns is not None and over_ns > state.ledger.leases_over.get(model, 0):
            lost = {v.name: v.weight_bp for v, end_ns in leased if end_ns <= over_ns}
            found.append((route, {"until_ns": over_ns, "lost_bp": lost}))
    return found
