"""Routes: who owns which bucket, what a change may do, and what a worker draws."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.control.changes import promoted, rolled_back, set_frozen, shifted, with_variants
from gateway.errors import ChangeInvalid, StateConflict
from gateway.routing import (
    TOTAL_BP,
    Change,
    Route,
    Variant,
    check,
    compile_route,
    first_route,
    lease_end_ns,
    pinned,
)

WHY = Change(by="test", reason="because", at_ns=1)
SALT = "ab" * 16
CANARIES = ("a", "b", "c")


def primary(version: str = "1", weight_bp: int = TOTAL_BP) -> Variant:
    """As a client gives it, without buckets."""
    return Variant(name="primary", version=version, role="primary", weight_bp=weight_bp)


def canary(name: str = "canary", version: str = "2", weight_bp: int = 0) -> Variant:
    """As a client gives it, without buckets."""
    return Variant(name=name, version=version, role="canary", weight_bp=weight_bp)


def split(**weights_bp: int) -> Route:
    """A primary on version 1 and canaries on versions 2, 3, ... with these weights."""
    rest = TOTAL_BP - sum(weights_bp.values())
    arms = [canary(n, str(i), w) for i, (n, w) in enumerate(weights_bp.items(), start=2)]
    return with_variants(first_route("m", "1", SALT, WHY), (primary("1", rest), *arms), WHY)


def owners(route: Route) -> list[str]:
    """The owner of each bucket; every bucket has exactly one."""
    found: list[str | None] = [None] * TOTAL_BP
    for v in route.variants:
        for start, end in v.buckets:
            assert found[start:end] == [None] * (end - start)
            found[start:end] = [v.name] * (end - start)
    assert None not in found
    return found  # type: ignore[return-value]


WEIGHTS = st.dictionaries(st.sampled_from(CANARIES), st.integers(0, 3333), min_size=1)


@settings(max_examples=60, deadline=None)
@given(st.lists(WEIGHTS, min_size=1, max_size=6))
def test_buckets_are_a_partition(steps: list[dict[str, int]]) -> None:
    """After any shifts every bucket has one owner, and as many as its weight says."""
    route = split(a=0, b=0, c=0)
    for weights_bp in steps:
        route = shifted(route, weights_bp, WHY)
        assert Counter(owners(route)) == Counter({n: w for n, w in route.weights_bp.items() if w})
        assert {n: route.weights_bp[n] for n in weights_bp} == weights_bp


@settings(max_examples=60, deadline=None)
@given(st.lists(WEIGHTS, min_size=1, max_size=4), st.sampled_from(CANARIES), st.integers(0, 3333))
def test_raising_moves_nothing_off_a_canary(steps: list[dict[str, int]], name: str, more_bp: int) -> None:
    """Growth takes from the primary only, and lowering again gives back exactly what was taken."""
    route = split(a=0, b=0, c=0)
    for weights_bp in steps:
        route = shifted(route, weights_bp, WHY)
    held_bp = route.weights_bp[name]
    raised = shifted(route, {name: max(held_bp, more_bp)}, WHY)
    for before, after in zip(owners(route), owners(raised), strict=True):
        assert after in (before, name)
        assert before == "primary" or after == before
    assert owners(shifted(raised, {name: held_bp}, WHY)) == owners(route)


@pytest.mark.parametrize(
    ("weights_bp", "said"),
    [
        ({}, "no weights given"),
        ({"a": 10_001}, r"weight of a is 10001 bp, expected 0\.\.10000"),
        ({"a": -1}, "weight of a is -1 bp"),
        ({"a": 9_000, "b": 2_000}, "weights sum to 11000 bp, expected 10000"),
        ({"a": 1_000, "primary": 8_000}, "weights sum to"),
        ({"x": 1}, "no variant 'x'; it has primary, a, b"),
    ],
)
def test_weights_that_do_not_fit(weights_bp: dict[str, int], said: str) -> None:
    """A shift that cannot be is refused, naming what was expected."""
    with pytest.raises(ChangeInvalid, match=said):
        shifted(split(a=100, b=100), weights_bp, WHY)


def test_primary_may_be_named() -> None:
    """Naming the primary is fine when it is what is left."""
    assert shifted(split(a=0), {"a": 1_000, "primary": 9_000}, WHY).weights_bp["primary"] == 9_000


def test_shadow_takes_no_weight() -> None:
    """A shadow is not shifted to."""
    shadow = Variant(name="next", version="2", role="shadow", sample_bp=100)
    route = with_variants(first_route("m", "1", SALT, WHY), (primary(), shadow), WHY)
    with pytest.raises(ChangeInvalid, match="next is a shadow"):
        shifted(route, {"next": 1}, WHY)


@pytest.mark.parametrize(
    ("variants", "said"),
    [
        ((), "needs one primary, has 0"),
        ((canary(weight_bp=TOTAL_BP),), "needs one primary, has 0"),
        ((primary(weight_bp=5_000), msgspec.structs.replace(primary(weight_bp=5_000), name="p")), "has 2"),
        ((primary(weight_bp=9_000), canary(weight_bp=2_000)), "weights sum to 11000 bp"),
        ((primary(weight_bp=9_000), canary(weight_bp=1_000), canary(weight_bp=1_000)), "names repeat"),
        ((primary(), Variant(name="x", version="2", role="boss")), "role 'boss'; expected primary, canary"),
        ((primary(), Variant(name="x", version="2", role="shadow", weight_bp=5)), "shadow x has weight_bp"),
        ((primary(), Variant(name="x", version="2", role="shadow", sample_bp=10_001)), "outside 0"),
        ((primary(weight_bp=10_001), canary(weight_bp=-1)), "weights"),
    ],
)
def test_variants_that_cannot_be(variants: tuple[Variant, ...], said: str) -> None:
    """A set of variants is refused with the rule that it breaks, never with an accident."""
    with pytest.raises(ChangeInvalid, match=said):
        with_variants(first_route("m", "1", SALT, WHY), variants, WHY)


def test_set_keeps_buckets() -> None:
    """Giving all variants anew keeps the units of canaries that stay."""
    route = split(a=1_000, b=1_000)
    after = with_variants(route, (primary(weight_bp=7_000), canary("b", "3", 3_000)), WHY)
    before = owners(route)
    assert all(name == "b" for i, name in enumerate(owners(after)) if before[i] == "b")


def test_check_refuses_foreign_buckets() -> None:
    """A document whose buckets overlap, or are not its weight, is refused."""
    route = split(a=1_000)
    p, a = route.variants
    for broken in (
        msgspec.structs.replace(a, buckets=((0, 1_000),)),
        msgspec.structs.replace(a, buckets=((9_000, 9_500),)),
    ):
        with pytest.raises(ChangeInvalid, match="buckets"):
            check(msgspec.structs.replace(route, variants=(p, broken)))


def test_promote_swaps_contents() -> None:
    """The primary takes the canary's version; the old one stays as shadow `previous`; others stand still."""
    after = promoted(split(a=2_000, b=1_000), "a", WHY)
    assert [(v.name, v.version, v.role, v.weight_bp) for v in after.variants] == [
        ("primary", "2", "primary", TOTAL_BP),
        ("b", "3", "canary", 0),
        ("previous", "1", "shadow", 0),
    ]
    again = promoted(shifted(after, {"b": 10}, WHY), "b", WHY)
    assert [(v.name, v.version) for v in again.variants] == [("primary", "3"), ("previous", "2")]


