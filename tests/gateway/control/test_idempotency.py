"""A change that is asked for twice with the same key is made once, also by a successor, and answered the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.control.changes import set_frozen
from gateway.control.engine import Engine, Outcome
from gateway.control.idempotency import KEPT_MAX, KEPT_NS, Asked, Done, made_before, remembered
from gateway.errors import IdempotencyMismatch, RevisionConflict
from gateway.routing import Change
from tests.gateway.control.plane import MODEL, WHY, Plane

ONCE = Asked(key="k1", digest="a" * 64, via={"address": "127.0.0.1"})


async def freeze(engine: Engine, asked: Asked = ONCE, by: str = "test") -> Outcome:
    """At revision 1."""
    change = Change(by=by, reason="because", at_ns=1)
    return await engine.change_route(
        MODEL, "freeze", change, lambda r, c: set_frozen(r, True, c), expected_revision=1, asked=asked
    )


def go(plane: Plane, body: Callable[[Engine], Awaitable[None]]) -> None:
    """Run a body beside a real recorder, after the first route."""

    async def run() -> None:
        async with plane.alive() as engine:
            await plane.begin("1", "2")
            await body(engine)

    plane.record()
    asyncio.run(run())


def test_the_same_again(plane: Plane) -> None:
    """The second answer has route, revision and event of the first, says that it is the second, and nothing moved."""

    async def body(engine: Engine) -> None:
        first = await freeze(engine)
        generation = plane.fleet.generation
        again = await freeze(engine)
        assert (again.route, again.before, again.replayed) == (first.route, first.before, True)
        assert again.applied is not None
        assert (plane.fleet.generation, engine.route(MODEL).revision) == (generation, 2)

    go(plane, body)


def test_also_after_others_have_changed_the_route(plane: Plane) -> None:
    """It is the answer of then: a client that comes late learns that its change was made."""

    async def body(engine: Engine) -> None:
        first = await freeze(engine)
        await engine.change_route(
            MODEL, "thaw", WHY, lambda r, c: set_frozen(r, False, c), expected_revision=2
        )
        assert (await freeze(engine)).route == first.route

    go(plane, body)


def test_another_request_with_the_same_key(plane: Plane) -> None:
    """Refused, saying what the key was used for; of another principal it is another key."""

    async def body(engine: Engine) -> None:
        await freeze(engine)
        with pytest.raises(IdempotencyMismatch, match=r"'k1' was used for another request \(freeze of m\)"):
            await freeze(engine, Asked(key="k1", digest="b" * 64))
        with pytest.raises(RevisionConflict):
            await freeze(engine, by="other")

    go(plane, body)


def test_a_refused_change_is_not_remembered(plane: Plane) -> None:
    """What was not made may be asked for again."""

    async def body(engine: Engine) -> None:
        await engine.change_route(
            MODEL, "freeze", WHY, lambda r, c: set_frozen(r, True, c), expected_revision=1
        )
        with pytest.raises(RevisionConflict):
            await freeze(engine)
        assert engine.state.ledger.done == {}

    go(plane, body)


def test_a_dry_run_is_not_remembered(plane: Plane) -> None:
    """It made nothing."""

    async def body(engine: Engine) -> None:
        await engine.change_route(
            MODEL,
            "freeze",
            WHY,
            lambda r, c: set_frozen(r, True, c),
            expected_revision=1,
            dry_run=True,
            asked=ONCE,
        )
        assert not (await freeze(engine)).replayed

    go(plane, body)


def test_loads_too(plane: Plane) -> None:
    """A load asked for twice makes one event."""

    async def body(engine: Engine) -> None:
        await engine.load_or_unload(MODEL, "2", "load", WHY, ONCE)
        generation = plane.fleet.generation
        assert (await engine.load_or_unload(MODEL, "2", "load", WHY, ONCE)).replayed
        assert plane.fleet.generation == generation

    go(plane, body)


def test_it_stands_in_the_log(plane: Plane) -> None:
    """A successor without a snapshot knows the key: the event holds it, and how the change was asked for."""

    async def body(engine: Engine) -> None:
        await freeze(engine)

    go(plane, body)
    plane.path.unlink()
    ledger = plane.recovered().ledger
    assert ledger.done == plane.engine.state.ledger.done
    assert made_before(ledger.done, "test", ONCE) == Done(
        digest="a" * 32, kind="freeze", model=MODEL, revision=2, at_ns=ledger.done["test k1"].at_ns
    )


def test_old_and_many_are_forgotten() -> None:
    """A day, and the newest 256: the ledger is written with each change."""
    known: dict[str, Done] = {}
    for number in range(KEPT_MAX + 5):
        done = Done(digest="d", kind="shift", model=MODEL, revision=number, at_ns=number)
        known = remembered(known, "test", f"k{number}", done)
    assert len(known) == KEPT_MAX
    assert "test k4" not in known
    late = Done(digest="d", kind="shift", model=MODEL, revision=1, at_ns=KEPT_NS + KEPT_MAX)
    assert len(remembered(known, "test", "late", late)) == 5
