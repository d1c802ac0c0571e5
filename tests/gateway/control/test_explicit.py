"""Whole models, loaded and unloaded when someone asks: what an answer means, and what stays."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.control.changes import set_frozen
from gateway.control.explicit import Explicit
from gateway.control.placement import Placement
from gateway.control.state import EVERY
from gateway.errors import LoadFailed, StateConflict, UnknownModel
from tests.gateway.control.plane import MODEL, WHY, Plane
from tests.gateway.control.test_placement import put, wanted


@pytest.fixture
def plane(tmp_path: Path) -> Plane:
    """Two workers; a repository with versions 1 and 2."""
    for version in ("1", "2"):
        put(tmp_path / "models", version)
    return Plane(tmp_path / "state")


def explicit(plane: Plane, models: Path) -> Explicit:
    """As the admin API has it."""
    placement = Placement(plane.engine, models)
    return Explicit(plane.engine, placement.refresh, placement.first_sight)


def test_load_answers_when_all_workers_have_it_and_it_has_a_route(plane: Plane, tmp_path: Path) -> None:
    """Not before the slowest worker is ready; the first route goes to the newest version."""
    asked = explicit(plane, tmp_path / "models")
    plane.failed[1, "2"] = "loading"

    async def run() -> None:
        async with plane.alive() as engine:
            loading = asyncio.create_task(asked.load(MODEL, WHY))
            await asyncio.wait({loading}, timeout=0.1)
            assert not loading.done()
            assert wanted(plane) == ["1", "2"]
            del plane.failed[1, "2"]
            await loading
            assert engine.route(MODEL).primary.version == "2"

    asyncio.run(run())


def test_load_waits_for_a_route_that_somebody_else_gave(plane: Plane, tmp_path: Path) -> None:
    """Placement may have given the first route just before: an answer means that all workers run it."""
    waited: list[int] = []

    async def run() -> None:
        async with plane.alive() as engine:
            placement = Placement(engine, tmp_path / "models")

            async def given(model: str) -> None:
                await placement.first_sight(model)
                routed = engine.state.serving.generation
                in_effect = engine.in_effect

                async def counted() -> None:
                    await in_effect()
                    waited.append(routed)

                engine.in_effect = counted

            await Explicit(engine, placement.refresh, given).load(MODEL, WHY)
            assert waited == [engine.state.serving.generation]

    asyncio.run(run())


def test_load_that_fails_says_which_version_and_why(plane: Plane, tmp_path: Path) -> None:
    """Versions that are sound get the route all the same."""
    asked = explicit(plane, tmp_path / "models")
    plane.failed[1, "2"] = "no model"

    async def run() -> None:
        async with plane.alive() as engine:
            with pytest.raises(LoadFailed, match="'m' version 2: no model"):
                await asked.load(MODEL, WHY)
            assert engine.route(MODEL).primary.version == "1"

    asyncio.run(run())


def test_load_that_takes_too_long_is_told(plane: Plane, tmp_path: Path) -> None:
    """The wait ends; the load goes on."""
    plane.failed[0, "1"] = "loading"

    async def run() -> None:
        async with plane.alive():
            with pytest.raises(LoadFailed, match="not ready within"):
                await explicit(plane, tmp_path / "models").load(MODEL, WHY, timeout_s=0.05)

    asyncio.run(run())
    assert wanted(plane) == ["1", "2"]


def test_unload_takes_all_versions_and_keeps_the_route(plane: Plane, tmp_path: Path) -> None:
    """Also those in the route, and one that appears meanwhile; what comes back has the same traffic. Recovered too."""
    asked = explicit(plane, tmp_path / "models")
    plane.record()

    async def run() -> None:
        async with plane.alive() as engine:
            await asked.load(MODEL, WHY)
            route = engine.route(MODEL)
            await asked.unload(MODEL, WHY)
            assert wanted(plane) == []
            put(tmp_path / "models", "3")
            await asked.unload(MODEL, WHY)
            await engine.place({MODEL: ("1", "2", "3")})
            assert wanted(plane) == []
            assert engine.state.ledger.unloaded == ((MODEL, EVERY),)
            assert plane.recovered().ledger.unloaded == ((MODEL, EVERY),)
            await asked.load(MODEL, WHY)
            assert wanted(plane) == ["1", "2", "3"]
            assert engine.route(MODEL) == route
            assert engine.state.ledger.unloaded == ()

    asyncio.run(run())


def test_load_of_one_version_brings_back_the_model(plane: Plane, tmp_path: Path) -> None:
    """An operator who asks for a version of an unloaded model gets it, and what the route needs."""

    async def run() -> None:
        async with plane.alive() as engine:
            asked = explicit(plane, tmp_path / "models")
            await asked.load(MODEL, WHY)
            await asked.unload(MODEL, WHY)
            await engine.load_or_unload(MODEL, "1", "load", WHY)

    asyncio.run(run())
    assert wanted(plane) == ["1", "2"]


def test_what_is_refused(plane: Plane, tmp_path: Path) -> None:
    """Models that there are not, either way; and to unload under a frozen route."""

    async def run() -> None:
        async with plane.alive() as engine:
            asked = explicit(plane, tmp_path / "models")
            for refused in (asked.load, asked.unload):
                with pytest.raises(UnknownModel):
                    await refused("nope", WHY)
            await asked.load(MODEL, WHY)
            await engine.change_route(
                MODEL, "freeze", WHY, lambda r, c: set_frozen(r, True, c), expected_revision=1
            )
            with pytest.raises(StateConflict, match="thaw"):
                await asked.unload(MODEL, WHY)

    asyncio.run(run())
    assert wanted(plane) == ["1", "2"]
