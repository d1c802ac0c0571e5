"""The v1 dialects on the wire, KServe's and TensorFlow Serving's `:predict`: JSON to tensors, and outputs to JSON.

door -> core (`head.dialect` is "v1") -> codec -> **v1** (decode), and as a form of reply in encode. Rows: `instances`,
a list of values or of objects by input name, are answered with `predictions`; columns: `inputs`, whole tensors, with
`outputs`. An adapter for clients that exist: it builds Python objects, within the limits of JSON; large
tensors belong to `/v2`.

Sources: KServe data plane v1; TensorFlow Serving RESTful API.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import orjson

from gateway import tensors
from gateway.api.encode import RunEncoder
from gateway.batching import Inference
from gateway.errors import InvalidRequest
from loaders.signature import Signature, TensorSpec

DEPTH_MAX = 64
_B64 = "b64"


def decode(signature: Signature, body: bytes, into: Inference) -> None:
    """Read a body into `into`: inputs, shapes and the form of the reply. Rows are the caller's to set.

    Raises:
        InvalidRequest: naming the tensor, what was found and what was expected.
    """
    request = _parsed(body)
    instances, inputs = request.get("instances"), request.get("inputs")
    if (instances is None) == (inputs is None):
        found = "both" if inputs is not None else "neither"
        msg = f"request body has {found} of `instances` (rows) and `inputs` (columns); expected one of them"
        raise InvalidRequest(msg)
    if inputs is not None:
        values = _by_name(signature, inputs)
        into.form = COLUMNS
    else:
        values, count = _from_rows(signature, instances)
        into.form = Rows(count)
    packed, shapes = [], []
    for spec in signature.inputs:
        data, shape = _tensor(spec, values[spec.name])
        packed.append(data)
        shapes.append(shape)
    into.inputs, into.shapes = packed, shapes


class Rows(NamedTuple):
    """Answers rows with rows: a bare list where the model has one output, else objects by output name."""

    instances: int

    def body(
        self, encoder: RunEncoder, inference: Inference, id_json: bytes, outputs: Sequence[Any], row0: int
    ) -> tuple[bytes, bytes]:
        """See `gateway.api.forms.Form`.

        Raises:
            InvalidRequest: an output of a model without a batch dimension has not a row for each instance.
        """
        shown = _outputs_of(encoder, inference, outputs, row0)
        rows = inference.rows if encoder.batchable else self.instances
        for name, value in shown.items():
            if not isinstance(value, list | np.ndarray) or len(value) != rows:
                msg = f"output '{name}' has not one row for each of {rows} instances; ask by columns, with `inputs`"
                raise InvalidRequest(msg)
        if len(shown) == 1:
            return _json({"predictions": next(iter(shown.values()))})
        columns = {name: _elements(value) for name, value in shown.items()}
        return _json({"predictions": [{n: column[i] for n, column in columns.items()} for i in range(rows)]})


class Columns(NamedTuple):
    """Answers columns with columns: the bare tensor where the model has one output, else tensors by name."""

    def body(
        self, encoder: RunEncoder, inference: Inference, id_json: bytes, outputs: Sequence[Any], row0: int
    ) -> tuple[bytes, bytes]:
        """See `gateway.api.forms.Form`."""
        shown = _outputs_of(encoder, inference, outputs, row0)
        return _json({"outputs": next(iter(shown.values())) if len(shown) == 1 else shown})


COLUMNS = Columns()


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        if b"NaN" not in body and b"Infinity" not in body:
            msg = f"request body is not JSON: {exc}"
            raise InvalidRequest(msg) from exc
        try:
            request = json.loads(body, parse_float=_finite)
        except (ValueError, RecursionError, OverflowError) as again:
            msg = "request body is not JSON"
            raise InvalidRequest(msg) from again
    if not isinstance(request, dict):
        msg = "request body: expected an object"
        raise InvalidRequest(msg)
    return request


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise OverflowError(text[:40])
    return value


def _from_rows(signature: Signature, instances: Any) -> tuple[dict[str, Any], int]:
    """Each input's rows, by name; and how many."""
    specs = signature.inputs
    if not isinstance(instances, list) or not instances:
        msg = "`instances` is no list of rows, or is empty"
        raise InvalidRequest(msg)
    if not _names_inputs(specs, instances[0]):
        if len(specs) != 1:
            names = ", ".join(spec.name for spec in specs)
            msg = f"the model has {len(specs)} inputs: each of `instances` must be an object with {names}"
            raise InvalidRequest(msg)
        return {specs[0].name: instances}, len(instances)
    columns: dict[str, list[Any]] = {spec.name: [] for spec in specs}
    for i, row in enumerate(instances):
        if not isinstance(row, dict) or row.keys() != columns.keys():
            msg = f"instance {i}: expected an object with {', '.join(columns)}"
            raise InvalidRequest(msg)
        for name, value in row.items():
            columns[name].append(value)
    return columns, len(instances)


