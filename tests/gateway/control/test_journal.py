"""History beyond the ledger: pages, what made no revision, revisions of long ago, and what retention has taken."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gateway import fleet as words_of
from gateway.audit.event import Control
from gateway.audit.spool import epochs
from gateway.control import journal as journal_of
from gateway.control.changes import set_frozen, shifted, with_variants
from gateway.control.engine import Engine
from gateway.control.idempotency import Asked
from gateway.control.journal import Entry, Journal
from gateway.errors import ChangeInvalid, StateConflict, UnknownModel
from gateway.routing import Change, Variant
from gateway.settings import Policy
from tests.gateway.control.plane import GATEWAY_ID, MODEL, WHY, Plane
from tests.gateway.control.test_unlogged import succeed

SHIFTS = 120
"""More than the ledger keeps."""
ARMS = (
    Variant(name="primary", version="1", role="primary", weight_bp=9_999),
    Variant(name="canary", version="2", role="canary", weight_bp=1),
)


def go(plane: Plane, body: Callable[[Engine], Awaitable[None]], shifts: int = SHIFTS) -> None:
    """Run a body on a route that was shifted often."""

    async def run() -> None:
        async with plane.alive() as engine:
            engine.policy_of = lambda _: Policy()
            await plane.begin("1", "2")
            await engine.change_route(
                MODEL, "route", WHY, lambda r, c: with_variants(r, ARMS, c), expected_revision=1
            )
            for number in range(shifts):
                await engine.change_route(
                    MODEL,
                    "shift",
                    Change(by="test", reason=f"shift {number}", at_ns=number),
                    lambda r, c, n=number: shifted(r, {"canary": n + 2}, c),
                    expected_revision=number + 2,
                )
            await body(engine)

    plane.record()
    plane.engine._journal = Journal(plane.spool, GATEWAY_ID)
    asyncio.run(run())


def revisions(entries: list[Entry]) -> list[int | None]:
    return [entry.revision for entry in entries if entry.is_revision]


def test_pages_go_back_to_the_first(plane: Plane) -> None:
    """Each page ends where the next one begins, and together they are the whole history, newest first."""

    async def body(engine: Engine) -> None:
        found, before = [], None
        while page := await engine.history(MODEL, before=before, limit=50):
            assert len(page) <= 50
            found += page
            before = page[-1].revision
        assert revisions(found) == list(range(SHIFTS + 2, 0, -1))
        assert [e.kind for e in found[-2:]] == ["route", "route"]
        assert found[0].reason == f"shift {SHIFTS - 1}"

    go(plane, body)


def test_what_made_no_revision_stands_in_its_place(plane: Plane) -> None:
    """Loads, and how a change was asked for."""

    async def body(engine: Engine) -> None:
        await engine.load_or_unload(MODEL, "2", "load", WHY)
        asked = Asked(key="k", digest="d", via={"address": "127.0.0.1"})
        await engine.change_route(
            MODEL, "freeze", WHY, lambda r, c: set_frozen(r, True, c), expected_revision=3, asked=asked
        )
        page = await engine.history(MODEL, limit=3)
        assert [(e.kind, e.is_revision) for e in page] == [("freeze", True), ("load", False), ("shift", True)]
        assert (page[0].key, page[0].via) == ("k", {"address": "127.0.0.1", "digest": "d"})

    go(plane, body, 1)


def test_a_revision_of_long_ago(plane: Plane) -> None:
    """One that the ledger has forgotten comes from the log, whole."""

    async def body(engine: Engine) -> None:
        assert engine.state.ledger.history[MODEL][0].revision > 10
        route = await engine.revision_of(MODEL, 7)
        assert (route.revision, route.weights_bp["canary"]) == (7, 6)
        with pytest.raises(ChangeInvalid, match="it has 1 to 122"):
            await engine.revision_of(MODEL, 123)
        with pytest.raises(UnknownModel):
            await engine.revision_of("other", 1)

    go(plane, body)


def test_what_retention_took_is_said(plane: Plane) -> None:
    """A revision that is nowhere any more: the oldest that there is stands in the refusal."""

    async def body(engine: Engine) -> None:
        for epoch in epochs(plane.spool):
            shutil.rmtree(epoch.path)
        oldest = engine.state.ledger.history[MODEL][0].revision
        with pytest.raises(
            StateConflict, match=f"no revision 7 any more: the oldest that is kept is {oldest}"
        ):
            await engine.revision_of(MODEL, 7)
        assert revisions(await engine.history(MODEL, limit=500))[-1] == oldest

    go(plane, body)


def test_a_successor_reads_on(plane: Plane) -> None:
    """The history goes on over the lives of control; a journal that has read before reads what is new."""

    async def body(engine: Engine) -> None:
        await engine.history(MODEL)

    go(plane, body, 3)
    journal = plane.engine._journal
    succeed(plane)
    plane.engine._journal = journal

    async def later() -> None:
        async with plane.alive() as engine:
            await engine.place({MODEL: ("1", "2")})
            await engine.change_route(
                MODEL, "freeze", WHY, lambda r, c: set_frozen(r, True, c), expected_revision=5
            )
            assert revisions(await engine.history(MODEL)) == [6, 5, 4, 3, 2, 1]

    asyncio.run(later())


def test_what_is_owed_to_the_log_is_there(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hold that could not be logged yet is the newest entry."""

    async def body(engine: Engine) -> None:
        monkeypatch.setattr(plane.writer, "append_events", lambda events: None)
        await engine.change_route(
            MODEL, "freeze", WHY, lambda r, c: set_frozen(r, True, c), expected_revision=3
        )
        page = await engine.history(MODEL, limit=2)
        assert [(e.kind, e.revision) for e in page] == [("freeze", 4), ("shift", 3)]
        assert page[0].route.frozen

    go(plane, body, 1)


