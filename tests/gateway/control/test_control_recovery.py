"""A control process killed at any step of a change: its successor has the old state or the new, as the log says."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.audit.event import Control
from gateway.audit.source import claim_source
from gateway.audit.spool_feed import SpoolFeed
from gateway.audit.writer import Writer
from gateway.control import recovery, snapshot
from gateway.control import state as module
from gateway.control.changes import set_frozen, stopped, with_variants
from gateway.control.committing import Commit
from gateway.control.state import State, applied, rollback_target, route_document, whole
from gateway.errors import SnapshotCorrupt, StateFormatNewer
from gateway.fleet import Fleet
from gateway.routing import Variant, first_route
from tests.gateway.control.plane import GATEWAY_ID, MODEL, WHY, Plane


class Killed(BaseException):
    """kill -9, as far as one process can have it."""


def kill(*_: object) -> None:
    """In place of the step."""
    raise Killed


def before_append(plane: Plane, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plane.writer, "append_events", kill)


def after_append(plane: Plane, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plane.writer, "event_id", kill)


def after_sync(plane: Plane, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(snapshot, "write", kill)


def half_written(plane: Plane, patch: pytest.MonkeyPatch) -> None:
    def write(path: Path, content: bytes) -> None:
        path.with_name(path.name + ".new").write_bytes(content[: len(content) // 2])
        raise Killed

    patch.setattr(snapshot, "write", write)


def before_rename(plane: Plane, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Path, "rename", kill)


def after_rename(plane: Plane, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Fleet, "publish_generation", kill)


def after_publish(plane: Plane, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Commit, "wait_applied", kill)


STEPS: dict[Callable[[Plane, pytest.MonkeyPatch], None], int] = {
    before_append: 1,
    after_append: 2,
    after_sync: 2,
    half_written: 2,
    before_rename: 2,
    after_rename: 2,
    after_publish: 2,
}
"""Each step and the revision behind it."""


def shift(plane: Plane, weight_bp: int = 100) -> None:
    """Version 2 gets some weight."""
    variants = (
        Variant(name="primary", version="1", role="primary", weight_bp=10_000 - weight_bp),
        Variant(name="canary", version="2", role="canary", weight_bp=weight_bp),
    )

    async def run() -> None:
        async with plane.alive() as engine:
            revision = engine.route(MODEL).revision
            await engine.change_route(
                MODEL, "route", WHY, lambda r, c: with_variants(r, variants, c), expected_revision=revision
            )

    asyncio.run(run())


def stop(plane: Plane) -> None:
    """Nothing of the model is answered any more."""

    async def run() -> None:
        async with plane.alive() as engine:
            revision = engine.route(MODEL).revision
            await engine.change_route(MODEL, "stop", WHY, stopped, expected_revision=revision)

    asyncio.run(run())


def begin(plane: Plane) -> None:
    """Versions 1 and 2, first route, a real recorder."""

    async def run() -> None:
        async with plane.alive():
            await plane.begin("1", "2")

    plane.record()
    asyncio.run(run())


def forget(plane: Plane) -> None:
    """The engine's process is gone: its locks go, its ring stays until the recorder is done with it."""
    mapped = plane.writer.ring.memory.obj
    plane.writer.ring.release()
    mapped.close()
    for fd in plane.writer.source.lock_fds:
        os.close(fd)


def drain(plane: Plane) -> None:
    """The recorder does what it has to do."""
    assert plane.recorder is not None
    for _ in range(8):
        plane.recorder.step()


def logged(plane: Plane) -> list[Control]:
    """Every control event in the spool, in order."""
    return [e for e in SpoolFeed(plane.spool).read(100_000, 0).events if isinstance(e, Control)]


