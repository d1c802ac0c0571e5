"""Stop, resume and bounds: what they leave, what they refuse, and that automata keep to them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from gateway.control.bounds import HOUR_NS, check_bounds
from gateway.control.changes import (
    bounded,
    promoted,
    resumed,
    rolled_back_canary,
    set_frozen,
    shifted,
    stopped,
    with_variants,
)
from gateway.control.engine import Engine
from gateway.control.idempotency import Asked
from gateway.control.state import public_document
from gateway.errors import ChangeInvalid, OutOfBounds, StateConflict
from gateway.routing import Bounds, Change, Route, Variant, first_route
from tests.gateway.control.plane import MODEL, WHY, Plane
from tests.gateway.control.test_control_recovery import logged

S = 1_000_000_000
ROBOT = Asked(automaton=True)


def at(seconds: float, by: str = "robot") -> Change:
    """A change at a time."""
    return Change(by=by, reason="because", at_ns=int(seconds * S))


def split(weight_bp: int = 1000) -> Route:
    """A canary with some weight, as of second 0."""
    variants = (
        Variant(name="primary", version="1", role="primary", weight_bp=10_000 - weight_bp),
        Variant(name="canary", version="2", role="canary", weight_bp=weight_bp),
    )
    return with_variants(first_route(MODEL, "1", "ab", at(0, "human")), variants, at(0, "human"))


def test_stop_leaves_the_split() -> None:
    """A stopped route has its variants, buckets and latches, the change that stopped it, and the next revision."""
    before = split()
    after = stopped(before, at(5))
    assert (after.stopped, after.revision, after.changed) == (at(5), before.revision + 1, at(5))
    assert after.variants == before.variants
    assert resumed(after, at(6)).stopped is None
    assert resumed(after, at(6)).variants == before.variants


def test_stop_and_resume_of_a_frozen_route() -> None:
    """A hold on the split does not hold the model up."""
    frozen = set_frozen(split(), True, at(1))
    assert stopped(frozen, at(2)).frozen
    assert resumed(stopped(frozen, at(2)), at(3)).frozen


def test_twice_is_a_conflict() -> None:
    """Stop of what is stopped, resume of what is not: refused, by whom it was said."""
    with pytest.raises(StateConflict, match=r"stopped already, by robot \(because\)"):
        stopped(stopped(split(), at(1)), at(2))
    with pytest.raises(StateConflict, match="is not stopped"):
        resumed(split(), at(1))


def test_changes_keep_a_stop() -> None:
    """A rollback or a shift while it is stopped changes what will answer, and does not make it answer."""
    route = stopped(split(), at(1))
    assert rolled_back_canary(route, "canary", at(2)).stopped == at(1)
    assert shifted(route, {"canary": 0}, at(2)).stopped == at(1)


def test_shown_only_where_there_is_something() -> None:
    """The API's document has `stopped` and `bounds` where a route has them."""
    plain = public_document(split())
    assert not {"stopped", "bounds", "salt", "salt_id"} & set(plain)
    held = bounded(stopped(split(), at(1)), Bounds(max_canary_bp=5), at(2))
    shown = public_document(held)
    assert (shown["stopped"]["by"], shown["bounds"]["max_canary_bp"]) == ("robot", 5)  # type: ignore[index]


@pytest.mark.parametrize(
    "bounds",
    [
        Bounds(max_canary_bp=10_001),
        Bounds(max_step_bp=-1),
        Bounds(changes_per_h=-1),
        Bounds(dwell_s=-0.5),
        Bounds(dwell_s=float("nan")),
    ],
)
def test_bounds_out_of_range(bounds: Bounds) -> None:
    """A bound that cannot be is refused by its name."""
    with pytest.raises(ChangeInvalid, match="expected"):
        bounded(split(), bounds, at(1))


@pytest.mark.parametrize(
    ("bounds", "make", "name"),
    [
        (Bounds(max_canary_bp=1999), lambda r, c: shifted(r, {"canary": 2000}, c), "max_canary_bp"),
        (Bounds(max_step_bp=999), lambda r, c: shifted(r, {"canary": 2000}, c), "max_step_bp"),
        (Bounds(dwell_s=11), lambda r, c: shifted(r, {"canary": 2000}, c), "dwell_s"),
        (Bounds(changes_per_h=1), lambda r, c: shifted(r, {"canary": 2000}, c), "changes_per_h"),
        (Bounds(max_canary_bp=9999), lambda r, c: promoted(r, "canary", c), "max_canary_bp"),
    ],
)
def test_each_bound_holds(bounds: Bounds, make: Callable[[Route, Change], Route], name: str) -> None:
    """One more than a bound allows is refused, naming it; at the bound it passes."""
    before = msgspec.structs.replace(split(), bounds=bounds)
    earlier = msgspec.structs.replace(before, revision=1, changed=at(-60))
    change = at(10)
    with pytest.raises(OutOfBounds, match=name):
        check_bounds(before, make(before, change), change, (earlier, before))
    wider = {
        "max_canary_bp": Bounds(max_canary_bp=10_000),
        "max_step_bp": Bounds(max_step_bp=1000),
        "dwell_s": Bounds(dwell_s=10),
        "changes_per_h": Bounds(changes_per_h=2),
    }[name]
    before = msgspec.structs.replace(before, bounds=wider)
    check_bounds(before, make(before, change), change, (earlier, before))


