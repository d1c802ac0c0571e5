"""Committing: a checked change becomes the state. The order that the engine promises is kept here.

engine (checked, drawn up as an event) -> **committing**: append, wait until it is on disk -> snapshot -> generation
word -> wait for the workers. A kill at any point leaves the old state or the new.

One exception: urgent changes go ahead when the log takes nothing. They stand in the snapshot as owed to the log and
are logged first thing when it takes records again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from gateway import fleet as words_of
from gateway.audit.event import Control
from gateway.control import snapshot
from gateway.control.drafting import check_reason, draft
from gateway.control.idempotency import Asked
from gateway.control.outcome import Applied
from gateway.control.state import State, applied, forced, placed
from gateway.errors import AuditUnavailable
from gateway.fleet import Fleet
from gateway.routing import Change

log = logging.getLogger("tidegate.control")

POLL_S = 0.001
LOG_TIMEOUT_S = 5.0
"""So long a change waits for the log."""
URGENT_TIMEOUT_S = 0.5
"""So long it does if it can do without, or while one waits that can."""
APPLY_TIMEOUT_S = 2.0


_REPEATED = frozenset(("lease", "lease_over", "refused"))
"""Kinds of events of which one more or less says nothing else."""


class RingMarks(Protocol):
    """What a change needs to know of its writer's ring."""

    @property
    def committed(self) -> int:
        """Bytes ever appended."""

    @property
    def unavailable(self) -> bool:
        """Whether the recorder cannot write at present."""


class Log(Protocol):
    """What a change needs of the log: `gateway.audit.writer.Writer` is one."""

    @property
    def ring(self) -> RingMarks:
        """Where it appends."""

    def append_events(self, events: Sequence[Control]) -> int | None:
        """Append whole events; the first number, or None when there is no room."""

    def synced(self, position: int) -> bool:
        """Whether everything below a `committed` position is on disk."""

    def event_id(self, seq: int) -> str:
        """The text id of a number."""


