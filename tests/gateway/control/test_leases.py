"""Leases in the engine: logged, cheap for history, and found again by a successor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from gateway import config, settings
from gateway.audit.event import Control
from gateway.audit.spool_feed import SpoolFeed
from gateway.control import committing as module
from gateway.control import snapshot
from gateway.control.changes import rolled_back_canary, set_frozen, shifted, with_variants
from gateway.control.engine import Engine
from gateway.control.state import rollback_target
from gateway.errors import AuditUnavailable
from gateway.routing import Change, Variant
from tests.gateway.control.plane import MODEL, WHY, Plane

S = 1_000_000_000
ARMS = (
    Variant(name="primary", version="1", role="primary", weight_bp=9_000),
    Variant(name="canary", version="2", role="canary", weight_bp=1_000),
)


def at(at_ns: int) -> Change:
    """A change at that time."""
    return Change(by="sidecar", reason="watched", at_ns=at_ns)


def go(plane: Plane, body: Callable[[Engine], Awaitable[None]]) -> None:
    """Run a body on a route at revision 2, a tenth for version 2 under ramp "auto" with 15 s of lease."""
    plane.record()
    plane.engine.policy_of = config.load(overrides=[f"policy.{MODEL}.ramp=auto"], environ={})[0].policy_of

    async def run() -> None:
        async with plane.alive() as engine:
            await plane.begin("1", "2")
            await engine.change_route(
                MODEL, "route", at(S), lambda r, c: with_variants(r, ARMS, c), expected_revision=1
            )
            await body(engine)

    asyncio.run(run())


def end_ns(plane: Plane) -> int | None:
    """End of the canary's lease, as workers read it."""
    serving, _ = snapshot.decode(plane.path.read_bytes())
    return serving.routes[MODEL].variant("canary").lease_until_ns


def logged(plane: Plane) -> list[Control]:
    """The route's events in the spool, in order."""
    events = SpoolFeed(plane.spool).read(100_000, 0).events
    return [e for e in events if isinstance(e, Control) and e.model == MODEL]


def test_change_begins_the_lease_in_its_own_revision(plane: Plane) -> None:
    """One event, one revision, and the end stands in both."""

    async def body(engine: Engine) -> None:
        assert engine.route(MODEL).revision == 2
        assert end_ns(plane) == 16 * S

    go(plane, body)
    last = logged(plane)[-1]
    assert last.after is not None
    assert (last.kind, last.after["variants"][1]["lease_until_ns"]) == ("route", 16 * S)


def test_renewal_is_logged_and_no_revision(plane: Plane) -> None:
    """Each one is an event with the whole route; number, author and history of the revision stay."""

    async def body(engine: Engine) -> None:
        before = engine.state
        for number in range(1, 6):
            outcome = await engine.renew_leases(MODEL, at((10 + number) * S), expected_revision=2)
            assert outcome.generation == before.serving.generation + number
        route = engine.route(MODEL)
        assert (route.revision, route.changed) == (2, before.serving.routes[MODEL].changed)
        assert end_ns(plane) == 30 * S
        assert engine.state.ledger.history == before.ledger.history
        target = rollback_target(engine.state.ledger, MODEL)
        assert target is not None
        assert target.revision == 1

    go(plane, body)
    renewals = [e for e in logged(plane) if e.kind == "lease"]
    assert [(e.revision, e.by) for e in renewals] == [(2, "sidecar")] * 5
    assert all(e.after is not None and e.after["model"] == MODEL for e in renewals)


def test_hold_between_renewals_hides_no_target(plane: Plane) -> None:
    """Revisions that differ in ends of leases only are the same traffic."""

    async def body(engine: Engine) -> None:
        await engine.renew_leases(MODEL, at(20 * S), expected_revision=2)
        for number, frozen in ((2, True), (3, False)):
            kind = "freeze" if frozen else "thaw"
            await engine.change_route(
                MODEL,
                kind,
                at((20 + number) * S),
                lambda r, c, f=frozen: set_frozen(r, f, c),  # type: ignore[misc]
                expected_revision=number,
            )
        assert end_ns(plane) == 38 * S
        target = rollback_target(engine.state.ledger, MODEL)
        assert target is not None
        assert target.revision == 1

    go(plane, body)


def test_hold_takes_the_lease_off(plane: Plane) -> None:
    """While a human holds the split nobody need renew it."""

    async def body(engine: Engine) -> None:
        await engine.change_route(
            MODEL, "freeze", at(2 * S), lambda r, c: set_frozen(r, True, c), expected_revision=2
        )
        assert end_ns(plane) is None

    go(plane, body)


def test_ramp_that_became_manual(plane: Plane) -> None:
    """Control started with another policy takes off what still runs; what is over stays over, "auto" keeps both."""

    async def body(engine: Engine) -> None:
        soon_ns = time.time_ns() + 3_600 * S
        await engine.renew_leases(MODEL, at(soon_ns), expected_revision=2)
        await engine.release_leases()
        assert end_ns(plane) == soon_ns + 15 * S
        manual = settings.Config().policy_of
        engine.policy_of, auto = manual, engine.policy_of
        await engine.release_leases()
        assert end_ns(plane) is None
        engine.policy_of = auto
        await engine.renew_leases(MODEL, at(2 * S), expected_revision=2)
        engine.policy_of = manual
        await engine.release_leases()
        assert (end_ns(plane), engine.route(MODEL).revision) == (17 * S, 2)

    go(plane, body)
    assert [(e.kind, e.by) for e in logged(plane)][-3:] == [
        ("lease", "sidecar"),
        ("lease", "gateway"),
        ("lease", "sidecar"),
    ]


