"""OIP on the wire, inwards: a request's body to tensors (decode stage). `gateway.api.encode` is the way out.

Decode is a ladder: `gateway.api.single` knows the body of a client that has been here before; a decoder typed for the
model's datatype takes small flat ones; all else is opened by `gateway.api.envelope` and read, tensor by tensor, by
`gateway.api.ladder`. What a quick way takes, the slow one takes too, with the same result: docs/protocol-tensors.md.

Sources: Open Inference Protocol, REST; its binary tensor data extension.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import msgspec

from gateway import tensors
from gateway.api import v1
from gateway.api.binary import WALKED, Heads, take_blob, take_raw
from gateway.api.envelope import Parameters, opened, refuse_reserved, wire
from gateway.api.forms import Asked
from gateway.api.ladder import kind_of, read, unnested
from gateway.api.single import QUICK_MAX_BYTES, single_of
from gateway.batching import Inference
from gateway.errors import InvalidRequest
from gateway.head import CAPTURE_PARAMETER, CAPTURES
from loaders.signature import Signature, TensorSpec

ID_MAX_BYTES = 4096
"""Longest id of a client, as JSON with its quotes: it goes into the log and back."""
PARAMETERS_MAX_BYTES = 16_384
"""Most that free parameters may take in the log."""
ROWS_MAX = 1_048_576
"""Rows of one request; tensors without elements could name any number."""
FEW_INPUTS = 4
MANY_MAX_BYTES = 65_536
"""The same as QUICK_MAX_BYTES where there are more inputs: cutting costs something for each."""
ELEMENTS_MAX = 2**31
"""Elements of a tensor at most; dimensions of zero left out."""
PRIORITY_MAX = 2**32 - 1

_REFUSED = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
_TYPES: dict[str, Any] = {"F": float, "I": int, "B": bool, "S": str}
_NESTED_MAX = 4
"""Highest rank that has a decoder of its own for nested data."""


@lru_cache(maxsize=256)
def _typed(datatypes: tuple[str, ...], depth: int) -> msgspec.json.Decoder[Any]:
    """The decoder of bodies with tensors of these datatypes, their values in lists `depth` deep."""
    kinds: dict[str, Any] = {}
    for datatype in datatypes:
        data = _TYPES[kind_of(datatype)]
        for _ in range(depth):
            data = list[data]  # type: ignore[valid-type]
        kinds[datatype] = data | None
    return wire(kinds if len(kinds) > 1 else data | None, strict=True)


class Codec:
    """Decoder and encoder of one signature; shared by all versions that have it.

    Threading: large bodies may be decoded off the loop; what decode remembers between calls is replaced as a whole.
    """

    def __init__(
        self, model: str, signature: Signature, *, batchable: bool, rows_max: int | None = None
    ) -> None:
        self.model = model
        self.rows_max = rows_max
        """What the model's settings let a request have (max_batch_size); None: as many as any request."""
        self._most_rows = min(rows_max or ROWS_MAX, ROWS_MAX)
        self.signature = signature
        self.batchable = batchable
        self.walks = any(spec.datatype in WALKED for spec in signature.inputs)
        """Whether binary inputs are looked through: of megabytes that is not for the loop."""
        self._inputs = {spec.name: (i, spec) for i, spec in enumerate(signature.inputs)}
        datatypes = tuple(sorted({spec.datatype for spec in signature.inputs}))
        ranks = {len(spec.shape) for spec in signature.inputs}
        depths = [1, *(rank for rank in ranks if len(ranks) == 1 and 1 < rank <= _NESTED_MAX)]
        # Flat and nested; what a client sends it goes on sending, so that which was right last is tried first.
        self._typed = [(_typed(datatypes, depth), depth == 1) for depth in depths] if datatypes else []
        self._few = len(signature.inputs) <= FEW_INPUTS
        self._fixed = [_fixed_tail(spec, batchable) for spec in signature.inputs]
        self._single = single_of(signature, batchable=batchable)
        self._heads = Heads(signature)
        self._asked = Asked(model, signature)

    # --- decode ----------------------------------------------------------------------------

    def decode(self, body: Any, json_bytes: int | None, into: Inference) -> None:
        """Read a body into `into`, a fresh one: inputs, shapes, rows, id, parameters, outputs asked.

        Args:
            body: bytes; or a view of them where a binary part follows JSON, of which inputs are then views.
            json_bytes: the Inference-Header-Content-Length, None when the whole body is JSON; 0 when none is.

        Raises:
            InvalidRequest: naming the tensor, what was found and what was expected.
        """
        single = self._single
        if json_bytes is None:
            if single is not None and single.take_known(body, into):
                return
        elif json_bytes != len(body):
            self._decode_binary(body, json_bytes, into)
            return
        quick_max_bytes = QUICK_MAX_BYTES if self._few else MANY_MAX_BYTES
        request, flat = self._read_typed(body) if len(body) <= quick_max_bytes else (None, False)
        if request is None:
            request = opened(body, len(self.signature.inputs))
            self._take_facts(request, into)
            self._take_inputs(request.inputs, None, into)
        else:
            self._take_facts(request, into)
            if single is None or not flat or not single.take(request.inputs, into):
                self._take_inputs(request.inputs, None, into)
            elif into.rows > self._most_rows:
                self._refuse_rows(into.rows)
        if single is not None and not request.id:
            single.learn(body, into)

    def _read_typed(self, body: bytes) -> tuple[Any, bool]:
        """The request, and whether its data is flat; None where no typed decoder takes it."""
        for decoder, flat in self._typed:
            try:
                request = decoder.decode(body)
            except _REFUSED:
                continue
            if decoder is not self._typed[0][0]:
                self._typed = self._typed[::-1]
            return request, flat
        return None, False

    def _decode_binary(self, body: bytes | memoryview, json_bytes: int, into: Inference) -> None:
        if json_bytes == 0:
            take_raw(self.signature, body, into, batchable=self.batchable)
            self._set_rows(into.shapes, into)
            self._asked.take_binary(into)
            return
        if not 0 < json_bytes < len(body):
            msg = f"Inference-Header-Content-Length is {json_bytes}; the body has {len(body)} bytes"
            raise InvalidRequest(msg)
        if self._heads.take_known(body, json_bytes, into):
            return
        request = opened(bytes(body[:json_bytes]), len(self.signature.inputs))
        self._take_facts(request, into)
        self._take_inputs(request.inputs, body[json_bytes:], into)
        self._heads.learn(body, json_bytes, request, into)

    def _take_facts(self, request: Any, into: Inference) -> None:
        """All but the inputs."""
        if request.parameters is not None or request.id:
            take_facts(request, into)
        if request.outputs is not None or request.parameters is not None:
            self._asked.take(request, into)

    def decode_v1(self, body: bytes, json_bytes: int | None, into: Inference) -> None:
        """The same for a body of the v1 dialects; there is no binary part.

        Raises:
            InvalidRequest: naming the tensor, what was found and what was expected.
        """
        v1.decode(self.signature, body, into)
        self._set_rows(into.shapes, into)

    def _take_inputs(self, given: list[Any], blobs: bytes | memoryview | None, into: Inference) -> None:
        specs = self.signature.inputs
        packed: list[bytes | memoryview | None] = [None] * len(specs)
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
                count = prod(shape)
            if self.batchable and shape[0] > self._most_rows:
                self._refuse_rows(shape[0])
            data, size = tensor.data, None
            if tensor.parameters is not None:
                size = tensor.parameters.get("binary_data_size")
                refuse_reserved(tensor.parameters, f"input '{spec.name}'")
            if data == b"null":
                data = None
            if size is not None:
                if data is not None:
                    msg = f"input '{spec.name}' has both data and binary_data_size; expected one of them"
                    raise InvalidRequest(msg)
                packed[i], offset = take_blob(spec, size, blobs, offset, count)
            elif type(data) is bytes:
                packed[i] = read(spec, data, shapes[i], count)
            elif data is not None:
                packed[i] = tensors.pack(spec, unnested(spec, data, shapes[i]), count)
            else:
                msg = f"input '{spec.name}' has neither data nor binary_data_size"
                raise InvalidRequest(msg)
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
            if self.rows_max is not None and shapes[0] and shapes[0][0] > self._most_rows:
                self._refuse_rows(shapes[0][0])
            return
        rows = shapes[0][0]
        if len(shapes) > 1 and any(shape[0] != rows for shape in shapes):
            found = ", ".join(
                f"'{spec.name}' {shape[0]}" for spec, shape in zip(self.signature.inputs, shapes, strict=True)
            )
            msg = f"inputs differ in rows (their first dimension): {found}"
            raise InvalidRequest(msg)
        if rows > self._most_rows:
            self._refuse_rows(rows)
        into.rows = rows
        if rows == 0:
            into.key = object()
        elif None in self._fixed:
            into.key = tuple(shape[1:] for shape in shapes)

    def _refuse_rows(self, rows: int) -> None:
        why = "" if self.rows_max is None else f" by model '{self.model}' (max_batch_size)"
        msg = f"{rows} rows in one request; at most {self._most_rows} are taken{why}"
        raise InvalidRequest(msg)


