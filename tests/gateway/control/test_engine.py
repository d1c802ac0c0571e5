"""Changes of control state: what is refused, what is answered, and in which order it happens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from gateway import fleet as words_of
from gateway.audit.event import Control
from gateway.audit.frame import expand
from gateway.control import committing as module
from gateway.control import snapshot, state
from gateway.control.changes import promoted, set_frozen, shifted, with_variants
from gateway.control.engine import Engine, Outcome
from gateway.errors import (
    AuditUnavailable,
    ReasonRequired,
    RevisionConflict,
    StateConflict,
    UnknownModel,
)
from gateway.routing import Change, Route, Variant
from tests.gateway.control.plane import MODEL, WHY, Plane


def go(plane: Plane, body: Callable[[Engine], Awaitable[None]], *versions: str) -> None:
    """Run a body beside recorder and workers, after the first route."""

    async def run() -> None:
        async with plane.alive() as engine:
            await plane.begin(*(versions or ("1", "2")))
            await body(engine)

    asyncio.run(run())


def arms(weight_bp: int) -> tuple[Variant, ...]:
    """A primary on 1 and a canary on 2."""
    return (
        Variant(name="primary", version="1", role="primary", weight_bp=10_000 - weight_bp),
        Variant(name="canary", version="2", role="canary", weight_bp=weight_bp),
    )


async def split(engine: Engine, weight_bp: int, **kwargs: bool) -> Outcome:
    """Set the canary's weight through a whole set of variants."""
    return await engine.change_route(
        MODEL,
        "route",
        WHY,
        lambda r, c: with_variants(r, arms(weight_bp), c),
        expected_revision=engine.route(MODEL).revision,
        **kwargs,
    )


def to(weight_bp: int) -> Callable[[Route, Change], Route]:
    """A shift of the canary."""
    return lambda route, change: shifted(route, {"canary": weight_bp}, change)


def control_events(plane: Plane) -> list[Control]:
    """What the ring holds of control events, in order."""
    frames, _, _ = plane.writer.ring.read(0, 1 << 30)
    source = plane.writer.source
    events = (event for frame in frames for event in expand(source.source, source.epoch, frame))
    return [event for event in events if isinstance(event, Control)]


def test_change_is_logged_written_and_taken_up(plane: Plane) -> None:
    """The answer comes when log, snapshot, shared memory and every worker agree on the new revision."""

    async def body(engine: Engine) -> None:
        outcome = await split(engine, 2_500)
        assert outcome.applied is not None
        assert (outcome.applied.workers, outcome.applied.of, outcome.applied.pending) == (2, 2, ())
        assert outcome.before is not None
        assert outcome.before.weights_bp == {"primary": 10_000}
        logged = control_events(plane)[-1]
        assert outcome.route is not None
        assert (logged.kind, logged.revision, logged.id) == ("route", 2, outcome.route.changed.event)
        assert (logged.by, logged.reason) == (WHY.by, WHY.reason)
        serving, ledger = snapshot.decode(plane.path.read_bytes())
        assert serving.routes[MODEL] == outcome.route == engine.route(MODEL)
        assert ledger.last_event == logged.id
        assert plane.fleet.generation == serving.generation == outcome.generation

    go(plane, body)


def test_stale_revision(plane: Plane) -> None:
    """A change decided on an older revision is refused, saying where the route stands and who moved it."""

    async def body(engine: Engine) -> None:
        await split(engine, 100)
        with pytest.raises(
            RevisionConflict, match=r"at revision 2, you sent 1: changed by test \(because\)"
        ) as no:
            await engine.change_route(MODEL, "shift", WHY, to(200), expected_revision=1)
        assert (no.value.revision, no.value.event) == (2, engine.route(MODEL).changed.event)

    go(plane, body)


def test_of_racing_shifts_one_wins(plane: Plane) -> None:
    """Of changes decided on the same revision exactly one is made, and only that is logged."""

    async def body(engine: Engine) -> None:
        await split(engine, 100)
        logged = len(control_events(plane))
        shifts = [
            engine.change_route(MODEL, "shift", WHY, to(w), expected_revision=2) for w in (200, 300, 400)
        ]
        results = await asyncio.gather(*shifts, return_exceptions=True)
        won = [r for r in results if isinstance(r, Outcome)]
        assert len(won) == 1
        assert sum(isinstance(r, RevisionConflict) for r in results) == 2
        assert won[0].route == engine.route(MODEL)
        assert len(control_events(plane)) == logged + 1

    go(plane, body)


@pytest.mark.parametrize("reason", ["", "  \n"])
def test_reason_is_required(plane: Plane, reason: str) -> None:
    """No change without a reason, and a blank one is none."""
    why = msgspec.structs.replace(WHY, reason=reason)

    async def body(engine: Engine) -> None:
        with pytest.raises(ReasonRequired):
            await engine.change_route(MODEL, "shift", why, to(1), expected_revision=1)
        with pytest.raises(ReasonRequired):
            await engine.load_or_unload(MODEL, "2", "load", why)

    go(plane, body)


