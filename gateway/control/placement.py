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

import msgspec

from gateway.control.engine import Engine, changed_by
from gateway.control.settling import Settling
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

    def __init__(self, engine: Engine, models: Path, watch_s: float = 0.0) -> None:
        self._engine = engine
        self._models = models
        self._watch_s = watch_s
        self._new = Settling(models)
        self._failed = Settling(models)
        self._problems: tuple[str, ...] = ()
        self.found = Found({}, ())
        self._looking = asyncio.Lock()

    async def refresh(self, *, settled_only: bool = False) -> Found:
        """Look at the repository now.

        Args:
            settled_only: new versions count once their files are settled; who asks for a look says that they are.

        One that is not there (a mount that is away for a moment) says nothing of its versions: those seen last hold.
        """
        # One after another: an older look must not take away what a newer one has found.
        async with self._looking:
            return await self._look(settled_only)

    async def _look(self, settled_only: bool) -> Found:
        missing = False
        try:
            found = await asyncio.to_thread(self._scan, settled_only)
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

    def _scan(self, settled_only: bool) -> Found:
        found = scan(self._models)
        if not settled_only:
            return found
        new = {(m, v) for m, versions in found.models.items() for v in versions if not self._known(m, v)}
        held_back = new - self._new.settled(new)
        self._new.forget(held_back)
        if not held_back:
            return found
        models = {
            model: kept
            for model, versions in found.models.items()
            if (kept := tuple(v for v in versions if (model, v) not in held_back))
        }
        chosen = {m: tuple(v for v in vs if (m, v) not in held_back) for m, vs in found.chosen.items()}
        return Found(models, found.problems, chosen)

    def _known(self, model: str, version: str) -> bool:
        return version in self.found.models.get(model, ())

    async def first_look(self) -> None:
        """Look at the repository before anything is changed; what is wrong with it is logged, not raised."""
        await self._guarded_refresh()

    async def run(self) -> None:
        """Rescan now and then; give new models their first route as soon as they can have one."""
        next_scan = next_watch = 0.0
        while True:
            if time.monotonic() >= next_scan:
                next_scan = time.monotonic() + RESCAN_S
                await self._guarded_refresh(settled_only=True)
            if self._watch_s and time.monotonic() >= next_watch:
                next_watch = time.monotonic() + self._watch_s
                await self._load_mended()
            for model in self.found.models:
                await self.first_sight(model)
            await asyncio.sleep(POLL_S)

    async def _load_mended(self) -> None:
        """Load failed versions again whose files have changed since."""
        failed = [
            (d.model, d.version)
            for d in self._engine.state.serving.versions
            if any(state == "failed" for state, _ in self._engine.load_states(d.model, d.version).values())
        ]
        for model, version in await asyncio.to_thread(self._failed.mended, failed):
            try:
                change = changed_by("gateway", "its files changed")
                await self._engine.load_or_unload(model, version, "load", change)
            except GatewayError as exc:
                log.warning("not_loaded_again", extra={"model": model, "version": version, "why": str(exc)})

    async def _guarded_refresh(self, *, settled_only: bool = False) -> None:
        try:
            await self.refresh(settled_only=settled_only)
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
        route = first_route(model, best, "", changed_by("gateway", "first sight of the model"))
        route = msgspec.structs.replace(route, salt_id=secrets.token_hex(8))
        try:
            await self._engine.first_route(route)
        except GatewayError as exc:
            log.error("first_route_failed", extra={"model": model, "why": str(exc)})  # noqa: TRY400
            return
        log.info("route_created", extra={"model": model, "version": best})
