"""The engine: one change at a time, logged before it takes effect.

admin API -> **engine**: check -> append the event, wait until it is on disk -> snapshot -> generation word -> wait
for the workers -> answer. The order is what makes a kill at any point leave the old state or the new.

One exception: a freeze, and the return to the previous traffic, go ahead when the log takes nothing. They stand in
the snapshot as owed to the log and are logged first thing when it takes records again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from gateway import fleet as words_of
from gateway.audit.event import Control
from gateway.audit.writer import Writer
from gateway.control import snapshot
from gateway.control.changes import released, renewed
from gateway.control.gates import check_latches, check_ready, only_retreats, with_leases
from gateway.control.state import EVERY, State, applied, forced, placed, rollback_target, route_document
from gateway.errors import (
    AuditUnavailable,
    ReasonRequired,
    RevisionConflict,
    StateConflict,
    UnknownModel,
)
from gateway.fleet import LOAD_STATES, Fleet
from gateway.routing import Change, Route
from gateway.settings import Config, Policy

log = logging.getLogger("tidegate.control")

POLL_S = 0.001
LOG_TIMEOUT_S = 5.0
APPLY_TIMEOUT_S = 2.0
_DEFAULTS = Config()


class Applied(msgspec.Struct, frozen=True):
    """How far a generation got: workers that run it, of how many live, after so many ms."""

    workers: int
    of: int
    ms: int
    pending: tuple[int, ...] = ()


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
        found: versions on disk by model, as last scanned (kept by placement).
        policy_of: the configured policy of a model.

    Threading: one event loop; changes are serialised by a lock.
    """

    def __init__(
        self,
        state: State,
        writer: Writer,
        fleet: Fleet,
        path: Path,
        policy_of: Callable[[str], Policy] = _DEFAULTS.policy_of,
    ) -> None:
        self.state = state
        self.policy_of = policy_of
        self.found: dict[str, tuple[str, ...]] = {}
        self.chosen: dict[str, tuple[str, ...]] = {}
        self.must_restart = False
        """A change is in the ring and its fate unknown: only recovery can tell."""
        self._desired: tuple[object, dict[tuple[str, str], snapshot.DesiredVersion]] = (None, {})
        self._writer = writer
        self._fleet = fleet
        self._path = path
        self._lock = asyncio.Lock()
        self._drawn: dict[str, int] = {}
        """The newest revision of each model that was appended, made or not."""

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
        async with self._lock:
            before = self._expected(model, expected_revision)
            after = with_leases(kind, make(before, change), self.policy_of(model), change)
            # One of unknown fate may hold the number already, and may yet turn out to be logged.
            number = max(after.revision, self._drawn.get(model, 0) + 1)
            after = msgspec.structs.replace(after, revision=number)
            check_latches(after)
            check_ready(after, before, self.found.get(model), lambda v: self.load_states(model, v))
            if dry_run:
                return Outcome(after, before, self.state.serving.generation, None)
            event = self._event(kind, change, route_document(after), model, after.revision)
            event.before = route_document(before)
            done = await self._commit(event, urgent=self._is_urgent(kind, before, after))
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
        async with self._lock:
            before = self._expected(model, expected_revision)
            policy = self.policy_of(model)
            if policy.ramp != "auto":
                msg = f'route {model}: ramp is "{policy.ramp}"; only canaries under policy ramp = "auto" carry leases'
                raise StateConflict(msg)
            after = renewed(before, change.at_ns + policy.lease_s * 1_000_000_000)
            if dry_run:
                return Outcome(after, before, self.state.serving.generation, None)
            await self._take_up(self._lease_event(after, change))
            return Outcome(self.route(model), before, self.state.serving.generation, None)

    async def release_leases(self) -> None:
        """Take leases off where the policy does not ask for them any more: a manual split never ends by itself.

        Raises:
            AuditUnavailable: it could not be logged.
        """
        async with self._lock:
            for model, route in self.state.serving.routes.items():
                change = changed_by("gateway", "the model's ramp is not automatic")
                after = released(route, change.at_ns)
                if after != route and self.policy_of(model).ramp != "auto":
                    await self._take_up(self._lease_event(after, change))

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
        async with self._lock:
            if route.model in self.state.serving.routes:
                return
            document = route_document(route)
            await self._commit(self._event("route", route.changed, document, route.model, route.revision))

    async def load_or_unload(self, model: str, version: str, kind: str, change: Change) -> Outcome:
        """Load a version everywhere, or let it go; EVERY stands for all of the model's, those in its route too.

        Raises:
            UnknownModel: it is not in the repository.
            StateConflict: it is in the route (unload).
        """
        _require_reason(change)
        async with self._lock:
            route = self.state.serving.routes.get(model)
            if version != EVERY and version not in self.found.get(model, ()):
                raise UnknownModel(model, version)
            if version == EVERY and route is None and model not in self.found:
                raise UnknownModel(model)
            if kind == "unload" and route is not None and version in route.versions:
                msg = f"{model} version {version} is in the route; take it out first"
                raise StateConflict(msg)
            done = await self._commit(self._event(kind, change, {"version": version}, model))
            return Outcome(route, route, self.state.serving.generation, done)

    async def log_routes(self) -> None:
        """Log the full routes: at each epoch of control, so that a reader need not go further back."""
        routes = {name: route_document(r) for name, r in self.state.serving.routes.items()}
        async with self._lock:
            event = self._event("routes", changed_by("gateway", "control started"), routes, None)
            await self._log_owed()
            await self._log(event)
            self.state = applied(self.state, event)

    async def catch_up(self) -> None:
        """Log what is owed to the log; called now and then.

        Raises:
            AuditUnavailable: not yet.
        """
        async with self._lock:
            if self.state.ledger.unlogged:
                await self._log_owed()
                self._publish(self.state)

    async def place(
        self, found: Mapping[str, tuple[str, ...]], chosen: Mapping[str, tuple[str, ...]] | None = None
    ) -> bool:
        """Take up what the repository holds now; whether anything changed.

        Args:
            chosen: by model, the versions that its settings want loaded, where it has any.
        """
        async with self._lock:
            self.found, self.chosen = dict(found), dict(chosen or {})
            after = placed(self.state, self.found, self.chosen)
            if after.serving.versions == self.state.serving.versions:
                return False
            self._publish(after)
            return True

    def publish(self) -> None:
        """Write and announce the present state as the next generation (at start)."""
        self._publish(self.state)

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

    async def _commit(self, event: Control, *, urgent: bool = False) -> Applied:
        await self._take_up(event, urgent=urgent)
        return await self._wait_applied()

    async def _take_up(self, event: Control, *, urgent: bool = False) -> None:
        # What placement refuses is refused before it is in the log.
        placed(applied(self.state, event), self.found, self.chosen)
        take_up = applied
        try:
            await self._log_owed()
            await self._log(event)
        except AuditUnavailable:
            if not urgent:
                raise
            take_up = forced
            log.error("change_not_logged_yet", extra={"kind": event.kind, "model": event.model})  # noqa: TRY400
        try:
            self._publish(placed(take_up(self.state, event), self.found, self.chosen))
        except OSError as exc:
            self.must_restart = True
            told = "is" if take_up is applied else "could not be"
            msg = f"the change {told} logged, its snapshot could not be written ({exc.strerror}); control restarts"
            raise AuditUnavailable(msg) from exc

    def _is_urgent(self, kind: str, before: Route, after: Route) -> bool:
        """Whether the change goes ahead unlogged: a hold, or the way back to the traffic before or to the primary."""
        target = rollback_target(self.state.ledger, after.model)
        back = target is not None and (target.weights_bp, target.versions) == (
            after.weights_bp,
            after.versions,
        )
        return kind == "freeze" or (kind == "rollback" and (back or only_retreats(before, after)))

    async def _log_owed(self) -> None:
        while self.state.ledger.unlogged:
            event = msgspec.convert(self.state.ledger.unlogged[0], Control)
            await self._log(event)
            self.state = applied(self.state, event)

    async def _log(self, event: Control) -> None:
        if self.must_restart:
            # A change made on top of one whose fate is unknown would hide it from recovery.
            msg = "control restarts, since it does not know whether the last change was made; try again soon"
            raise AuditUnavailable(msg)
        deadline = time.monotonic() + LOG_TIMEOUT_S
        while (seq := self._append(event)) is None:
            if time.monotonic() > deadline:
                msg = "the change could not be logged, so it was not made: see tidegate audit status for why"
                raise AuditUnavailable(msg)
            await asyncio.sleep(POLL_S)
        if event.model is not None and event.revision is not None:
            self._drawn[event.model] = max(event.revision, self._drawn.get(event.model, 0))
        event.id = self._writer.event_id(seq)
        mark = self._writer.ring.committed
        while not self._writer.synced(mark):
            if time.monotonic() > deadline:
                if event.kind == "lease":
                    # The next one, or any change, says the same or more: what became of this one does not matter.
                    msg = "the disk did not take the renewal in time; renew again"
                    raise AuditUnavailable(msg)
                self.must_restart = True
                msg = (
                    "the disk did not take the change in time; control restarts and finds out"
                    " whether it was made. Look at the route before you try again"
                )
                raise AuditUnavailable(msg)
            await asyncio.sleep(POLL_S)

    def _append(self, event: Control) -> int | None:
        # What the recorder cannot write now would be made later, behind an answer that says no.
        return None if self._writer.ring.unavailable else self._writer.append_events([event])

    def _publish(self, state: State) -> None:
        serving = msgspec.structs.replace(state.serving, generation=state.serving.generation + 1)
        snapshot.write(self._path, snapshot.encode(serving, state.ledger))
        self.state = State(serving, state.ledger)
        self._fleet.publish_shadows(serving.sampled_shadows)
        self._fleet.publish_generation(serving.generation)

    async def _wait_applied(self) -> Applied:
        generation = self.state.serving.generation
        started = time.monotonic()
        while True:
            live = self._fleet.live_workers()
            pending = tuple(i for i in live if self._fleet.worker(i)[words_of.GENERATION] < generation)
            waited_s = time.monotonic() - started
            if not pending or waited_s > APPLY_TIMEOUT_S:
                return Applied(len(live) - len(pending), len(live), int(waited_s * 1000), pending)
            await asyncio.sleep(POLL_S)


def _require_reason(change: Change) -> None:
    if not change.reason.strip():
        msg = "a change needs a reason: say why, for whoever reads the history"
        raise ReasonRequired(msg)


def changed_by(by: str, reason: Any, evidence: str | None = None) -> Change:
    """A change as of now."""
    return Change(by=by, reason=str(reason or "").strip(), at_ns=time.time_ns(), evidence=evidence)