def test_an_hour_ago_does_not_count() -> None:
    """The budget is of any hour, and of this automaton alone."""
    before = msgspec.structs.replace(split(), bounds=Bounds(changes_per_h=1))
    history = [msgspec.structs.replace(before, changed=c) for c in (at(0, "robot"), at(3590, "human"))]
    change = Change(by="robot", reason="", at_ns=HOUR_NS)
    check_bounds(before, shifted(before, {"canary": 1001}, change), change, history)
    sooner = msgspec.structs.replace(change, at_ns=HOUR_NS - 1)
    with pytest.raises(OutOfBounds, match="1 changes in the last hour until 1970-01-01T01:00:00"):
        check_bounds(before, shifted(before, {"canary": 1001}, sooner), sooner, history)


def test_retreats_are_never_bounded() -> None:
    """Taking weight off a canary passes the narrowest bounds."""
    narrow = Bounds(max_canary_bp=0, max_step_bp=0, changes_per_h=0, dwell_s=86_400)
    before = msgspec.structs.replace(split(), bounds=narrow)
    for after in (shifted(before, {"canary": 0}, at(0.1)), rolled_back_canary(before, "canary", at(0.1))):
        check_bounds(before, after, at(0.1), (before,))


def go(plane: Plane, body: Callable[[Engine], Awaitable[None]]) -> None:
    """Run a body on a split route."""

    async def run() -> None:
        async with plane.alive() as engine:
            await plane.begin("1", "2")
            variants = split().variants
            await engine.change_route(
                MODEL, "route", WHY, lambda r, c: with_variants(r, variants, c), expected_revision=1
            )
            await body(engine)

    asyncio.run(run())


def test_bounds_bind_automata_and_no_person(plane: Plane) -> None:
    """The engine asks them for what no person decided; a person moves the same route as far as they like."""

    async def body(engine: Engine) -> None:
        bounds = Bounds(max_canary_bp=1500)
        await engine.change_route(
            MODEL, "bounds", WHY, lambda r, c: bounded(r, bounds, c), expected_revision=2
        )
        raised = lambda r, c: shifted(r, {"canary": 2000}, c)  # noqa: E731
        with pytest.raises(OutOfBounds, match="max_canary_bp = 1500"):
            await engine.change_route(MODEL, "shift", WHY, raised, expected_revision=3, asked=ROBOT)
        assert engine.route(MODEL).revision == 3
        await engine.change_route(MODEL, "shift", WHY, raised, expected_revision=3)
        assert plane.recovered().serving.routes[MODEL].bounds == bounds

    plane.record()
    go(plane, body)


def test_a_refusal_is_logged_once(plane: Plane) -> None:
    """An automaton that asks again and again stands in the log once for each revision."""

    async def body(engine: Engine) -> None:
        for revision in (2, 3):
            bounds = Bounds(max_canary_bp=1000 + revision)
            await engine.change_route(
                MODEL, "bounds", WHY, lambda r, c, b=bounds: bounded(r, b, c), expected_revision=revision
            )
            for _ in range(3):
                with pytest.raises(OutOfBounds):
                    await engine.change_route(
                        MODEL,
                        "shift",
                        at(1),
                        lambda r, c: shifted(r, {"canary": 2000}, c),
                        expected_revision=revision + 1,
                        asked=ROBOT,
                    )

    plane.record()
    go(plane, body)
    told = [(e.revision, e.by, e.after and e.after["kind"]) for e in logged(plane) if e.kind == "refused"]
    assert told == [(3, "robot", "shift"), (4, "robot", "shift")]


def test_what_is_only_tried_is_not_logged(plane: Plane) -> None:
    """A dry run beyond the bounds is refused, and leaves nothing."""

    async def body(engine: Engine) -> None:
        await engine.change_route(
            MODEL, "bounds", WHY, lambda r, c: bounded(r, Bounds(max_canary_bp=1), c), expected_revision=2
        )
        with pytest.raises(OutOfBounds):
            await engine.change_route(
                MODEL,
                "shift",
                at(1),
                lambda r, c: shifted(r, {"canary": 2000}, c),
                expected_revision=3,
                dry_run=True,
                asked=ROBOT,
            )

    plane.record()
    go(plane, body)
    assert "refused" not in [e.kind for e in logged(plane)]
