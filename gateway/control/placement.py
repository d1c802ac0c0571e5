"""Placement: which versions the workers hold, and the first route of a model.

repository (disk) -> **placement** -> engine -> snapshot -> workers. A new model gets revision 1 once every live
worker has settled its versions; a version that appears later is loaded and gets weight 0.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from pathlib import Path

from gateway.control.engine import Engine, changed_by
from gateway.errors import GatewayError
from gateway.routing import first_route
from loaders.errors import RepositoryMissing
from loaders.repository import Found, scan

log = logging.getLogger("tidegate.control")

RESCAN_S = 5.0
POLL_S = 0.05


class Placement:
    """Follows the repository.

    Threading: one task of control's loop; the scan itself runs on a thread, disks can be slow.
    """

    def __init__(self, engine: Engine, models: Path) -> None:
        self._engine = engine
        self._models = models
        self._problems: tuple[str, ...] = ()
        self.found = Found({}, ())

    async def refresh(self) -> Found:
        """Look at the repository now.

        One that is not there (a mount that is away for a moment) says nothing of its versions: those seen last hold.
        """
        missing = False
        try:
            found = await asyncio.to_thread(scan, self._models)
        except RepositoryMissing as exc:
            missing = True
            found = Found(self.found.models, (str(exc),), self.found.chosen)
        for problem in found.problems:
            if problem not in self._problems:
                log.warning("repository_problem", extra={"what": problem})
        self._problems = found.problems
        self.found = found
        if not missing:
            await self._engine.place(found.models, found.chosen)
        return found

    async def first_look(self) -> None:
        """Look at the repository before anything is changed; what is wrong with it is logged, not raised."""
        await self._guarded_refresh()

    async def run(self) -> None:
        """Rescan now and then; give new models their first route as soon as they can have one."""
        next_scan = 0.0
        while True:
            if time.monotonic() >= next_scan:
                next_scan = time.monotonic() + RESCAN_S
                await self._guarded_refresh()
            for model in self.found.models:
                await self.first_sight(model)
            await asyncio.sleep(POLL_S)

    async def _guarded_refresh(self) -> None:
        try:
            await self.refresh()
        except (GatewayError, OSError) as exc:
            log.error("placement_failed", extra={"why": str(exc)})  # noqa: TRY400

    async def first_sight(self, model: str) -> None:
        """Give a model without a route its first, once every live worker has settled its versions."""
        if model in self._engine.state.serving.routes:
            return
        versions = self.found.models[model]
        states = {v: [s for s, _ in self._engine.load_states(model, v).values()] for v in versions}
        wanted = {v: found for v, found in states.items() if found}
        if not wanted or any(s not in {"ready", "failed"} for found in wanted.values() for s in found):
            return
        ready = [v for v, found in wanted.items() if all(s == "ready" for s in found)]
        if not ready:
            return
        best = max(ready, key=int)
        route = first_route(
            model, best, secrets.token_hex(16), changed_by("gateway", "first sight of the model")
        )
        try:
            await self._engine.first_route(route)
        except GatewayError as exc:
            log.error("first_route_failed", extra={"model": model, "why": str(exc)})  # noqa: TRY400
            return
        log.info("route_created", extra={"model": model, "version": best})
