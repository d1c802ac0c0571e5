"""Which versions the workers hold, and where a model's first route comes from."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway.control import placement as module
from gateway.control.changes import promoted, set_frozen, with_variants
from gateway.control.placement import Placement
from gateway.control.state import rollback_target
from gateway.errors import StateConflict
from gateway.routing import Variant
from loaders.repository import Found
from tests.gateway.control.plane import MODEL, WHY, Plane


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often."""
    monkeypatch.setattr(module, "RESCAN_S", 0.01)
    monkeypatch.setattr(module, "POLL_S", 0.002)


def put(models: Path, version: str, model: str = MODEL) -> None:
    """A version on disk; nothing here reads it."""
    (models / model / version).mkdir(parents=True)
    (models / model / version / "model.onnx").write_bytes(b"")


@contextlib.asynccontextmanager
async def following(plane: Plane, models: Path) -> AsyncIterator[Placement]:
    """Placement at work."""
    async with plane.alive() as engine:
        placement = Placement(engine, models)
        task = asyncio.create_task(placement.run())
        try:
            yield placement
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def until(holds: Callable[[], bool]) -> None:
    """Wait for placement."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


def wanted(plane: Plane) -> list[str]:
    """Versions that the workers shall hold."""
    return [d.version for d in plane.engine.state.serving.versions if d.model == MODEL]


def has_route(plane: Plane) -> bool:
    """Whether the model has one."""
    return MODEL in plane.engine.state.serving.routes


def test_first_sight(plane: Plane, tmp_path: Path) -> None:
    """Revision 1 sends all to the highest version that every worker has ready; a failed one is passed over."""
    for version in ("1", "2", "10"):
        put(tmp_path / "models", version)
    plane.failed[1, "10"] = "bad"

    async def run() -> None:
        async with following(plane, tmp_path / "models"):
            await until(lambda: has_route(plane))
            route = plane.engine.route(MODEL)
            assert (route.revision, route.primary.version, route.primary.weight_bp) == (1, "2", 10_000)
            assert (route.salt, len(route.salt_id)) == ("", 16)
            assert route.changed.event is not None

    asyncio.run(run())


def test_first_sight_waits_for_loading(plane: Plane, tmp_path: Path) -> None:
    """While a worker is still loading a version, the first route is not decided."""
    for version in ("1", "2"):
        put(tmp_path / "models", version)
    plane.failed[0, "2"] = "loading"

    async def run() -> None:
        async with following(plane, tmp_path / "models"):
            await until(lambda: plane.engine.load_states(MODEL, "1").get(0, ("", ""))[0] == "ready")
            await asyncio.sleep(0.03)
            assert not has_route(plane)
            del plane.failed[0, "2"]
            await until(lambda: has_route(plane))
            assert plane.engine.route(MODEL).primary.version == "2"

    asyncio.run(run())


def test_nothing_ready_makes_no_route(plane: Plane, tmp_path: Path) -> None:
    """A model of which no version loads has no route."""
    put(tmp_path / "models", "1")
    plane.failed[0, "1"] = "bad"

    async def run() -> None:
        async with following(plane, tmp_path / "models"):
            await until(lambda: plane.engine.load_states(MODEL, "1").get(0, ("", ""))[0] == "failed")
            await asyncio.sleep(0.03)
            assert not has_route(plane)

    asyncio.run(run())


def test_later_version_gets_no_weight(plane: Plane, tmp_path: Path) -> None:
    """A version that appears later is loaded and changes no route."""
    put(tmp_path / "models", "1")

    async def run() -> None:
        async with following(plane, tmp_path / "models"):
            await until(lambda: has_route(plane))
            route = plane.engine.route(MODEL)
            put(tmp_path / "models", "2")
            await until(lambda: wanted(plane) == ["1", "2"])
            assert plane.engine.route(MODEL) == route
            assert rollback_target(plane.engine.state.ledger, MODEL) is None

    asyncio.run(run())


def test_missing_repository_is_a_problem_not_an_end(plane: Plane, tmp_path: Path) -> None:
    """A repository that is not there now is told, and seen once it is."""

    async def run() -> None:
        async with following(plane, tmp_path / "models") as placement:
            await until(lambda: bool(placement.found.problems))
            assert "models" in placement.found.problems[0]
            put(tmp_path / "models", "1")
            await until(lambda: has_route(plane))
            assert placement.found.problems == ()

    asyncio.run(run())


def test_repository_that_is_away_for_a_moment_unloads_nothing(plane: Plane, tmp_path: Path) -> None:
    """Until it is back, what was seen last holds: the rollback target, an operator's load and the newest stay warm."""
    models = tmp_path / "models"
    for version in ("1", "2", "3"):
        put(models, version)

    async def run() -> None:
        async with plane.alive() as engine:
            placement = Placement(engine, models)
            await placement.refresh()
            await plane.begin("1", "2", "3", primary="2")
            await engine.load_or_unload(MODEL, "1", "load", WHY)
            held, generation = plane.engine.state.serving.versions, plane.fleet.generation
            assert [d.version for d in held] == ["1", "2", "3"]
            models.rename(tmp_path / "away")
            found = await placement.refresh()
            assert (found.models, len(found.problems)) == ({MODEL: ("1", "2", "3")}, 1)
            assert plane.engine.state.serving.versions == held
            assert plane.fleet.generation == generation
            (tmp_path / "away").rename(models)
            assert (await placement.refresh()).problems == ()
            assert plane.engine.state.serving.versions == held

    asyncio.run(run())


