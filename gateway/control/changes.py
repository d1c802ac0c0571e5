"""Changes: from one revision of a route to the next. Pure.

admin API -> **changes** -> engine, which holds the result against latches, leases and what is ready, and logs it.
Each function gives the whole next document, or raises why there is none.
"""

from __future__ import annotations

import msgspec

from gateway.errors import ChangeInvalid, StateConflict
from gateway.routing import TOTAL_BP, Bounds, Change, Route, Variant, check

DWELL_MAX_S = 30 * 86_400


def shifted(route: Route, weights_bp: dict[str, int], changed: Change) -> Route:
    """The route after setting canaries' weights; the rest goes to the primary.

    Args:
        weights_bp: by canary name; the primary may be named if its weight is what is left.

    Raises:
        ChangeInvalid: unknown or shadow variant, weight out of range, or sums that do not fit.
        StateConflict: the route is frozen.
    """
    _refuse_frozen(route)
    if not weights_bp:
        msg = f"route {route.model}: no weights given; expected weights_bp by canary name"
        raise ChangeInvalid(msg)
    after = dict(route.weights_bp)
    for name, weight in weights_bp.items():
        variant = route.variant(name)
        if variant.role == "shadow":
            msg = f"route {route.model}: variant {name} is a shadow and takes no weight"
            raise ChangeInvalid(msg)
        if not 0 <= weight <= TOTAL_BP:
            msg = f"route {route.model}: weight of {name} is {weight} bp, expected 0..{TOTAL_BP}"
            raise ChangeInvalid(msg)
        after[name] = weight
    primary = route.primary.name
    rest = TOTAL_BP - sum(w for name, w in after.items() if name != primary)
    if rest < 0 or (primary in weights_bp and weights_bp[primary] != rest):
        asked = sum(after.values()) if primary in weights_bp else TOTAL_BP - rest
        msg = f"route {route.model}: weights sum to {asked} bp, expected {TOTAL_BP}"
        raise ChangeInvalid(msg)
    after[primary] = rest
    return _with(route, _rebalance(route.variants, after), changed)


def with_variants(route: Route, variants: tuple[Variant, ...], changed: Change) -> Route:
    """The route with another set of variants; buckets are worked out here, kept where possible.

    Raises:
        ChangeInvalid, StateConflict: as `check` and the frozen rule say.
    """
    _refuse_frozen(route)
    owned = {v.name: v.buckets for v in route.variants if v.role != "shadow"}
    kept: list[Variant] = []
    taken: list[tuple[int, int]] = []
    for v in variants:
        buckets = owned.get(v.name, ()) if v.role == "canary" else ()
        taken.extend(buckets)
        kept.append(msgspec.structs.replace(v, buckets=buckets))
    free = _complement(taken)
    based = tuple(msgspec.structs.replace(v, buckets=free) if v.role == "primary" else v for v in kept)
    probe = msgspec.structs.replace(route, variants=based)
    if [v.role for v in based if v.role not in {"canary", "shadow"}] != ["primary"]:
        check(probe)
    weights = {v.name: v.weight_bp for v in variants if v.role != "shadow"}
    if sum(weights.values()) != TOTAL_BP or any(not 0 <= w <= TOTAL_BP for w in weights.values()):
        msg = f"route {route.model}: weights sum to {sum(weights.values())} bp, expected {TOTAL_BP}"
        raise ChangeInvalid(msg)
    return _with(route, _rebalance(based, weights), changed)


def promoted(route: Route, name: str, changed: Change) -> Route:
    """Swap contents: the primary takes the canary's version, the old one becomes `previous`.

    Raises:
        ChangeInvalid: no such variant, or it is not a canary.
        StateConflict: the route is frozen.
    """
    _refuse_frozen(route)
    winner = route.variant(name)
    if winner.role != "canary":
        msg = f"route {route.model}: {name} has role {winner.role}; only a canary is promoted"
        raise ChangeInvalid(msg)
    old = route.primary
    rest = tuple(v for v in route.variants if v.name not in {old.name, name, "previous"})
    primary = Variant(
        name=old.name,
        version=winner.version,
        role="primary",
        weight_bp=TOTAL_BP,
        buckets=((0, TOTAL_BP),),
    )
    stilled = tuple(msgspec.structs.replace(v, weight_bp=0, buckets=(), lease_until_ns=None) for v in rest)
    previous = Variant(name="previous", version=old.version, role="shadow")
    return _with(route, (primary, *stilled, previous), changed)


