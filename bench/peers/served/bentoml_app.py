"""An ONNX model behind BentoML, as its documentation builds a service. Runs in BentoML's own environment.

`predict` takes JSON as BentoML's own type for tensors and is what adaptive batching batches. `predict_raw` takes raw
tensors on a mounted ASGI application: of the ways that BentoML has for binary data it is the one that costs least (a
root input derives a JSON schema at each request). With api=asgi `predict` is there, too, and cannot be batched. What
differs between starts comes by the environment: decorators are run at import.
"""

# mypy: ignore-errors
# (types of its APIs follow from the model that it is started with)

import hashlib
import json
import os
from typing import Annotated, Any

import bentoml
import numpy as np
import onnxruntime as ort
import orjson
from bentoml.exceptions import InvalidArgument
from bentoml.validators import ContentType, DType
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from pydantic import AfterValidator
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

OPTIONS = json.loads(os.environ["BENCH_OPTIONS"])
DTYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(bool)": "bool_",
    "tensor(int32)": "int32", "tensor(int64)": "int64", "tensor(string)": "object_",
}  # fmt: skip
MONITOR = "predictions"
WHOLE_MAX_BYTES = 65_536
"""Tensors of a request above this are logged by digest: as Tidegate does, so that both sides write as much."""


def loaded():
    """The model on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(OPTIONS["model_file"], options, providers=["CPUExecutionProvider"])


SESSION = loaded()
INPUTS = {one.name: DTYPES[one.type] for one in SESSION.get_inputs()}
OUTPUTS = [one.name for one in SESSION.get_outputs()]
ONLY_INPUT, DTYPE = next(iter(INPUTS.items()))
SHAPE = SESSION.get_inputs()[0].shape
BATCHING = {
    "batchable": True, "max_batch_size": OPTIONS["max_batch_size"], "max_latency_ms": OPTIONS["max_latency_ms"],
} if OPTIONS["batching"] else {}  # fmt: skip


def fitting(x):
    """The only input, before it shares a batch with others, which it would fail. BentoML's Shape would reshape it."""
    fits = len(SHAPE) == x.ndim and all(
        not isinstance(size, int) or size == found for size, found in zip(SHAPE, x.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"input {ONLY_INPUT} has shape {list(x.shape)}, expected {SHAPE}")
    return x


# With the content type written down BentoML need not derive it from the schema at each reply.
Rows = Annotated[np.ndarray, DType(DTYPE), AfterValidator(fitting)]
Reply = Annotated[np.ndarray if len(OUTPUTS) == 1 else list[dict[str, Any]], ContentType("application/json")]


async def predict_raw(request):
    """Raw tensors, described in a header, both ways."""
    body = await request.body()
    try:
        feeds, at = {}, 0
        for name, dtype, shape in json.loads(request.headers["x-tensors"]):
            feeds[name] = np.frombuffer(body, dtype, int(np.prod(shape)), at).reshape(shape)
            at += feeds[name].nbytes
        ran = SESSION.run(OUTPUTS, feeds)
    except (KeyError, TypeError, ValueError, ort_errors.InvalidArgument) as exc:
        return refused(exc)
    if OPTIONS["audit"]:
        log(feeds, ran)
    described = [[name, one.dtype.str, one.shape] for name, one in zip(OUTPUTS, ran, strict=True)]
    return Response(
        b"".join(one.tobytes() for one in ran), media_type="application/octet-stream",
        headers={"x-tensors": json.dumps(described)},
    )  # fmt: skip


async def predict_json(request):
    """What the API of the same name takes and gives."""
    try:
        x = np.asarray(orjson.loads(await request.body())["x"], DTYPE)
        reply = orjson.dumps(predicted(x), option=orjson.OPT_SERIALIZE_NUMPY)
    except (KeyError, TypeError, ValueError, InvalidArgument) as exc:
        return refused(exc)
    return Response(reply, media_type="application/json")


def refused(exc):
    """It is the request's fault."""
    return Response(orjson.dumps({"error": str(exc)}), 400, media_type="application/json")


def predicted(x):
    """One run of rows."""
    try:
        ran = SESSION.run(OUTPUTS, {ONLY_INPUT: x})
    except ort_errors.InvalidArgument as exc:
        raise InvalidArgument(str(exc)) from exc
    if OPTIONS["audit"]:
        log({ONLY_INPUT: x}, ran)
    if len(ran) == 1:
        return np.ascontiguousarray(ran[0])
    # Of several outputs BentoML can split a list alone.
    return [dict(zip(OUTPUTS, row, strict=True)) for row in zip(*(one.tolist() for one in ran), strict=True)]


ROUTES = [Route("/predict_raw", predict_raw, methods=["POST"])]
if OPTIONS["api"] == "asgi":
    ROUTES.append(Route("/predict", predict_json, methods=["POST"]))


@bentoml.service(
    workers=OPTIONS["workers"],
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
    monitoring=OPTIONS["monitoring"],
)
@bentoml.asgi_app(Starlette(routes=ROUTES), path="/")
class OnnxModel:
    """The model."""

    if OPTIONS["api"] == "async":

        @bentoml.api(**BATCHING)
        async def predict(self, x: Rows) -> Reply:
            """Rows of one request, or of all that were batched; on the event loop."""
            return predicted(x)

    elif OPTIONS["api"] == "sync":

        @bentoml.api(**BATCHING)
        def predict(self, x: Rows) -> Reply:
            """Rows of one request, or of all that were batched; on a thread."""
            return predicted(x)


def log(feeds, ran):
    """A record for each row of a batch, else one for the request, as BentoML's monitoring has it."""
    with bentoml.monitor(MONITOR) as monitor:
        add = monitor.log_batch if BATCHING else monitor.log
        rows = len(ran[0]) if BATCHING else 1
        is_large = sum(one.nbytes for one in (*feeds.values(), *ran)) > WHOLE_MAX_BYTES * rows
        values, kind = (digests, "categorical") if is_large else (np.ndarray.tolist, "numerical_sequence")
        for name, array in feeds.items():
            add(values(array), name=name, role="feature", data_type=kind)
        for name, array in zip(OUTPUTS, ran, strict=True):
            add(values(array), name=name, role="prediction", data_type=kind)


def digests(array):
    """Of each row of a batch, else one of the whole."""
    of = [hashlib.sha256(one.tobytes()).hexdigest() for one in (array if BATCHING else [array])]
    return of if BATCHING else of[0]
