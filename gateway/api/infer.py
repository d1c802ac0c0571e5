"""The Starlette door: every address of the data listener, and whatever the fast door leaves.

Inference goes through the same `Core.receive` as the fast door, so both give the same bytes.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import __version__
from gateway.api.feedback import FEEDBACK_MAX_BYTES, FeedbackIntake
from gateway.api.heads import ANONYMOUS, FAST_BODY_MAX_BYTES, make_head, read_level
from gateway.api.problems import reply_of
from gateway.control.tokens import TokenFile
from gateway.core import Core
from gateway.errors import (
    BodyTooLarge,
    GatewayError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    RequestCancelled,
    UnknownModel,
    UnsupportedCoding,
)
from gateway.serving import Entry
from gateway.version import Version

EXTENSIONS = ("binary_tensor_data", "schedule_policy", "parameters")
"""Only what works."""


class FutureSink:
    """A reply on its way to a waiting coroutine."""

    def __init__(self) -> None:
        self.disconnected = False
        self.future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

    def reply(self, status: int, fields: bytes, body: bytes) -> None:
        """Called once by the core; skipped when the waiter is gone."""
        if not self.future.done():
            self.future.set_result(_response(status, fields, body))


def _response(status: int, fields: bytes, body: bytes) -> Response:
    response = Response(content=body, status_code=status)
    response.raw_headers = [
        (name, value) for name, _, value in (line.partition(b": ") for line in fields.split(b"\r\n") if line)
    ]
    return response


def _json(content: Any, status: int = 200) -> Response:
    body = orjson.dumps(content)
    fields = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
    return _response(status, fields, body)


def _problem(exc: GatewayError) -> Response:
    return _response(*reply_of(exc))


class DataApi:
    """The handlers of the data listener.

    Args:
        core: the worker's request path.
        body_max_bytes: largest body, also after inflating.
        audit_level: what a reply waits for, unless its request asks for more.
        feedback_token: what labels need; None where anyone may send them.
    """

    def __init__(
        self, core: Core, body_max_bytes: int, audit_level: str, feedback_token: TokenFile | None = None
    ) -> None:
        self._core = core
        self._feedback_token = feedback_token
        self._models = core.models
        self._feedback = FeedbackIntake(core.models, core.appender, audit_level)
        self._body_max_bytes = body_max_bytes

    def app(self) -> Starlette:
        """The ASGI application."""
        get = ["GET"]
        model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
        return Starlette(
            routes=[
                Route("/v2/health/live", self.live, methods=get),
                Route("/v2/health/ready", self.ready, methods=get),
                Route("/v2", self.server, methods=get),
                Route("/v2/", self.server, methods=get),
                Route("/v2/models", self.models, methods=get),
                Route(model, self.metadata, methods=get),
                Route(version, self.metadata, methods=get),
                Route(model + "/ready", self.model_ready, methods=get),
                Route(version + "/ready", self.model_ready, methods=get),
                Route(model + "/infer", self.infer, methods=["POST"]),
                Route(version + "/infer", self.infer, methods=["POST"]),
                Route(model + "/feedback", self.feedback, methods=["POST"]),
            ],
            exception_handlers={
                HTTPException: self._http_exception,
                GatewayError: self._gateway_error,
                Exception: self._unexpected,
            },
        )

    async def live(self, request: Request) -> Response:
        """The process answers."""
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        """Every primary can answer."""
        ready = self._models.ready
        return _json({"ready": ready, "live": True}, 200 if ready else 503)

    async def server(self, request: Request) -> Response:
        """Who answers and what it can."""
        return _json({"name": "tidegate", "version": __version__, "extensions": list(EXTENSIONS)})

    async def models(self, request: Request) -> Response:
        """Names of all models."""
        return _json({"models": self._models.names})

    async def metadata(self, request: Request) -> Response:
        """A model's inputs and outputs."""
        entry = self._entry(request)
        version = self._version(entry, request)
        batchable = version.batchable

        def described(specs: Any) -> list[dict[str, Any]]:
            return [{"name": s.name, "datatype": s.datatype, "shape": list(s.shape)} for s in specs]

        return _json(
            {
                "name": entry.model,
                "versions": sorted(entry.states, key=int),
                "platform": "onnx_onnxv1",
                "inputs": described(version.signature.inputs),
                "outputs": described(version.signature.outputs),
                "properties": {
                    "version": version.version,
                    "batchable": str(batchable).lower(),
                    "tree_sha256": version.facts.tree_sha256,
                },
            }
        )

    async def model_ready(self, request: Request) -> Response:
        """Whether a model, or one version, can answer."""
        entry = self._entry(request)
        self._version(entry, request)
        return _json({"name": entry.model, "ready": True})

    async def infer(self, request: Request) -> Response:
        """Inference: body read and inflated here, then the core as for the fast door."""
        received_ns = time.perf_counter_ns()
        core = self._core
        head = None
        sink = FutureSink()
        try:
            path = request.scope.get("raw_path") or request.url.path.encode()
            head = make_head(core.caller, path, request.scope["headers"])
            body = await self._body(request, self._body_max_bytes)
            # As at the fast door: a request is received when all of it is here; the upload has limits of its own.
            received_ns = time.perf_counter_ns()
        except GatewayError as exc:
            if head is None:
                return _problem(exc)
            core.refuse(head, exc, sink, received_ns)
            return await sink.future
        if len(body) > FAST_BODY_MAX_BYTES:
            await core.receive_large(head, body, sink, received_ns)
        else:
            core.receive(head, body, sink, received_ns)
        watch = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait((sink.future, watch), return_when=asyncio.FIRST_COMPLETED)
            if sink.future.done():
                return sink.future.result()
            sink.disconnected = True
            return _problem(RequestCancelled("the client went away"))
        finally:
            watch.cancel()

    async def feedback(self, request: Request) -> Response:
        """Labels of earlier predictions; 202 once they are in the log."""
        principal = ANONYMOUS
        if self._feedback_token is not None:
            principal = self._feedback_token.check(request.headers.get("authorization"))
        entry = self._entry(request)
        asked = request.headers.get("x-tidegate-audit-level")
        level = None if asked is None else read_level(asked.encode("latin-1"))
        body = await self._body(request, min(self._body_max_bytes, FEEDBACK_MAX_BYTES))
        accepted, reached = await self._feedback.take(entry, body, level, principal)
        response = _json({"accepted": accepted}, 202)
        response.raw_headers.append((b"x-tidegate-audit", reached.encode()))
        return response

    async def _body(self, request: Request, limit: int) -> bytes:
        length = request.headers.get("content-length")
        if length is not None and length.isdigit() and int(length) > limit:
            msg = f"body of {length} bytes; at most {limit} are taken"
            raise BodyTooLarge(msg)
        chunks: list[bytes] = []
        size = 0
        try:
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    msg = f"body of more than {limit} bytes"
                    raise BodyTooLarge(msg)
                chunks.append(chunk)
        except ClientDisconnect as exc:
            msg = "the client went away"
            raise RequestCancelled(msg) from exc
        body = b"".join(chunks)
        coding = request.headers.get("content-encoding", "identity").strip().lower()
        return _inflated(body, coding, limit)

    def _entry(self, request: Request) -> Entry:
        name = request.path_params["model"]
        entry = self._models.get(name)
        if entry is None:
            raise UnknownModel(name, request.path_params.get("version"))
        return entry

    def _version(self, entry: Entry, request: Request) -> Version:
        asked = request.path_params.get("version")
        if asked is not None:
            return entry.version(asked)
        entry.codec_of(None)
        assert entry.table is not None  # noqa: S101  set together with the codec
        return entry.version(entry.table.route.primary.version)

    async def _http_exception(self, request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)  # noqa: S101
        if exc.status_code == 405:
            response = _problem(MethodNotAllowed(f"method {request.method} is not allowed here"))
            allow = (exc.headers or {}).get("Allow", "")
            response.raw_headers.append((b"allow", allow.encode()))
            return response
        return _problem(NotFound("no such address"))

    async def _gateway_error(self, request: Request, exc: Exception) -> Response:
        assert isinstance(exc, GatewayError)  # noqa: S101
        return _problem(exc)

    async def _unexpected(self, request: Request, exc: Exception) -> Response:
        return _problem(GatewayError("internal error"))


async def _gone(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.05)


def _inflated(body: bytes, coding: str, limit: int) -> bytes:
    if coding in {"identity", ""}:
        return body
    if coding not in {"gzip", "deflate"}:
        msg = f"Content-Encoding {coding!r}; expected gzip, deflate or none"
        raise UnsupportedCoding(msg)
    inflate = zlib.decompressobj(31 if coding == "gzip" else 15)
    try:
        out = inflate.decompress(body, limit + 1)
    except zlib.error as exc:
        msg = f"body is not {coding}: {exc}"
        raise InvalidRequest(msg) from exc
    if len(out) > limit:
        msg = f"body inflates to more than {limit} bytes"
        raise BodyTooLarge(msg)
    if not inflate.eof:
        msg = f"body is cut short: its {coding} stream does not end"
        raise InvalidRequest(msg)
    return out