class Commit:
    """Holds the control state and replaces it, one change at a time.

    Args:
        state: as recovered.
        path: where the snapshot lies.

    Threading: one event loop; every method that changes the state is called inside `turn`.
    """

    def __init__(self, state: State, writer: Log, fleet: Fleet, path: Path) -> None:
        self.state = state
        self.found: dict[str, tuple[str, ...]] = {}
        """Versions on disk by model, as last scanned."""
        self.chosen: dict[str, tuple[str, ...]] = {}
        """Those that a model's settings want loaded, where it has any."""
        self.must_restart = False
        """A change is in the ring and its fate unknown: only recovery can tell."""
        self.drawn: dict[str, int] = {}
        """The newest revision of each model that was appended, made or not."""
        self._writer = writer
        self._fleet = fleet
        self._path = path
        self._lock = asyncio.Lock()
        self._pending: tuple[str, int] | None = None
        """Id and mark of a change that is in effect, in the ring, and perhaps not on disk yet."""
        self._pressing = 0
        """Urgent changes that wait for their turn."""

    @contextlib.asynccontextmanager
    async def turn(self, *, urgent: bool = False) -> AsyncIterator[None]:
        """The right to change the state, held by one at a time.

        An urgent change goes before all that wait, and whoever waits for the log meanwhile gives up soon.
        """
        self._pressing += urgent
        try:
            await self._lock.acquire()
            while self._pressing and not urgent:
                # Behind it in the queue.
                self._lock.release()
                await asyncio.sleep(0)
                await self._lock.acquire()
        finally:
            self._pressing -= urgent
        try:
            yield
        finally:
            self._lock.release()

    async def take_up(self, event: Control, *, urgent: bool = False) -> None:
        """Log a change and put it into effect.

        Args:
            urgent: it goes ahead when it cannot be logged.

        Raises:
            StateConflict: the versions that it wants loaded find no slots; nothing was logged.
            AuditUnavailable: not logged and not urgent, so not made; or of unknown fate (`must_restart`).
        """
        # What placement refuses is refused before it is in the log.
        placed(applied(self.state, event), self.found, self.chosen)
        take_up = applied
        try:
            await self.log_owed(urgent=urgent)
            await self.log(event, urgent=urgent)
        except AuditUnavailable:
            if not urgent:
                raise
            take_up = forced
            log.error("change_not_logged_yet", extra={"kind": event.kind, "model": event.model})  # noqa: TRY400
        try:
            self.publish(placed(take_up(self.state, event), self.found, self.chosen))
        except OSError as exc:
            self.must_restart = True
            told = "is" if take_up is applied else "could not be"
            msg = f"the change {told} logged, its snapshot could not be written ({exc.strerror}); control restarts"
            raise AuditUnavailable(msg) from exc

    async def note(
        self, kind: str, change: Change, after: dict[str, Any], asked: Asked, *, urgent: bool
    ) -> bool:
        """Log a change of something that is not kept here, such as tokens; whether the log has it.

        Raises:
            ReasonRequired: there is none.
            AuditUnavailable: it could not be logged, and is not urgent, so that it would be owed to the log.
        """
        check_reason(change)
        async with self.turn(urgent=urgent):
            event = draft(self.state.serving.gateway_id, kind, change, after, (None, None), asked)
            await self.take_up(event, urgent=urgent)
            return not self.state.ledger.unlogged

    async def log_owed(self, *, urgent: bool = False) -> None:
        """Log the changes that took effect unlogged, oldest first.

        Raises:
            AuditUnavailable: not yet.
        """
        while self.state.ledger.unlogged:
            event = msgspec.convert(self.state.ledger.unlogged[0], Control)
            if self._pending is not None and self._pending[0] == event.id:
                await self._wait_synced(
                    event, self._pending[1], time.monotonic(), urgent=urgent, in_effect=True
                )
                self._pending = None
            else:
                await self.log(event, urgent=urgent, in_effect=True)
            self.state = applied(self.state, event)

    async def log(self, event: Control, *, urgent: bool = False, in_effect: bool = False) -> None:
        """Append an event and wait until it is on disk; its id is set then.

        Args:
            urgent: it goes ahead without, so that it waits less.
            in_effect: it is made already, so that its fate is known whatever the disk does.

        Raises:
            AuditUnavailable: there was no room in time; or it was not on disk in time, so that nobody knows.
        """
        if self.must_restart:
            # A change made on top of one whose fate is unknown would hide it from recovery.
            msg = "control restarts, since it does not know whether the last change was made; try again soon"
            raise AuditUnavailable(msg)
        began = time.monotonic()
        while (seq := self._append(event)) is None:
            if self._waited_enough(began, urgent):
                msg = "the change could not be logged, so it was not made: see tidegate audit status for why"
                raise AuditUnavailable(msg)
            await asyncio.sleep(POLL_S)
        if event.model is not None and event.revision is not None:
            self.drawn[event.model] = max(event.revision, self.drawn.get(event.model, 0))
        event.id = self._writer.event_id(seq)
        await self._wait_synced(event, self._writer.ring.committed, began, urgent=urgent, in_effect=in_effect)

    async def _wait_synced(
        self, event: Control, mark: int, began: float, *, urgent: bool, in_effect: bool
    ) -> None:
        """Wait until the disk has what was appended below a mark."""
        while not self._writer.synced(mark):
            if self._waited_enough(began, urgent):
                if urgent or in_effect:
                    # It stands in the ring, once, and in effect it is in any case.
                    self._pending = (event.id, mark)
                    msg = "the disk did not take the change in time; it is logged as soon as it does"
                    raise AuditUnavailable(msg)
                self._give_up_on(event)
            await asyncio.sleep(POLL_S)

    def _waited_enough(self, began: float, urgent: bool) -> bool:
        hurried = urgent or self._pressing > 0
        return time.monotonic() > began + (min(URGENT_TIMEOUT_S, LOG_TIMEOUT_S) if hurried else LOG_TIMEOUT_S)

    def _give_up_on(self, event: Control) -> None:
        """Appended, and not on disk in time."""
        if event.kind in _REPEATED:
            # The next one, or any change, says the same or more: what became of this one does not matter.
            msg = "the disk did not take the renewal in time; renew again"
            raise AuditUnavailable(msg)
        self.must_restart = True
        msg = (
            "the disk did not take the change in time; control restarts and finds out"
            " whether it was made. Look at the route before you try again"
        )
        raise AuditUnavailable(msg)

    def _append(self, event: Control) -> int | None:
        # What the recorder cannot write now would be made later, behind an answer that says no.
        return None if self._writer.ring.unavailable else self._writer.append_events([event])

    def publish(self, state: State) -> None:
        """Write a state as the next generation and announce it; it is the present one from then on.

        Raises:
            OSError: it cannot be written; the present state stays.
        """
        serving = msgspec.structs.replace(state.serving, generation=state.serving.generation + 1)
        snapshot.write(self._path, snapshot.encode(serving, state.ledger))
        self.state = State(serving, state.ledger)
        self._fleet.publish_shadows(serving.sampled_shadows)
        self._fleet.publish_generation(serving.generation)

    async def wait_applied(self, generation: int) -> Applied:
        """Wait until every live worker runs this generation or a later one, at most `APPLY_TIMEOUT_S`."""
        started = time.monotonic()
        while True:
            live = self._fleet.live_workers()
            pending = tuple(i for i in live if self._fleet.worker(i)[words_of.GENERATION] < generation)
            waited_s = time.monotonic() - started
            if not pending or waited_s > APPLY_TIMEOUT_S:
                return Applied(len(live) - len(pending), len(live), int(waited_s * 1000), pending)
            await asyncio.sleep(POLL_S)