def take_facts(request: Any, into: Inference) -> None:
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
        refuse_reserved(request.parameters, "request")
        into.priority = _whole(request.parameters, "priority", PRIORITY_MAX)
        _whole(request.parameters, "timeout", 2**63 - 1)
        _check_capture(request.parameters)
        into.parameters = request.parameters
        log_bytes += taken
    into.log_bytes = log_bytes


def _whole(parameters: Parameters, name: str, most: int) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or not 0 <= value <= most:
        msg = f"parameter {name} is {value!r:.40}; expected a whole number from 0 to {most}"
        raise InvalidRequest(msg)
    return value


def _check_capture(parameters: Parameters) -> None:
    capture = parameters.get(CAPTURE_PARAMETER, CAPTURES[0])
    if capture not in CAPTURES:
        msg = f"parameter {CAPTURE_PARAMETER} is {capture!r:.40}; expected one of {', '.join(CAPTURES)}"
        raise InvalidRequest(msg)


def _beyond(parameters: Parameters) -> InvalidRequest:
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
    if prod(dim for dim in shape if dim) > ELEMENTS_MAX:
        msg = f"input '{spec.name}' has shape {shape[:16]}; at most {ELEMENTS_MAX} elements are taken"
        raise InvalidRequest(msg)
    return tuple(shape)


def _describe(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"'{s.name}' {s.datatype} {list(s.shape)}" for s in specs)