@pytest.mark.parametrize("make", [shift, stop])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_old_or_new_never_between(
    plane: Plane,
    step: Callable[[Plane, pytest.MonkeyPatch], None],
    make: Callable[[Plane], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a kill at this step of a shift or a stop the state is that of the log's last control event."""
    begin(plane)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        step(plane, patch)
        make(plane)
    forget(plane)
    drain(plane)
    state = plane.recovered()
    route, last = state.serving.routes[MODEL], logged(plane)[-1]
    assert route.revision == STEPS[step] == last.revision
    assert last.after is not None
    assert [v.version for v in route.variants] == [v["version"] for v in last.after["variants"]]
    assert (route.stopped is None) == (last.after["stopped"] is None)
    assert state.ledger.last_event == last.id == route.changed.event
    assert [r.revision for r in state.ledger.history[MODEL]] == list(range(1, STEPS[step] + 1))
    assert plane.recovered() == state


def test_successor_continues(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next control process publishes what it recovered and makes the next revision."""
    begin(plane)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        after_sync(plane, patch)
        shift(plane)
    generation = plane.fleet.generation
    forget(plane)
    drain(plane)
    source = claim_source(plane.state_dir, GATEWAY_ID, "control", plane.ring_dir, 1 << 20)
    plane.writer = Writer(source, GATEWAY_ID)
    plane.engine = type(plane.engine)(plane.recovered(), plane.writer, plane.fleet, plane.path)
    plane.engine.publish()
    assert plane.fleet.generation == generation + 1

    async def run() -> None:
        async with plane.alive() as engine:
            await engine.place({MODEL: ("1", "2")})
            await engine.change_route(
                MODEL, "freeze", WHY, lambda r, c: set_frozen(r, True, c), expected_revision=2
            )

    asyncio.run(run())
    assert [e.revision for e in logged(plane) if e.revision] == [1, 2, 3]
    assert plane.recovered() == plane.engine.state


def test_load_and_unload_are_recovered(plane: Plane) -> None:
    """What an operator loaded or let go holds without the snapshot."""
    begin(plane)

    async def run() -> None:
        async with plane.alive() as engine:
            await engine.load_or_unload(MODEL, "2", "load", WHY)
            await engine.load_or_unload(MODEL, "2", "unload", WHY)

    asyncio.run(run())
    plane.path.unlink()
    assert plane.recovered().ledger.unloaded == ((MODEL, "2"),)
    assert plane.recovered().ledger.loaded == ()


def test_lost_snapshot_is_made_from_the_log(plane: Plane) -> None:
    """Without a snapshot the routes come back from control's own events alone."""
    begin(plane)
    shift(plane)
    plane.path.unlink()
    state = plane.recovered()
    assert state.serving.routes == plane.engine.state.serving.routes
    assert state.ledger.history == plane.engine.state.ledger.history


def test_lost_snapshot_after_retention(plane: Plane) -> None:
    """When retention took what is older than the last whole state, that alone brings routes, loads and the way back."""
    begin(plane)
    shift(plane)
    stop(plane)

    async def run() -> None:
        async with plane.alive() as engine:
            await engine.load_or_unload(MODEL, "2", "load", WHY)
            await engine.log_routes()

    asyncio.run(run())
    before = plane.engine.state
    last = logged(plane)[-1]
    assert last.kind == "routes"
    empty = State(snapshot.Serving(gateway_id=GATEWAY_ID, generation=0), snapshot.Ledger())
    state = recovery.caught_up(empty, [last])
    assert state.serving.routes == before.serving.routes
    assert state.ledger.loaded == before.ledger.loaded == ((MODEL, "2"),)
    assert rollback_target(state.ledger, MODEL) == rollback_target(before.ledger, MODEL)


def test_many_routes_are_several_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fits a frame, and together they are the whole state."""
    monkeypatch.setattr(module, "WHOLE_MAX_BYTES", 1_000)
    empty = State(snapshot.Serving(gateway_id=GATEWAY_ID, generation=0), snapshot.Ledger())
    state = empty
    for number in range(20):
        route = first_route(f"m{number}", "1", "ab" * 16, WHY)
        event = Control(kind="route", id="e", model=route.model, revision=1, after=route_document(route))
        state = applied(state, event)
    parts = whole(state)
    assert len(parts) > 3
    again = empty
    for part in parts:
        again = applied(again, Control(kind="routes", id="e", after=part))
    assert again.serving.routes == state.serving.routes


def test_routes_of_an_older_gateway(plane: Plane) -> None:
    """Its event holds routes alone: what was loaded by hand is left as it was."""
    route = first_route(MODEL, "1", "ab" * 16, WHY)
    ledger = snapshot.Ledger(loaded=((MODEL, "2"),))
    state = State(snapshot.Serving(gateway_id=GATEWAY_ID, generation=0), ledger)
    state = applied(state, Control(kind="routes", id="e", after={MODEL: route_document(route)}))
    assert state.serving.routes == {MODEL: route}
    assert state.ledger.loaded == ((MODEL, "2"),)


def test_nothing_there(tmp_path: Path) -> None:
    """A first start begins empty."""
    state = recovery.recover(tmp_path / "none", tmp_path / "spool", GATEWAY_ID)
    assert state == State(snapshot.Serving(gateway_id=GATEWAY_ID, generation=0), snapshot.Ledger())


@pytest.mark.parametrize("line", [0, 1, 2])
def test_damaged_snapshot_is_refused(tmp_path: Path, line: int) -> None:
    """A changed byte in any line is found; nothing is guessed."""
    content = snapshot.encode(snapshot.Serving(gateway_id=GATEWAY_ID, generation=7), snapshot.Ledger())
    lines = content.split(b"\n")
    lines[line] = lines[line].replace(b"e", b"f", 1)
    (tmp_path / "snapshot").write_bytes(b"\n".join(lines))
    with pytest.raises(SnapshotCorrupt):
        recovery.recover(tmp_path / "snapshot", tmp_path / "spool", GATEWAY_ID)
    with pytest.raises(SnapshotCorrupt, match="expected 4"):
        snapshot.decode(content[:40])


def test_newer_snapshot_is_refused() -> None:
    """A newer Tidegate's state is not read."""
    content = snapshot.encode(snapshot.Serving(gateway_id=GATEWAY_ID, generation=7), snapshot.Ledger())
    with pytest.raises(StateFormatNewer, match="has format 9, this Tidegate knows 1"):
        snapshot.decode(content.replace(b'"format":1', b'"format":9'))
