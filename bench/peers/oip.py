"""OIP: requests and replies of the Open Inference Protocol, for every product that speaks it. Pure.

arrays -> **infer_message** -> a server -> **infer_outputs** -> arrays. JSON carries flat data, which every server of
the protocol takes; the binary form is Triton's extension `binary_tensor_data`, in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from bench.peers.peer import Arrays, Form, Message
from loaders.datatypes import NUMPY

HEADER = "inference-header-content-length"
"""How many bytes of a body are JSON; what follows are tensors."""


def datatype_of(array: NDArray[Any]) -> str:
    """The protocol's name of an array's datatype."""
    if array.dtype.kind in "OSU":
        return "BYTES"
    return next(name for name, dtype in NUMPY.items() if dtype == array.dtype and name != "BYTES")


def infer_message(model: str, feeds: Arrays, form: Form, *, version: str | None = None) -> Message:
    """The request for a prediction, `form` both ways.

    Args:
        version: pinned to it; None: the server chooses.
    """
    path = f"/v2/models/{model}{'' if version is None else f'/versions/{version}'}/infer"
    inputs, blobs = [], []
    for name, array in feeds.items():
        tensor: dict[str, Any] = {"name": name, "datatype": datatype_of(array), "shape": array.shape}
        if form == "binary":
            blobs.append(_blob(array))
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            tensor["data"] = (
                array.ravel().tolist() if array.dtype == object else np.ascontiguousarray(array).ravel()
            )
        inputs.append(tensor)
    if form == "json":
        # Shortest texts of FP32 as such; `tolist` would write them with the digits of FP64.
        body = orjson.dumps({"inputs": inputs}, option=orjson.OPT_SERIALIZE_NUMPY)
        return Message(path, (("content-type", "application/json"),), body)
    head = orjson.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}})
    fields = (("content-type", "application/octet-stream"), (HEADER, str(len(head))))
    return Message(path, fields, b"".join((head, *blobs)))


def infer_outputs(headers: Mapping[str, str], body: bytes) -> dict[str, NDArray[Any]]:
    """A reply's tensors.

    Args:
        headers: by lower-case name.

    Raises:
        KeyError, ValueError, msgspec.DecodeError: it is no reply of the protocol.
    """
    offset = int(headers.get(HEADER, len(body)))
    found: dict[str, NDArray[Any]] = {}
    for output in msgspec.json.decode(body[:offset])["outputs"]:
        datatype, shape = output["datatype"], output["shape"]
        if "data" in output:
            values = [np.nan if value is None else value for value in _flat(output["data"])]
            found[output["name"]] = np.array(values, NUMPY[datatype]).reshape(shape)
        else:
            size = output["parameters"]["binary_data_size"]
            found[output["name"]] = _array(datatype, body[offset : offset + size]).reshape(shape)
            offset += size
    return found


def _flat(data: Any) -> list[Any]:
    return [value for item in data for value in _flat(item)] if data and isinstance(data[0], list) else data


def _blob(array: NDArray[Any]) -> bytes:
    if datatype_of(array) != "BYTES":
        return np.ascontiguousarray(array).tobytes()
    texts = [str(value).encode() for value in array.ravel()]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def _array(datatype: str, raw: bytes) -> NDArray[Any]:
    if datatype != "BYTES":
        return np.frombuffer(raw, NUMPY[datatype])
    texts, offset = [], 0
    while offset < len(raw):
        end = offset + 4 + int.from_bytes(raw[offset : offset + 4], "little")
        texts.append(raw[offset + 4 : end].decode())
        offset = end
    made = np.empty(len(texts), object)
    made[:] = texts
    return made
