"""Models over the admin API: shown, loaded, let go, looked for.

admin (who may) -> **admin_models** -> control.placement says what is on disk, control.engine what shall be loaded.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.addresses import Address, get, post
from gateway.api.answers import json_answer
from gateway.api.bodies import LoadBody, ReasonBody, asked_of, read_body
from gateway.control.engine import Engine, changed_by
from gateway.control.explicit import Explicit
from gateway.control.placement import Placement
from gateway.errors import ChangeInvalid, UnknownModel

_ALL = "/admin/v1/models"
_ONE = _ALL + "/{model}"


class ModelHandlers:
    """Handlers of `/admin/v1/models`."""

    def __init__(self, engine: Engine, placement: Placement) -> None:
        self._engine = engine
        self._placement = placement

    def addresses(self) -> list[Address]:
        """Their addresses."""
        return [
            get(_ALL, self.models),
            post(_ALL + "/refresh", self.refresh, ReasonBody),
            get(_ONE, self.model),
            post(_ONE + "/load", self.load, LoadBody),
            post(_ONE + "/unload", self.unload, LoadBody),
        ]

    async def models(self, request: Request) -> Response:
        """Every model and version, its state and weight."""
        found = self._placement.found
        names = sorted({*found.models, *self._engine.state.serving.routes})
        return json_answer({"models": [self._model(n) for n in names], "problems": list(found.problems)})

    async def model(self, request: Request) -> Response:
        """One model's versions."""
        name = request.path_params["model"]
        known = {*self._placement.found.models, *self._engine.state.serving.routes}
        if name not in known:
            raise UnknownModel(name)
        return json_answer(self._model(name))

    async def refresh(self, request: Request) -> Response:
        """Look at the repository now."""
        await read_body(request, ReasonBody, optional=True)
        found = await self._placement.refresh()
        return json_answer(
            {
                "models": len(found.models),
                "versions": sum(map(len, found.models.values())),
                "problems": list(found.problems),
            }
        )

    async def load(self, request: Request) -> Response:
        """Load a version in every worker."""
        return await self._load_or_unload(request, "load")

    async def unload(self, request: Request) -> Response:
        """Let a version go in every worker."""
        return await self._load_or_unload(request, "unload")

    async def _load_or_unload(self, request: Request, kind: str) -> Response:
        body = await read_body(request, LoadBody)
        model = request.path_params["model"]
        if body.whole:
            return await self._whole(request, kind, body)
        versions = self._placement.found.models.get(model)
        if kind == "load" and (body.version is None or body.version not in (versions or ())):
            # Put there a moment ago: the next look of its own is seconds away.
            versions = (await self._placement.refresh()).models.get(model)
        if not versions:
            raise UnknownModel(model, body.version)
        version = body.version or versions[-1]
        change = changed_by(request.state.principal.name, body.reason)
        outcome = await self._engine.load_or_unload(model, version, kind, change, asked_of(request))
        return json_answer(
            {
                "model": model,
                "version": version,
                "generation": outcome.generation,
                "applied": msgspec.to_builtins(outcome.applied),
                **({"replayed": True} if outcome.replayed else {}),
            },
            status=202 if outcome.applied and outcome.applied.pending else 200,
        )

    async def _whole(self, request: Request, kind: str, body: LoadBody) -> Response:
        model = request.path_params["model"]
        if body.version is not None:
            msg = "give `version` or `whole`, not both"
            raise ChangeInvalid(msg)
        change = changed_by(request.state.principal.name, body.reason)
        explicit = Explicit(self._engine, self._placement.refresh, self._placement.first_sight)
        outcome = await (explicit.load if kind == "load" else explicit.unload)(model, change)
        pending = outcome.applied.pending if outcome.applied and kind == "unload" else ()
        content = {**self._model(model), "generation": outcome.generation, "pending": list(pending)}
        return json_answer(content, status=202 if pending else 200)

    def _model(self, name: str) -> dict[str, Any]:
        route = self._engine.state.serving.routes.get(name)
        on_disk = self._placement.found.models.get(name, ())
        in_route = route.versions if route is not None else ()
        weights: dict[str, int] = {}
        for variant in route.variants if route is not None else ():
            if variant.role != "shadow":
                weights[variant.version] = weights.get(variant.version, 0) + variant.weight_bp
        versions = []
        for version in sorted({*on_disk, *in_route}, key=int):
            state, reason, workers = self.state(name, version)
            versions.append(
                {
                    "version": version,
                    "state": state,
                    "reason": reason,
                    "weight_bp": weights.get(version),
                    "workers": workers,
                }
            )
        return {"name": name, "versions": versions}

    def state(self, model: str, version: str) -> tuple[str, str | None, dict[str, str]]:
        """State of a version over all workers, why, and each worker's."""
        states = self._engine.load_states(model, version)
        if not states:
            return "absent", None, {}
        workers = {str(i): state for i, (state, _) in states.items()}
        for state in ("failed", "loading", "absent", "unloading"):
            for found, reason in states.values():
                if found == state:
                    return state, reason or None, workers
        # Ready, and something is to be told: it was asked for anew, and stays as it was.
        told = next((reason for _, reason in states.values() if reason), None)
        return "ready", told, workers