@pytest.mark.parametrize("name", ["primary", "nobody"])
def test_only_canaries_are_promoted(name: str) -> None:
    """The primary or an unknown name is refused."""
    with pytest.raises(ChangeInvalid):
        promoted(split(a=1), name, WHY)


def test_rollback_is_a_new_revision() -> None:
    """An older revision's content comes back under the next number, leases gone."""
    first = split(a=1_000)
    leased = tuple(
        msgspec.structs.replace(v, lease_until_ns=5) if v.name == "a" else v for v in first.variants
    )
    first = msgspec.structs.replace(first, variants=leased)
    moved = promoted(first, "a", WHY)
    back = rolled_back(moved, first, WHY)
    assert (back.revision, back.weights_bp) == (moved.revision + 1, first.weights_bp)
    assert [v.lease_until_ns for v in back.variants] == [None, None]
    assert owners(back) == owners(first)


def test_frozen_route_stands_still() -> None:
    """Nothing but a thaw changes a frozen route; the refusal says who holds it and why."""
    route = split(a=100)
    held = set_frozen(route, True, Change(by="ana", reason="audit week"))
    for change in (
        lambda r: shifted(r, {"a": 0}, WHY),
        lambda r: promoted(r, "a", WHY),
        lambda r: rolled_back(r, route, WHY),
        lambda r: with_variants(r, (primary(),), WHY),
    ):
        with pytest.raises(StateConflict, match=r"frozen by ana \(audit week\)"):
            change(held)
    assert shifted(set_frozen(held, False, WHY), {"a": 0}, WHY).revision == route.revision + 3


def drawn(route: Route, ready: set[str], now_ns: int = 0) -> Counter[tuple[object, ...]]:
    """How many of the buckets draw what."""
    table = compile_route(route, 7, ready, now_ns)
    picks = (table.pick(unit) for unit in range(TOTAL_BP))
    return Counter((p.assigned, p.served, p.version, p.weight_bp, p.reason) for p in picks)


def test_shares_are_exact() -> None:
    """Each variant is drawn by its weight, and the draw says which weight, revision and generation."""
    route = split(a=2_500, b=1)
    assert drawn(route, {"1", "2", "3"}) == {
        ("primary", "primary", "1", 7_499, "weight"): 7_499,
        ("a", "a", "2", 2_500, "weight"): 2_500,
        ("b", "b", "3", 1, "weight"): 1,
    }
    pick = compile_route(route, 7, {"1", "2", "3"}).pick(0)
    assert (pick.model, pick.revision, pick.generation) == ("m", route.revision, 7)


