"""When the log takes nothing: a hold and the way back go ahead, all else waits, and what is owed is logged."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest

from gateway.audit.event import Control
from gateway.audit.source import claim_source
from gateway.audit.spool_feed import SpoolFeed
from gateway.audit.writer import Writer
from gateway.control import committing as module
from gateway.control import snapshot
from gateway.control.changes import resumed, rolled_back, set_frozen, shifted, stopped, with_variants
from gateway.control.engine import Engine, Outcome
from gateway.control.idempotency import BY_HAND, Asked, made_before
from gateway.control.state import State, applied, rollback_target, route_document
from gateway.errors import AuditUnavailable, RevisionConflict
from gateway.routing import Change, Route, Variant
from tests.gateway.control.plane import GATEWAY_ID, MODEL, WHY, Plane

Body = Callable[[Engine], Awaitable[None]]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_TIMEOUT_S", 0.05)


def go(plane: Plane, body: Body) -> None:
    """Run a body on a route at revision 2: a tenth for version 2."""

    async def run() -> None:
        async with plane.alive() as engine:
            await plane.begin("1", "2")
            await change(engine, "route", lambda r, c: with_variants(r, arms(1000), c))
            await body(engine)

    asyncio.run(run())


def arms(weight_bp: int) -> tuple[Variant, ...]:
    return (
        Variant(name="primary", version="1", role="primary", weight_bp=10_000 - weight_bp),
        Variant(name="canary", version="2", role="canary", weight_bp=weight_bp),
    )


async def change(
    engine: Engine, kind: str, make: Callable[[Route, Change], Route], asked: Asked = BY_HAND
) -> Outcome:
    revision = engine.route(MODEL).revision
    return await engine.change_route(MODEL, kind, WHY, make, expected_revision=revision, asked=asked)


async def freeze(engine: Engine) -> Outcome:
    return await change(engine, "freeze", lambda r, c: set_frozen(r, True, c))


async def shift(engine: Engine, weight_bp: int, asked: Asked = BY_HAND) -> Outcome:
    return await change(engine, "shift", lambda r, c: shifted(r, {"canary": weight_bp}, c), asked)


def refuse(plane: Plane, patch: pytest.MonkeyPatch) -> None:
    """The ring has no room."""
    patch.setattr(plane.writer, "append_events", lambda events: None)


def logged(plane: Plane) -> list[tuple[str, int | None]]:
    """Kind and revision of the route events in the spool, in order."""
    events = SpoolFeed(plane.spool).read(100_000, 0).events
    return [(e.kind, e.revision) for e in events if isinstance(e, Control) and e.model == MODEL]


def succeed(plane: Plane) -> Engine:
    """The process ends, the recorder drains what it left, a successor recovers."""
    mapped = plane.writer.ring.memory.obj
    plane.writer.ring.release()
    mapped.close()
    for fd in plane.writer.source.lock_fds:
        os.close(fd)
    assert plane.recorder is not None
    for _ in range(8):
        plane.recorder.step()
    state = plane.recovered()
    source = claim_source(plane.state_dir, GATEWAY_ID, "control", plane.ring_dir, 1 << 16)
    plane.writer = Writer(source, GATEWAY_ID)
    plane.engine = Engine(state, plane.writer, plane.fleet, plane.path)
    plane.synced = True
    return plane.engine


def test_freeze_goes_ahead(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in effect in every worker, says that it is not logged, and stands in the snapshot as owed."""

    async def body(engine: Engine) -> None:
        refuse(plane, monkeypatch)
        outcome = await freeze(engine)
        assert outcome.applied is not None
        assert (outcome.logged, outcome.applied.workers, outcome.applied.of) == (False, 2, 2)
        serving, ledger = snapshot.decode(plane.path.read_bytes())
        assert serving.routes[MODEL].frozen
        assert [d["kind"] for d in ledger.unlogged] == ["freeze"]

    go(plane, body)