def test_an_open_breaker_stands_behind_its_revision(plane: Plane) -> None:
    """Seen in a worker's memory, once, and still known when the route has moved on."""

    async def body(engine: Engine) -> None:
        slot = next(v.slot for v in engine.state.serving.versions if v.version == "2")
        plane.fleet.slot(1, slot)[words_of.BREAKER_REVISION] = 3
        for _ in range(2):
            engine.note_breakers(7)
        await engine.change_route(
            MODEL, "freeze", WHY, lambda r, c: set_frozen(r, True, c), expected_revision=3
        )
        engine.note_breakers(8)
        page = await engine.history(MODEL, limit=3)
        assert [(e.kind, e.revision, e.by) for e in page] == [
            ("freeze", 4, "test"), ("breaker", 3, "worker-1"), ("shift", 3, "test"),
        ]  # fmt: skip
        assert plane.recovered().ledger.breakers == engine.state.ledger.breakers

    go(plane, body, 1)


def noted(journal: Journal, model: str, kind: str, revision: int, by: str = "token:a") -> None:
    """An event of the log."""
    journal._note(
        Control(
            kind=kind,
            at_ns=revision,
            model=model,
            revision=revision,
            by=by,
            reason="x",
            after={"x": revision},
        )
    )


def test_renewals_of_one_model_do_not_make_anothers_history_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renewals in turn are one entry of each model; and what is too much is the longest history's own."""
    monkeypatch.setattr(journal_of, "ENTRIES_MAX", 40)
    journal = Journal(tmp_path, GATEWAY_ID)
    for revision in range(1, 11):
        noted(journal, "quiet", "shift", revision)
    for _ in range(100):
        noted(journal, "a", "lease", 1)
        noted(journal, "b", "lease", 1)
    assert [(e.kind, e.count) for e in journal.read("a")] == [("lease", 100)]
    for turn in range(100):
        noted(journal, "a", "lease", 1, f"token:{turn % 2}")
    assert [e.revision for e in journal.read("quiet")] == list(range(1, 11))
    assert len(journal.read("a")) == 29
    assert journal.read("a")[-1].by == "token:1"
