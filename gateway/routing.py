"""Routes: which version answers a request. Pure: no clock, no I/O, no randomness of its own.

`Route` is the route document (as in the admin API, in control events and in the snapshot). A change
makes a new one with the next revision. `compile_route` turns it into a `RouteTable`, which a worker
asks per request: `table.pick(unit)`.

Buckets. Weights are basis points, so a unit falls into one of 10,000 buckets and every primary or
canary *owns* ranges of them. Growth takes buckets from the primary only, the highest first;
shrinking gives back the last taken. So raising a weight never moves a unit off a canary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container

import msgspec

from gateway.errors import ChangeInvalid, StateConflict

TOTAL_BP = 10_000
ROLES = ("primary", "canary", "shadow")
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z"
"""Models and variants."""
VERSION_PATTERN = r"^[1-9][0-9]{0,17}\Z"


class Variant(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One arm of a route.

    A primary or canary has `weight_bp` and owns `buckets` ([from, to) ranges in the order taken); a
    shadow has `sample_bp`. `lease_until_ns` (epoch ns) only on canaries of an automatic ramp.
    """

    name: str
    version: str
    role: str
    weight_bp: int = 0
    sample_bp: int = 0
    buckets: tuple[tuple[int, int], ...] = ()
    lease_until_ns: int | None = None


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Who made a revision, why, when, and the id of its control event (None until logged)."""

    by: str
    reason: str
    at_ns: int = 0
    event: str | None = None


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """The route document: one revision of one model's traffic."""

    model: str
    revision: int
    variants: tuple[Variant, ...]
    changed: Change
    assign_by: str = "request"
    frozen: bool = False
    salt: str = ""
    """Hex; the secret for routing keys, constant through a rollout. Never shown by the API."""

    def variant(self, name: str) -> Variant:
        """The variant of that name.

        Raises:
            ChangeInvalid: when there is none, naming those there are.
        """
        for variant in self.variants:
            if variant.name == name:
                return variant
        names = ", ".join(v.name for v in self.variants)
        msg = f"route {self.model} has no variant {name!r}; it has {names}"
        raise ChangeInvalid(msg)

    @property
    def primary(self) -> Variant:
        """The one primary."""
        return next(v for v in self.variants if v.role == "primary")

    @property
    def weights_bp(self) -> dict[str, int]:
        """Weight by name of primary and canaries."""
        return {v.name: v.weight_bp for v in self.variants if v.role != "shadow"}

    @property
    def versions(self) -> tuple[str, ...]:
        """Every version that the route names, once each."""
        return tuple(dict.fromkeys(v.version for v in self.variants))


def first_route(model: str, version: str, salt: str, changed: Change) -> Route:
    """Revision 1: all to one version."""
    primary = Variant(
        name="primary",
        version=version,
        role="primary",
        weight_bp=TOTAL_BP,
        buckets=((0, TOTAL_BP),),
    )
    return Route(model=model, revision=1, variants=(primary,), changed=changed, salt=salt)


def check(route: Route) -> None:
    """Hold a document against every rule that needs nothing but itself.

    Raises:
        ChangeInvalid: naming the rule, what was found and what was expected.
    """
    for v in route.variants:
        if v.role not in ROLES:
            msg = f"route {route.model}: variant {v.name} has role {v.role!r}; expected {', '.join(ROLES)}"
            raise ChangeInvalid(msg)
    names = [v.name for v in route.variants]
    if len(set(names)) != len(names):
        msg = f"route {route.model}: variant names repeat: {', '.join(names)}"
        raise ChangeInvalid(msg)
    primaries = [v.name for v in route.variants if v.role == "primary"]
    if len(primaries) != 1:
        msg = f"route {route.model}: needs one primary, has {len(primaries)}"
        raise ChangeInvalid(msg)
    for v in route.variants:
        if not 0 <= v.weight_bp <= TOTAL_BP or not 0 <= v.sample_bp <= TOTAL_BP:
            msg = f"route {route.model}: variant {v.name} has a weight outside 0..{TOTAL_BP}"
            raise ChangeInvalid(msg)
        if v.role == "shadow" and v.weight_bp:
            msg = f"route {route.model}: shadow {v.name} has weight_bp {v.weight_bp}; a shadow has sample_bp"
            raise ChangeInvalid(msg)
        if v.role != "shadow" and v.weight_bp != sum(b - a for a, b in v.buckets):
            msg = f"route {route.model}: variant {v.name} owns buckets that are not its weight_bp"
            raise ChangeInvalid(msg)
    total = sum(route.weights_bp.values())
    if total != TOTAL_BP:
        msg = f"route {route.model}: weights sum to {total} bp, expected {TOTAL_BP}"
        raise ChangeInvalid(msg)
    owned = sorted(r for v in route.variants for r in v.buckets)
    at = 0
    for start, end in owned:
        if start != at or end <= start:
            msg = f"route {route.model}: buckets overlap or leave a hole at {at}"
            raise ChangeInvalid(msg)
        at = end


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
    """The content of an older revision as a new revision.

    Raises:
        StateConflict: the route is frozen.
    """
    _refuse_frozen(route)
    variants = tuple(msgspec.structs.replace(v, lease_until_ns=None) for v in to.variants)
    return _with(route, variants, changed)


