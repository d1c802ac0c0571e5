"""An ONNX model behind Ray Serve, as its documentation builds such an application. Runs in Ray's own environment.

The driver starts Ray, deploys the application by a Serve config, and waits: SIGUSR1 makes it read that config again and
deploy it, which updates a changed user_config in place; SIGTERM ends it all. That is what `serve deploy` has the
dashboard do, without the dashboard. One endpoint takes JSON {"inputs": {NAME: rows}} and raw tensors (header
x-tensors); requests are batched by serve.batch, a model of fixed size runs one by one.
"""

# mypy: ignore-errors
# (decorators of a package that is not here make it what it is)

import asyncio
import hashlib
import json
import logging
import signal
import sys

import numpy as np
import onnxruntime as ort
import orjson
import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import LoggingConfig, ServeDeploySchema
from starlette.requests import Request
from starlette.responses import Response

TYPES = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_, "tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(string)": np.object_,
}  # fmt: skip
logger = logging.getLogger("ray.serve")
WHOLE_MAX_BYTES = 65_536
"""Tensors of a request above this are logged by digest: as Tidegate does, so that both sides write as much."""


@serve.deployment
class OnnxModel:
    """The model."""

    def __init__(self, options):
        self.batching = options["batching"]
        self.audit = options["audit"]
        self.run_batch.set_max_batch_size(options["max_batch_size"])
        self.run_batch.set_batch_wait_timeout_s(options["batch_wait_timeout_s"])

    async def reconfigure(self, config):
        """Load the version that the application's configuration names; the loop serves meanwhile."""
        session = await asyncio.to_thread(loaded, config["model_file"])
        self.types = {one.name: TYPES[one.type] for one in session.get_inputs()}
        self.shapes = {one.name: one.shape for one in session.get_inputs()}
        self.outputs = [one.name for one in session.get_outputs()]
        self.stacks = all(not isinstance(one.shape[0], int) for one in session.get_inputs() if one.shape)
        self.session = session

    @serve.batch
    async def run_batch(self, many):
        """One run for a whole batch, split again by each request's rows; one each where they are of unlike shapes."""
        if len(many) == 1 or unlike(many):
            return [self.session.run(self.outputs, feeds) for feeds in many]
        stacked = {name: np.concatenate([feeds[name] for feeds in many]) for name in many[0]}
        ran, answers, at = self.session.run(self.outputs, stacked), [], 0
        for feeds in many:
            rows = len(next(iter(feeds.values())))
            answers.append([output[at : at + rows] for output in ran])
            at += rows
        return answers

    async def __call__(self, request: Request) -> Response:
        """One request."""
        body = await request.body()
        described = request.headers.get("x-tensors")
        try:
            feeds = from_json(body, self.types) if described is None else from_raw(described, body)
            # Before it shares a batch with others, which it would fail.
            demand_shapes(feeds, self.shapes)
        except (KeyError, TypeError, ValueError) as exc:
            return Response(orjson.dumps({"error": str(exc)}), 400, media_type="application/json")
        ran = (
            await self.run_batch(feeds)
            if self.batching and self.stacks
            else self.session.run(self.outputs, feeds)
        )
        if self.audit:
            named = self.named(ran)
            size = size_of(feeds, named)
            extra = {"inputs": rows_of(kept(feeds, size)), "outputs": rows_of(kept(named, size))}
            logger.info("prediction", extra=extra)
        if described is None:
            content = orjson.dumps({"outputs": listable(self.named(ran))}, option=orjson.OPT_SERIALIZE_NUMPY)
            return Response(content, media_type="application/json")
        head = json.dumps([[name, one.dtype.str, one.shape] for name, one in self.named(ran).items()])
        return Response(
            b"".join(one.tobytes() for one in ran),
            media_type="application/octet-stream",
            headers={"x-tensors": head},
        )

    def named(self, ran):
        """Outputs by name."""
        return dict(zip(self.outputs, ran, strict=True))


def loaded(model_file):
    """A session on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model_file, options, providers=["CPUExecutionProvider"])


def from_json(body, types):
    """Tensors of a JSON body."""
    return {name: np.asarray(rows, types[name]) for name, rows in orjson.loads(body)["inputs"].items()}


def from_raw(described, body):
    """Tensors of a raw body."""
    feeds, at = {}, 0
    for name, dtype, shape in json.loads(described):
        count = int(np.prod(shape))
        feeds[name] = np.frombuffer(body, dtype, count, at).reshape(shape)
        at += feeds[name].nbytes
    return feeds


def demand_shapes(feeds, shapes):
    """Raise ValueError unless every input of the model is there, in a shape that it takes."""
    if feeds.keys() != shapes.keys():
        raise ValueError(f"inputs {sorted(feeds)}, expected {sorted(shapes)}")
    for name, array in feeds.items():
        declared = shapes[name]
        fits = len(declared) == array.ndim and all(
            not isinstance(size, int) or size == found
            for size, found in zip(declared, array.shape, strict=True)
        )
        if not fits:
            raise ValueError(f"input {name} has shape {list(array.shape)}, expected {declared}")


def unlike(many):
    """Whether rows of these requests cannot be stacked."""
    return len({tuple(array.shape[1:] for array in feeds.values()) for feeds in many}) > 1


def listable(arrays):
    """What orjson can write."""
    return {
        name: one.tolist() if one.dtype == object else np.ascontiguousarray(one)
        for name, one in arrays.items()
    }


def kept(arrays, size):
    """What is logged of a request's arrays: themselves, or the digest of each where all of them have a larger size."""
    if size <= WHOLE_MAX_BYTES:
        return arrays
    return {name: np.array(hashlib.sha256(one.tobytes()).hexdigest(), object) for name, one in arrays.items()}


def size_of(*several):
    """Bytes of the tensors of a request."""
    return sum(one.nbytes for arrays in several for one in arrays.values())


def rows_of(arrays):
    """What a JSON formatter can write."""
    return {name: one.tolist() for name, one in arrays.items()}


def build(options):
    """The application, as the config's import_path names it."""
    return OnnxModel.bind(options)


def main():
    """Serve until ended."""
    options = read(sys.argv[1])
    # Threads that Ray starts inherit this: the signals come to sigwait alone.
    awaited = {signal.SIGUSR1, signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    ray.init(**options["ray"], include_dashboard=False, log_to_driver=False, _node_ip_address=options["node"])
    serve.start(
        http_options=options["serve"]["http_options"], proxy_location=options["serve"]["proxy_location"],
        logging_config=LoggingConfig(**options["serve"]["logging_config"]),
    )  # fmt: skip
    while True:
        config = ServeDeploySchema.model_validate(read(sys.argv[1])["serve"])
        _get_global_client().deploy_apps(config)
        if signal.sigwait(awaited) != signal.SIGUSR1:
            break
    # Shut down at once, its proxies would go before what they wait for.
    serve.delete(options["serve"]["applications"][0]["name"])
    serve.shutdown()
    ray.shutdown()


def read(file):
    """The options of this start."""
    with open(file) as opened:  # noqa: PTH123
        return json.load(opened)


if __name__ == "__main__":
    main()
