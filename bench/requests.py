"""Requests: whole, distinct HTTP inference requests, made before a load begins.

The values of request number i follow from (seed, i): what is sent need not be kept to be checked later. Bodies are
Open Inference Protocol JSON or binary tensors. Large tensors share most of their bytes (a tail), so that 10,000
distinct ones fit into memory. Nothing here knows the gateway; the same requests are thrown at nginx.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.errors import ConfigInvalid

Form = Literal["json", "binary"]
DISTINCT_REQUESTS = 10_000
HELD_BYTES_MAX = 256 << 20
"""Bytes of all bodies together; where 10,000 take more, there are fewer, and the report says how many."""
STEM_BYTES = 4096
TAILS = 8
_DTYPES: dict[str, Any] = {"FP32": np.float32, "FP64": np.float64}
_U32 = struct.Struct("<I")


class Tensor(msgspec.Struct, frozen=True):
    """One input: -1 as first dimension takes any count of rows."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Target(msgspec.Struct, frozen=True):
    """What a request asks."""

    model: str
    inputs: tuple[Tensor, ...]
    rows: int = 1
    form: Form = "json"

    @property
    def path(self) -> str:
        """Where the requests go."""
        return f"/v2/models/{self.model}/infer"

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """A tensor's shape in each request.

        Raises:
            ConfigInvalid: it is not a float tensor whose size is fixed but for its rows.
        """
        if tensor.datatype not in _DTYPES or any(size < 0 for size in tensor.shape[1:]):
            msg = (
                f"input {tensor.name} of model {self.model} is {tensor.datatype} {list(tensor.shape)}: values are made"
                " for FP32 and FP64 of fixed size; give bodies of your own, one JSON a line, with --bodies FILE"
            )
            raise ConfigInvalid(msg)
        if not tensor.shape or tensor.shape[0] >= 0:
            if self.rows not in (1, *tensor.shape[:1]):
                msg = f"input {tensor.name} of model {self.model} is {list(tensor.shape)}: it takes no --rows"
                raise ConfigInvalid(msg)
            return tensor.shape
        return (self.rows, *tensor.shape[1:])


class Made(Protocol):
    """Whole requests, made before a load; request `number` is `parts[number % len(parts)]`."""

    @property
    def parts(self) -> Sequence[tuple[bytes, ...]]:
        """Each in pieces that are sent one after another."""