def test_way_back_goes_ahead(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollback to the traffic before needs no log."""

    async def body(engine: Engine) -> None:
        refuse(plane, monkeypatch)
        target = rollback_target(engine.state.ledger, MODEL)
        assert target is not None
        outcome = await change(engine, "rollback", lambda r, c: rolled_back(r, target, c))
        assert not outcome.logged
        assert engine.route(MODEL).weights_bp == {"primary": 10_000}

    go(plane, body)


def test_all_else_waits(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shift, a thaw and a rollback to somewhere else are refused; nothing of them stays."""

    async def body(engine: Engine) -> None:
        await shift(engine, 2000)
        first = engine.state.ledger.history[MODEL][0]
        refuse(plane, monkeypatch)
        with pytest.raises(AuditUnavailable):
            await shift(engine, 0)
        with pytest.raises(AuditUnavailable):
            await change(engine, "rollback", lambda r, c: rolled_back(r, first, c))
        await freeze(engine)
        with pytest.raises(AuditUnavailable):
            await change(engine, "thaw", lambda r, c: set_frozen(r, False, c))
        assert (engine.route(MODEL).revision, engine.route(MODEL).frozen) == (4, True)

    go(plane, body)


def test_a_disk_that_takes_no_records(plane: Plane) -> None:
    """While the recorder cannot write, a change is refused and not made, now or later; a hold goes ahead."""

    async def body(engine: Engine) -> None:
        ring = plane.writer.ring
        before, plane.synced = ring.committed, False
        ring.set_unavailable(True)
        with pytest.raises(AuditUnavailable, match="was not made"):
            await shift(engine, 500)
        await freeze(engine)
        assert (engine.must_restart, engine.route(MODEL).frozen, ring.committed) == (False, True, before)
        plane.synced = True
        ring.set_unavailable(False)
        await engine.catch_up()
        assert ring.committed > before
        assert engine.state.ledger.unlogged == ()

    go(plane, body)


def test_owed_is_logged_first(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the log takes records, the owed change comes before the next one and gets its event's id."""
    plane.record()

    async def body(engine: Engine) -> None:
        with monkeypatch.context() as patch:
            refuse(plane, patch)
            await freeze(engine)
        assert engine.route(MODEL).changed.event is None
        outcome = await change(engine, "thaw", lambda r, c: set_frozen(r, False, c))
        assert outcome.logged
        history = engine.state.ledger.history[MODEL]
        assert [r.revision for r in history] == [1, 2, 3, 4]
        assert all(r.changed.event for r in history)

    go(plane, body)
    assert logged(plane) == [("route", 1), ("route", 2), ("freeze", 3), ("thaw", 4)]


def test_catch_up_needs_no_change(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """It raises while the log takes nothing, then logs, and the snapshot owes nothing any more."""
    plane.record()

    async def body(engine: Engine) -> None:
        with monkeypatch.context() as patch:
            refuse(plane, patch)
            await freeze(engine)
            with pytest.raises(AuditUnavailable):
                await engine.catch_up()
        await engine.catch_up()
        generation = plane.fleet.generation
        await engine.catch_up()
        assert plane.fleet.generation == generation

    go(plane, body)
    assert snapshot.decode(plane.path.read_bytes())[1].unlogged == ()
    assert logged(plane)[-1] == ("freeze", 3)


def test_appended_but_not_on_disk(plane: Plane) -> None:
    """In the ring, in effect, and synced after all: the successor owes nothing and the log has it once."""
    plane.record()

    async def body(engine: Engine) -> None:
        plane.synced = False
        assert not (await freeze(engine)).logged
        assert not engine.must_restart, "it is in effect, whatever becomes of its record"

    go(plane, body)
    successor = succeed(plane)
    assert (successor.route(MODEL).revision, successor.route(MODEL).frozen) == (3, True)
    assert successor.state.ledger.unlogged == ()
    assert logged(plane) == [("route", 1), ("route", 2), ("freeze", 3)]


def test_appended_and_on_disk_later(plane: Plane) -> None:
    """A disk that is slow: what is in effect is not appended again, and all goes on once it has it; others wait."""
    plane.record()

    async def body(engine: Engine) -> None:
        plane.synced = False
        await freeze(engine)
        assert not (await stop(engine)).logged
        with pytest.raises(AuditUnavailable):
            await change(engine, "resume", resumed)
        with pytest.raises(AuditUnavailable):
            await engine.catch_up()
        plane.synced = True
        await engine.catch_up()
        assert (engine.state.ledger.unlogged, engine.must_restart) == ((), False)
        assert (await change(engine, "resume", resumed)).logged

    go(plane, body)
    assert logged(plane) == [("route", 1), ("route", 2), ("freeze", 3), ("stop", 4), ("resume", 5)]
    assert plane.recovered() == plane.engine.state


def test_hold_behind_a_change_of_unknown_fate(plane: Plane) -> None:
    """The hold takes a number past it; what the log then says of the other does not undo the hold."""
    plane.record()

    async def body(engine: Engine) -> None:
        plane.synced = False
        with pytest.raises(AuditUnavailable):
            await shift(engine, 5000)
        outcome = await freeze(engine)
        assert outcome.route is not None
        assert (outcome.route.revision, outcome.logged) == (4, False)

    go(plane, body)
    successor = succeed(plane)
    route = successor.route(MODEL)
    assert (route.revision, route.frozen, route.weights_bp["canary"]) == (4, True, 1000)

    async def repay() -> None:
        async with plane.alive() as engine:
            await engine.catch_up()

    asyncio.run(repay())
    assert logged(plane)[-2:] == [("shift", 3), ("freeze", 4)]
    assert plane.recovered().serving.routes[MODEL].frozen


@pytest.mark.parametrize("held", [False, True])
def test_a_key_is_known_only_of_what_was_made(plane: Plane, held: bool) -> None:
    """A change of unknown fate that a hold overtook is not made, though the log has it: asked for again it is no
    repetition. What the log made of it alone is."""
    plane.record()
    once = Asked(key="k1", digest="a" * 64)

    async def body(engine: Engine) -> None:
        plane.synced = False
        with pytest.raises(AuditUnavailable):
            await shift(engine, 5000, once)
        if held:
            await freeze(engine)

    go(plane, body)
    successor = succeed(plane)
    made = successor.route(MODEL).weights_bp["canary"] == 5000
    assert made is not held
    assert (made_before(successor.state.ledger.done, WHY.by, once) is not None) is made


def test_full_disk_is_told(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """When not even the snapshot can be written nothing changes, and the answer says so."""

    async def body(engine: Engine) -> None:
        def full(path: object, content: bytes) -> None:
            raise OSError(28, "No space left on device")

        refuse(plane, monkeypatch)
        monkeypatch.setattr(snapshot, "write", full)
        with pytest.raises(AuditUnavailable, match=r"could not be logged, .*No space left on device"):
            await freeze(engine)
        assert not engine.route(MODEL).frozen

    go(plane, body)


def test_reading_again_changes_nothing(plane: Plane) -> None:
    """Any event read a second time, in any place behind its first, leaves routes and history as they are."""

    async def body(engine: Engine) -> None:
        await shift(engine, 2000)
        await freeze(engine)

    go(plane, body)
    state: State = plane.engine.state
    for route in state.ledger.history[MODEL]:
        event = Control(
            kind="route",
            id=route.changed.event or "",
            model=MODEL,
            revision=route.revision,
            after=route_document(route),
        )
        again = applied(state, event)
        assert again.serving == state.serving
        assert again.ledger.history == state.ledger.history


async def stop(engine: Engine) -> Outcome:
    return await change(engine, "stop", stopped)


def test_a_stop_goes_ahead(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a freeze does; also of a route that is frozen. Its end waits for the log."""

    async def body(engine: Engine) -> None:
        refuse(plane, monkeypatch)
        await freeze(engine)
        assert not (await stop(engine)).logged
        serving, ledger = snapshot.decode(plane.path.read_bytes())
        assert serving.routes[MODEL].stopped is not None
        assert [d["kind"] for d in ledger.unlogged] == ["freeze", "stop"]
        with pytest.raises(AuditUnavailable):
            await change(engine, "resume", resumed)

    go(plane, body)


def test_who_waits_for_the_log_holds_no_hold_up(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """A freeze goes before shifts that wait, for the log or behind each other, however long these would."""
    monkeypatch.setattr(module, "LOG_TIMEOUT_S", 60)
    monkeypatch.setattr(module, "URGENT_TIMEOUT_S", 0.02)

    async def body(engine: Engine) -> None:
        with monkeypatch.context() as patch:
            refuse(plane, patch)
            waiting = [asyncio.create_task(shift(engine, weight)) for weight in range(2000, 2010)]
            await asyncio.sleep(0.03)
            freezing = asyncio.create_task(freeze(engine))
            async with asyncio.timeout(5):
                while engine.route(MODEL).revision < 3:
                    await asyncio.sleep(0)
            assert sum(task.done() for task in waiting) <= 1, (
                "the one that waited for the log gave up, no other came first"
            )
            assert not (await freezing).logged
        # With a log again they are told that the route has moved on.
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(each) for each in found} <= {AuditUnavailable, RevisionConflict}

    go(plane, body)


def test_a_worker_that_hangs_holds_no_hold_up(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shift that waits for a worker is made already: others do not wait with it."""
    monkeypatch.setattr(module, "LOG_TIMEOUT_S", 5)
    monkeypatch.setattr(module, "APPLY_TIMEOUT_S", 60)

    async def body(engine: Engine) -> None:
        plane.absent.add(1)
        waiting = asyncio.create_task(shift(engine, 2000))
        while engine.route(MODEL).revision < 3:
            await asyncio.sleep(0)
        freezing = asyncio.create_task(freeze(engine))
        while engine.route(MODEL).revision < 4:
            await asyncio.sleep(0)
        assert not waiting.done()
        plane.absent.clear()
        outcome, first = await freezing, await waiting
        assert outcome.applied is not None
        assert first.route is not None
        assert (first.route.revision, outcome.applied.pending) == (3, ())

    go(plane, body)
