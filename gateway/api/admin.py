"""The admin API: who may do what, fleet and log status, `/metrics`. On the admin listener only.

CLI, scripts, sidecar -> **admin** -> admin_routes, admin_models, control.engine. Every address is a row of a table, and
each needs a rule of `gateway.control.access`; what is not matched is refused. Requests with a foreign Host or Origin
are refused: a web page must not reach loopback through a rebound name.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from gateway import roster
from gateway.api.addresses import Address, built, get, post
from gateway.api.admin_models import ModelHandlers
from gateway.api.admin_openapi import description
from gateway.api.admin_routes import RouteHandlers
from gateway.api.admin_tokens import TokenHandlers
from gateway.api.answers import json_answer
from gateway.api.bodies import ReasonBody, asked_of, read_body
from gateway.api.guarding import Guard
from gateway.api.metrics import exposition
from gateway.api.outgoing import problem_response
from gateway.audit import verify
from gateway.control.access import ADMIN_RULES
from gateway.control.engine import Engine
from gateway.control.outcome import changed_by
from gateway.control.placement import Placement
from gateway.control.token_store import TokenStore
from gateway.control.tokens import Tokens
from gateway.errors import GatewayError, MethodNotAllowed, NotFound, StateConflict
from gateway.fleet import Fleet


class AdminApi:
    """Handlers of the admin listener.

    Args:
        tokens: that the listener knows.
        guard: what holds the rules; None: that of a listener on loopback.
    """

    def __init__(
        self,
        engine: Engine,
        placement: Placement,
        fleet: Fleet,
        state_dir: Path,
        ring_dir: Path,
        tokens: Tokens,
        guard: Guard | None = None,
    ) -> None:
        self._engine = engine
        self._models = ModelHandlers(engine, placement)
        self._routes = RouteHandlers(engine, lambda model, version: self._models.state(model, version)[0])
        self._fleet = fleet
        self._state_dir = state_dir
        self._ring_dir = ring_dir
        self._known = tokens
        self._tokens = TokenHandlers(
            engine, TokenStore(state_dir), self.look_for_tokens, lambda: tokens.problem
        )
        self._guard = guard or Guard(tokens, on_loopback=True, every=True)

    def look_for_tokens(self) -> None:
        """Take up tokens that changed on disk, and have every worker do so. Called twice a second."""
        if self._known.reload():
            self._fleet.publish_tokens()

    def addresses(self) -> list[Address]:
        """Every address of the listener."""
        return [
            get("/healthz", self.healthz),
            get("/metrics", self.metrics),
            *self._routes.addresses(),
            *self._models.addresses(),
            *self._tokens.addresses(),
            get("/admin/v1/fleet", self.fleet),
            post("/admin/v1/fleet/restart", self.restart, ReasonBody),
            get("/admin/v1/audit/status", self.audit_status),
            get("/admin/v1/openapi.json", self.openapi),
        ]

    def app(self) -> Starlette:
        """The ASGI application.

        Raises:
            Unruled: its addresses and `ADMIN_RULES` are not of the same set.
        """
        app = Starlette(
            routes=built(self.addresses(), ADMIN_RULES, self._guard),
            exception_handlers={
                HTTPException: self._http_exception,
                GatewayError: self._refused,
                Exception: self._refused,
            },
        )
        # A redirect would repeat the Host header before anything has looked at it.
        app.router.redirect_slashes = False
        return app

    async def healthz(self, request: Request) -> Response:
        """Control answers."""
        return json_answer({"ok": True})

    async def metrics(self, request: Request) -> Response:
        """Prometheus exposition of the whole fleet."""
        body, content_type = exposition(self._fleet, self._engine.state.serving, self._state_dir)
        return Response(body, media_type=content_type)

    async def fleet(self, request: Request) -> Response:
        """Workers: pid, state, generation, restarts."""
        told = {"generation": self._fleet.generation, "workers": self._fleet.facts()}
        return json_answer({**told, "supervisor": roster.read(self._state_dir)})

    async def restart(self, request: Request) -> Response:
        """Replace the workers one by one, without a request lost; how it goes on stands in the fleet's facts."""
        body = await read_body(request, ReasonBody)
        supervisor = (roster.read(self._state_dir) or {}).get("pid")
        if supervisor is None or supervisor != os.getppid():
            msg = "no supervisor of this process is known: only a gateway started by `tidegate serve` restarts workers"
            raise StateConflict(msg)
        change = changed_by(request.state.principal.name, body.reason)
        await self._engine.note("restart", change, {"asked": "workers"}, asked_of(request), urgent=True)
        os.kill(supervisor, signal.SIGHUP)
        return json_answer({"asked": True}, 202)

    async def audit_status(self, request: Request) -> Response:
        """Where every source of the log stands."""
        # On a thread: a spool of days is many files.
        listed = await asyncio.to_thread(verify.status, self._state_dir / "spool", self._ring_dir)
        return json_answer({"sources": msgspec.to_builtins(listed)})

    async def openapi(self, request: Request) -> Response:
        """This listener as OpenAPI 3.1."""
        return json_answer(description(self.addresses(), ADMIN_RULES))

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
