"""The admin API: routes, models, fleet and log status, `/metrics`. On the admin listener only.

CLI, scripts, sidecar -> **admin** -> control.engine. One table (`RULES`) says which scope each route needs;
a route without a rule fails the build, and what is not matched is refused. Requests with a foreign Host or Origin
are refused: a web page must not reach loopback through a rebound name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.routing import Route as Address

from gateway.api.bodies import (
    LoadBody,
    PromoteBody,
    ReasonBody,
    RollbackBody,
    SetBody,
    ShiftBody,
    check_host,
    if_match,
    is_dry_run,
    read_body,
)
from gateway.api.metrics import exposition
from gateway.api.problems import problem, retry_after_s
from gateway.audit import verify
from gateway.control.engine import Engine, Outcome, changed_by
from gateway.control.placement import Placement
from gateway.control.state import public_document, rollback_target
from gateway.control.tokens import check_bearer
from gateway.errors import (
    ChangeInvalid,
    GatewayError,
    MethodNotAllowed,
    NotFound,
    StateConflict,
    UnknownModel,
)
from gateway.fleet import Fleet
from gateway.routing import Change, Route, promoted, rolled_back, set_frozen, shifted, with_variants

OPEN, READ, SHIFT, PUBLISH = "open", "read", "shift", "publish"

RULES: dict[tuple[str, str], str] = {
    ("GET", "/healthz"): OPEN,
    ("GET", "/metrics"): OPEN,
    ("GET", "/admin/v1/routes"): READ,
    ("GET", "/admin/v1/routes/{model}"): READ,
    ("GET", "/admin/v1/routes/{model}/history"): READ,
    ("PUT", "/admin/v1/routes/{model}"): SHIFT,
    ("POST", "/admin/v1/routes/{model}/shift"): SHIFT,
    ("POST", "/admin/v1/routes/{model}/promote"): SHIFT,
    ("POST", "/admin/v1/routes/{model}/rollback"): SHIFT,
    ("POST", "/admin/v1/routes/{model}/freeze"): SHIFT,
    ("POST", "/admin/v1/routes/{model}/thaw"): SHIFT,
    ("GET", "/admin/v1/models"): READ,
    ("POST", "/admin/v1/models/refresh"): PUBLISH,
    ("GET", "/admin/v1/models/{model}"): READ,
    ("POST", "/admin/v1/models/{model}/load"): PUBLISH,
    ("POST", "/admin/v1/models/{model}/unload"): PUBLISH,
    ("GET", "/admin/v1/fleet"): READ,
    ("GET", "/admin/v1/audit/status"): READ,
}
"""(method, route) to scope. One token holds all scopes until principals have tokens of their own."""

Handler = Callable[[Request], Awaitable[Response]]
Make = Callable[[Route, Change], Route]


class AdminApi:
    """Handlers of the admin listener.

    Args:
        token: the admin token.
    """

    def __init__(
        self,
        engine: Engine,
        placement: Placement,
        fleet: Fleet,
        state_dir: Path,
        ring_dir: Path,
        token: str,
    ) -> None:
        self._engine = engine
        self._placement = placement
        self._fleet = fleet
        self._state_dir = state_dir
        self._ring_dir = ring_dir
        self._token = token

    def app(self) -> Starlette:
        """The ASGI application; every address of `RULES` and no other."""
        handlers: dict[tuple[str, str], Handler] = {
            ("GET", "/healthz"): self.healthz,
            ("GET", "/metrics"): self.metrics,
            ("GET", "/admin/v1/routes"): self.routes,
            ("GET", "/admin/v1/routes/{model}"): self.route,
            ("GET", "/admin/v1/routes/{model}/history"): self.history,
            ("PUT", "/admin/v1/routes/{model}"): self.set_route,
            ("POST", "/admin/v1/routes/{model}/shift"): self.shift,
            ("POST", "/admin/v1/routes/{model}/promote"): self.promote,
            ("POST", "/admin/v1/routes/{model}/rollback"): self.rollback,
            ("POST", "/admin/v1/routes/{model}/freeze"): self.freeze,
            ("POST", "/admin/v1/routes/{model}/thaw"): self.thaw,
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
                check_bearer(request.headers.get("authorization"), self._token)
            return await handler(request)

        return guarded

    async def healthz(self, request: Request) -> Response:
        """Control answers."""
        return _json({"ok": True})

    async def metrics(self, request: Request) -> Response:
        """Prometheus exposition of the whole fleet."""
        body, content_type = exposition(self._fleet, self._engine.state.serving, self._state_dir)
        return Response(body, media_type=content_type)

    async def routes(self, request: Request) -> Response:
        """Every route."""
        routes = self._engine.state.serving.routes
        return _json({"routes": [self._shown(routes[name]) for name in sorted(routes)]})

    async def route(self, request: Request) -> Response:
        """One route and its revision as ETag."""
        route = self._engine.route(request.path_params["model"])
        return _json(self._shown(route), etag=route.revision)

    async def history(self, request: Request) -> Response:
        """The revisions kept for rollback, newest first."""
        route = self._engine.route(request.path_params["model"])
        kept = self._engine.state.ledger.history.get(route.model, ())
        return _json({"model": route.model, "revisions": [public_document(r) for r in reversed(kept)]})

    async def set_route(self, request: Request) -> Response:
        """Replace a route's variants."""
        body = await read_body(request, SetBody)
        variants = tuple(v.variant() for v in body.variants)
        return await self._change(request, "route", body.reason, lambda r, c: with_variants(r, variants, c))

    async def shift(self, request: Request) -> Response:
        """Set canaries' weights; the primary has the rest."""
        body = await read_body(request, ShiftBody)
        return await self._change(request, "shift", body.reason, lambda r, c: shifted(r, body.weights_bp, c))

    async def promote(self, request: Request) -> Response:
        """Make a canary's version the primary's."""
        body = await read_body(request, PromoteBody)
        return await self._change(request, "promote", body.reason, lambda r, c: promoted(r, body.variant, c))

    async def rollback(self, request: Request) -> Response:
        """Bring back an older revision's content."""
        body = await read_body(request, RollbackBody)
        return await self._change(
            request,
            "rollback",
            body.reason,
            lambda r, c: rolled_back(r, self._revision(r, body.to_revision), c),
        )

    async def freeze(self, request: Request) -> Response:
        """Hold a route."""
        body = await read_body(request, ReasonBody)
        return await self._change(request, "freeze", body.reason, lambda r, c: _frozen(r, True, c))

    async def thaw(self, request: Request) -> Response:
        """End a hold."""
        body = await read_body(request, ReasonBody)
        return await self._change(request, "thaw", body.reason, lambda r, c: _frozen(r, False, c))

    async def models(self, request: Request) -> Response:
        """Every model and version, its state and weight."""
        found = self._placement.found
        names = sorted({*found.models, *self._engine.state.serving.routes})
        return _json({"models": [self._model(n) for n in names], "problems": list(found.problems)})

    async def model(self, request: Request) -> Response:
        """One model's versions."""
        name = request.path_params["model"]
        known = {*self._placement.found.models, *self._engine.state.serving.routes}
        if name not in known:
            raise UnknownModel(name)
        return _json(self._model(name))

    async def refresh(self, request: Request) -> Response:
        """Look at the repository now."""
        await read_body(request, ReasonBody, optional=True)
        found = await self._placement.refresh()
        return _json(
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
        return _json({"generation": self._fleet.generation, "workers": self._fleet.facts()})

    async def audit_status(self, request: Request) -> Response:
        """Where every source of the log stands."""
        # On a thread: a spool of days is many files.
        listed = await asyncio.to_thread(verify.status, self._state_dir / "spool", self._ring_dir)
        return _json({"sources": msgspec.to_builtins(listed)})

    async def _change(self, request: Request, kind: str, reason: str, make: Make) -> Response:
        outcome = await self._engine.change_route(
            request.path_params["model"],
            kind,
            changed_by("admin", reason),
            make,
            expected_revision=if_match(request),
            dry_run=is_dry_run(request),
        )
        return _outcome(outcome)

    async def _load_or_unload(self, request: Request, kind: str) -> Response:
        body = await read_body(request, LoadBody)
        model = request.path_params["model"]
        versions = self._placement.found.models.get(model)
        if not versions:
            raise UnknownModel(model, body.version)
        version = body.version or versions[-1]
        outcome = await self._engine.load_or_unload(model, version, kind, changed_by("admin", body.reason))
        return _json(
            {
                "model": model,
                "version": version,
                "generation": outcome.generation,
                "applied": msgspec.to_builtins(outcome.applied),
            },
            status=202 if outcome.applied and outcome.applied.pending else 200,
        )

    def _revision(self, route: Route, number: int | None) -> Route:
        kept = self._engine.state.ledger.history.get(route.model, ())
        if number is None:
            target = rollback_target(self._engine.state.ledger, route.model)
            if target is None:
                msg = f"route {route.model} has no earlier revision that differs from this one"
                raise StateConflict(msg)
            return target
        for revision in kept:
            if revision.revision == number:
                return revision
        have = ", ".join(str(r.revision) for r in kept)
        msg = f"route {route.model} keeps no revision {number}; it keeps {have}"
        raise ChangeInvalid(msg)

    def _shown(self, route: Route) -> dict[str, Any]:
        content = public_document(route)
        for variant in content["variants"]:  # type: ignore[attr-defined]
            variant["state"] = self._state(route.model, variant["version"])[0]
        return content

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
        return "ready", None, workers

    async def _http_exception(self, request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)  # noqa: S101
        if exc.status_code == 405:
            response = _problem(MethodNotAllowed(f"method {request.method} is not allowed here"))
            found = [r for r in request.app.routes if r.matches(request.scope)[0] is not Match.NONE]
            response.headers["allow"] = ", ".join(sorted({m for r in found for m in r.methods}))
            return response
        return _problem(NotFound("no such address"))

    async def _refused(self, request: Request, exc: Exception) -> Response:
        return _problem(exc)


def _frozen(route: Route, frozen: bool, change: Change) -> Route:
    if route.frozen == frozen:
        msg = f"route {route.model} is {'already' if frozen else 'not'} frozen"
        raise StateConflict(msg)
    return set_frozen(route, frozen, change)


def _outcome(outcome: Outcome) -> Response:
    after, before = outcome.route, outcome.before
    content: dict[str, Any] = {"generation": outcome.generation}
    status = 200
    if after is not None and before is not None:
        content["revision"] = after.revision
        content["before_bp"] = before.weights_bp
        content["after_bp"] = after.weights_bp
        content["event"] = after.changed.event
    if not outcome.logged:
        content["logged"] = False
    if outcome.applied is None:
        content["dry_run"] = True
    else:
        content["applied"] = msgspec.to_builtins(outcome.applied)
        status = 202 if outcome.applied.pending else 200
    etag = after.revision if after is not None and outcome.applied is not None else None
    return _json(content, status=status, etag=etag)


def _json(content: Any, status: int = 200, etag: int | None = None) -> Response:
    response = Response(msgspec.json.encode(content), status_code=status)
    response.headers["content-type"] = "application/json"
    if etag is not None:
        response.headers["etag"] = f'"{etag}"'
    return response


def _problem(exc: Exception) -> Response:
    status, body = problem(exc)
    response = Response(body, status_code=status)
    response.headers["content-type"] = "application/json"
    wait_s = retry_after_s(exc)
    if wait_s is not None:
        response.headers["retry-after"] = str(wait_s)
    if status == 401:
        response.headers["www-authenticate"] = "Bearer"
    return response