def _by_name(signature: Signature, inputs: Any) -> dict[str, Any]:
    """Each input's whole tensor, by name."""
    specs = signature.inputs
    if not _names_inputs(specs, inputs):
        if len(specs) != 1:
            names = ", ".join(spec.name for spec in specs)
            msg = f"the model has {len(specs)} inputs: `inputs` must be an object with {names}"
            raise InvalidRequest(msg)
        return {specs[0].name: inputs}
    if inputs.keys() != {spec.name for spec in specs}:
        found = ", ".join(str(name)[:40] for name in list(inputs)[:8])
        msg = f"`inputs` has {found or 'nothing'}; expected {', '.join(spec.name for spec in specs)}"
        raise InvalidRequest(msg)
    return inputs  # type: ignore[no-any-return]


def _names_inputs(specs: Sequence[TensorSpec], value: Any) -> bool:
    """Whether an object is keyed by input names; {"b64": …} is a string unless an input has that name."""
    return isinstance(value, dict) and (value.keys() != {_B64} or any(spec.name == _B64 for spec in specs))


def _tensor(spec: TensorSpec, value: Any) -> tuple[bytes, tuple[int, ...]]:
    """A tensor in binary form and its shape: as the data is nested, or as many values as the model's shape takes."""
    nested: list[int] = []
    inner = value
    while isinstance(inner, list) and len(nested) <= DEPTH_MAX:
        nested.append(len(inner))
        inner = inner[0] if inner else None
    flat: list[object] = []
    _flatten(spec, value, flat, 0)
    shape = _shape_of(spec, nested, len(flat))
    return tensors.pack(spec, flat, len(flat)), shape


def _shape_of(spec: TensorSpec, nested: list[int], count: int) -> tuple[int, ...]:
    declared, tail = spec.shape, spec.shape[1:]
    if (
        len(nested) == len(declared)
        and all(want in (-1, have) for want, have in zip(declared, nested, strict=True))
        and prod(nested) == count
    ):
        return tuple(nested)
    if -1 not in declared and prod(declared) == count:
        return declared
    row = prod(tail)
    # Rows of a known size may come flat, or a row of one value bare.
    if (
        declared[:1] == (-1,)
        and -1 not in tail
        and row
        and count % row == 0
        and (not nested or nested[0] in {count // row, count})
    ):
        return (count // row, *tail)
    msg = f"input '{spec.name}' has shape {nested[:16]} with {count} values; expected {list(declared)}"
    raise InvalidRequest(msg)


def _flatten(spec: TensorSpec, value: Any, out: list[object], depth: int) -> None:
    if isinstance(value, list):
        if depth > DEPTH_MAX:
            msg = f"input '{spec.name}': data is nested deeper than {DEPTH_MAX}"
            raise InvalidRequest(msg)
        for inner in value:
            _flatten(spec, inner, out, depth + 1)
        return
    datatype = spec.datatype
    if datatype == "BYTES":
        if isinstance(value, dict):
            value = _unpacked(spec, value)
        fits = isinstance(value, str)
    elif datatype == "BOOL":
        fits = isinstance(value, bool)
    elif datatype.startswith("FP"):
        value = math.nan if value is None else value
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    else:
        fits = isinstance(value, int) and not isinstance(value, bool)
    if not fits:
        # Not what is in it: an object may be as deep and as large as a stranger likes.
        found = "an object" if isinstance(value, dict) else json.dumps(value)[:40]
        msg = f"input '{spec.name}' holds {found}; expected {datatype} values"
        raise InvalidRequest(msg)
    out.append(value)


def _unpacked(spec: TensorSpec, value: dict[str, Any]) -> str:
    """A string that came as {"b64": …}; UTF-8, as every string is here."""
    coded = value.get(_B64)
    try:
        if len(value) == 1 and isinstance(coded, str):
            return base64.b64decode(coded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError) as exc:
        msg = f"input '{spec.name}' holds b64 that is no base64 of UTF-8 text: {exc}"
        raise InvalidRequest(msg) from exc
    msg = f"input '{spec.name}' holds an object; expected a string or {{\"b64\": …}}"
    raise InvalidRequest(msg)


def _outputs_of(
    encoder: RunEncoder, inference: Inference, outputs: Sequence[Any], row0: int
) -> dict[str, Any]:
    """A request's part of each output, by name: arrays as they are, strings as lists, scalars bare."""
    shown: dict[str, Any] = {}
    for spec, array in zip(encoder.outputs, outputs, strict=True):
        part = array[row0 : row0 + inference.rows] if encoder.batchable else array
        if part.dtype == object:
            shown[spec.name] = _texts(part.tolist(), coded=spec.name.endswith("_bytes"))
        else:
            shown[spec.name] = np.ascontiguousarray(part) if part.ndim else part.item()
    return shown


def _elements(value: Any) -> Any:
    """What a row of an output is; numbers by themselves as text, since not every kind of numpy's scalars is encoded."""
    if isinstance(value, list) or value.ndim > 1:
        return value
    text = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
    return [orjson.Fragment(element) for element in text.split(b",")]


def _texts(value: Any, *, coded: bool) -> Any:
    if isinstance(value, list):
        return [_texts(inner, coded=coded) for inner in value]
    return {_B64: base64.b64encode(str(value).encode()).decode()} if coded else str(value)


def _json(content: dict[str, Any]) -> tuple[bytes, bytes]:
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return body, b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
