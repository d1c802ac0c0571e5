"""The admin API: who may do what, models, fleet and log status, `/metrics`. On the admin listener only.

CLI, scripts, sidecar -> **admin** -> admin_routes, control.engine. One table (`RULES`) says which scope each route
needs, another (`SCOPES`) which a principal has; a route without a rule fails the build, and what is not matched is
refused. Requests with a foreign Host or Origin
are refused: a web page must not reach loopback through a rebound name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.routing import Route as Address

from gateway import roster
from gateway.api.admin_routes import RouteHandlers
from gateway.api.answers import json_answer
from gateway.api.bodies import LoadBody, ReasonBody, check_host, read_body
from gateway.api.metrics import exposition
from gateway.api.outgoing import problem_response
from gateway.audit import verify
from gateway.control.engine import Engine, changed_by
from gateway.control.explicit import Explicit
from gateway.control.placement import Placement
from gateway.control.tokens import ADMIN, SIDECAR, WORKER, check_bearer
from gateway.errors import ChangeInvalid, Forbidden, GatewayError, MethodNotAllowed, NotFound, UnknownModel
from gateway.fleet import Fleet

OPEN, READ, SHIFT, ROLLBACK, LEASE = "open", "read", "shift", "rollback", "lease"
PUBLISH, LOAD = "publish", "load"

RULES: dict[tuple[str, str], str] = {
    ("GET", "/healthz"): OPEN,
    ("GET", "/metrics"): OPEN,
    ("GET", "/admin/v1/routes"): READ,
    ("GET", "/admin/v1/routes/{model}"): READ,
    ("GET", "/admin/v1/routes/{model}/history"): READ,
    ("PUT", "/admin/v1/routes/{model}"): SHIFT,
    ("POST", "/admin/v1/routes/{model}/shift"): SHIFT,
    ("POST", "/admin/v1/routes/{model}/promote"): SHIFT,
    ("POST", "/admin/v1/routes/{model}/rollback"): ROLLBACK,
    ("POST", "/admin/v1/routes/{model}/rearm"): SHIFT,
    ("POST", "/admin/v1/routes/{model}/lease"): LEASE,
    ("POST", "/admin/v1/routes/{model}/freeze"): SHIFT,
    ("POST", "/admin/v1/routes/{model}/thaw"): SHIFT,
    ("GET", "/admin/v1/models"): READ,
    ("POST", "/admin/v1/models/refresh"): PUBLISH,
    ("GET", "/admin/v1/models/{model}"): READ,
    ("POST", "/admin/v1/models/{model}/load"): LOAD,
    ("POST", "/admin/v1/models/{model}/unload"): LOAD,
    ("GET", "/admin/v1/fleet"): READ,
    ("GET", "/admin/v1/audit/status"): READ,
}
"""(method, route) to scope."""

SCOPES: dict[str, frozenset[str]] = {
    ADMIN: frozenset((READ, SHIFT, ROLLBACK, LEASE, PUBLISH, LOAD)),
    SIDECAR: frozenset((READ, ROLLBACK, LEASE)),
    WORKER: frozenset((LOAD,)),
}
"""Principal to scopes. Of rollbacks the sidecar has those of a canary only (admin_routes)."""

Handler = Callable[[Request], Awaitable[Response]]


class AdminApi:
    """Handlers of the admin listener.

    Args:
        tokens: by principal.
    """

    def __init__(
        self,
        engine: Engine,
        placement: Placement,
        fleet: Fleet,
        state_dir: Path,
        ring_dir: Path,
        tokens: Mapping[str, str],
    ) -> None:
        self._engine = engine
        self._placement = placement
        self._fleet = fleet
        self._state_dir = state_dir
        self._ring_dir = ring_dir
        self._tokens = tokens

    def app(self) -> Starlette:
        """The ASGI application; every address of `RULES` and no other."""
        routes = RouteHandlers(self._engine, lambda model, version: self._state(model, version)[0])
        handlers: dict[tuple[str, str], Handler] = {
            ("GET", "/healthz"): self.healthz,
            ("GET", "/metrics"): self.metrics,
            ("GET", "/admin/v1/routes"): routes.routes,
            ("GET", "/admin/v1/routes/{model}"): routes.route,
            ("GET", "/admin/v1/routes/{model}/history"): routes.history,
            ("PUT", "/admin/v1/routes/{model}"): routes.set_route,
            ("POST", "/admin/v1/routes/{model}/shift"): routes.shift,
            ("POST", "/admin/v1/routes/{model}/promote"): routes.promote,
            ("POST", "/admin/v1/routes/{model}/rollback"): routes.rollback,
            ("POST", "/admin/v1/routes/{model}/rearm"): routes.rearm,
            ("POST", "/admin/v1/routes/{model}/lease"): routes.lease,
            ("POST", "/admin/v1/routes/{model}/freeze"): routes.freeze,
            ("POST", "/admin/v1/routes/{model}/thaw"): routes.thaw,
            ("GET", "/admin/v1/models"): self.models,
            ("POST", "/admin/v1/models/refresh"): self.refresh,
            ("GET", "/admin/v1/models/{model}"): self.model,
            ("POST", "/admin/v1/models/{model}/load"): self.load,
            ("POST", "/admin/v1/models/{model}/unload"): self.unload,
            ("GET", "/admin/v1/fleet"): self.fleet,
            ("GET", "/admin/v1/audit/status"): self.audit_status,
        }
        app = Starlette(
            routes=[
                Address(path, self._guarded(method, path, handler), methods=[method])
                for (method, path), handler in handlers.items()
            ],
            exception_handlers={
                HTTPException: self._http_exception,
                GatewayError: self._refused,
                Exception: self._refused,
            },
        )
        # A redirect would repeat the Host header before anything has looked at it.
        app.router.redirect_slashes = False
        return app

    def _guarded(self, method: str, path: str, handler: Handler) -> Handler:
        scope = RULES[method, path]

        async def guarded(request: Request) -> Response:
            check_host(request)
            if scope != OPEN:
                principal = check_bearer(request.headers.get("authorization"), self._tokens)
                if scope not in SCOPES[principal]:
                    has = ", ".join(sorted(SCOPES[principal]))
                    msg = f"{method} {path} needs the scope {scope}; the {principal} has {has}"
                    raise Forbidden(msg)
                request.state.principal = principal
            return await handler(request)

        return guarded

    async def healthz(self, request: Request) -> Response:
        """Control answers."""
        return json_answer({"ok": True})

    async def metrics(self, request: Request) -> Response:
        """Prometheus exposition of the whole fleet."""
        body, content_type = exposition(self._fleet, self._engine.state.serving, self._state_dir)
        return Response(body, media_type=content_type)

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

    async def fleet(self, request: Request) -> Response:
        """Workers: pid, state, generation, restarts."""
        told = {"generation": self._fleet.generation, "workers": self._fleet.facts()}
        return json_answer({**told, "supervisor": roster.read(self._state_dir)})

    async def audit_status(self, request: Request) -> Response:
        """Where every source of the log stands."""
        # On a thread: a spool of days is many files.
        listed = await asyncio.to_thread(verify.status, self._state_dir / "spool", self._ring_dir)
        return json_answer({"sources": msgspec.to_builtins(listed)})

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
        change = changed_by(request.state.principal, body.reason)
        outcome = await self._engine.load_or_unload(model, version, kind, change)
        return json_answer(
            {
                "model": model,
                "version": version,
                "generation": outcome.generation,
                "applied": msgspec.to_builtins(outcome.applied),
            },
            status=202 if outcome.applied and outcome.applied.pending else 200,
        )

    async def _whole(self, request: Request, kind: str, body: LoadBody) -> Response:
        model = request.path_params["model"]
        if body.version is not None:
            msg = "give `version` or `whole`, not both"
            raise ChangeInvalid(msg)
        change = changed_by(request.state.principal, body.reason)
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
            state, reason, workers = self._state(name, version)
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

    def _state(self, model: str, version: str) -> tuple[str, str | None, dict[str, str]]:
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

    async def _http_exception(self, request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)  # noqa: S101
        if exc.status_code == 405:
            response = problem_response(MethodNotAllowed(f"method {request.method} is not allowed here"))
            found = [r for r in request.app.routes if r.matches(request.scope)[0] is not Match.NONE]
            response.headers["allow"] = ", ".join(sorted({m for r in found for m in r.methods}))
            return response
        return problem_response(NotFound("no such address"))

    async def _refused(self, request: Request, exc: Exception) -> Response:
        return problem_response(exc)