def set_frozen(route: Route, frozen: bool, changed: Change) -> Route:
    """A human's hold on the route, or its end."""
    after = msgspec.structs.replace(route, frozen=frozen, revision=route.revision + 1, changed=changed)
    check(after)
    return after


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


class Assignment(msgspec.Struct, frozen=True):
    """What a draw yields; one shared object per bucket owner, so equality is identity."""

    model: str
    assigned: str | None
    served: str | None
    version: str
    weight_bp: int | None
    reason: str
    revision: int
    generation: int


class RouteTable:
    """A route compiled for one worker. `pick` costs one index; 80 KB a split route, 8 bytes else."""

    def __init__(self, route: Route, owners: list[Assignment]) -> None:
        self.route = route
        self._owners = owners
        self._count = len(owners)
        self._salt = bytes.fromhex(route.salt)[:64]

    def pick(self, unit: int) -> Assignment:
        """The assignment of a 64-bit unit."""
        return self._owners[unit % self._count]

    def unit_of(self, routing_key: str) -> int:
        """The unit of a sticky key: BLAKE2b keyed with the route's secret salt."""
        digest = hashlib.blake2b(routing_key.encode(), digest_size=8, key=self._salt).digest()
        return int.from_bytes(digest, "big")


def compile_route(route: Route, generation: int, ready: Container[str], now_ns: int = 0) -> RouteTable:
    """Make the table of one worker.

    A canary whose version is not ready in this worker, or whose lease is over, is served by the
    primary: `assigned` stays, reason `fallback` (lease: its effective weight is 0, so its buckets
    are the primary's, reason `weight`).
    """
    primary = route.primary
    expired = {v.name for v in route.variants if v.lease_until_ns is not None and v.lease_until_ns <= now_ns}
    lent = sum(v.weight_bp for v in route.variants if v.name in expired)
    owners: list[Assignment | None] = [None] * TOTAL_BP
    made: dict[str, Assignment] = {}
    for v in route.variants:
        if v.role == "shadow" or not v.weight_bp:
            continue
        own = primary if v.name in expired else v
        fallback = own.role == "canary" and own.version not in ready
        served = primary if fallback else own
        assignment = made.setdefault(
            own.name,
            Assignment(
                model=route.model,
                assigned=own.name,
                served=served.name,
                version=served.version,
                weight_bp=own.weight_bp + (lent if own is primary else 0),
                reason="fallback" if fallback else "weight",
                revision=route.revision,
                generation=generation,
            ),
        )
        for start, end in v.buckets:
            owners[start:end] = [assignment] * (end - start)
    filled = [owner for owner in owners if owner is not None]
    if len(filled) != TOTAL_BP:
        msg = f"route {route.model}: {TOTAL_BP - len(filled)} buckets have no owner"
        raise ChangeInvalid(msg)
    if all(owner is filled[0] for owner in filled):
        filled = filled[:1]
    return RouteTable(route, filled)


def pinned(model: str, version: str, revision: int, generation: int) -> Assignment:
    """The assignment of a request that names its version: outside of experiment statistics."""
    return Assignment(model, None, None, version, None, "pinned", revision, generation)
