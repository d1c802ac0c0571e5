"""Routes: which version answers a request. Pure: no clock, no I/O, no randomness of its own.

`Route` is the route document (as in the admin API, in control events and in the snapshot). A change
(gateway/control/changes.py) makes a new one with the next revision. `compile_route` turns it into a
`RouteTable`, which a worker asks per request: `table.pick(unit)`.

Buckets. Weights are basis points, so a unit falls into one of 10,000 buckets and every primary or
canary *owns* ranges of them. Growth takes buckets from the primary only, the highest first;
shrinking gives back the last taken. So raising a weight never moves a unit off a canary.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Container, Sequence
from datetime import UTC, datetime

import msgspec

from gateway.errors import ChangeInvalid

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
    evidence: str | None = None
    """The id of the event that it rests on, where it rests on one."""


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """How far an automaton may go on a route, as an operator set it. Taking weight off canaries is never bounded."""

    max_canary_bp: int = TOTAL_BP
    """The most that a canary may have."""
    max_step_bp: int = TOTAL_BP
    """The most that a change may add to a canary."""
    changes_per_h: int | None = None
    """Changes of automata in any hour; None: as many as they like."""
    dwell_s: float = 0.0
    """At least so long after the last change of the route, whoever made it."""


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """The route document: one revision of one model's traffic."""

    model: str
    revision: int
    variants: tuple[Variant, ...]
    changed: Change
    assign_by: str = "request"
    frozen: bool = False
    salt: str = ""
    """Hex; the secret for routing keys of documents that were made before there was a secret of the host. Never shown
    by the API."""
    salt_id: str = ""
    """Names the salt, which is worked out from the host's secret: whoever reads the log learns nothing by it. Constant
    through a rollout."""
    stopped: Change | None = None
    """By whom and why nothing of this model is answered; None while it serves."""
    latches: dict[str, Change] = {}
    """Versions that get no weight until they are re-armed, each with the change that took it from them."""
    bounds: Bounds | None = None
    """How far automata may go; None: no further than policy says."""

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
    def latched(self) -> tuple[str, ...]:
        """Versions that get no weight until they are re-armed, the oldest latch first."""
        return tuple(self.latches)

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
    shadows: tuple[tuple[str, int], ...] = ()
    """(version, sample_bp) of those that are to answer what it draws, too."""


class RouteTable:
    """A route compiled for one worker. `pick` costs two indices; 20 KB a split route, shared by its generations.

    Args:
        ranges: by place in `arms`, the [from, to) ranges that it owns.
        arms: what is drawn there.
        salt: the key of `unit_of`, at most 64 bytes.
        before: the table before this one, whose buckets are taken over where they are the same.

    Raises:
        ChangeInvalid: buckets without an owner.
    """

    def __init__(
        self,
        route: Route,
        ranges: tuple[tuple[tuple[int, int], ...], ...],
        arms: list[Assignment],
        salt: bytes,
        before: RouteTable | None = None,
    ) -> None:
        self.route = route
        self._ranges = ranges
        self._arms = arms
        self._keyed = [msgspec.structs.replace(arm, reason="key") for arm in arms]
        self._salt = salt
        same = before is not None and before._ranges == ranges
        self._owners: Sequence[int] = (
            before._owners if before is not None and same else _owners(route, ranges)
        )
        self._count = len(self._owners)

    @property
    def only(self) -> Assignment | None:
        """The assignment of every unit, None where there are several."""
        return self._arms[0] if self._arms.count(self._arms[0]) == len(self._arms) else None

    def pick(self, unit: int) -> Assignment:
        """The assignment of a 64-bit unit."""
        return self._arms[self._owners[unit % self._count]]

    def pick_keyed(self, unit: int) -> Assignment:
        """The same for the unit of a routing key, reason `key`: the client may have chosen where it falls."""
        return self._keyed[self._owners[unit % self._count]]

    def unit_of(self, routing_key: str) -> int:
        """The unit of a sticky key: BLAKE2b keyed with the route's secret salt."""
        digest = hashlib.blake2b(routing_key.encode(), digest_size=8, key=self._salt).digest()
        return int.from_bytes(digest, "big")


