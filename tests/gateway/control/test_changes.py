"""Latches and leases in the route document: what a change may give weight to, and for how long."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.audit.event import Control
from gateway.control import snapshot
from gateway.control.changes import (
    promoted,
    rearmed,
    renewed,
    rolled_back,
    rolled_back_canary,
    salted,
    set_frozen,
    shifted,
    with_variants,
)
from gateway.control.gates import check_latches, only_retreats, with_leases
from gateway.control.state import State, applied, public_document, rollback_target, route_document
from gateway.errors import ChangeInvalid, StateConflict
from gateway.routing import TOTAL_BP, Change, Route, Variant, first_route
from gateway.settings import Policy

WHY = Change(by="ana", reason="try", at_ns=1_000)
HARM = Change(by="sidecar", reason="fails twice as often", at_ns=1_700_000_000_000_000_000, event="e-7")
AUTO = Policy(ramp="auto", lease_s=15)


def split(**weights_bp: int) -> Route:
    """A primary on version 1 and canaries a, b, ... on versions 2, 3, ..."""
    arms = [
        Variant(name=name, version=str(version), role="canary", weight_bp=weight)
        for version, (name, weight) in enumerate(weights_bp.items(), start=2)
    ]
    rest = TOTAL_BP - sum(weights_bp.values())
    primary = Variant(name="primary", version="1", role="primary", weight_bp=rest)
    return with_variants(first_route("m", "1", "ab" * 16, WHY), (primary, *arms), WHY)


def state_after(*routes: Route) -> State:
    """Control state once these revisions were logged."""
    state = State(snapshot.Serving(gateway_id="g", generation=1), snapshot.Ledger())
    for number, route in enumerate(routes):
        event = Control(
            kind="route",
            id=f"e-{number}",
            model="m",
            revision=route.revision,
            after=route_document(route),
        )
        state = applied(state, event)
    return state


def test_canary_is_rolled_back_and_latched() -> None:
    """Its weight is the primary's at once, other canaries keep theirs, and the latch knows its change."""
    after = rolled_back_canary(split(a=1_000, b=500), "a", HARM)
    assert after.weights_bp == {"primary": 9_500, "a": 0, "b": 500}
    assert (after.latched, after.latches, after.revision) == (("2",), {"2": HARM}, 3)


def test_every_canary_of_the_version_is_rolled_back() -> None:
    """A latched version has no weight under any name."""
    arms = (
        Variant(name="primary", version="1", role="primary", weight_bp=8_000),
        Variant(name="a", version="2", role="canary", weight_bp=1_000),
        Variant(name="b", version="2", role="canary", weight_bp=1_000),
    )
    route = with_variants(first_route("m", "1", "ab" * 16, WHY), arms, WHY)
    assert rolled_back_canary(route, "a", HARM).weights_bp == {"primary": TOTAL_BP, "a": 0, "b": 0}


def test_same_version_as_the_primary_is_not_latched() -> None:
    """In an A/A split there is nothing to latch: only the weight goes."""
    arms = (
        Variant(name="primary", version="1", role="primary", weight_bp=9_000),
        Variant(name="a", version="1", role="canary", weight_bp=1_000),
    )
    after = rolled_back_canary(with_variants(first_route("m", "1", "ab" * 16, WHY), arms, WHY), "a", HARM)
    assert (after.weights_bp, after.latched) == ({"primary": TOTAL_BP, "a": 0}, ())


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("primary", ChangeInvalid, "primary has role primary; only a canary"),
        ("nobody", ChangeInvalid, "no variant 'nobody'"),
        ("a", StateConflict, "a's version 2 is latched already"),
    ],
)
def test_only_canaries_with_something_to_lose(name: str, kind: type[Exception], said: str) -> None:
    """The primary, an unknown name or one that is latched already is refused."""
    with pytest.raises(kind, match=said):
        rolled_back_canary(rolled_back_canary(split(a=100), "a", HARM), name, HARM)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: shifted(r, {"a": 1}, WHY),
        lambda r: promoted(r, "a", WHY),
        lambda r: with_variants(
            r, (Variant(name="primary", version="2", role="primary", weight_bp=TOTAL_BP),), WHY
        ),
        lambda r: rolled_back(r, promoted(split(a=100), "a", WHY), WHY),
    ],
    ids=["shift", "promote", "set", "rollback"],
)
def test_latched_version_gets_no_weight(change) -> None:  # type: ignore[no-untyped-def]
    """Every way to give it some is refused: version, why, since which event, and what ends it."""
    latched = rolled_back_canary(split(a=1_000), "a", HARM)
    with pytest.raises(StateConflict) as no:
        check_latches(change(latched))
    for part in (
        "version 2 is latched since 2023-11-14T22:13:20.000Z",
        "by sidecar (fails twice as often, event e-7)",
        "`tidegate route rearm m 2`",
    ):
        assert part in str(no.value)
    check_latches(change(rearmed(latched, "2", WHY)))