def test_too_many_versions_end_nothing(
    plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When the slots are used up, placement says so and control goes on."""
    put(tmp_path / "models", "1")

    async def run() -> None:
        async with following(plane, tmp_path / "models"):
            await until(lambda: has_route(plane))
            monkeypatch.setattr("gateway.control.state.SLOTS", 1)
            put(tmp_path / "models", "2")
            await until(lambda: any(r.message == "placement_failed" for r in caplog.records))
            assert wanted(plane) == ["1"]

    asyncio.run(run())


def test_what_is_kept_warm(plane: Plane) -> None:
    """In the route, the rollback target, the newest: those stay loaded, the rest goes."""

    async def run() -> None:
        async with plane.alive() as engine:
            await plane.begin("1", "2", "3", "4", primary="2")
            # Nothing to roll back to yet: the one before the primary.
            await engine.place({MODEL: ("1", "2", "3", "4")})
            assert wanted(plane) == ["1", "2", "4"]
            arms = (
                Variant(name="primary", version="2", role="primary", weight_bp=9_000),
                Variant(name="canary", version="4", role="canary", weight_bp=1_000),
            )
            alone = (Variant(name="primary", version="4", role="primary", weight_bp=10_000),)
            for make in (
                lambda r, c: with_variants(r, arms, c),
                lambda r, c: promoted(r, "canary", c),
                lambda r, c: with_variants(r, alone, c),
                lambda r, c: set_frozen(r, True, c),
                lambda r, c: set_frozen(r, False, c),
            ):
                await engine.change_route(
                    MODEL, "route", WHY, make, expected_revision=engine.route(MODEL).revision
                )
            # A hold in between does not make the rollback target forgotten.
            target = rollback_target(engine.state.ledger, MODEL)
            assert target is not None
            assert (target.revision, wanted(plane)) == (3, ["2", "4"])

    asyncio.run(run())


def test_operator_decides(plane: Plane, tmp_path: Path) -> None:
    """What an operator loaded stays loaded, what he let go stays away, over every look at the repository."""
    for version in ("1", "2", "3"):
        put(tmp_path / "models", version)

    async def run() -> None:
        async with following(plane, tmp_path / "models") as placement:
            await until(lambda: has_route(plane))
            assert wanted(plane) == ["2", "3"]
            await plane.engine.load_or_unload(MODEL, "1", "load", WHY)
            await plane.engine.load_or_unload(MODEL, "2", "unload", WHY)
            await placement.refresh()
            assert wanted(plane) == ["1", "3"]
            with pytest.raises(StateConflict):
                await plane.engine.load_or_unload(MODEL, "3", "unload", WHY)

    asyncio.run(run())


def test_slots_are_never_given_twice(plane: Plane) -> None:
    """A version that comes back has a new slot: counters of another version are not continued."""

    async def run() -> None:
        async with plane.alive() as engine:
            await plane.begin("1", "2")
            used = {d.slot for d in engine.state.serving.versions}
            await engine.load_or_unload(MODEL, "2", "unload", WHY)
            await engine.load_or_unload(MODEL, "2", "load", WHY)
            slot = next(d.slot for d in engine.state.serving.versions if d.version == "2")
            assert slot not in used

    asyncio.run(run())


def test_an_older_look_takes_nothing_away(
    plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that began before a version was put there ends before the one that finds it does."""
    models = tmp_path / "models"
    put(models, "1")
    scan, go_on, looks = module.scan, threading.Event(), []

    def slow(root: Path) -> Found:
        found = scan(root)
        looks.append(found)
        if len(looks) == 1:
            go_on.wait(5)
        return found

    async def run() -> None:
        async with plane.alive() as engine:
            placement = Placement(engine, models)
            older = asyncio.create_task(placement.refresh())
            while not looks:
                await asyncio.sleep(0.001)
            put(models, "2")
            newer = asyncio.create_task(placement.refresh())
            await asyncio.wait({newer}, timeout=0.05)
            go_on.set()
            await older
            assert (await newer).models[MODEL] == ("1", "2")
            assert placement.found.models[MODEL] == ("1", "2")
            assert "2" in wanted(plane)

    monkeypatch.setattr(module, "scan", slow)
    asyncio.run(run())
