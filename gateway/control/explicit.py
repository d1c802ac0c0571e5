"""Whole models, loaded and unloaded when someone asks: as the protocol's model repository extension has it.

admin API -> **explicit** -> engine -> workers. An answer means that it is so in every worker, or says why not.
The route of a model that is unloaded stays as it was: what comes back, comes back with the same traffic.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from gateway.control.engine import Engine, Outcome
from gateway.control.state import EVERY
from gateway.errors import LoadFailed, StateConflict, UnknownModel
from gateway.routing import Change
from loaders.repository import Found

LOAD_TIMEOUT_S = 300.0
POLL_S = 0.005


class Explicit:
    """Load and unload by name.

    Args:
        refresh: looks at the repository now.
        first_sight: gives a model its first route once its versions have settled, if it has none.

    Threading: control's loop; the engine serialises what changes.
    """

    def __init__(
        self,
        engine: Engine,
        refresh: Callable[[], Awaitable[Found]],
        first_sight: Callable[[str], Awaitable[None]],
    ) -> None:
        self._engine = engine
        self._refresh = refresh
        self._first_sight = first_sight

    async def load(self, model: str, change: Change, timeout_s: float = LOAD_TIMEOUT_S) -> Outcome:
        """Look at the repository, load what a model's route asks for and its newest version, route it if it has none.

        Raises:
            UnknownModel: it is not in the repository.
            LoadFailed: a version failed, with its reason; or it took too long.
            AuditUnavailable: it could not be logged, so it was not done.
        """
        if model not in (await self._refresh()).models:
            raise UnknownModel(model)
        outcome = await self._engine.load_or_unload(model, EVERY, "load", change)
        deadline = time.monotonic() + timeout_s
        while not (states := self._states(model)) or any(
            state not in {"ready", "failed"} for found in states.values() for state, _ in found
        ):
            if time.monotonic() > deadline:
                msg = f"failed to load '{model}': not ready within {timeout_s:g} s; it is still being loaded"
                raise LoadFailed(msg)
            await asyncio.sleep(POLL_S)
        await self._first_sight(model)
        # Also where somebody else gave it the route just now: an answer means that it can be asked.
        await self._engine.in_effect()
        for version, found in states.items():
            for state, reason in found:
                if state == "failed":
                    msg = f"failed to load '{model}' version {version}: {reason}"
                    raise LoadFailed(msg)
        return outcome

    async def unload(self, model: str, change: Change) -> Outcome:
        """Let go of all versions of a model; also of one that is gone from the repository.

        Raises:
            UnknownModel: there is none.
            StateConflict: its route is frozen.
            AuditUnavailable: it could not be logged, so it was not done.
        """
        route = self._engine.state.serving.routes.get(model)
        if route is None and model not in (await self._refresh()).models:
            raise UnknownModel(model)
        if route is not None and route.frozen:
            msg = f"route {model} is frozen: thaw it before the model is unloaded"
            raise StateConflict(msg)
        return await self._engine.load_or_unload(model, EVERY, "unload", change)

    def _states(self, model: str) -> dict[str, list[tuple[str, str]]]:
        """State and reason in every live worker, by version wanted; empty as long as no worker lives."""
        wanted = [d.version for d in self._engine.state.serving.versions if d.model == model]
        found = {version: list(self._engine.load_states(model, version).values()) for version in wanted}
        return found if all(found.values()) else {}
