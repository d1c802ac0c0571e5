"""What is served, as OpenAPI 3.1: made from the models' signatures as they are now, with examples that answer.

Starlette door -> **openapi** -> serving. One document over all models that can answer, and one a model.
"""

from __future__ import annotations

import asyncio
import json
from math import prod
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import __version__
from gateway.announce import example_body
from gateway.api.metadata import MODEL, described, entry_of, version_of
from gateway.api.outgoing import json_response
from gateway.serving import Models
from gateway.version import Version
from loaders.signature import TensorSpec

JSON = "application/json"
EXAMPLE_VALUES_MAX = 4096
"""A model whose row has more values has no example."""
_WHOLE = {
    "/": "The process answers",
    "/v2/health/live": "The process answers",
    "/v2/health/ready": "Every model's primary can answer",
    "/v2": "Name, version and extensions of the server",
    "/v2/models": "Names of all models",
    "/v2/models/stats": "Counters of all models",
    "/v1/models": "Names of all models",
}
"""What there is beside the models."""
_OF_A_MODEL = {
    "/v2/models/{}": "Inputs and outputs",
    "/v2/models/{}/ready": "Whether it can answer",
    "/v2/models/{}/config": "Configuration, in the form of Triton's ModelConfig",
    "/v2/models/{}/stats": "Counters by version",
    "/v1/models/{}": "Status, for clients of v1",
}
_KINDS = {"BOOL": "boolean", "BYTES": "string"}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}, "code": {"type": "string"}},
}


class OpenApi:
    """Handlers of the documents."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def routes(self) -> list[Route]:
        """Their addresses."""
        get = ["GET"]
        return [
            Route("/v2/openapi.json", self.everything, methods=get),
            Route(MODEL + "/openapi.json", self.one_model, methods=get),
        ]

    async def everything(self, request: Request) -> Response:
        """All models that can answer."""
        paths = paths_of_the_server()
        for name in self._models.names:
            entry = self._models.get(name)
            if entry is not None and entry.table is not None:
                paths.update(paths_of(version_of(entry, request)))
                # Hundreds of models: predictions do not wait for them.
                await asyncio.sleep(0)
        return json_response(document(paths))

    async def one_model(self, request: Request) -> Response:
        """One model."""
        version = version_of(entry_of(self._models, request), request)
        return json_response(document({**paths_of_the_server(), **paths_of(version)}))


def document(paths: dict[str, Any]) -> dict[str, Any]:
    """The document of these paths."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tidegate", "version": __version__},
        "paths": paths,
        "components": {"schemas": {"Error": _ERROR}},
    }


def paths_of_the_server() -> dict[str, Any]:
    """What there is without any model."""
    paths: dict[str, Any] = {path: {"get": _get(path, said)} for path, said in _WHOLE.items()}
    body = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
    index = _post("/v2/repository/index", "Every version, its state and why", body, {"ready": True})
    index["requestBody"]["required"] = False
    paths["/v2/repository/index"] = {"post": index}
    return paths


def paths_of(version: Version) -> dict[str, Any]:
    """A model as it stands at `/v2/models/{model}`, where this version answers."""
    paths: dict[str, Any] = {}
    for path, said in _OF_A_MODEL.items():
        named = path.format(version.model)
        paths[named] = {"get": _get(named, said)}
    # An image's worth of numbers in an example helps nobody, and to make it would hold the loop up.
    example = infer_example(version) if _example_values(version) <= EXAMPLE_VALUES_MAX else None
    in_v1 = None if example is None else v1_example(version, example)
    for path, said, schema, sent in (
        (f"/v2/models/{version.model}/infer", "Infer", _infer_schema(version), example),
        (f"/v1/models/{version.model}:predict", "Infer, for clients of v1", _V1_BODY, in_v1),
    ):
        paths[path] = {"post": _post(path, said, schema, sent)}
    return paths


def infer_example(version: Version) -> dict[str, Any]:
    """A request of one row that the version answers."""
    inputs = [described(spec) for spec in version.signature.inputs]
    return json.loads(example_body({"inputs": inputs}))  # type: ignore[no-any-return]


def _example_values(version: Version) -> int:
    return sum(prod(max(dim, 1) for dim in spec.shape) for spec in version.signature.inputs)


def v1_example(version: Version, example: dict[str, Any]) -> dict[str, Any]:
    """The same in v1's words: rows where the model is batched, else columns."""
    values = {
        tensor["name"]: np.array(tensor["data"], dtype=object).reshape(tensor["shape"]).tolist()
        for tensor in example["inputs"]
    }
    if version.batchable:
        return {"instances": [{name: value[0] for name, value in values.items()}]}
    return {"inputs": values}


_V1_BODY = {
    "type": "object",
    "properties": {
        "instances": {"type": "array", "description": "rows: values, or objects by input name"},
        "inputs": {"description": "columns: whole tensors, by input name"},
    },
}


def _infer_schema(version: Version) -> dict[str, Any]:
    names = [spec.name for spec in version.signature.outputs]
    parameters = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
    output = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"enum": names}, "parameters": parameters},
    }
    count = len(version.signature.inputs)
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": parameters,
            "inputs": {
                "type": "array",
                "minItems": count,
                "maxItems": count,
                "items": {"anyOf": [_tensor_schema(spec) for spec in version.signature.inputs]},
            },
            "outputs": {"type": "array", "items": output},
        },
    }


def _tensor_schema(spec: TensorSpec) -> dict[str, Any]:
    kind = _KINDS.get(spec.datatype, "number" if spec.datatype.startswith("FP") else "integer")
    rank = len(spec.shape)
    return {
        "type": "object",
        "required": ["name", "datatype", "shape", "data"],
        "properties": {
            "name": {"const": spec.name},
            "datatype": {"const": spec.datatype},
            "shape": {
                "type": "array",
                "items": {"type": "integer", "minimum": 0},
                "minItems": rank,
                "maxItems": rank,
                "description": f"{list(spec.shape)}, where -1 varies",
            },
            "data": {"type": "array", "description": f"{kind}s, flat or nested as the shape"},
        },
    }


def _get(path: str, said: str) -> dict[str, Any]:
    return {"summary": said, "operationId": f"get {path}", "responses": _responses()}


def _post(path: str, said: str, schema: dict[str, Any], example: Any) -> dict[str, Any]:
    content: dict[str, Any] = {JSON: {"schema": schema}}
    if example is not None:
        content[JSON]["example"] = example
    return {
        "summary": said,
        "operationId": f"post {path}",
        "requestBody": {"required": True, "content": content},
        "responses": _responses(),
    }


def _responses() -> dict[str, Any]:
    error = {"schema": {"$ref": "#/components/schemas/Error"}}
    return {
        "200": {"description": "The answer", "content": {JSON: {"schema": {}}}},
        "default": {"description": "Why not", "content": {JSON: error}},
    }
