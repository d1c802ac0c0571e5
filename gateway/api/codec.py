"""OIP on the wire, inwards: a request's body to tensors (decode stage). `gateway.api.encode` is the way out.

Decode is a ladder: a decoder typed for the model's datatype takes the common flat body; what it
refuses goes, tensor by tensor, through a slower path that also knows nested data, null and NaN tokens.

Sources: Open Inference Protocol, REST; its binary tensor data extension.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from math import prod
from typing import Annotated, Any

import msgspec
import orjson

from gateway import tensors
from gateway.api import v1
from gateway.api.forms import Asked
from gateway.api.single import single_of
from gateway.batching import Inference
from gateway.errors import GatewayError, InvalidRequest
from loaders.signature import Signature, TensorSpec

DEPTH_MAX = 64
ID_MAX_BYTES = 4096
"""Longest id of a client, as JSON with its quotes: it goes into the log and back."""
PARAMETERS_MAX_BYTES = 16_384
"""Most that free parameters may take in the log."""
ROWS_MAX = 1_048_576
"""Rows of one request; tensors without elements could name any number."""
Dim = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
Scalar = str | int | float | bool


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Scalar] | None = None


def _wire(kind: Any) -> msgspec.json.Decoder[Any]:
    tensor = msgspec.defstruct(
        "WireTensor",
        [
            ("name", str),
            ("shape", list[Dim]),
            ("datatype", str),
            ("data", kind, None),
            ("parameters", dict[str, Scalar] | None, None),
        ],
        gc=False,
    )
    request = msgspec.defstruct(
        "WireRequest",
        [
            ("inputs", list[tensor]),  # type: ignore[valid-type]
            ("id", str | None, None),
            ("parameters", dict[str, Scalar] | None, None),
            ("outputs", list[_Output] | None, None),
        ],
        gc=False,
    )
    return msgspec.json.Decoder(request)


_FLOAT, _INT = _wire(list[float] | None), _wire(list[int] | None)
_BOOL, _STR = _wire(list[bool] | None), _wire(list[str] | None)
_RAW = _wire(msgspec.Raw)
_FLAT: dict[str, msgspec.json.Decoder[Any]] = {
    "F": msgspec.json.Decoder(list[float]),
    "I": msgspec.json.Decoder(list[int]),
    "B": msgspec.json.Decoder(list[bool]),
    "S": msgspec.json.Decoder(list[str]),
}
_BY_KIND = {"F": _FLOAT, "I": _INT, "B": _BOOL, "S": _STR}


def _kind(datatype: str) -> str:
    if datatype.startswith("FP"):
        return "F"
    return {"BOOL": "B", "BYTES": "S"}.get(datatype, "I")


class Codec:
    """Decoder and encoder of one signature; shared by all versions that have it.

    Threading: decode keeps no state between calls, so large bodies may be decoded off the loop.
    """

    def __init__(self, model: str, signature: Signature, *, batchable: bool) -> None:
        self.model = model
        self.signature = signature
        self.batchable = batchable
        self._inputs = {spec.name: (i, spec) for i, spec in enumerate(signature.inputs)}
        kinds = {_kind(spec.datatype) for spec in signature.inputs}
        self._decoder = _BY_KIND[kinds.pop()] if len(kinds) == 1 else _RAW
        self._fixed = [_fixed_tail(spec, batchable) for spec in signature.inputs]
        self._single = single_of(signature, batchable=batchable)
        self._asked = Asked(model, signature)

    # --- decode ----------------------------------------------------------------------------

    def decode(self, body: bytes, json_bytes: int | None, into: Inference) -> None:
        """Read a body into `into`, a fresh one: inputs, shapes, rows, id, parameters, outputs asked.

        Args:
            json_bytes: the Inference-Header-Content-Length, None when the whole body is JSON.

        Raises:
            InvalidRequest: naming the tensor, what was found and what was expected.
        """
        blobs = None
        if json_bytes is not None and json_bytes != len(body):
            if not 0 < json_bytes < len(body):
                msg = f"Inference-Header-Content-Length is {json_bytes}; the body has {len(body)} bytes"
                raise InvalidRequest(msg)
            blobs = memoryview(body)[json_bytes:]
            body = body[:json_bytes]
        request, raw = self._parse(body, blobs is not None)
        if request.parameters is not None or request.id:
            _take_facts(request, into)
        single = self._single
        if single is None or raw or blobs is not None or not single.take(request.inputs, into):
            self._take_inputs(request.inputs, raw, blobs, into)
        if request.outputs is not None or request.parameters is not None:
            self._asked.take(request, into)

    def decode_v1(self, body: bytes, json_bytes: int | None, into: Inference) -> None:
        """The same for a body of the v1 dialects; there is no binary part.

        Raises:
            InvalidRequest: naming the tensor, what was found and what was expected.
        """
        v1.decode(self.signature, body, into)
        self._set_rows(into.shapes, into)

    def _parse(self, body: bytes, binary: bool) -> tuple[Any, bool]:
        try:
            if not binary:
                return self._decoder.decode(body), self._decoder is _RAW
        except (msgspec.ValidationError, msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            pass
        try:
            return _RAW.decode(body), True
        except msgspec.ValidationError as exc:
            msg = f"request body: {exc}"
            raise InvalidRequest(msg) from exc
        except RecursionError as exc:
            msg = f"request body: JSON is nested deeper than {DEPTH_MAX}"
            raise InvalidRequest(msg) from exc
        except msgspec.DecodeError as exc:
            if b"NaN" in body or b"Infinity" in body:
                return _parse_with_nan(body), True
            msg = f"request body is not JSON: {exc}"
            raise InvalidRequest(msg) from exc
        except UnicodeDecodeError as exc:
            msg = "request body is not UTF-8"
            raise InvalidRequest(msg) from exc

    def _take_inputs(self, given: list[Any], raw: bool, blobs: memoryview | None, into: Inference) -> None:
        specs = self.signature.inputs
        packed: list[bytes | None] = [None] * len(specs)
        shapes: list[tuple[int, ...]] = [()] * len(specs)
        offset = 0
        for tensor in given:
            found = self._inputs.get(tensor.name)
            if found is None:
                names = ", ".join(self._inputs)
                msg = f"unknown input '{tensor.name[:100]}' for model '{self.model}'; expected {names}"
                raise InvalidRequest(msg)
            i, spec = found
            if packed[i] is not None:
                msg = f"input '{tensor.name}' is given twice"
                raise InvalidRequest(msg)
            if tensor.datatype != spec.datatype:
                msg = f"input '{spec.name}' has datatype {tensor.datatype[:20]}; expected {spec.datatype}"
                raise InvalidRequest(msg)
            shape = tensor.shape
            fixed = self._fixed[i]
            if fixed is not None and len(shape) == fixed[0] and shape[1:] == fixed[1]:
                count = shape[0] * fixed[2]
                shapes[i] = (shape[0], *fixed[1])
            else:
                shapes[i] = _check_shape(spec, shape)
                count = prod(shapes[i])
            size = tensor.parameters.get("binary_data_size") if tensor.parameters else None
            if size is not None:
                packed[i], offset = _take_blob(spec, size, blobs, offset, count, tensor.data)
            elif not raw:
                data = tensor.data
                if data is None:
                    raise _no_data(spec)
                packed[i] = tensors.pack(spec, data, count)
            else:
                packed[i] = tensors.pack(spec, _values(spec, tensor.data), count)
        for value, spec in zip(packed, specs, strict=True):
            if value is None:
                msg = f"input '{spec.name}' is missing; model '{self.model}' expects {_describe(specs)}"
                raise InvalidRequest(msg)
        if blobs is not None and offset != len(blobs):
            msg = f"{len(blobs) - offset} bytes left after the last binary tensor"
            raise InvalidRequest(msg)
        into.inputs = packed  # type: ignore[assignment]
        into.shapes = shapes
        self._set_rows(shapes, into)

    def _set_rows(self, shapes: list[tuple[int, ...]], into: Inference) -> None:
        if not self.batchable:
            into.rows = 1
            into.key = None
            return
        rows = shapes[0][0]
        if len(shapes) > 1 and any(shape[0] != rows for shape in shapes):
            found = ", ".join(
                f"'{spec.name}' {shape[0]}" for spec, shape in zip(self.signature.inputs, shapes, strict=True)
            )
            msg = f"inputs differ in rows (their first dimension): {found}"
            raise InvalidRequest(msg)
        if rows > ROWS_MAX:
            msg = f"{rows} rows in one request; at most {ROWS_MAX} are taken"
            raise InvalidRequest(msg)
        into.rows = rows
        if rows == 0:
            into.key = object()
        elif None in self._fixed:
            into.key = tuple(shape[1:] for shape in shapes)


def _take_facts(request: Any, into: Inference) -> None:
    """The id and the free parameters: both go into the log, so both are bounded.

    Raises:
        InvalidRequest: one of them is too large, or an integer has more than the log's 64 bits.
    """
    log_bytes = 0
    if request.id:
        into.request_id = request.id
        into.id_json = msgspec.json.encode(request.id)
        log_bytes = len(into.id_json)
        if log_bytes > ID_MAX_BYTES:
            msg = f"id takes {log_bytes} bytes of JSON; at most {ID_MAX_BYTES} are taken"
            raise InvalidRequest(msg)
    if request.parameters:
        try:
            taken = len(msgspec.msgpack.encode(request.parameters))
        except OverflowError:
            raise _beyond(request.parameters) from None
        if taken > PARAMETERS_MAX_BYTES:
            msg = f"parameters take {taken} bytes; at most {PARAMETERS_MAX_BYTES} are taken"
            raise InvalidRequest(msg)
        into.parameters = request.parameters
        log_bytes += taken
    into.log_bytes = log_bytes


def _beyond(parameters: dict[str, Scalar]) -> InvalidRequest:
    name = next(n for n, v in parameters.items() if type(v) is int and not -(2**63) <= v < 2**64)
    return InvalidRequest(f"parameter '{name[:100]}' is an integer beyond 64 bits")


def _fixed_tail(spec: TensorSpec, batchable: bool) -> tuple[int, list[int], int] | None:
    """(rank, tail, elements a row) where only the first dimension varies."""
    tail = list(spec.shape[1:])
    if not batchable or not spec.shape or -1 in tail:
        return None
    return len(spec.shape), tail, prod(tail)


def _check_shape(spec: TensorSpec, shape: list[int]) -> tuple[int, ...]:
    fits = len(shape) == len(spec.shape) and all(
        want in (-1, have) for want, have in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        msg = f"input '{spec.name}' has shape {shape[:16]}; expected {list(spec.shape)}"
        raise InvalidRequest(msg)
    return tuple(shape)


def _describe(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"'{s.name}' {s.datatype} {list(s.shape)}" for s in specs)


def _no_data(spec: TensorSpec) -> GatewayError:
    return InvalidRequest(f"input '{spec.name}' has neither data nor binary_data_size")


def _take_blob(
    spec: TensorSpec, size: object, blobs: memoryview | None, offset: int, count: int, data: object
) -> tuple[bytes, int]:
    given = not (data is None or (isinstance(data, msgspec.Raw) and not bytes(data)))
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        msg = f"input '{spec.name}': binary_data_size is {size!r}; expected a number of bytes"
        raise InvalidRequest(msg)
    if given:
        msg = f"input '{spec.name}' has both data and binary_data_size; expected one of them"
        raise InvalidRequest(msg)
    # A body whose binary tensors are all empty ends with its JSON.
    left = blobs[offset:] if blobs is not None else b""
    if size > len(left):
        msg = f"input '{spec.name}': binary_data_size is {size}, {len(left)} bytes are left in the body"
        raise InvalidRequest(msg)
    blob = bytes(left[:size])
    tensors.check_binary(spec, blob, count)
    return blob, offset + size


def _values(spec: TensorSpec, data: Any) -> Sequence[object]:
    """A tensor's data from raw JSON: flat and typed when it can be, else nested, null, NaN."""
    if data is None or (isinstance(data, msgspec.Raw) and not bytes(data)):
        raise _no_data(spec)
    kind = _kind(spec.datatype)
    if isinstance(data, msgspec.Raw):
        try:
            return _FLAT[kind].decode(data)
        except (msgspec.ValidationError, msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            pass
        try:
            data = orjson.loads(bytes(data))
        except orjson.JSONDecodeError as exc:
            msg = f"input '{spec.name}': data cannot be read: {exc}"
            raise InvalidRequest(msg) from exc
    if not isinstance(data, list):
        data = [data]
    flat: list[object] = []
    _flatten(spec, kind, data, flat, 0)
    return flat


def _flatten(spec: TensorSpec, kind: str, data: list[Any], out: list[object], depth: int) -> None:
    if depth > DEPTH_MAX:
        msg = f"input '{spec.name}': data is nested deeper than {DEPTH_MAX}"
        raise InvalidRequest(msg)
    for value in data:
        if isinstance(value, list):
            _flatten(spec, kind, value, out, depth + 1)
        elif kind == "F" and value is None:
            out.append(math.nan)
        elif _fits(kind, value):
            out.append(value)
        else:
            text = json.dumps(value)[:40]
            msg = f"input '{spec.name}' holds {text}; expected {spec.datatype} values"
            raise InvalidRequest(msg)


def _fits(kind: str, value: object) -> bool:
    if kind == "B":
        return isinstance(value, bool)
    if kind == "S":
        return isinstance(value, str)
    if isinstance(value, bool):
        return False
    return isinstance(value, int | float) if kind == "F" else isinstance(value, int)


def _parse_with_nan(body: bytes) -> Any:
    """Bodies with NaN and Infinity tokens, as some clients send them: the standard parser."""
    try:
        plain = json.loads(body)
    except (ValueError, RecursionError) as exc:
        msg = "request body is not JSON"
        raise InvalidRequest(msg) from exc
    if not isinstance(plain, dict):
        msg = "request body: expected an object"
        raise InvalidRequest(msg)
    try:
        datas = [tensor.pop("data", None) for tensor in plain.get("inputs", [])]
        request = _RAW.decode(json.dumps(plain).encode())
    except (AttributeError, TypeError, msgspec.MsgspecError) as exc:
        msg = f"request body: {exc}"
        raise InvalidRequest(msg) from exc
    for tensor, data in zip(request.inputs, datas, strict=True):
        tensor.data = data
    return request
