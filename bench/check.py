"""Check: are answers right? Replies of a load against ONNX Runtime's own answers to the same inputs.

Replies are kept while the load runs and compared after it, so that checking disturbs no figure.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

import loaders  # noqa: F401  (turns ONNX Runtime's telemetry off before it is imported)
from bench.requests import Requests

TOLERANCE = 1e-4
"""Absolute and relative: summing in another order, as batches do, moves FP32 by less."""
CHECKED_SHARE = 0.01
_DTYPES = {
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
    "INT64": "q",
    "INT32": "i",
    "INT8": "b",
    "UINT8": "B",
    "BOOL": "?",
}


class Kept(msgspec.Struct, frozen=True):
    """One reply, as it came."""

    number: int
    head: bytes
    body: bytes


def outputs_of(head: bytes, body: bytes) -> dict[str, NDArray[Any]]:
    """A reply's outputs as arrays, from JSON or binary."""
    lower = head.lower()
    at = lower.find(b"inference-header-content-length:")
    json_bytes = len(body) if at < 0 else int(lower[at + 32 :].partition(b"\r")[0])
    found, offset = {}, json_bytes
    for output in msgspec.json.decode(body[:json_bytes])["outputs"]:
        dtype, shape = _DTYPES.get(output["datatype"], "O"), output["shape"]
        if "data" in output:
            values = [float("nan") if v is None else v for v in _flat(output["data"])]
            found[output["name"]] = np.array(values, dtype).reshape(shape)
        else:
            size = output["parameters"]["binary_data_size"]
            found[output["name"]] = np.frombuffer(body[offset : offset + size], dtype).reshape(shape)
            offset += size
    return found


def _flat(data: Any) -> list[Any]:
    return [v for item in data for v in _flat(item)] if data and isinstance(data[0], list) else list(data)


def check(model_file: Path, requests: Requests, kept: list[Kept]) -> int:
    """Compare replies with ONNX Runtime; returns how many there were.

    Raises:
        ValueError: naming the first request whose answer differs.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model_file), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for reply in kept:
        expected = dict(
            zip(names, session.run(names, requests.feeds(reply.number % len(requests))), strict=True)
        )
        for name, mine in outputs_of(reply.head, reply.body).items():
            theirs = np.asarray(expected[name])
            same = mine.shape == theirs.shape and (
                np.array_equal(mine, theirs)
                if mine.dtype == object
                else np.allclose(mine, theirs, TOLERANCE, TOLERANCE, equal_nan=True)
            )
            if not same:
                msg = f"request {reply.number}: output {name} is {mine}, ONNX Runtime says {theirs}"
                raise ValueError(msg)
    return len(kept)