def test_unknown_model(plane: Plane) -> None:
    """A model without a route cannot be shifted, a version that is not on disk cannot be loaded."""

    async def body(engine: Engine) -> None:
        with pytest.raises(UnknownModel):
            await engine.change_route("other", "shift", WHY, to(1), expected_revision=1)
        with pytest.raises(UnknownModel):
            await engine.load_or_unload(MODEL, "9", "load", WHY)

    go(plane, body)


def test_weight_only_to_what_is_ready(plane: Plane) -> None:
    """A version that one worker could not load gets no weight; the refusal names variant, worker and why."""
    plane.failed[1, "2"] = "bad file"

    async def body(engine: Engine) -> None:
        with pytest.raises(StateConflict, match=r"canary: version 2 is failed in worker 1 \(bad file\)"):
            await split(engine, 100)
        await split(engine, 0)
        with pytest.raises(StateConflict, match="version 2 is failed in worker 1"):
            await engine.change_route(MODEL, "shift", WHY, to(1), expected_revision=2)

    go(plane, body)


def test_version_that_is_not_there(plane: Plane) -> None:
    """A version that is not in the repository is a conflict with what is there, weight or not."""

    async def body(engine: Engine) -> None:
        for role in ("canary", "shadow"):
            variants = (arms(0)[0], Variant(name="x", version="7", role=role))
            with pytest.raises(StateConflict, match=r"m has no version 7 \(the repository has 1, 2\)"):
                await engine.change_route(
                    MODEL,
                    "route",
                    WHY,
                    lambda r, c, v=variants: with_variants(r, v, c),  # type: ignore[misc]
                    expected_revision=1,
                )

    go(plane, body)


def test_weight_may_be_taken_from_what_is_not_ready(plane: Plane) -> None:
    """While a worker is down with a bad canary, its weight can be lowered and the route be held, not raised."""

    async def body(engine: Engine) -> None:
        await split(engine, 5_000)
        for version in ("1", "2"):
            plane.failed[0, version] = "loading"
        plane.step()
        with pytest.raises(StateConflict, match="version 2 is loading in worker 0"):
            await engine.change_route(MODEL, "shift", WHY, to(6_000), expected_revision=2)
        with pytest.raises(StateConflict, match="version 2 is loading in worker 0"):
            await engine.change_route(
                MODEL, "promote", WHY, lambda r, c: promoted(r, "canary", c), expected_revision=2
            )
        await engine.change_route(MODEL, "shift", WHY, to(100), expected_revision=2)
        await engine.change_route(MODEL, "shift", WHY, to(0), expected_revision=3)
        await engine.change_route(
            MODEL, "freeze", WHY, lambda r, c: set_frozen(r, True, c), expected_revision=4
        )

    go(plane, body)


def test_version_gone_from_disk_blocks_nothing(plane: Plane) -> None:
    """After a promote the old version's directory may go; the route can still be changed."""

    async def body(engine: Engine) -> None:
        await split(engine, 100)
        await engine.change_route(
            MODEL, "promote", WHY, lambda r, c: promoted(r, "canary", c), expected_revision=2
        )
        await engine.place({MODEL: ("2",)})
        await engine.change_route(
            MODEL, "freeze", WHY, lambda r, c: set_frozen(r, True, c), expected_revision=3
        )

    go(plane, body)


