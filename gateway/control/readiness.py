"""Readiness: what the workers say of a version, for those who want to move traffic.

fleet (workers' words) -> **readiness** -> engine's gates, placement, admin API.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway import fleet as words_of
from gateway.control.snapshot import DesiredVersion, OpenBreaker
from gateway.control.state import State
from gateway.fleet import LOAD_STATES, SERVING, STARTING, Fleet

LoadStates = dict[int, tuple[str, str]]
"""State word and reason of a version by worker."""


class Readiness:
    """Reads the load states of versions that every worker is to hold.

    Args:
        state: gives the state in effect.

    Threading: control's loop. Cost: a few words a worker.
    """

    def __init__(self, state: Callable[[], State], fleet: Fleet) -> None:
        self._state_now = state
        self._fleet = fleet
        self._desired: tuple[object, dict[tuple[str, str], DesiredVersion]] = (None, {})

    def live(self, model: str, version: str) -> LoadStates:
        """State and reason in every live worker; empty when the version is not wanted."""
        desired = self._wanted(model, version)
        if desired is None:
            return {}
        return {index: self._state(index, desired) for index in self._fleet.live_workers()}

    def serving(self, model: str, version: str) -> LoadStates | None:
        """The same over the workers that a change of traffic is about; None when the version is not wanted.

        Those that take requests, and those that start, where the version has failed: a starting worker takes none
        before it holds what has weight, so that what it is still loading stands in nobody's way. One that drains takes
        no new ones.
        """
        desired = self._wanted(model, version)
        if desired is None:
            return None
        found: LoadStates = {}
        for index in self._fleet.live_workers():
            worker, state = self._fleet.worker(index)[words_of.STATE], self._state(index, desired)
            if worker == SERVING or (worker == STARTING and state[0] == "failed"):
                found[index] = state
        return found

    def new_breakers(self, now_ns: int) -> list[OpenBreaker]:
        """Breakers that are open in the present revision and that the ledger does not know yet."""
        state = self._state_now()
        known = {(b.model, b.version, b.revision, b.worker) for b in state.ledger.breakers}
        found = []
        for desired in state.serving.versions:
            route = state.serving.routes.get(desired.model)
            for index in self._fleet.live_workers() if route is not None else ():
                if not self._fleet.slot(index, desired.slot)[words_of.BREAKER_REVISION]:
                    continue
                words = self._fleet.version(index, desired.slot, desired.model, desired.version)
                revision = words[words_of.BREAKER_REVISION]
                key = (desired.model, desired.version, revision, index)
                if route is not None and revision == route.revision and key not in known:
                    model, version, _, worker = key
                    found.append(
                        OpenBreaker(
                            model=model, version=version, revision=revision, worker=worker, at_ns=now_ns
                        )
                    )
        return found

    def _wanted(self, model: str, version: str) -> DesiredVersion | None:
        versions = self._state_now().serving.versions
        if self._desired[0] is not versions:
            self._desired = (versions, {(d.model, d.version): d for d in versions})
        return self._desired[1].get((model, version))

    def _state(self, index: int, desired: DesiredVersion) -> tuple[str, str]:
        words = self._fleet.version(index, desired.slot, desired.model, desired.version)
        state = words[words_of.LOAD_STATE]
        return LOAD_STATES[state], self._fleet.reason(index, desired.slot) if state else ""