def test_canary_that_is_not_ready_falls_back() -> None:
    """Its units stay assigned to it and are served by the primary."""
    assert drawn(split(a=2_500), {"1"}) == {
        ("primary", "primary", "1", 7_500, "weight"): 7_500,
        ("a", "primary", "1", 2_500, "fallback"): 2_500,
    }


@pytest.mark.parametrize("weight_bp", [2_500, TOTAL_BP])
def test_lease_that_is_over(weight_bp: int) -> None:
    """From its end on, the primary has the canary's units, with the weight that both had."""
    route = split(a=weight_bp)
    variants = tuple(
        msgspec.structs.replace(v, lease_until_ns=50) if v.name == "a" else v for v in route.variants
    )
    route = msgspec.structs.replace(route, variants=variants)
    assert ("a", "a", "2", weight_bp, "weight") in drawn(route, {"1", "2"}, 49)
    assert drawn(route, {"1", "2"}, 50) == {("primary", "primary", "1", TOTAL_BP, "weight"): TOTAL_BP}


LEASES = st.dictionaries(st.sampled_from(CANARIES), st.integers(1, 9) | st.none())


def with_ends(route: Route, ends_ns: dict[str, int | None]) -> Route:
    """The route with these ends of leases."""
    variants = tuple(msgspec.structs.replace(v, lease_until_ns=ends_ns.get(v.name)) for v in route.variants)
    return msgspec.structs.replace(route, variants=variants)


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, LEASES, LEASES, st.integers(0, 10))
def test_over_lease_moves_its_own_units_and_no_other(
    weights_bp: dict[str, int], ends_ns: dict[str, int | None], renewed_ns: dict[str, int | None], now_ns: int
) -> None:
    """At any time effective weights sum to all, units of canaries whose lease is over are the primary's, the rest stay;
    a renewal gives back exactly what was taken, and the table holds until the next end that it names."""
    route = with_ends(split(**weights_bp), ends_ns)
    ready = {v.version for v in route.variants}
    over = {name for name, end in ends_ns.items() if end is not None and end <= now_ns}
    table = compile_route(route, 1, ready, now_ns)
    picks = [table.pick(unit) for unit in range(TOTAL_BP)]
    for owner, pick in zip(owners(route), picks, strict=True):
        assert pick.assigned == ("primary" if owner in over else owner)
    shares = {pick.assigned: pick.weight_bp for pick in picks}
    assert sum(w for w in shares.values() if w is not None) == TOTAL_BP
    assert shares == Counter(pick.assigned for pick in picks)
    end_ns = lease_end_ns(route, now_ns)
    for later_ns in range(now_ns, 11 if end_ns is None else end_ns):
        held = compile_route(route, 1, ready, later_ns)
        assert [held.pick(unit).assigned for unit in range(0, TOTAL_BP, 97)] == [
            p.assigned for p in picks[::97]
        ]
    back = with_ends(route, {name: None if end is None else end + 10 for name, end in renewed_ns.items()})
    again = compile_route(back, 2, ready, now_ns)
    assert [again.pick(unit).assigned for unit in range(TOTAL_BP)] == owners(route)


def test_sticky_units_depend_on_key_and_salt() -> None:
    """The same key lands in the same place, keys differ, and another salt means another place."""
    table = compile_route(split(a=5_000), 1, {"1", "2"})
    other = compile_route(msgspec.structs.replace(split(a=5_000), salt="cd" * 16), 1, {"1", "2"})
    assert table.unit_of("user-1") == table.unit_of("user-1")
    assert len({table.unit_of("user-1"), table.unit_of("user-2"), other.unit_of("user-1")}) == 3
    units = [table.unit_of(f"user-{n}") for n in range(2_000)]
    shares = Counter(table.pick(unit).served for unit in units)
    assert 800 < shares["a"] < 1_200


@pytest.mark.parametrize("ready", [{"1", "2"}, {"1"}])
def test_keyed_draw_is_the_same_and_says_so(ready: set[str]) -> None:
    """A key's unit gets what a random one gets; the reason alone tells them apart, also where it fell back."""
    table = compile_route(split(a=2_500), 7, ready)
    for unit in range(TOTAL_BP):
        drawn_by_key = table.pick_keyed(unit)
        assert drawn_by_key == msgspec.structs.replace(table.pick(unit), reason="key")
        assert table.pick_keyed(unit) is drawn_by_key


def test_hole_is_not_compiled() -> None:
    """A route with buckets that nobody owns is refused."""
    route = split(a=1_000)
    with pytest.raises(ChangeInvalid, match="1000 buckets have no owner"):
        compile_route(msgspec.structs.replace(route, variants=route.variants[:1]), 1, {"1"})


def test_pinned_is_no_draw() -> None:
    """A request that names its version belongs to no variant and has no weight."""
    pick = pinned("m", "3", 4, 5)
    assert (pick.assigned, pick.served, pick.weight_bp, pick.reason) == (None, None, None, "pinned")