def test_latched_version_may_be_a_shadow() -> None:
    """It is watched without answering anybody."""
    arms = (
        Variant(name="primary", version="1", role="primary", weight_bp=TOTAL_BP),
        Variant(name="next", version="2", role="shadow", sample_bp=TOTAL_BP),
    )
    check_latches(with_variants(rolled_back_canary(split(a=1_000), "a", HARM), arms, WHY))


def test_revision_comes_back_without_its_latched_canary() -> None:
    """What it had is the primary's; other canaries come back with theirs."""
    old = split(a=1_000, b=500)
    latched = rolled_back_canary(shifted(old, {"b": 0}, WHY), "a", HARM)
    back = rolled_back(latched, old, WHY)
    assert (back.weights_bp, back.latched) == ({"primary": 9_500, "a": 0, "b": 500}, ("2",))
    check_latches(back)


def test_rearming_gives_no_weight() -> None:
    """The latch ends, the route's traffic stays; what is not latched cannot be re-armed."""
    latched = rolled_back_canary(split(a=1_000), "a", HARM)
    after = rearmed(latched, "2", WHY)
    assert (after.latched, after.variants) == ((), latched.variants)
    with pytest.raises(StateConflict, match=r"version 2 is not latched \(latched: none\)"):
        rearmed(after, "2", WHY)
    with pytest.raises(StateConflict, match=r"version 3 is not latched \(latched: 2\)"):
        rearmed(latched, "3", WHY)


def test_latch_learns_its_event() -> None:
    """Once logged, change and latch name the event; later events change neither."""
    change = msgspec.structs.replace(HARM, event=None)
    route = rolled_back_canary(split(a=1_000), "a", change)
    state = state_after(split(a=1_000), route, set_frozen(route, True, WHY))
    assert state.ledger.history["m"][1].changed.event == "e-1"
    after = state_after(split(a=1_000), route).serving.routes["m"]
    assert after.latches["2"].event == after.changed.event == "e-1"
    later = set_frozen(after, True, msgspec.structs.replace(WHY, at_ns=2))
    assert state_after(later).serving.routes["m"].latches["2"].event == "e-1"


def test_latches_are_shown() -> None:
    """API and events name latched versions; the API says why only where there are any."""
    assert public_document(split(a=1))["latched"] == []
    assert "latches" not in public_document(split(a=1))
    shown = public_document(rolled_back_canary(split(a=1), "a", HARM))
    assert shown["latched"] == ["2"]
    assert shown["latches"]["2"]["reason"] == HARM.reason  # type: ignore[index]
    assert route_document(rolled_back_canary(split(a=1), "a", HARM))["latched"] == ["2"]


def test_older_documents_decode() -> None:
    """A route written before there were latches has none."""
    content = route_document(split(a=1))
    del content["latches"], content["latched"]
    content["changed"] = {"by": "ana", "reason": "x", "at_ns": 1, "event": None}
    assert msgspec.convert(content, Route).latched == ()


def test_default_target_is_no_latched_one() -> None:
    """With nothing named, the way back skips what a latch has made equal to the present, and latched primaries."""
    first = split(b=0)
    wide = shifted(split(b=0, a=0), {"b": 3_000, "a": 500}, WHY)
    moved = promoted(wide, "b", WHY)
    back = rolled_back(moved, wide, WHY)
    latched = rolled_back_canary(back, "b", HARM)
    target = rollback_target(state_after(first, wide, moved, back, latched).ledger, "m")
    assert target is not None
    assert (target.revision, target.primary.version) == (first.revision, "1")
    assert rollback_target(state_after(wide, latched).ledger, "m") is None


def leases(route: Route) -> dict[str, int | None]:
    """End of the lease by canary."""
    return {v.name: v.lease_until_ns for v in route.variants if v.role == "canary"}


@pytest.mark.parametrize("kind", ["route", "shift", "promote", "rollback", "thaw"])
def test_change_begins_leases_under_auto(kind: str) -> None:
    """Canaries that have weight get one, others none; under another ramp nobody, and what was left is taken off."""
    route = split(a=100, b=0)
    begun = with_leases(kind, route, AUTO, WHY)
    assert leases(begun) == {"a": 1_000 + 15_000_000_000, "b": None}
    assert begun.revision == route.revision
    for ramp in ("manual", "dry-run"):
        assert leases(with_leases(kind, begun, Policy(ramp=ramp), WHY)) == {"a": None, "b": None}