def rolled_back(route: Route, to: Route, changed: Change) -> Route:
    """The content of an older revision as a new revision, minus the versions that are latched now.

    Raises:
        StateConflict: the route is frozen.
    """
    _refuse_frozen(route)
    return _with(route, without_latched(to.variants, route.latched), changed)


def rolled_back_canary(route: Route, name: str, changed: Change) -> Route:
    """A canary's traffic back to the primary, and its version latched.

    Other canaries of that version lose theirs too. Where the primary has the same version there is nothing to
    latch: only the weight goes.

    Raises:
        ChangeInvalid: no such variant, or it is not a canary.
        StateConflict: the route is frozen, or the version is latched already.
    """
    _refuse_frozen(route)
    canary = route.variant(name)
    if canary.role != "canary":
        msg = f"route {route.model}: {name} has role {canary.role}; only a canary is rolled back by name"
        raise ChangeInvalid(msg)
    if canary.version == route.primary.version:
        return shifted(route, {name: 0}, changed)
    if canary.version in route.latches:
        msg = f"route {route.model}: {name}'s version {canary.version} is latched already and has no weight"
        raise StateConflict(msg)
    latched = msgspec.structs.replace(route, latches={**route.latches, canary.version: changed})
    return _with(latched, without_latched(route.variants, (canary.version,)), changed)


def rearmed(route: Route, version: str, changed: Change) -> Route:
    """The end of a latch: the version may have weight again, and has none yet.

    Raises:
        StateConflict: the version is not latched, or the route is frozen.
    """
    _refuse_frozen(route)
    if version not in route.latches:
        held = ", ".join(route.latched) or "none"
        msg = f"route {route.model}: version {version} is not latched (latched: {held}); nothing to re-arm"
        raise StateConflict(msg)
    latches = {name: since for name, since in route.latches.items() if name != version}
    return _with(msgspec.structs.replace(route, latches=latches), route.variants, changed)


def set_frozen(route: Route, frozen: bool, changed: Change) -> Route:
    """A human's hold on the route, or its end.

    A hold keeps the split that is in effect: leases that run are taken off, those that are over stay over.

    Raises:
        StateConflict: it is held already, or was not.
    """
    if route.frozen == frozen:
        msg = f"route {route.model} is {'already' if frozen else 'not'} frozen"
        raise StateConflict(msg)
    held = released(route, changed.at_ns) if frozen else route
    return _with(msgspec.structs.replace(held, frozen=frozen), held.variants, changed)


def stopped(route: Route, changed: Change) -> Route:
    """No answers for this model until it is resumed; the split, its buckets and leases stay. Also of a frozen route.

    Raises:
        StateConflict: it is stopped already.
    """
    if route.stopped is not None:
        c = route.stopped
        msg = f"model {route.model} is stopped already, by {c.by} ({c.reason})"
        raise StateConflict(msg)
    return _with(msgspec.structs.replace(route, stopped=changed), route.variants, changed)


def resumed(route: Route, changed: Change) -> Route:
    """The end of a stop: the split that is in the route answers again. Also of a frozen route.

    Raises:
        StateConflict: it is not stopped.
    """
    if route.stopped is None:
        msg = f"model {route.model} is not stopped; nothing to resume"
        raise StateConflict(msg)
    return _with(msgspec.structs.replace(route, stopped=None), route.variants, changed)


def bounded(route: Route, bounds: Bounds | None, changed: Change) -> Route:
    """Other bounds for automata; None takes them off. Also of a frozen route: no traffic moves.

    Raises:
        ChangeInvalid: a bound is out of range.
        StateConflict: they are the same already.
    """
    if bounds is not None:
        for name, value in (("max_canary_bp", bounds.max_canary_bp), ("max_step_bp", bounds.max_step_bp)):
            if not 0 <= value <= TOTAL_BP:
                msg = f"route {route.model}: {name} is {value}, expected 0..{TOTAL_BP}"
                raise ChangeInvalid(msg)
        if bounds.changes_per_h is not None and bounds.changes_per_h < 0:
            msg = f"route {route.model}: changes_per_h is {bounds.changes_per_h}, expected 0 or more, or null"
            raise ChangeInvalid(msg)
        if not 0 <= bounds.dwell_s <= DWELL_MAX_S:
            msg = f"route {route.model}: dwell_s is {bounds.dwell_s:g}, expected 0..{DWELL_MAX_S}"
            raise ChangeInvalid(msg)
    if bounds == route.bounds:
        msg = f"route {route.model} has these bounds already"
        raise StateConflict(msg)
    return _with(msgspec.structs.replace(route, bounds=bounds), route.variants, changed)


