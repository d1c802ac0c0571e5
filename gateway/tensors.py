"""Tensors between wire, ONNX Runtime and log. Pure.

A request's tensor is held as bytes in OIP's binary form from decode on: little-endian, C order; BYTES as
u32 length + bytes per element. Rows of a batch are then joined by concatenation, and the same bytes go
to the model and to the log.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from math import prod

import numpy as np
from numpy.typing import NDArray

from gateway.errors import InvalidRequest
from loaders.datatypes import ITEM_BYTES, NUMPY
from loaders.signature import Signature, TensorSpec

CODES = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b",
    "INT16": "h", "INT32": "i", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
"""struct's letter of each datatype."""

STRUCT_MAX_ELEMENTS = 65_536
"""Above this a struct's arguments take too much; below it is three times as fast as an array made of a list."""
_FIRST_INFINITE = {"FP16": 65_520.0, "FP32": float(2**128 - 2**103), "FP64": float("inf")}
"""The least number that rounds to infinity."""

_TRUTH = b"\x00" + b"\x01" * 255

Array = NDArray[np.generic]


@lru_cache(maxsize=4096)
def packer(code: str, count: int) -> struct.Struct:
    """The packer of `count` elements; it also checks count, kind and range."""
    return struct.Struct(f"<{count}{code}")


def pack(spec: TensorSpec, values: Sequence[object], count: int) -> bytes:
    """Pack `count` Python numbers, booleans or strings of the spec's datatype.

    Raises:
        InvalidRequest: wrong count, kind or range; names the tensor, found and expected.
    """
    if len(values) != count:
        msg = f"input '{spec.name}' has {len(values)} elements; its shape takes {count}"
        raise InvalidRequest(msg)
    try:
        if spec.datatype == "BYTES":
            return pack_strings(values)  # type: ignore[arg-type]
        if count <= STRUCT_MAX_ELEMENTS:
            return packer(CODES[spec.datatype], count).pack(*values)
        return _cast(spec, np.asarray(values))
    except (struct.error, OverflowError, TypeError, ValueError) as exc:
        raise _no_value(spec, exc) from exc


def pack_strings(values: Sequence[str]) -> bytes:
    """BYTES in binary form."""
    parts: list[bytes] = []
    for value in values:
        raw = value.encode()
        parts.append(len(raw).to_bytes(4, "little"))
        parts.append(raw)
    return b"".join(parts)


def unpack_strings(data: bytes, count: int, name: str) -> list[str]:
    """Read BYTES in binary form; strict UTF-8, since ONNX Runtime garbles anything else.

    Raises:
        InvalidRequest: lengths that do not fit the bytes, or no UTF-8.
    """
    out: list[str] = []
    offset, size = 0, len(data)
    for _ in range(count):
        start = offset + 4
        end = start + int.from_bytes(data[offset:start], "little")
        if start > size or end > size:
            msg = f"input '{name}': BYTES element {len(out)} runs past the tensor's {size} bytes"
            raise InvalidRequest(msg)
        try:
            out.append(data[start:end].decode())
        except UnicodeDecodeError as exc:
            msg = f"input '{name}': BYTES element {len(out)} is not UTF-8"
            raise InvalidRequest(msg) from exc
        offset = end
    if offset != size:
        msg = f"input '{name}': {size - offset} bytes left after {count} BYTES elements"
        raise InvalidRequest(msg)
    return out


def string_count(data: bytes) -> int:
    """Elements of BYTES in binary form."""
    count = offset = 0
    while offset < len(data):
        offset += 4 + int.from_bytes(data[offset : offset + 4], "little")
        count += 1
    return count


NAMED_BYTES = 128
"""More than a tensor takes in the log beside its name, shape and data."""


def row_bytes(signature: Signature, *, batchable: bool) -> int | None:
    """Bytes of all tensors of one row, None where the rows do not fix them."""
    specs = (*signature.inputs, *signature.outputs)
    if not batchable or any(s.datatype not in ITEM_BYTES or -1 in s.shape[1:] for s in specs):
        return None
    return sum(ITEM_BYTES[s.datatype] * prod(s.shape[1:]) for s in specs)