@pytest.mark.parametrize("kind", ["freeze", "rearm"])
def test_other_changes_begin_none(kind: str) -> None:
    """A hold or a re-armed version says nothing of who watches."""
    assert leases(with_leases(kind, split(a=100), AUTO, WHY)) == {"a": None}


@pytest.mark.parametrize(("end_ns", "kept"), [(1_001, None), (1_000, 1_000), (7, 7)])
def test_hold_keeps_the_split_in_effect(end_ns: int, kept: int | None) -> None:
    """A lease that runs is taken off, so that the canary keeps its traffic; one that is over stays over."""
    held = set_frozen(renewed(split(a=100), end_ns), True, WHY)
    assert leases(held) == {"a": kept}


def test_renewal_is_the_same_revision() -> None:
    """Only ends of leases move; a frozen route or one without canaries that have weight is refused."""
    route = split(a=100, b=0)
    after = renewed(route, 99)
    assert (leases(after), after.revision, after.changed) == ({"a": 99, "b": None}, route.revision, WHY)
    with pytest.raises(StateConflict, match=r"frozen by ana \(try\)"):
        renewed(set_frozen(route, True, WHY), 99)
    with pytest.raises(StateConflict, match="no canary has weight"):
        renewed(split(a=0), 99)


def test_retreat() -> None:
    """Weight off canaries alone is a retreat; another split, another set of variants or more weight is none."""
    route = split(a=100, b=100)
    assert only_retreats(route, rolled_back_canary(route, "a", HARM))
    assert not only_retreats(route, shifted(route, {"a": 0, "b": 200}, WHY))
    assert not only_retreats(route, split(a=100))


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("shift"), st.sampled_from("ab"), st.integers(0, 4_000)),
        st.tuples(st.just("latch"), st.sampled_from("ab"), st.just(0)),
        st.tuples(st.just("rearm"), st.sampled_from("23"), st.just(0)),
        st.tuples(st.just("promote"), st.sampled_from("ab"), st.just(0)),
        st.tuples(st.just("back"), st.just(""), st.integers(0, 12)),
    ),
    max_size=12,
)


def asked(route: Route, action: tuple[str, str, int], history: list[Route]) -> Route:
    """What one action makes of a route."""
    verb, name, number = action
    match verb:
        case "shift":
            return shifted(route, {name: number}, WHY)
        case "latch":
            return rolled_back_canary(route, name, HARM)
        case "rearm":
            return rearmed(route, name, WHY)
        case "promote":
            return promoted(route, name, WHY)
        case _:
            return rolled_back(route, history[number % len(history)], WHY)


@settings(max_examples=150, deadline=None)
@given(ACTIONS)
def test_no_course_of_changes_gives_a_latched_version_weight(actions: list[tuple[str, str, int]]) -> None:
    """In whatever order: only a shift, a promotion or a latched primary of old is stopped at the gate; what passes
    leaves latched versions without weight."""
    route = split(a=500, b=500)
    history = [route]
    for action in actions:
        try:
            after = asked(route, action, history)
        except (ChangeInvalid, StateConflict):
            continue
        has_weight = {v.version for v in after.variants if v.role != "shadow" and v.weight_bp}
        if has_weight & set(after.latched):
            assert action[0] in {"shift", "promote"} or after.primary.version in after.latched
            with pytest.raises(StateConflict, match="is latched since"):
                check_latches(after)
            continue
        check_latches(after)
        assert sum(after.weights_bp.values()) == TOTAL_BP
        route = after
        history.append(route)


def test_a_rollout_has_a_salt_of_its_own() -> None:
    """Drawn with the first weight of a canary, kept while any has weight; the salt of an old document goes with it."""
    idle = split(a=0, b=0)
    frozen = salted(idle, set_frozen(idle, True, WHY), "f" * 16)
    assert (frozen.salt, frozen.salt_id) == (idle.salt, "")
    route = salted(idle, shifted(idle, {"a": 100}, WHY), "a" * 16)
    assert (route.salt, route.salt_id) == ("", "a" * 16)
    for weights in ({"a": 5_000}, {"b": 10}, {"a": 0}, {"b": 0}):
        route = salted(route, shifted(route, weights, WHY), "b" * 16)
        assert route.salt_id == "a" * 16
    assert salted(route, shifted(route, {"a": 1}, WHY), "c" * 16).salt_id == "c" * 16