class Requests:
    """The requests of one load.

    Args:
        varying_heads: give each its own traceparent and x-request-id, so that no two heads repeat.
        bodies: JSON bodies to send instead of made ones.
    """

    def __init__(
        self,
        target: Target,
        *,
        count: int = DISTINCT_REQUESTS,
        varying_heads: bool = False,
        seed: int = 1,
        bodies: list[bytes] | None = None,
    ) -> None:
        self.target = target
        self.seed = seed
        self.tails: list[bytes] = []
        self._varying_heads = varying_heads
        self._bodies = bodies
        if bodies is not None:
            self.parts: list[tuple[bytes, ...]] = [
                (self._head(i, len(body), None) + body,) for i, body in enumerate(bodies)
            ]
            return
        self._shapes = [target.shape(tensor) for tensor in target.inputs]
        self._tail_bytes = self._shared_bytes()
        if self._tail_bytes:
            rng = np.random.default_rng(seed)
            last = _DTYPES[target.inputs[-1].datatype]
            self.tails = [
                rng.uniform(-3, 3, self._tail_bytes // np.dtype(last).itemsize).astype(last).tobytes()
                for _ in range(TAILS)
            ]
        first = self._request(0)
        self.parts = [first]
        held = max(1, HELD_BYTES_MAX // len(first[0]))
        self.parts += [self._request(i) for i in range(1, min(count, held))]

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def rows(self) -> int:
        """Rows of one request."""
        return self.target.rows

    @property
    def body_bytes(self) -> int:
        """Bytes of the first request, head and all."""
        return sum(map(len, self.parts[0]))

    def feeds(self, number: int) -> dict[str, NDArray[Any]]:
        """What request `number` asks, as arrays for ONNX Runtime."""
        if self._bodies is not None:
            return _feeds_of(self._bodies[number])
        target, feeds = self.target, {}
        values = self._values(number)
        for k, (tensor, shape) in enumerate(zip(target.inputs, self._shapes, strict=True)):
            dtype = _DTYPES[tensor.datatype]
            array = values[k].astype(dtype)
            if self._tail_bytes and k == len(self._shapes) - 1:
                array = np.concatenate((array, np.frombuffer(self.tails[number % TAILS], dtype)))
            feeds[tensor.name] = array.reshape(shape)
        return feeds

    def _shared_bytes(self) -> int:
        size = int(np.prod(self._shapes[-1])) * np.dtype(_DTYPES[self.target.inputs[-1].datatype]).itemsize
        return size - STEM_BYTES if self.target.form == "binary" and size > 16 * STEM_BYTES else 0

    def _values(self, number: int) -> list[NDArray[np.float64]]:
        """Values with six decimals about zero, as scaled features look; of the last tensor without its tail."""
        rng = np.random.default_rng((self.seed, number))
        out = []
        for k, shape in enumerate(self._shapes):
            count = int(np.prod(shape))
            if self._tail_bytes and k == len(self._shapes) - 1:
                count -= self._tail_bytes // np.dtype(_DTYPES[self.target.inputs[k].datatype]).itemsize
            out.append(np.round(rng.uniform(-3.0, 3.0, count), 6))
        return out

    def _request(self, number: int) -> tuple[bytes, ...]:
        values, tensors, pieces = self._values(number), [], []
        for k, (tensor, shape) in enumerate(zip(self.target.inputs, self._shapes, strict=True)):
            described: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": shape}
            if self.target.form == "binary":
                piece = values[k].astype(_DTYPES[tensor.datatype]).tobytes()
                shared = self._tail_bytes if k == len(self._shapes) - 1 else 0
                described["parameters"] = {"binary_data_size": len(piece) + shared}
                pieces.append(piece)
            else:
                described["data"] = values[k].tolist()
            tensors.append(described)
        # All ids have one width, so that heads repeat unless they are asked to vary.
        content: dict[str, Any] = {"id": f"r-{number:06d}", "inputs": tensors}
        if self.target.form == "json":
            body = msgspec.json.encode(content)
            return (self._head(number, len(body), None) + body,)
        content["parameters"] = {"binary_data_output": True}
        document = msgspec.json.encode(content)
        body = b"".join((document, *pieces))
        whole = self._head(number, len(body) + self._tail_bytes, len(document)) + body
        return (whole, self.tails[number % TAILS]) if self._tail_bytes else (whole,)

    def _head(self, number: int, length: int, json_bytes: int | None) -> bytes:
        extra = ""
        if self._varying_heads:
            trace, span, request_id = np.random.default_rng((self.seed, number, 1)).bytes(40), 16, 24
            extra = (
                f"traceparent: 00-{trace[:span].hex()}-{trace[span:request_id].hex()}-01\r\n"
                f"x-request-id: {trace[request_id:].hex()}\r\n"
            )
        kind = "application/json" if json_bytes is None else "application/octet-stream"
        if json_bytes is not None:
            extra += f"inference-header-content-length: {json_bytes}\r\n"
        return (
            f"POST {self.target.path} HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: */*\r\n"
            f"content-type: {kind}\r\n{extra}content-length: {length}\r\n\r\n"
        ).encode()

    def write(self, path: Path) -> None:
        """Write them for wrk's Lua: count of tails, tails, then per request its tail's number (0: none) and stem."""
        with path.open("wb") as file:
            file.write(_U32.pack(len(self.tails)))
            for tail in self.tails:
                file.write(_U32.pack(len(tail)) + tail)
            for i, parts in enumerate(self.parts):
                stem, shared = parts[0], len(parts) > 1
                file.write(_U32.pack(i % TAILS + 1 if shared else 0) + _U32.pack(len(stem)) + stem)


def read_bodies(path: Path) -> list[bytes]:
    """JSON bodies from a file, one a line.

    Raises:
        ConfigInvalid: there are none, or a line is not JSON.
    """
    bodies = [line.strip() for line in path.read_bytes().splitlines() if line.strip()]
    for number, body in enumerate(bodies, 1):
        try:
            msgspec.json.decode(body)
        except msgspec.DecodeError as exc:
            msg = f"line {number} of the bodies is not JSON: {exc}"
            raise ConfigInvalid(msg) from exc
    if not bodies:
        msg = "the file of bodies is empty: expected one JSON body a line"
        raise ConfigInvalid(msg)
    return bodies


def _feeds_of(body: bytes) -> dict[str, NDArray[Any]]:
    dtypes = {"FP16": "e", "FP32": "f", "FP64": "d", "INT64": "q", "INT32": "i", "INT16": "h", "INT8": "b",
              "UINT64": "Q", "UINT32": "I", "UINT16": "H", "UINT8": "B", "BOOL": "?", "BYTES": "O"}  # fmt: skip
    return {
        tensor["name"]: np.array(tensor["data"], dtypes[tensor["datatype"]]).reshape(tensor["shape"])
        for tensor in msgspec.json.decode(body)["inputs"]
    }