def test_renewal_behind_a_snapshot_is_recovered(plane: Plane) -> None:
    """A kill between log and snapshot loses no renewal; without a snapshot all come back."""

    async def body(engine: Engine) -> None:
        await engine.renew_leases(MODEL, at(10 * S), expected_revision=2)
        older = plane.path.read_bytes()
        await engine.renew_leases(MODEL, at(20 * S), expected_revision=2)
        plane.path.write_bytes(older)

    go(plane, body)
    assert end_ns(plane) == 25 * S
    assert plane.recovered().serving.routes == plane.engine.state.serving.routes
    plane.path.unlink()
    state = plane.recovered()
    assert state.serving.routes == plane.engine.state.serving.routes
    assert state.ledger.history == plane.engine.state.ledger.history


def test_latch_outlives_its_control(plane: Plane) -> None:
    """It stands in the route: from the snapshot, or from the log alone, then with the event that set it."""

    async def body(engine: Engine) -> None:
        await engine.change_route(
            MODEL, "rollback", at(S), lambda r, c: rolled_back_canary(r, "canary", c), expected_revision=2
        )

    go(plane, body)
    for _ in range(2):
        route = plane.recovered().serving.routes[MODEL]
        assert (route.latched, route.weights_bp) == (("2",), {"primary": 10_000, "canary": 0})
        assert route.latches["2"].event == route.changed.event == logged(plane)[-1].id
        plane.path.unlink(missing_ok=True)


def test_renewal_is_not_waited_for_in_the_workers(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that hangs holds up no renewal: it changes no traffic."""
    monkeypatch.setattr(module, "APPLY_TIMEOUT_S", 60)

    async def body(engine: Engine) -> None:
        plane.absent.add(1)
        await asyncio.wait_for(engine.renew_leases(MODEL, at(9 * S), expected_revision=2), 30)

    go(plane, body)


def test_renewal_of_unknown_fate_ends_nothing(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk stands still none is made, and control goes on; the next one, or a change, is not undone by it."""
    monkeypatch.setattr(module, "LOG_TIMEOUT_S", 0.05)

    async def body(engine: Engine) -> None:
        plane.synced = False
        with pytest.raises(AuditUnavailable, match="renew again"):
            await engine.renew_leases(MODEL, at(9 * S), expected_revision=2)
        assert (end_ns(plane), engine.must_restart) == (16 * S, False)
        plane.synced = True
        monkeypatch.setattr(module, "LOG_TIMEOUT_S", 5)
        await engine.renew_leases(MODEL, at(12 * S), expected_revision=2)
        assert plane.recovered() == engine.state
        plane.path.unlink()
        assert plane.recovered().serving.routes == engine.state.serving.routes

    go(plane, body)
    assert [e.kind for e in logged(plane)][-2:] == ["lease", "lease"]


def test_without_the_log_no_renewal_but_the_way_back(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """A canary loses its traffic unlogged, and gets none: neither by a renewal nor by a shift."""
    monkeypatch.setattr(module, "LOG_TIMEOUT_S", 0.05)

    async def body(engine: Engine) -> None:
        monkeypatch.setattr(plane.writer, "append_events", lambda events: None)
        with pytest.raises(AuditUnavailable):
            await engine.renew_leases(MODEL, at(9 * S), expected_revision=2)
        with pytest.raises(AuditUnavailable):
            await engine.change_route(
                MODEL, "shift", WHY, lambda r, c: shifted(r, {"canary": 2_000}, c), expected_revision=2
            )
        outcome = await engine.change_route(
            MODEL, "rollback", WHY, lambda r, c: rolled_back_canary(r, "canary", c), expected_revision=2
        )
        assert not outcome.logged
        assert engine.route(MODEL).weights_bp["canary"] == 0

    go(plane, body)


def test_an_end_is_told_once(plane: Plane) -> None:
    """A lease that nobody renewed is logged a second after its end, by control, once; also by a successor."""

    async def body(engine: Engine) -> None:
        until_ns = end_ns(plane)
        await engine.tell_leases_over(until_ns + S - 1)
        assert logged(plane)[-1].kind != "lease_over"
        for _ in range(2):
            await engine.tell_leases_over(until_ns + S)
        over = [e for e in logged(plane) if e.kind == "lease_over"]
        assert [(e.model, e.revision, e.after) for e in over] == [
            (MODEL, 2, {"until_ns": until_ns, "lost_bp": {"canary": 1000}})
        ]
        assert plane.recovered().ledger.leases_over == {MODEL: until_ns}

    plane.record()
    go(plane, body)


def test_a_renewal_that_came_late_ends_anew(plane: Plane) -> None:
    """Its traffic is back; when that lease ends it is told again."""

    async def body(engine: Engine) -> None:
        await engine.tell_leases_over(end_ns(plane) + S)
        await engine.renew_leases(MODEL, at(30 * S), expected_revision=2)
        await engine.tell_leases_over(end_ns(plane) - 1)
        await engine.tell_leases_over(end_ns(plane) + S)
        assert [e.kind for e in logged(plane)][-3:] == ["lease_over", "lease", "lease_over"]

    plane.record()
    go(plane, body)
