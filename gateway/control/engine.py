"""The engine: what may be changed, by whom decided on what, and the event that says so.

admin API -> **engine**: expected revision, gates, the next document -> committing logs it and puts it into effect.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from gateway import fleet as words_of
from gateway.audit.event import Control
from gateway.control import snapshot
from gateway.control.changes import released, renewed
from gateway.control.committing import Applied, Commit, Log
from gateway.control.gates import check_latches, check_ready, only_retreats, with_leases
from gateway.control.state import EVERY, State, applied, placed, rollback_target, route_document
from gateway.errors import (
    ReasonRequired,
    RevisionConflict,
    StateConflict,
    UnknownModel,
)
from gateway.fleet import LOAD_STATES, Fleet
from gateway.routing import Change, Route
from gateway.settings import Config, Policy

_DEFAULTS = Config()


class Outcome(msgspec.Struct, frozen=True):
    """What a change did (or, on a dry run, would do)."""

    route: Route | None
    before: Route | None
    generation: int
    applied: Applied | None
    logged: bool = True
    """False: in effect, and owed to the log."""


class Engine:
    """Owns control state.

    Args:
        state: as recovered.
        path: where the snapshot lies.
        policy_of: the configured policy of a model.

    Threading: one event loop; changes are serialised by a lock.
    """

    def __init__(
        self,
        state: State,
        writer: Log,
        fleet: Fleet,
        path: Path,
        policy_of: Callable[[str], Policy] = _DEFAULTS.policy_of,
    ) -> None:
        self.policy_of = policy_of
        self._commit = Commit(state, writer, fleet, path)
        self._desired: tuple[object, dict[tuple[str, str], snapshot.DesiredVersion]] = (None, {})
        self._fleet = fleet

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
    ) -> Outcome:
        """Make a new revision of a route.

        Args:
            make: from the present route to the next; raises what it refuses.
            expected_revision: from If-Match.

        Raises:
            ReasonRequired, UnknownModel, RevisionConflict, StateConflict, ChangeInvalid: nothing changed.
            AuditUnavailable: the change could not be logged, and is none of those that go ahead.
        """
        _require_reason(change)
        async with self._commit.turn():
            before = self._expected(model, expected_revision)
            after = with_leases(kind, make(before, change), self.policy_of(model), change)
            # One of unknown fate may hold the number already, and may yet turn out to be logged.
            number = max(after.revision, self._commit.drawn.get(model, 0) + 1)
            after = msgspec.structs.replace(after, revision=number)
            check_latches(after)
            check_ready(after, before, self.found.get(model), lambda v: self.load_states(model, v))
            if dry_run:
                return Outcome(after, before, self.state.serving.generation, None)
            event = self._event(kind, change, route_document(after), model, after.revision)
            event.before = route_document(before)
            done = await self._commit.make(event, urgent=self._is_urgent(kind, before, after))
            logged = not self.state.ledger.unlogged
            return Outcome(self.route(model), before, self.state.serving.generation, done, logged)

    async def renew_leases(
        self, model: str, change: Change, *, expected_revision: int, dry_run: bool = False
    ) -> Outcome:
        """Extend the leases of a route's canaries: logged, a new generation, the same revision.

        Not waited for in the workers: it changes no traffic as long as it comes in time.

        Raises:
            ReasonRequired, UnknownModel, RevisionConflict: nothing changed.
            StateConflict: the model's ramp is not automatic, the route is frozen, or no canary has weight.
            AuditUnavailable: it could not be logged.
        """
        _require_reason(change)
        async with self._commit.turn():
            before = self._expected(model, expected_revision)
            policy = self.policy_of(model)
            if policy.ramp != "auto":
                msg = f'route {model}: ramp is "{policy.ramp}"; only canaries under policy ramp = "auto" carry leases'
                raise StateConflict(msg)
            after = renewed(before, change.at_ns + policy.lease_s * 1_000_000_000)
            if dry_run:
                return Outcome(after, before, self.state.serving.generation, None)
            await self._commit.take_up(self._lease_event(after, change))
            return Outcome(self.route(model), before, self.state.serving.generation, None)

    async def release_leases(self) -> None:
        """Take leases off where the policy does not ask for them any more: a manual split never ends by itself.

        Raises:
            AuditUnavailable: it could not be logged.
        """
        async with self._commit.turn():
            for model, route in self.state.serving.routes.items():
                change = changed_by("gateway", "the model's ramp is not automatic")
                after = released(route, change.at_ns)
                if after != route and self.policy_of(model).ramp != "auto":
                    await self._commit.take_up(self._lease_event(after, change))

    def _event(
        self, kind: str, change: Change, after: dict[str, Any], model: str | None, revision: int | None = None
    ) -> Control:
        return Control(
            kind=kind,
            at_ns=time.time_ns(),
            gateway_id=self.state.serving.gateway_id,
            model=model,
            revision=revision,
            after=after,
            by=change.by,
            reason=change.reason,
        )

    def _lease_event(self, route: Route, change: Change) -> Control:
        return self._event("lease", change, route_document(route), route.model, route.revision)

    def _expected(self, model: str, revision: int) -> Route:
        """The route, if it stands where the change was decided."""
        before = self.route(model)
        if before.revision != revision:
            c = before.changed
            msg = (
                f"route {model} is at revision {before.revision}, you sent {revision}:"
                f" changed by {c.by} ({c.reason})"
            )
            raise RevisionConflict(msg, revision=before.revision, event=c.event)
        return before

    async def first_route(self, route: Route) -> None:
        """Log and publish revision 1 of a model that had none."""
        async with self._commit.turn():
            if route.model in self.state.serving.routes:
                return
            document = route_document(route)
            await self._commit.make(
                self._event("route", route.changed, document, route.model, route.revision)
            )

    async def load_or_unload(self, model: str, version: str, kind: str, change: Change) -> Outcome:
        """Load a version everywhere, or let it go; EVERY stands for all of the model's, those in its route too.

        Raises:
            UnknownModel: it is not in the repository.
            StateConflict: it is in the route (unload).
        """
        _require_reason(change)
        async with self._commit.turn():
            route = self.state.serving.routes.get(model)
            if version != EVERY and version not in self.found.get(model, ()):
                raise UnknownModel(model, version)
            if version == EVERY and route is None and model not in self.found:
                raise UnknownModel(model)
            if kind == "unload" and route is not None and version in route.versions:
                msg = f"{model} version {version} is in the route; take it out first"
                raise StateConflict(msg)
            done = await self._commit.make(self._event(kind, change, {"version": version}, model))
            return Outcome(route, route, self.state.serving.generation, done)

    async def log_routes(self) -> None:
        """Log the full routes: at each epoch of control, so that a reader need not go further back."""
        routes = {name: route_document(r) for name, r in self.state.serving.routes.items()}
        async with self._commit.turn():
            event = self._event("routes", changed_by("gateway", "control started"), routes, None)
            await self._commit.log_owed()
            await self._commit.log(event)
            self._commit.state = applied(self.state, event)

    async def catch_up(self) -> None:
        """Log what is owed to the log; called now and then.

        Raises:
            AuditUnavailable: not yet.
        """
        async with self._commit.turn():
            if self.state.ledger.unlogged:
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
        versions = self.state.serving.versions
        if self._desired[0] is not versions:
            self._desired = (versions, {(d.model, d.version): d for d in versions})
        desired = self._desired[1].get((model, version))
        if desired is None:
            return {}
        return {i: self._load_state(i, desired) for i in self._fleet.live_workers()}

    def _load_state(self, index: int, desired: snapshot.DesiredVersion) -> tuple[str, str]:
        words = self._fleet.version(index, desired.slot, desired.model, desired.version)
        state = words[words_of.LOAD_STATE]
        return LOAD_STATES[state], self._fleet.reason(index, desired.slot) if state else ""

    def _is_urgent(self, kind: str, before: Route, after: Route) -> bool:
        """Whether the change goes ahead unlogged: a hold, or the way back to the traffic before or to the primary."""
        target = rollback_target(self.state.ledger, after.model)
        back = target is not None and (target.weights_bp, target.versions) == (
            after.weights_bp,
            after.versions,
        )
        return kind == "freeze" or (kind == "rollback" and (back or only_retreats(before, after)))


def _require_reason(change: Change) -> None:
    if not change.reason.strip():
        msg = "a change needs a reason: say why, for whoever reads the history"
        raise ReasonRequired(msg)


def changed_by(by: str, reason: Any, evidence: str | None = None) -> Change:
    """A change as of now."""
    return Change(by=by, reason=str(reason or "").strip(), at_ns=time.time_ns(), evidence=evidence)
