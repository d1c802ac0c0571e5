"""The Starlette door: every address of the data listener, and whatever the fast door leaves.

Inference goes through the same `Core.receive` as the fast door, so both give the same bytes.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.api.addresses import ruled
from gateway.api.askers import NOBODY, Asker, Askers
from gateway.api.crowd import Limits
from gateway.api.feedback import FEEDBACK_MAX_BYTES, FeedbackIntake
from gateway.api.guarding import Guard
from gateway.api.heads import FAST_BODY_MAX_BYTES, check_json, make_head, read_level
from gateway.api.incoming import Held, Room, read_body
from gateway.api.metadata import MODEL, VERSION, Metadata, entry_of
from gateway.api.openapi import OpenApi
from gateway.api.outgoing import FutureSink, json_response, problem_response
from gateway.api.repository import ControlClient, Repository
from gateway.api.v1_status import MODEL as V1_MODEL
from gateway.api.v1_status import VERSION as V1_VERSION
from gateway.api.v1_status import V1Status
from gateway.control.access import DATA_RULES
from gateway.control.tokens import Tokens
from gateway.core import Core
from gateway.errors import GatewayError, MethodNotAllowed, NotFound

V1_LOOP_MAX_BYTES = 16_384
"""v1 bodies above this are decoded off the loop: Python objects take 30 times as long as other bodies."""


class DataApi:
    """The handlers of the data listener.

    Args:
        core: the worker's request path.
        limits: largest body, also after inflating, and the JSON in it.
        audit_level: what a reply waits for, unless its request asks for more.
        guard: holds the rules of the listener; None: as on loopback, where no token is known.
        root: the model repository.
        control: what loads and unloads models; None where clients may not.
        askers: who asks; None: nobody has a name.
    """

    def __init__(
        self,
        core: Core,
        limits: Limits,
        audit_level: str,
        guard: Guard | None = None,
        *,
        root: Path | None = None,
        control: ControlClient | None = None,
        askers: Askers | None = None,
    ) -> None:
        self._core = core
        self._askers = askers
        self._limits = limits
        self._metadata = Metadata(core.models, loads=control is not None)
        self._repository = Repository(core.models, root, control)
        self._v1 = V1Status(core.models)
        self._guard = guard or Guard(Tokens(None), on_loopback=True)
        self._models = core.models
        self._feedback = FeedbackIntake(core.models, core.appender, audit_level)
        self._body_max_bytes = limits.body_max_bytes
        self._room = Room(limits.bodies_max_bytes)

    def app(self) -> Starlette:
        """The ASGI application."""
        app = Starlette(
            routes=ruled(self._routes(), DATA_RULES, self._guard),
            exception_handlers={
                HTTPException: self._http_exception,
                GatewayError: self._gateway_error,
                Exception: self._unexpected,
            },
        )
        # A redirect would repeat the Host header, which may be anything.
        app.router.redirect_slashes = False
        return app

    def _routes(self) -> list[Route]:
        post = ["POST"]
        return [
            *self._metadata.routes(),
            *OpenApi(self._models).routes(),
            *self._repository.routes(),
            *self._v1.routes(),
            Route(V1_MODEL + ":predict", self.infer, methods=post),
            Route(V1_VERSION + ":predict", self.infer, methods=post),
            Route(MODEL + "/infer", self.infer, methods=post),
            Route(VERSION + "/infer", self.infer, methods=post),
            Route(MODEL + "/feedback", self.feedback, methods=post),
        ]

    async def infer(self, request: Request) -> Response:
        """Inference: body read and inflated here, then the core as for the fast door."""
        held = Held(self._room)
        try:
            return await self._infer(request, held)
        finally:
            held.let_go()

    async def _infer(self, request: Request, held: Held) -> Response:
        received_ns = time.perf_counter_ns()
        core = self._core
        head = None
        sink = FutureSink()
        try:
            path = request.scope.get("raw_path") or request.url.path.encode()
            head = make_head(core.caller, path, request.scope["headers"], self._asker(request))
            sink.accepts = head.accepts
            sink.traceparent = head.traceparent
            limits = self._limits
            most = limits.json_max_bytes if head.json_bytes is None else limits.body_max_bytes
            body = await read_body(request, min(most, limits.body_max_bytes), held)
            if len(body) > FAST_BODY_MAX_BYTES:
                await self._room.in_turn(check_json, body, head.json_bytes, self._limits)
            # As at the fast door: a request is received when all of it is here; the upload has limits of its own.
            received_ns = time.perf_counter_ns()
        except GatewayError as exc:
            if head is None:
                return problem_response(exc)
            core.refuse(head, exc, sink, received_ns)
            return await sink.future
        if len(body) > (FAST_BODY_MAX_BYTES if head.dialect == "oip" else V1_LOOP_MAX_BYTES):
            await core.receive_large(head, body, sink, received_ns)
        else:
            core.receive(head, body, sink, received_ns)
        watch = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait((sink.future, watch), return_when=asyncio.FIRST_COMPLETED)
            if sink.future.done():
                if sink.held_back_s and not self._comes_through_proxy(request):
                    await asyncio.sleep(sink.held_back_s)
                return sink.future.result()
            sink.disconnected = True
            # Nobody gets it; the core logs and counts that it was cancelled.
            return Response(status_code=499)
        finally:
            watch.cancel()

    def _asker(self, request: Request) -> Asker:
        askers = self._askers
        if askers is None:
            return NOBODY
        return askers.of(request.client.host if request.client else "", request.scope["headers"])

    def _comes_through_proxy(self, request: Request) -> bool:
        askers = self._askers
        return askers is not None and request.client is not None and askers.is_proxy(request.client.host)

    async def feedback(self, request: Request) -> Response:
        """Labels of earlier predictions; 202 once they are in the log."""
        entry = entry_of(self._models, request)
        asked = request.headers.get("x-tidegate-audit-level")
        level = None if asked is None else read_level(asked.encode("latin-1"))
        body = await read_body(request, min(self._body_max_bytes, FEEDBACK_MAX_BYTES))
        accepted, reached = await self._feedback.take(entry, body, level, request.state.principal.name)
        response = json_response({"accepted": accepted}, 202)
        response.raw_headers.append((b"x-tidegate-audit", reached.encode()))
        return response

    async def _http_exception(self, request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)  # noqa: S101
        if exc.status_code == 405:
            response = problem_response(MethodNotAllowed(f"method {request.method} is not allowed here"))
            allow = ", ".join(sorted((exc.headers or {}).get("Allow", "").split(", ")))
            response.raw_headers.append((b"allow", allow.encode()))
            return response
        return problem_response(NotFound("no such address"))

    async def _gateway_error(self, request: Request, exc: Exception) -> Response:
        assert isinstance(exc, GatewayError)  # noqa: S101
        return problem_response(exc)

    async def _unexpected(self, request: Request, exc: Exception) -> Response:
        return problem_response(GatewayError("internal error"))


async def _gone(request: Request) -> None:
    """Ends when the client goes away; the body is read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