def _owners(route: Route, ranges: tuple[tuple[tuple[int, int], ...], ...]) -> Sequence[int]:
    """By bucket, the place of who owns it; one for all where there is one owner."""
    if ranges == (((0, TOTAL_BP),),):
        return (0,)
    nobody = len(ranges)
    owners = array("H", [nobody]) * TOTAL_BP
    for place, owned in enumerate(ranges):
        for start, end in owned:
            owners[start:end] = array("H", [place]) * (end - start)
    if missing := owners.count(nobody):
        msg = f"route {route.model}: {missing} buckets have no owner"
        raise ChangeInvalid(msg)
    return owners


def salt_of(route: Route, key: bytes) -> bytes:
    """What routing keys of a route are hashed with: worked out from the host's secret, or what an older document has.

    Args:
        key: the secret, `<state_dir>/routing.key`.
    """
    if route.salt or not route.salt_id:
        return bytes.fromhex(route.salt)[:64]
    return hashlib.blake2b(f"{route.model}\0{route.salt_id}".encode(), digest_size=32, key=key[:64]).digest()


def compile_route(
    route: Route,
    generation: int,
    ready: Container[str],
    now_ns: int = 0,
    *,
    broken: Container[str] = (),
    key: bytes = b"",
    before: RouteTable | None = None,
) -> RouteTable:
    """Make the table of one worker. Costs microseconds where the buckets of `before` are the same, 50 more else.

    A canary whose version is not ready in this worker, whose breaker is open, or whose lease is over, is served by the
    primary: `assigned` stays, reason `fallback` (lease: its effective weight is 0, so its buckets are the primary's,
    reason `weight`). Drawn by a routing key, the reason is `key` in every case.

    Args:
        ready: versions that can answer in this worker.
        now_ns: by which leases end.
        broken: variants whose breaker is open.
        key: the host's secret, see `salt_of`.
        before: a table of the same model, or None.

    Raises:
        ChangeInvalid: buckets without an owner.
    """
    primary = route.primary
    expired = _expired(route, now_ns)
    effective_bp = effective_weights_bp(route, now_ns)
    made: dict[str, Assignment] = {}
    arms: list[Assignment] = []
    shadows = tuple((v.version, v.sample_bp) for v in route.variants if v.role == "shadow" and v.sample_bp)
    drawn = [v for v in route.variants if v.role != "shadow" and v.weight_bp]
    for v in drawn:
        own = primary if v.name in expired else v
        fallback = own.role == "canary" and (own.version not in ready or own.name in broken)
        served = primary if fallback else own
        arms.append(
            made.setdefault(
                own.name,
                Assignment(
                    model=route.model,
                    assigned=own.name,
                    served=served.name,
                    version=served.version,
                    weight_bp=effective_bp[own.name],
                    reason="fallback" if fallback else "weight",
                    revision=route.revision,
                    generation=generation,
                    shadows=shadows,
                ),
            )
        )
    return RouteTable(route, tuple(v.buckets for v in drawn), arms, salt_of(route, key), before)


def effective_weights_bp(route: Route, now_ns: int) -> dict[str, int]:
    """Weight by name as drawn now: what canaries whose lease is over have falls to the primary; shadows have 0."""
    expired = _expired(route, now_ns)
    lent = sum(v.weight_bp for v in route.variants if v.name in expired)
    weights = {v.name: 0 if v.name in expired else v.weight_bp for v in route.variants}
    weights[route.primary.name] += lent
    return weights


def _expired(route: Route, now_ns: int) -> set[str]:
    return {v.name for v in route.variants if v.lease_until_ns is not None and v.lease_until_ns <= now_ns}


def lease_end_ns(route: Route, now_ns: int) -> int | None:
    """When the next lease of the route ends, if one still runs: a table made before then holds until then."""
    ends = [v.lease_until_ns for v in route.variants if v.lease_until_ns is not None and v.weight_bp]
    return min((end for end in ends if end > now_ns), default=None)


def forced(route: Route, variant: Variant, generation: int) -> Assignment:
    """The assignment of a request that names its variant: outside of experiment statistics, whatever its weight is."""
    name, version = variant.name, variant.version
    return Assignment(route.model, None, name, version, None, "forced", route.revision, generation)


def pinned(model: str, version: str, revision: int, generation: int) -> Assignment:
    """The assignment of a request that names its version: outside of experiment statistics."""
    return Assignment(model, None, None, version, None, "pinned", revision, generation)


def iso_time(at_ns: int) -> str:
    """Epoch nanoseconds as UTC in ISO 8601, to the millisecond."""
    at = datetime.fromtimestamp(at_ns // 1_000_000_000, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at_ns // 1_000_000 % 1000:03d}Z"
