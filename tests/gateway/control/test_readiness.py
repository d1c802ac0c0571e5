"""Which workers a change waits for: those that take requests, and none that only come or go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway import fleet as words_of
from gateway.control.changes import promoted, rolled_back, shifted, with_variants
from gateway.control.engine import Engine, Outcome
from gateway.control.state import rollback_target
from gateway.errors import StateConflict
from gateway.fleet import DRAINING, STARTING
from gateway.routing import Variant
from tests.gateway.control.plane import MODEL, WHY, Plane

ARMS = (
    Variant(name="primary", version="1", role="primary", weight_bp=9_000),
    Variant(name="canary", version="2", role="canary", weight_bp=1_000),
)


def go(plane: Plane, body: Callable[[Engine], Awaitable[None]]) -> None:
    """Run a body on a split route."""

    async def run() -> None:
        async with plane.alive() as engine:
            await plane.begin("1", "2", "3")
            await engine.load_or_unload(MODEL, "2", "load", WHY)
            plane.step()
            await engine.change_route(
                MODEL, "route", WHY, lambda r, c: with_variants(r, ARMS, c), expected_revision=1
            )
            await body(engine)

    asyncio.run(run())


async def shift(engine: Engine, weight_bp: int) -> Outcome:
    revision = engine.route(MODEL).revision
    return await engine.change_route(
        MODEL, "shift", WHY, lambda r, c: shifted(r, {"canary": weight_bp}, c), expected_revision=revision
    )


async def promote(engine: Engine) -> Outcome:
    revision = engine.route(MODEL).revision
    return await engine.change_route(
        MODEL, "promote", WHY, lambda r, c: promoted(r, "canary", c), expected_revision=revision
    )


def become(plane: Plane, index: int, state: int) -> None:
    plane.fleet.worker(index)[words_of.STATE] = state


def test_a_worker_that_starts_holds_nothing_up(plane: Plane) -> None:
    """It is loading what would gain: it takes no requests before it has it."""

    async def body(engine: Engine) -> None:
        become(plane, 1, STARTING)
        plane.failed[1, "2"] = "loading"
        plane.step()
        await shift(engine, 2_000)
        await promote(engine)

    go(plane, body)


def test_but_where_the_version_failed(plane: Plane) -> None:
    """It would never get it."""

    async def body(engine: Engine) -> None:
        become(plane, 1, STARTING)
        plane.failed[1, "2"] = "bad file"
        plane.step()
        with pytest.raises(StateConflict, match=r"version 2 is failed in worker 1 \(bad file\)"):
            await shift(engine, 2_000)

    go(plane, body)


def test_a_worker_that_drains_holds_nothing_up(plane: Plane) -> None:
    """Whatever it says of the version."""

    async def body(engine: Engine) -> None:
        become(plane, 1, DRAINING)
        plane.failed[1, "2"] = "bad file"
        plane.step()
        await shift(engine, 2_000)

    go(plane, body)


def test_without_a_worker_that_serves_nothing_gains(plane: Plane) -> None:
    """Nobody can say that the version is ready; less weight, and a hold, go through."""

    async def body(engine: Engine) -> None:
        for index in range(2):
            become(plane, index, STARTING)
        with pytest.raises(StateConflict, match="no worker takes requests at present"):
            await shift(engine, 2_000)
        await shift(engine, 500)

    go(plane, body)


def test_one_that_serves_must_have_it(plane: Plane) -> None:
    """Loading in a worker that takes requests is not ready."""

    async def body(engine: Engine) -> None:
        plane.failed[1, "2"] = "loading"
        plane.step()
        with pytest.raises(StateConflict, match="version 2 is loading in worker 1"):
            await shift(engine, 2_000)

    go(plane, body)


def test_promotion_needs_a_way_back(plane: Plane) -> None:
    """The version that would be replaced is asked for, now and not at the rollback; the refusal says what to do."""

    async def body(engine: Engine) -> None:
        plane.failed[1, "1"] = "file is gone"
        plane.step()
        with pytest.raises(
            StateConflict, match=r"way back: version 1 of primary is failed in worker 1.*route set m"
        ):
            await promote(engine)
        plane.failed.clear()
        plane.step()
        await promote(engine)

    go(plane, body)


def test_a_change_of_contents_by_hand_needs_none(plane: Plane) -> None:
    """`route set` is how to go on when the old version can never be ready again."""

    async def body(engine: Engine) -> None:
        plane.failed[0, "1"] = "file is gone"
        plane.step()
        only = (Variant(name="primary", version="2", role="primary", weight_bp=10_000),)
        await engine.change_route(
            MODEL, "route", WHY, lambda r, c: with_variants(r, only, c), expected_revision=2
        )

    go(plane, body)


def test_the_way_back_stays_loaded(plane: Plane) -> None:
    """What a rollback would bring back is not unloaded, though it is in no variant any more; another version is."""

    async def body(engine: Engine) -> None:
        only = (Variant(name="primary", version="2", role="primary", weight_bp=10_000),)
        await engine.change_route(
            MODEL, "route", WHY, lambda r, c: with_variants(r, only, c), expected_revision=2
        )
        with pytest.raises(
            StateConflict, match=r"version 1 is what the route would be rolled back to \(revision 2\)"
        ):
            await engine.load_or_unload(MODEL, "1", "unload", WHY)
        await engine.load_or_unload(MODEL, "3", "unload", WHY)
        assert set(engine.load_states(MODEL, "1")) == {0, 1}

    go(plane, body)


def test_the_way_back_works_without_its_directory(plane: Plane) -> None:
    """What a rollback brings back is loaded; that its files are gone from the repository does not matter any more."""

    async def body(engine: Engine) -> None:
        only = (Variant(name="primary", version="2", role="primary", weight_bp=10_000),)
        await engine.change_route(
            MODEL, "route", WHY, lambda r, c: with_variants(r, only, c), expected_revision=2
        )
        await engine.place({MODEL: ("2", "3")})
        target = rollback_target(engine.state.ledger, MODEL)
        assert target is not None
        await engine.change_route(
            MODEL, "rollback", WHY, lambda r, c: rolled_back(r, target, c), expected_revision=3
        )
        assert engine.route(MODEL).primary.version == "1"

    go(plane, body)
