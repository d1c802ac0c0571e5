"""An ONNX model behind LitServe, as its documentation builds such a server. Runs in LitServe's own environment.

One LitAPI: JSON bodies {"inputs": {NAME: rows}} and multipart forms of raw little-endian tensors come to the same
endpoint. Requests of one batch are concatenated row-wise and split again; a model of fixed size, and requests of unlike
shapes, run one by one. What is wrong with a request is said with HTTPException, as its documentation has it.
"""

import argparse
import hashlib
import http.client
import json
import time
from urllib.parse import urlsplit

import litserve
import numpy as np
import onnxruntime as ort
import orjson
from fastapi import HTTPException, Request
from starlette.responses import Response

TYPES = {
    "tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64,
    "tensor(int8)": np.int8, "tensor(int16)": np.int16, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16, "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64, "tensor(bool)": np.bool_, "tensor(string)": object,
}  # fmt: skip
WHOLE_MAX_BYTES = 65_536
"""Tensors of a request above this are logged by digest: as Tidegate does, so that both sides write as much."""


def encoded(arrays):
    """Arrays by name as JSON; texts are no arrays to orjson."""
    plain = {
        name: array.tolist() if array.dtype == object else np.ascontiguousarray(array)
        for name, array in arrays.items()
    }
    return orjson.dumps(plain, option=orjson.OPT_SERIALIZE_NUMPY)


def line(prediction):
    """One prediction, inputs and outputs, as JSON."""
    inputs, outputs = prediction
    return b'{"inputs":%b,"outputs":%b}' % (encoded(inputs), encoded(outputs))


class FileLogger(litserve.Logger):
    """Predictions as JSON lines; LitServe runs it in a process of its own, behind a queue."""

    def __init__(self, file):
        super().__init__()
        self.file = file

    def process(self, key, value):
        """One prediction."""
        with open(self.file, "ab") as out:  # noqa: PTH123
            out.write(line(value) + b"\n")


class HttpLogger(litserve.Logger):
    """Predictions posted to a receiver, one by one, each until it is taken; the next ones wait in LitServe's queue."""

    def __init__(self, url):
        super().__init__()
        self.url = url
        self.connection = None

    def process(self, key, value):
        """One prediction."""
        body = line(value)
        while True:
            try:
                return self.send(body)
            except (OSError, http.client.HTTPException):
                time.sleep(0.1)

    def send(self, body):
        """Once."""
        if self.connection is None:
            parts = urlsplit(self.url)
            self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
        try:
            self.connection.request("POST", "/", body, {"content-type": "application/json"})
            self.connection.getresponse().read()
        except Exception:
            self.connection.close()
            self.connection = None
            raise


class OnnxApi(litserve.LitAPI):
    """The model."""

    def __init__(self, options):
        batch = {"max_batch_size": options.max_batch_size, "batch_timeout": options.batch_timeout_s}
        super().__init__(**(batch if options.batching else {}))
        self.options = options

    def setup(self, device):
        """Load it, in each worker."""
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = 1
        self.session = ort.InferenceSession(
            self.options.model_file, settings, providers=["CPUExecutionProvider"]
        )
        self.inputs = {one.name: TYPES[one.type] for one in self.session.get_inputs()}
        self.outputs = [one.name for one in self.session.get_outputs()]
        self.shapes = {one.name: one.shape for one in self.session.get_inputs()}
        shapes = [*self.shapes.values(), *(one.shape for one in self.session.get_outputs())]
        self.is_fixed = any(not shape or isinstance(shape[0], int) for shape in shapes)

    def decode_request(self, request: Request):
        """Tensors by name, and whether the answer is to be binary."""
        try:
            arrays, binary = self.tensors(request)
            demand_shapes(arrays, self.shapes)
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise HTTPException(400, str(exc)) from exc
        return arrays, binary

    def tensors(self, request):
        """What a request holds."""
        if "inputs" in request:
            asked = request["inputs"]
            return {name: np.asarray(asked[name], dtype) for name, dtype in self.inputs.items()}, False
        arrays: dict = {}
        for name, dtype in self.inputs.items():
            part = request[name]
            shape = part.content_type.partition("shape=")[2]
            arrays[name] = np.frombuffer(part.file.read(), dtype).reshape([int(n) for n in shape.split(",")])
        return arrays, True

    def batch(self, inputs):
        """All requests of a batch; predict sees them as a list."""
        return inputs

    def unbatch(self, output):
        """Each request's own answer."""
        return output

    def predict(self, x):
        """One run for a whole batch, or one for each where rows cannot be stacked."""
        many = x if isinstance(x, list) else [x]
        if self.is_fixed or len(many) == 1 or unlike([arrays for arrays, _ in many]):
            answers = [(self.session.run(self.outputs, arrays), binary) for arrays, binary in many]
        else:
            stacked = {name: np.concatenate([arrays[name] for arrays, _ in many]) for name in self.inputs}
            ran, answers, at = self.session.run(self.outputs, stacked), [], 0
            for arrays, binary in many:
                rows = len(next(iter(arrays.values())))
                answers.append(([output[at : at + rows] for output in ran], binary))
                at += rows
        if self.options.audit:
            for (arrays, _), (outputs, _) in zip(many, answers, strict=True):
                named = dict(zip(self.outputs, outputs, strict=True))
                size = size_of(arrays, named)
                self.log("prediction", (kept(arrays, size), kept(named, size)))
        return answers if isinstance(x, list) else answers[0]

    def encode_response(self, output):
        """JSON, or raw tensors with their names, types and shapes in a header."""
        outputs, binary = output
        if not binary:
            named = encoded(dict(zip(self.outputs, outputs, strict=True)))
            return Response(b'{"outputs":%b}' % named, media_type="application/json")
        described = [
            [name, one.dtype.str, one.shape] for name, one in zip(self.outputs, outputs, strict=True)
        ]
        return Response(
            b"".join(one.tobytes() for one in outputs), media_type="application/octet-stream",
            headers={"x-tensors": json.dumps(described)},
        )  # fmt: skip


def kept(arrays, size):
    """What is logged of a request's arrays: themselves, or the digest of each where all of them have a larger size."""
    if size <= WHOLE_MAX_BYTES:
        return arrays
    return {name: np.array(hashlib.sha256(one.tobytes()).hexdigest(), object) for name, one in arrays.items()}


def size_of(*several):
    """Bytes of the tensors of a request."""
    return sum(one.nbytes for arrays in several for one in arrays.values())


def demand_shapes(feeds, shapes):
    """Raise ValueError unless every input has a shape that the model takes."""
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


def main():
    """Serve until ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-file", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batching", action="store_true")
    parser.add_argument("--max-batch-size", type=int, default=32)
    parser.add_argument("--batch-timeout-s", type=float, default=0.01)
    parser.add_argument("--audit", default="", help="a file, or the address of a receiver")
    options = parser.parse_args()
    loggers = None
    if options.audit:
        loggers = (
            HttpLogger(options.audit) if options.audit.startswith("http://") else FileLogger(options.audit)
        )
    server = litserve.LitServer(
        OnnxApi(options), accelerator="cpu", devices=1, workers_per_device=options.workers, fast_queue=True,
        loggers=loggers, restart_workers=True,
    )  # fmt: skip
    server.run(host="127.0.0.1", port=options.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