def named_bytes(signature: Signature) -> int:
    """What the tensors of a run take in the log beside their data, and more: names and shapes."""
    specs = (*signature.inputs, *signature.outputs)
    return sum(len(s.name.encode()) + 9 * len(s.shape) + NAMED_BYTES for s in specs)


def checked_binary(spec: TensorSpec, data: bytes | memoryview, count: int) -> bytes | memoryview:
    """A binary tensor held against its element count; in a BOOL every byte but 0 is true, and becomes 1.

    Of a view on numbers a view is given; what is looked through is copied.

    Raises:
        InvalidRequest: the size does not fit, or BYTES are malformed.
    """
    if spec.datatype == "BYTES":
        if count * 4 > len(data):
            msg = (
                f"input '{spec.name}' has {len(data)} bytes; {count} BYTES elements take {4 * count} at least"
            )
            raise InvalidRequest(msg)
        data = bytes(data)
        unpack_strings(data, count, spec.name)
        return data
    expected = count * ITEM_BYTES[spec.datatype]
    if len(data) != expected:
        msg = f"input '{spec.name}' has {len(data)} bytes; its shape takes {expected}"
        raise InvalidRequest(msg)
    if spec.datatype == "BOOL":
        data = bytes(data)
        if data.translate(None, b"\x00\x01"):
            return data.translate(_TRUTH)
    return data


def to_array(datatype: str, data: bytes, shape: tuple[int, ...], name: str) -> Array:
    """What ONNX Runtime gets: a read-only view on the bytes, or an object array of str."""
    if datatype == "BYTES":
        values = np.empty(prod(shape), dtype=object)
        values[:] = unpack_strings(data, prod(shape), name)
        return values.reshape(shape)
    return np.frombuffer(data, NUMPY[datatype]).reshape(shape)


def to_bytes(array: Array) -> bytes:
    """An output in binary form."""
    if array.dtype == object:
        return pack_strings([str(value) for value in array.ravel()])
    return array.tobytes()


def cast(spec: TensorSpec, array: Array) -> bytes:
    """Numbers of a wider type, as the spec's datatype in binary form.

    Raises:
        InvalidRequest: one of them is out of range, or becomes infinite.
    """
    try:
        return _cast(spec, array)
    except (OverflowError, TypeError, ValueError) as exc:
        raise _no_value(spec, exc) from exc


def cast_finite(spec: TensorSpec, array: Array) -> bytes:
    """The same for doubles that are all finite: half the passes.

    Raises:
        InvalidRequest: one of them becomes infinite.
    """
    if spec.datatype == "FP64":
        return array.tobytes()
    most = _FIRST_INFINITE[spec.datatype]
    if array.size and (np.maximum.reduce(array) >= most or np.minimum.reduce(array) <= -most):
        raise _no_value(spec, OverflowError("too large"))
    return array.astype(NUMPY[spec.datatype]).tobytes()


def _no_value(spec: TensorSpec, exc: Exception) -> InvalidRequest:
    return InvalidRequest(f"input '{spec.name}' holds a value that is no {spec.datatype}: {exc}")


def _cast(spec: TensorSpec, array: Array) -> bytes:
    dtype = np.dtype(NUMPY[spec.datatype])
    kinds = {"f": "fiu", "b": "b"}.get(dtype.kind, "iu")
    if array.size and array.dtype.kind not in kinds:
        msg = f"found {array.dtype.name}"
        raise TypeError(msg)
    if dtype.kind in "iu" and array.size:
        info = np.iinfo(dtype)  # type: ignore[type-var]
        if int(array.min()) < info.min or int(array.max()) > info.max:
            msg = f"out of {info.min}..{info.max}"
            raise ValueError(msg)
    with np.errstate(over="ignore"):
        made = array.astype(dtype)
    if dtype.kind == "f" and bool((np.isinf(made) & np.isfinite(array)).any()):
        msg = "too large"
        raise OverflowError(msg)
    return made.tobytes()
