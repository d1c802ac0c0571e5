"""OIP on the wire, outwards: a run's outputs to reply bodies (encode stage). `gateway.api.codec` is the way in.

Works on a whole run: one orjson call per output, split per row, joined per request with literals prepared once
per row count.

Sources: Open Inference Protocol, REST; its binary tensor data extension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from gateway.batching import Batch
from loaders.signature import Signature


class RunEncoder:
    """Reply bodies of one version. Literals are kept per (rows, outputs wanted); at most 512.

    Args:
        labels: names of an output's classes, by output; for classification.
    """

    def __init__(
        self,
        model: str,
        version: str,
        signature: Signature,
        *,
        batchable: bool,
        labels: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.labels = labels or {}
        self.outputs = signature.outputs
        self.batchable = batchable
        self.head = (
            b'{"model_name":' + orjson.dumps(model) + b',"model_version":' + orjson.dumps(version)
            + b',"id":'
        )  # fmt: skip
        self._kept: dict[tuple[Any, ...], Any] = {}

    def texts(self, batch: Batch) -> list[list[bytes]]:
        """`rows_json` of a run's outputs; empty where no request wants an output in the common form."""
        needed: set[int] = set()
        for inference in batch.inferences:
            if inference.form is None:
                if inference.wanted is None:
                    return self.rows_json(batch.outputs, batch.rows)
                needed.update(inference.wanted)
        rows = batch.rows
        return [self.rows_json([a], rows)[0] if i in needed else [] for i, a in enumerate(batch.outputs)]

    def rows_json(self, outputs: Sequence[Any], rows: int) -> list[list[bytes]]:
        """Each output as JSON text, one piece a row (batched) or one piece in all."""
        return [
            _row_texts(array, rows) if self.batchable and rows else [flat_text(array)] for array in outputs
        ]

    def literals(self, rows: int, outputs: Sequence[Any], wanted: tuple[int, ...] | None) -> list[bytes]:
        """What stands around ids and data: head, before each output's data, tail."""
        tails = tuple(array.shape[1:] if self.batchable else array.shape for array in outputs)
        key = (rows, tails, wanted)
        made = self._kept.get(key)
        if made is None:
            made = self.keep(key, self._make_literals(rows, outputs, wanted))
        return made  # type: ignore[no-any-return]

    def kept(self, key: tuple[Any, ...]) -> Any:
        """What was kept for this key, or None."""
        return self._kept.get(key)

    def keep(self, key: tuple[Any, ...], made: Any) -> Any:
        """Keep a part of replies that repeats; at most 512 are."""
        if len(self._kept) >= 512:
            self._kept.clear()
        self._kept[key] = made
        return made

    def _make_literals(
        self, rows: int, outputs: Sequence[Any], wanted: tuple[int, ...] | None
    ) -> list[bytes]:
        made = [self.head]
        opening = b',"outputs":['
        for i in wanted if wanted is not None else range(len(self.outputs)):
            spec, shape = self.outputs[i], outputs[i].shape
            full = [rows, *shape[1:]] if self.batchable else list(shape)
            made.append(
                opening + b'{"name":' + orjson.dumps(spec.name) + b',"datatype":"'
                + spec.datatype.encode() + b'","shape":' + orjson.dumps(full) + b',"data":['
            )  # fmt: skip
            opening = b"]},"
        made.append(b"]}]}")
        return made


def label_names(session: Any) -> dict[str, Sequence[str]]:
    """Names of classes by output: what its bundle says, else the session's own labels, from a label file."""
    names: dict[str, Sequence[str]] = dict(session.label_names)
    for output, settings in session.bundle.settings.outputs.items():
        if settings.classes:
            names[output] = settings.classes
    return names


_NUMPY = orjson.OPT_SERIALIZE_NUMPY


def _row_texts(array: Any, rows: int) -> list[bytes]:
    """JSON of each row without brackets. Cost: one orjson call and one split."""
    if array.dtype == object:
        return [orjson.dumps([str(v) for v in row.ravel()])[1:-1] for row in array.reshape(rows, -1)]
    matrix = np.ascontiguousarray(array).reshape(rows, -1)
    if matrix.shape[1] == 0:
        return [b""] * rows
    return orjson.dumps(matrix, option=_NUMPY)[2:-2].split(b"],[")


def flat_text(array: Any) -> bytes:
    """JSON of all elements, without brackets."""
    if array.dtype == object:
        return orjson.dumps([str(v) for v in array.ravel()])[1:-1]
    return orjson.dumps(np.ascontiguousarray(array).ravel(), option=_NUMPY)[1:-1]
