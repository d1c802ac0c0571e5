"""Raw form: tensors as plain JSON and as raw bytes, for products that leave the form of a request to user code. Pure.

JSON is `{"inputs": {NAME: rows}}` and `{"outputs": {NAME: rows}}`. Binary is the tensors' little-endian bytes, one
after the other, with [name, dtype, shape] of each as JSON in the header `x-tensors`, both ways. The code in `served`
that runs inside those products' environments reads and writes the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from bench.peers.peer import Arrays, Form, Message

HEADER = "x-tensors"


def message(path: str, feeds: Arrays, form: Form) -> Message:
    """The request for a prediction.

    Raises:
        ValueError: texts in binary form.
    """
    if form == "json":
        return Message(path, (("content-type", "application/json"),), json_bytes({"inputs": listable(feeds)}))
    described, parts = [], []
    for name, array in feeds.items():
        if array.dtype == object:
            msg = f"input {name} holds texts, which raw bytes have no form for: send it as JSON"
            raise ValueError(msg)
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        described.append([name, little.dtype.str, array.shape])
        parts.append(little.tobytes())
    fields = (("content-type", "application/octet-stream"), (HEADER, json.dumps(described)))
    return Message(path, fields, b"".join(parts))


def outputs(headers: Mapping[str, str], body: bytes) -> dict[str, NDArray[Any]]:
    """A reply's tensors, in whichever form it came.

    Raises:
        KeyError, ValueError: it is no such reply.
    """
    if HEADER not in headers:
        return {name: from_rows(rows) for name, rows in orjson.loads(body)["outputs"].items()}
    found, at = {}, 0
    for name, dtype, shape in json.loads(headers[HEADER]):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        found[name] = np.frombuffer(body[at : at + size], dtype).reshape(shape)
        at += size
    return found


def json_bytes(content: object) -> bytes:
    """JSON with FP32 in its shortest texts."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def listable(feeds: Arrays) -> dict[str, Any]:
    """Arrays that JSON can be made of."""
    return {
        name: array.tolist() if array.dtype == object else np.ascontiguousarray(array)
        for name, array in feeds.items()
    }


def from_rows(rows: Any) -> NDArray[Any]:
    """An array of JSON rows; null is NaN, texts are objects."""
    array = np.asarray(rows)
    if array.dtype.kind in "US":
        return array.astype(object)
    return array.astype(np.float64) if array.dtype == object else array