def salted(before: Route, after: Route, fresh_id: str) -> Route:
    """The next document with a salt of its own where a rollout begins: the first weight of a canary where none had any.

    Who fell to a canary in one rollout shall not be who falls to it in every one. Through a rollout it stays, so that
    raising a weight moves no sticky client off its canary.
    """
    weights = [any(v.role == "canary" and v.weight_bp for v in route.variants) for route in (before, after)]
    return msgspec.structs.replace(after, salt="", salt_id=fresh_id) if weights == [False, True] else after


def released(route: Route, now_ns: int) -> Route:
    """The same revision with the split that is in effect now: leases that run are taken off, over ones stay over."""
    variants = tuple(
        msgspec.structs.replace(v, lease_until_ns=None)
        if v.lease_until_ns is not None and v.lease_until_ns > now_ns
        else v
        for v in route.variants
    )
    return msgspec.structs.replace(route, variants=variants)


def leased(route: Route, until_ns: int | None) -> Route:
    """The same revision with another end of the lease of every canary that has weight; None: no lease."""
    variants = tuple(
        msgspec.structs.replace(v, lease_until_ns=until_ns if v.role == "canary" and v.weight_bp else None)
        for v in route.variants
    )
    return msgspec.structs.replace(route, variants=variants)


def renewed(route: Route, until_ns: int) -> Route:
    """As `leased`, for whoever must prove that the canaries are watched.

    Raises:
        StateConflict: the route is frozen, or no canary has weight.
    """
    _refuse_frozen(route)
    if not any(v.role == "canary" and v.weight_bp for v in route.variants):
        msg = f"route {route.model}: no canary has weight, so there is no lease to renew"
        raise StateConflict(msg)
    return leased(route, until_ns)


def without_latched(variants: tuple[Variant, ...], latched: tuple[str, ...]) -> tuple[Variant, ...]:
    """The variants without leases, and canaries of latched versions without weight: the primary has it."""
    weights = {
        v.name: 0 if v.role == "canary" and v.version in latched else v.weight_bp
        for v in variants
        if v.role != "shadow"
    }
    primary = next(v.name for v in variants if v.role == "primary")
    weights[primary] = TOTAL_BP - sum(weight for name, weight in weights.items() if name != primary)
    free = tuple(msgspec.structs.replace(v, lease_until_ns=None) for v in variants)
    return _rebalance(free, weights)


def _refuse_frozen(route: Route) -> None:
    if route.frozen:
        c = route.changed
        msg = f"route {route.model} is frozen by {c.by} ({c.reason}); thaw it first"
        raise StateConflict(msg)


def _with(route: Route, variants: tuple[Variant, ...], changed: Change) -> Route:
    after = msgspec.structs.replace(route, variants=variants, revision=route.revision + 1, changed=changed)
    check(after)
    return after


def _rebalance(variants: tuple[Variant, ...], after: dict[str, int]) -> tuple[Variant, ...]:
    pool = list(next(v for v in variants if v.role == "primary").buckets)
    ranges: dict[str, list[tuple[int, int]]] = {}
    canaries = [v for v in variants if v.role == "canary"]
    for v in canaries:
        held = list(v.buckets)
        surplus = sum(b - a for a, b in held) - after[v.name]
        while surplus > 0:
            start, end = held.pop()
            if end - start > surplus:
                held.append((start, end - surplus))
                pool.append((end - surplus, end))
                surplus = 0
            else:
                pool.append((start, end))
                surplus -= end - start
        ranges[v.name] = held
    pool = _merged(pool)
    for v in canaries:
        missing = after[v.name] - sum(b - a for a, b in ranges[v.name])
        while missing > 0:
            start, end = pool.pop()
            take = min(missing, end - start)
            ranges[v.name].append((end - take, end))
            if end - take > start:
                pool.append((start, end - take))
            missing -= take
    out = []
    for v in variants:
        if v.role == "shadow":
            out.append(v)
            continue
        held = pool if v.role == "primary" else ranges[v.name]
        out.append(msgspec.structs.replace(v, weight_bp=sum(b - a for a, b in held), buckets=tuple(held)))
    return tuple(out)


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged


def _complement(taken: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    free, at = [], 0
    for start, end in sorted(taken):
        if start > at:
            free.append((at, start))
        at = max(at, end)
    if at < TOTAL_BP:
        free.append((at, TOTAL_BP))
    return tuple(free)
