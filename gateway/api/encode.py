"""OIP on the wire, outwards: a run's outputs to reply bodies (encode stage). `gateway.api.codec` is the way in.

Works on a whole run: one orjson call per output, split per row, joined per request with literals prepared once
per row count.

Sources: Open Inference Protocol, REST; its binary tensor data extension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from gateway import tensors
from gateway.batching import Inference
from loaders.signature import Signature


class RunEncoder:
    """Reply bodies of one version. Literals are kept per (rows, outputs wanted); at most 512."""

    def __init__(self, model: str, version: str, signature: Signature, *, batchable: bool) -> None:
        self._outputs = signature.outputs
        self._batchable = batchable
        self._head = (
            b'{"model_name":' + orjson.dumps(model) + b',"model_version":' + orjson.dumps(version)
            + b',"id":'
        )  # fmt: skip
        self._literals: dict[tuple[Any, ...], list[bytes]] = {}

    def rows_json(self, outputs: Sequence[Any], rows: int) -> list[list[bytes]]:
        """Each output as JSON text, one piece a row (batched) or one piece in all."""
        return [
            _row_texts(array, rows) if self._batchable and rows else [_flat_text(array)] for array in outputs
        ]

    def literals(self, rows: int, outputs: Sequence[Any], wanted: tuple[int, ...] | None) -> list[bytes]:
        """What stands around ids and data: head, before each output's data, tail."""
        tails = tuple(array.shape[1:] if self._batchable else array.shape for array in outputs)
        key = (rows, tails, wanted)
        made = self._literals.get(key)
        if made is None:
            made = self._make_literals(rows, outputs, wanted)
            if len(self._literals) >= 512:
                self._literals.clear()
            self._literals[key] = made
        return made

    def _make_literals(
        self, rows: int, outputs: Sequence[Any], wanted: tuple[int, ...] | None
    ) -> list[bytes]:
        made = [self._head]
        opening = b',"outputs":['
        for i in wanted if wanted is not None else range(len(self._outputs)):
            spec, shape = self._outputs[i], outputs[i].shape
            full = [rows, *shape[1:]] if self._batchable else list(shape)
            made.append(
                opening + b'{"name":' + orjson.dumps(spec.name) + b',"datatype":"'
                + spec.datatype.encode() + b'","shape":' + orjson.dumps(full) + b',"data":['
            )  # fmt: skip
            opening = b"]},"
        made.append(b"]}]}")
        return made

    def binary(
        self, inference: Inference, id_json: bytes, outputs: Sequence[Any], row0: int
    ) -> tuple[bytes, int | None]:
        """A body with at least one binary output: the bytes and the JSON part's length."""
        wanted = inference.wanted or tuple(range(len(self._outputs)))
        flags = inference.binary_outputs or ()
        described, blobs = [], []
        for i, binary in zip(wanted, flags, strict=True):
            spec, array = self._outputs[i], outputs[i]
            if self._batchable:
                array = array[row0 : row0 + inference.rows]
            entry: dict[str, Any] = {
                "name": spec.name,
                "datatype": spec.datatype,
                "shape": list(array.shape),
            }
            if binary:
                blob = tensors.to_bytes(array)
                entry["parameters"] = {"binary_data_size": len(blob)}
                blobs.append(blob)
            else:
                entry["data"] = orjson.Fragment(b"[" + _flat_text(array) + b"]")
            described.append(entry)
        text = self._head + id_json + b',"outputs":' + orjson.dumps(described) + b"}"
        return b"".join((text, *blobs)), len(text)


_NUMPY = orjson.OPT_SERIALIZE_NUMPY


def _row_texts(array: Any, rows: int) -> list[bytes]:
    """JSON of each row without brackets. Cost: one orjson call and one split."""
    if array.dtype == object:
        return [orjson.dumps([str(v) for v in row.ravel()])[1:-1] for row in array.reshape(rows, -1)]
    matrix = np.ascontiguousarray(array).reshape(rows, -1)
    if matrix.shape[1] == 0:
        return [b""] * rows
    return orjson.dumps(matrix, option=_NUMPY)[2:-2].split(b"],[")


def _flat_text(array: Any) -> bytes:
    if array.dtype == object:
        return orjson.dumps([str(v) for v in array.ravel()])[1:-1]
    return orjson.dumps(np.ascontiguousarray(array).ravel(), option=_NUMPY)[1:-1]
