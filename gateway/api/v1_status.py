"""What v1 clients ask beside `:predict`: the list of models, and a model's status in both dialects at once.

Starlette door -> **v1_status** -> serving. KServe's clients read `name` and `ready`, and 503 while it is not;
TensorFlow Serving's read `model_version_status`.
"""

from __future__ import annotations

from typing import Any

from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.api.metadata import check_ready, entry_of, version_of, version_text
from gateway.api.outgoing import json_response
from gateway.errors import ModelNotReady, UnknownModel
from gateway.serving import Models

_STATES = {"ready": "AVAILABLE", "loading": "LOADING", "unloading": "UNLOADING"}


class _Name(Convertor[str]):
    """A model's name where a verb may follow behind a colon."""

    regex = "[^/:]+"

    def convert(self, value: str) -> str:
        """As it is."""
        return value

    def to_string(self, value: str) -> str:
        """As it is."""
        return value


register_url_convertor("name", _Name())
MODEL, VERSION = "/v1/models/{model:name}", "/v1/models/{model:name}/versions/{version:name}"


class V1Status:
    """Handlers of v1's GET addresses."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def routes(self) -> list[Route]:
        """Their addresses."""
        get = ["GET"]
        return [
            Route("/v1/models", self.models, methods=get),
            Route(MODEL, self.status, methods=get),
            Route(VERSION, self.status, methods=get),
        ]

    async def models(self, request: Request) -> Response:
        """Names of all models."""
        return json_response({"models": self._models.names})

    async def status(self, request: Request) -> Response:
        """Whether a model, or one version, can answer, and the state of its versions."""
        entry = entry_of(self._models, request)
        asked = version_text(request)
        versions = [v for v in sorted(entry.states, key=int) if asked in {None, v}]
        if not versions:
            raise UnknownModel(entry.model, asked)
        listed = [self._version_status(entry.model, version) for version in versions]
        content: dict[str, Any] = {"name": entry.model, "ready": True, "model_version_status": listed}
        try:
            check_ready(self._models, version_of(entry, request))
        except ModelNotReady as exc:
            return json_response({**content, "ready": False, "error": str(exc), "code": exc.code}, 503)
        return json_response(content)

    def _version_status(self, model: str, version: str) -> dict[str, Any]:
        state, reason = self._models.state_over_workers(model, version)
        code = "UNKNOWN" if state == "failed" else "OK"
        return {
            "version": version,
            "state": _STATES.get(state, "END"),
            "status": {"error_code": code, "error_message": reason or ""},
        }