def test_pending_worker_is_named(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that does not take the change up in time is named; the change stands."""
    monkeypatch.setattr(module, "APPLY_TIMEOUT_S", 0.05)

    async def body(engine: Engine) -> None:
        plane.absent.add(1)
        outcome = await split(engine, 100)
        assert outcome.applied is not None
        assert (outcome.applied.workers, outcome.applied.of, outcome.applied.pending) == (1, 2, (1,))
        assert engine.route(MODEL).revision == 2

    go(plane, body)


def test_dead_worker_is_not_waited_for(plane: Plane) -> None:
    """Only live workers count."""

    async def body(engine: Engine) -> None:
        plane.absent.add(1)
        plane.fleet.zero_gauges(1)
        outcome = await split(engine, 100)
        assert outcome.applied is not None
        assert (outcome.applied.of, outcome.applied.pending) == (1, ())

    go(plane, body)


def test_dry_run_changes_nothing(plane: Plane) -> None:
    """A dry run shows the route as it would be; log, snapshot and generation stay."""

    async def body(engine: Engine) -> None:
        before = (plane.path.read_bytes(), plane.writer.ring.committed, plane.fleet.generation, engine.state)
        outcome = await split(engine, 100, dry_run=True)
        assert outcome.applied is None
        assert outcome.route is not None
        assert outcome.route.weights_bp == {"primary": 9_900, "canary": 100}
        after = (plane.path.read_bytes(), plane.writer.ring.committed, plane.fleet.generation, engine.state)
        assert after == before

    go(plane, body)


def test_unload_of_what_serves(plane: Plane) -> None:
    """A version in the route is not unloaded; another one is, and stays so until it is loaded again."""

    async def body(engine: Engine) -> None:
        with pytest.raises(StateConflict, match="in the route; take it out first"):
            await engine.load_or_unload(MODEL, "1", "unload", WHY)
        await engine.load_or_unload(MODEL, "2", "unload", WHY)
        assert engine.load_states(MODEL, "2") == {}
        await engine.load_or_unload(MODEL, "2", "load", WHY)
        assert set(engine.load_states(MODEL, "2")) == {0, 1}

    go(plane, body)


def test_no_room_in_the_log(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room in the log the change is not made, and the next one can be."""
    monkeypatch.setattr(module, "LOG_TIMEOUT_S", 0.05)

    async def body(engine: Engine) -> None:
        append = plane.writer.append_events
        monkeypatch.setattr(plane.writer, "append_events", lambda events: None)
        with pytest.raises(AuditUnavailable, match="was not made"):
            await split(engine, 100)
        assert (engine.route(MODEL).revision, engine.must_restart) == (1, False)
        monkeypatch.setattr(plane.writer, "append_events", append)
        await split(engine, 100)

    go(plane, body)


def test_unknown_fate_ends_all_changes(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk does not take the event in time, nothing is built on top of it: control must restart."""
    monkeypatch.setattr(module, "LOG_TIMEOUT_S", 0.05)

    async def body(engine: Engine) -> None:
        plane.synced = False
        with pytest.raises(AuditUnavailable, match="control restarts"):
            await split(engine, 100)
        plane.synced = True
        logged = len(control_events(plane))
        with pytest.raises(AuditUnavailable, match="control restarts"):
            await split(engine, 200)
        assert engine.must_restart
        assert (engine.route(MODEL).revision, len(control_events(plane))) == (1, logged)

    go(plane, body)


def test_snapshot_that_cannot_be_written(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk behind a logged change: control restarts and recovers it; it never shows what is not served."""

    async def body(engine: Engine) -> None:
        def full(path: Path, content: bytes) -> None:
            raise OSError(28, "No space left on device")

        generation = plane.fleet.generation
        monkeypatch.setattr(snapshot, "write", full)
        with pytest.raises(AuditUnavailable, match="No space left on device"):
            await split(engine, 100)
        assert engine.must_restart
        assert (engine.route(MODEL).revision, plane.fleet.generation) == (1, generation)

    go(plane, body)


def test_placement_is_tried_again(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot that failed once is written by the next look at the repository."""

    async def body(engine: Engine) -> None:
        def full(path: Path, content: bytes) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(snapshot, "write", full)
            with pytest.raises(OSError, match="No space"):
                await engine.place({MODEL: ("1", "2", "3")})
        assert await engine.place({MODEL: ("1", "2", "3")})
        assert not await engine.place({MODEL: ("1", "2", "3")})

    go(plane, body)


def test_no_slot_left_is_told_before_it_is_logged(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that placement cannot follow is refused, and the log knows nothing of it."""

    async def body(engine: Engine) -> None:
        await engine.load_or_unload(MODEL, "2", "unload", WHY)
        monkeypatch.setattr(state, "SLOTS", 1)
        logged = len(control_events(plane))
        with pytest.raises(StateConflict, match="unload some to load more"):
            await engine.load_or_unload(MODEL, "2", "load", WHY)
        assert len(control_events(plane)) == logged

    go(plane, body, "1", "2", "3")


def test_routes_are_logged_whole(plane: Plane) -> None:
    """At each epoch the log holds every route, salt included, so that replay needs nothing older."""

    async def body(engine: Engine) -> None:
        await engine.log_routes()
        event = control_events(plane)[-1]
        assert event.kind == "routes"
        assert event.after is not None
        assert msgspec.convert(event.after[MODEL], Route) == engine.route(MODEL)
        assert engine.state.ledger.last_event == event.id

    go(plane, body)


def test_slots_begin_at_0_in_a_new_fleet() -> None:
    """Renumbering keeps the versions and their order."""
    versions = tuple(snapshot.DesiredVersion(model="m", version=v, slot=s) for v, s in (("1", 400), ("2", 7)))
    serving = snapshot.Serving(gateway_id="g", generation=3, versions=versions)
    after = state.renumbered(state.State(serving, snapshot.Ledger(next_slot=401)))
    assert [(v.version, v.slot) for v in after.serving.versions] == [("1", 0), ("2", 1)]
    assert after.ledger.next_slot == 2


def test_states_are_read_by_slot(plane: Plane) -> None:
    """A version's states come with the reason that the worker gave."""
    plane.failed[0, "2"] = "no such operator"

    async def body(engine: Engine) -> None:
        assert engine.load_states(MODEL, "2") == {0: ("failed", "no such operator"), 1: ("ready", "")}
        slot = next(v.slot for v in engine.state.serving.versions if v.version == "2")
        assert plane.fleet.slot(0, slot)[words_of.LOAD_STATE] == words_of.LOAD_FAILED

    go(plane, body)
