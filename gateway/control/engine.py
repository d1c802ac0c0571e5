"""The engine: what may be changed, by whom decided on what, and the event that says so.

admin API -> **engine**: expected revision, gates, the next document -> committing logs it and puts it into effect.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from gateway.audit.event import Control
from gateway.control.bounds import check_bounds
from gateway.control.changes import salted
from gateway.control.committing import Commit, Log
from gateway.control.drafting import check_reason, check_revision, draft
from gateway.control.gates import (
    HOLDS,
    check_latches,
    check_ready,
    check_way_back,
    goes_ahead,
    with_leases,
)
from gateway.control.idempotency import BY_HAND, Asked, Done, made_before
from gateway.control.journal import Entry, Journal, merged, page, revision_in
from gateway.control.leasing import ends, releases, renewal
from gateway.control.outcome import Outcome, changed_by
from gateway.control.readiness import Readiness
from gateway.control.state import (
    State,
    applied,
    check_loading,
    placed,
    rollback_target,
    route_document,
    whole,
)
from gateway.errors import AuditUnavailable, ChangeInvalid, OutOfBounds, UnknownModel
from gateway.fleet import Fleet
from gateway.routing import Change, Route
from gateway.settings import Config, Policy

__all__ = ("Engine", "Outcome", "changed_by")

_DEFAULTS = Config()
BREAKERS_MAX = 100
"""So many are kept for the history, over all models."""
URGENT = HOLDS | {"rollback"}
"""Kinds that may go ahead so, and do not queue behind a change that waits for the log."""


class Engine:
    """Owns control state.

    Args:
        state: as recovered.
        path: where the snapshot lies.
        policy_of: the configured policy of a model.
        journal: for what is older than the ledger.

    Threading: one event loop; changes are serialised by a lock.
    """

    def __init__(
        self,
        state: State,
        writer: Log,
        fleet: Fleet,
        path: Path,
        policy_of: Callable[[str], Policy] = _DEFAULTS.policy_of,
        journal: Journal | None = None,
    ) -> None:
        self.policy_of = policy_of
        self._commit = Commit(state, writer, fleet, path)
        self.note = self._commit.note
        """Logs a change of what is not kept here, such as tokens."""
        self._readiness = Readiness(lambda: self._commit.state, fleet)
        self._journal = journal
        self._reading = asyncio.Lock()
        self._refused: dict[str, tuple[str, int, str, str]] = {}
        """By model, the last refusal that was logged."""

    @property
    def state(self) -> State:
        """The state in effect."""
        return self._commit.state

    @property
    def found(self) -> dict[str, tuple[str, ...]]:
        """Versions on disk by model, as placement scanned them last."""
        return self._commit.found

    @property
    def must_restart(self) -> bool:
        """A change is in the ring and its fate unknown: only recovery can tell."""
        return self._commit.must_restart

    def route(self, model: str) -> Route:
        """A model's route.

        Raises:
            UnknownModel: there is none.
        """
        route = self.state.serving.routes.get(model)
        if route is None:
            raise UnknownModel(model)
        return route

    async def change_route(
        self,
        model: str,
        kind: str,
        change: Change,
        make: Callable[[Route, Change], Route],
        *,
        expected_revision: int,
        dry_run: bool = False,
        asked: Asked = BY_HAND,
    ) -> Outcome:
        """Make a new revision of a route.

        Args:
            make: from the present route to the next (`gateway.control.changes`); raises what it refuses.
            expected_revision: from If-Match.
            asked: key and origin of the request; the same key again changes nothing and answers the same.

        Raises:
            ReasonRequired, UnknownModel, RevisionConflict, StateConflict, OutOfBounds, ChangeInvalid: nothing changed.
            IdempotencyMismatch: nor here; the key was used for another request.
            AuditUnavailable: the change could not be logged, and is none of those that go ahead.
        """
        check_reason(change)
        async with self._commit.turn(urgent=kind in URGENT):
            done = made_before(self.state.ledger.done, change.by, asked)
            if done is not None:
                return await self._applied(self._made_already(model, done))
            before = self._expected(model, expected_revision)
            after = salted(before, make(before, change), secrets.token_hex(8))
            after = with_leases(kind, after, self.policy_of(model), change)
            # One of unknown fate may hold the number already, and may yet turn out to be logged.
            number = max(after.revision, self._commit.drawn.get(model, 0) + 1)
            after = msgspec.structs.replace(after, revision=number)
            try:
                self._pass_gates(kind, before, after, asked)
            except OutOfBounds as exc:
                if not dry_run:
                    await self._tell_refusal(kind, before, change, str(exc))
                raise
            if dry_run:
                return Outcome(after, before, self.state.serving.generation, None)
            event = self._draft(kind, change, route_document(after), (model, after.revision), asked)
            event.before = route_document(before)
            await self._commit.take_up(
                event, urgent=goes_ahead(kind, before, after, rollback_target(self.state.ledger, model))
            )
            outcome = self._outcome(self.route(model), before)
        # Not in the turn: a worker that hangs holds up nobody's next change.
        return await self._applied(outcome)

    async def _tell_refusal(self, kind: str, before: Route, change: Change, why: str) -> None:
        """Log that an automaton met its bounds: once for a revision, an automaton and a kind of change."""
        told = (before.model, before.revision, change.by, kind)
        if told == self._refused.get(before.model):
            return
        self._refused[before.model] = told
        event = self._draft("refused", change, {"kind": kind, "why": why}, (before.model, before.revision))
        # The refusal holds, logged or not.
        with contextlib.suppress(AuditUnavailable):
            await self._commit.log(event)
            self._commit.state = applied(self.state, event)

    def _pass_gates(self, kind: str, before: Route, after: Route, asked: Asked) -> None:
        check_latches(after)
        model = after.model
        if asked.automaton:
            check_bounds(before, after, after.changed, self.state.ledger.history.get(model, ()))
        check_ready(after, before, self.found.get(model), lambda v: self._readiness.serving(model, v))
        if kind == "promote":
            check_way_back(before, after, lambda v: self._readiness.serving(model, v))

    async def history(self, model: str, *, before: int | None = None, limit: int = 100) -> list[Entry]:
        """What happened to a model, newest first: its revisions, and events that made none.

        Args:
            before: only what came before this revision; None: from the newest on.
            limit: as many at least, if the log has them; a page ends with a revision, the next one's `before`.

        Raises:
            UnknownModel: there is no such route.
        """
        self.route(model)
        return page(await self._entries(model), before, limit)

    async def revision_of(self, model: str, number: int) -> Route:
        """A revision of a route, from the ledger or from the log.

        Raises:
            UnknownModel: there is no such route.
            ChangeInvalid: there never was such a revision.
            StateConflict: retention took it; names the oldest that is kept.
        """
        route = self.route(model)
        if not 1 <= number <= route.revision:
            msg = f"route {model} has no revision {number}; it has 1 to {route.revision}"
            raise ChangeInvalid(msg)
        kept = {r.revision: r for r in self.state.ledger.history.get(model, ())}
        found = kept.get(number)
        return found if found is not None else revision_in(await self._entries(model), model, number)

    async def _entries(self, model: str) -> list[Entry]:
        """What the log has of a model, and behind it what the log does not have yet."""
        async with self._reading:
            entries = [] if self._journal is None else await asyncio.to_thread(self._journal.read, model)
        return merged(entries, self.state.ledger, model)

    async def renew_leases(
        self,
        model: str,
        change: Change,
        *,
        expected_revision: int,
        dry_run: bool = False,
        asked: Asked = BY_HAND,
    ) -> Outcome:
        """Extend the leases of a route's canaries: logged, a new generation, the same revision.

        Not waited for in the workers: it changes no traffic as long as it comes in time.

        Raises:
            ReasonRequired, UnknownModel, RevisionConflict, IdempotencyMismatch: nothing changed.
            StateConflict: the model's ramp is not automatic, the route is frozen, or no canary has weight.
            AuditUnavailable: it could not be logged.
        """
        check_reason(change)
        async with self._commit.turn():
            if made_before(self.state.ledger.done, change.by, asked) is not None:
                route = self.route(model)
                return Outcome(route, route, self.state.serving.generation, None, replayed=True)
            before = self._expected(model, expected_revision)
            after = renewal(before, change, self.policy_of(model))
            if not dry_run:
                await self._lease(after, change, asked)
                after = self.route(model)
            return Outcome(after, before, self.state.serving.generation, None)

    async def release_leases(self) -> None:
        """Take leases off where the policy does not ask for them any more: a manual split never ends by itself.

        Raises:
            AuditUnavailable: it could not be logged.
        """
        async with self._commit.turn():
            for route, change in releases(self.state, self.policy_of):
                await self._lease(route, change)

    async def tell_leases_over(self, now_ns: int) -> None:
        """Log the end of leases that nobody renewed, once each; called about once a second.

        Raises:
            AuditUnavailable: not yet.
        """
        if not ends(self.state, now_ns):
            return
        async with self._commit.turn():
            for route, after in ends(self.state, now_ns):
                change = Change(by="gateway", reason="nobody renewed the lease in time", at_ns=now_ns)
                event = self._draft("lease_over", change, after, (route.model, route.revision))
                await self._commit.log(event)
                self._commit.state = applied(self.state, event)

    def note_breakers(self, now_ns: int) -> None:
        """Take up breakers that opened, for the history; called about once a second. Written with the next snapshot."""
        found = self._readiness.new_breakers(now_ns)
        if found:
            kept = (*self.state.ledger.breakers, *found)[-BREAKERS_MAX:]
            ledger = msgspec.structs.replace(self.state.ledger, breakers=kept)
            self._commit.state = State(self.state.serving, ledger)

    async def _lease(self, route: Route, change: Change, asked: Asked = BY_HAND) -> None:
        about = (route.model, route.revision)
        await self._commit.take_up(self._draft("lease", change, route_document(route), about, asked))

    def _outcome(self, route: Route | None, before: Route | None, *, replayed: bool = False) -> Outcome:
        logged = not self.state.ledger.unlogged
        return Outcome(route, before, self.state.serving.generation, None, logged, replayed)

    async def _applied(self, outcome: Outcome) -> Outcome:
        took = await self._commit.wait_applied(outcome.generation)
        return msgspec.structs.replace(outcome, applied=took)

    def _made_already(self, model: str, done: Done) -> Outcome:
        """The outcome of a change that was made when it was asked for first."""
        history = {r.revision: r for r in self.state.ledger.history.get(model, ())}
        route = history.get(done.revision or 0, self.route(model))
        return self._outcome(route, history.get(route.revision - 1, route), replayed=True)

    def _draft(
        self,
        kind: str,
        change: Change,
        after: dict[str, Any],
        about: tuple[str | None, int | None],
        asked: Asked = BY_HAND,
    ) -> Control:
        return draft(self.state.serving.gateway_id, kind, change, after, about, asked)

    def _expected(self, model: str, revision: int) -> Route:
        """The route, if it stands where the change was decided."""
        route = self.route(model)
        check_revision(route, revision)
        return route

    async def first_route(self, route: Route) -> None:
        """Log and publish revision 1 of a model that had none."""
        async with self._commit.turn():
            if route.model not in self.state.serving.routes:
                about = (route.model, route.revision)
                await self._commit.take_up(self._draft("route", route.changed, route_document(route), about))
        await self.in_effect()

    async def in_effect(self) -> None:
        """Wait until every live worker runs what is published, for as long as a change would."""
        await self._commit.wait_applied(self.state.serving.generation)

    async def load_or_unload(
        self, model: str, version: str, kind: str, change: Change, asked: Asked = BY_HAND
    ) -> Outcome:
        """Load a version everywhere, or let it go; EVERY stands for all of the model's, those in its route too.

        Raises:
            UnknownModel: it is not in the repository.
            StateConflict: it is in the route, or in what the route would be rolled back to (unload).
            ReasonRequired, IdempotencyMismatch: nothing changed.
            AuditUnavailable: it could not be logged.
        """
        check_reason(change)
        async with self._commit.turn():
            replayed = made_before(self.state.ledger.done, change.by, asked) is not None
            if not replayed:
                check_loading(self.state, self.found, model, version, kind)
                event = self._draft(kind, change, {"version": version}, (model, None), asked)
                await self._commit.take_up(event)
            route = self.state.serving.routes.get(model)
            outcome = self._outcome(route, route, replayed=replayed)
        return await self._applied(outcome)

    async def log_routes(self) -> None:
        """Log the whole state: at each epoch of control, so that a reader need not go further back.

        Raises:
            AuditUnavailable: not yet.
        """
        async with self._commit.turn():
            await self._commit.log_owed()
            for part in whole(self.state):
                event = self._draft("routes", changed_by("gateway", "control started"), part, (None, None))
                await self._commit.log(event)
                self._commit.state = applied(self.state, event)

    async def catch_up(self) -> None:
        """Log what is owed to the log; called now and then.

        Raises:
            AuditUnavailable: not yet.
        """
        if not self.state.ledger.unlogged:
            return
        async with self._commit.turn():
            await self._commit.log_owed()
            self._commit.publish(self.state)

    async def place(
        self, found: Mapping[str, tuple[str, ...]], chosen: Mapping[str, tuple[str, ...]] | None = None
    ) -> bool:
        """Take up what the repository holds now; whether anything changed.

        Args:
            chosen: by model, the versions that its settings want loaded, where it has any.
        """
        async with self._commit.turn():
            self._commit.found, self._commit.chosen = dict(found), dict(chosen or {})
            after = placed(self.state, self._commit.found, self._commit.chosen)
            if after.serving.versions == self.state.serving.versions:
                return False
            self._commit.publish(after)
            return True

    def publish(self) -> None:
        """Write and announce the present state as the next generation (at start)."""
        self._commit.publish(self.state)

    def load_states(self, model: str, version: str) -> dict[int, tuple[str, str]]:
        """State and reason of a version in every live worker; empty when it is not wanted."""
        return self._readiness.live(model, version)
