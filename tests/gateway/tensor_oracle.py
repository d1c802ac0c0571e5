"""What a request's body says, by the standard library alone and the table of docs/protocol-tensors.md.

Slow, obvious, and sharing nothing with the codec: the other side of tests/gateway/test_codec_paths.py.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any

from gateway.tensors import CODES
from loaders.signature import Signature, TensorSpec

DEPTH_MAX = 64
FIELDS = {"name": str, "datatype": str}


class RefusedError(Exception):
    """The body is not to be taken."""


class Constant(float):
    """A NaN or Infinity token."""


class Pairs(dict):
    """An object; `twice` where a key stands in it twice."""

    twice = False


def _pairs(pairs: list[tuple[str, Any]]) -> Pairs:
    made = Pairs(pairs)
    made.twice = len(made) < len(pairs)
    return made


def read(signature: Signature, body: bytes, *, batchable: bool) -> tuple[list, list, bool]:
    """(bytes of each input, shapes, whether a key stands somewhere twice).

    Raises:
        RefusedError: with the reason.
    """
    try:
        root = json.loads(body.decode(), parse_constant=Constant, object_pairs_hook=_pairs)
    except (ValueError, RecursionError) as exc:
        raise RefusedError(str(exc)) from exc
    twice = _walk(root, 1)
    if not isinstance(root, dict) or not isinstance(root.get("inputs"), list):
        raise RefusedError("no inputs")
    _facts(root)
    found: dict[str, tuple[bytes, tuple[int, ...]]] = {}
    specs = {spec.name: spec for spec in signature.inputs}
    for tensor in root["inputs"]:
        _tensor(tensor)
        spec = specs.get(tensor["name"])
        if spec is None or spec.name in found or tensor["datatype"] != spec.datatype:
            raise RefusedError("name or datatype")
        shape = tuple(tensor["shape"])
        if len(shape) != len(spec.shape) or any(
            w not in (-1, h) for w, h in zip(spec.shape, shape, strict=True)
        ):
            raise RefusedError("shape")
        if (batchable and shape[0] > 2**20) or math.prod(dim for dim in shape if dim) > 2**31:
            raise RefusedError("too many")
        if "binary_data_size" in (tensor.get("parameters") or {}) or tensor.get("data") is None:
            raise RefusedError("no data")
        found[spec.name] = (_packed(spec, tensor["data"], shape), shape)
    if set(found) != set(specs):
        raise RefusedError("missing")
    shapes = [found[spec.name][1] for spec in signature.inputs]
    if batchable and len({shape[0] for shape in shapes}) != 1:
        raise RefusedError("rows")
    return [found[spec.name][0] for spec in signature.inputs], shapes, twice


def _walk(value: Any, depth: int) -> bool:
    """Depth and surrogates, everywhere; whether a key stands somewhere twice."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise RefusedError("surrogate") from exc
    if not isinstance(value, dict | list):
        return False
    if depth > DEPTH_MAX:
        raise RefusedError("deep")
    twice = isinstance(value, Pairs) and value.twice
    for part in [*value, *value.values()] if isinstance(value, dict) else value:
        twice |= _walk(part, depth + 1)
    return twice


def _parameters(value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, dict):
        raise RefusedError("parameters")
    for name, one in value.items():
        if name.startswith(("triton_", "sequence_", "shared_memory_")):
            raise RefusedError("reserved")
        if not isinstance(one, str | int | float) or (isinstance(one, float) and not math.isfinite(one)):
            raise RefusedError("parameter")
        if isinstance(one, int) and not -(2**63) <= one < 2**64:
            raise RefusedError("parameter")


def _facts(root: dict) -> None:
    if not isinstance(root.get("id"), str | None):
        raise RefusedError("id")
    _parameters(root.get("parameters"))


def _tensor(tensor: Any) -> None:
    if not isinstance(tensor, dict) or not all(
        isinstance(tensor.get(name), str) for name in ("name", "datatype")
    ):
        raise RefusedError("tensor")
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(dim) is int and 0 <= dim <= 2**40 for dim in shape):
        raise RefusedError("shape")
    _parameters(tensor.get("parameters"))
    _nowhere_else(tensor)


def _nowhere_else(tensor: dict) -> None:
    """NaN and Infinity tokens stand in data alone."""
    if any(_constants(value) for key, value in tensor.items() if key != "data"):
        raise RefusedError("constant")


def _constants(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_constants, value.values() if isinstance(value, dict) else value))
    return isinstance(value, Constant)


def has_constants(body: bytes) -> bool:
    """Whether a token stands outside of a tensor's data."""
    root = json.loads(body.decode(), parse_constant=Constant)
    inputs = root.pop("inputs")
    return _constants(root) or any(_constants({k: v for k, v in t.items() if k != "data"}) for t in inputs)


def _packed(spec: TensorSpec, data: Any, shape: tuple[int, ...]) -> bytes:
    values = _flat(data, shape)
    if spec.datatype == "BYTES":
        if not all(isinstance(value, str) for value in values):
            raise RefusedError("no string")
        raw = [value.encode() for value in values]
        return b"".join(len(value).to_bytes(4, "little") + value for value in raw)
    return b"".join(_one(spec.datatype, value) for value in values)


def _one(datatype: str, value: Any) -> bytes:
    if datatype.startswith("FP"):
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise RefusedError("no number")
        if isinstance(value, float) and math.isinf(value) and not isinstance(value, Constant):
            raise RefusedError("too large")
        value = math.nan if value is None else value
    elif type(value) is not (bool if datatype == "BOOL" else int):
        raise RefusedError("kind")
    try:
        return struct.pack("<" + CODES[datatype], float(value) if datatype.startswith("FP") else value)
    except (struct.error, OverflowError) as exc:
        raise RefusedError(str(exc)) from exc


def _flat(data: Any, shape: tuple[int, ...]) -> list:
    count = math.prod(shape)
    if not isinstance(data, list):
        if shape or isinstance(data, Constant):
            raise RefusedError("no array")
        return [data]
    if len(data) == count and not any(isinstance(value, list) for value in data):
        return data
    return _nested(data, shape)


def _nested(data: Any, shape: tuple[int, ...]) -> list:
    if not shape:
        if isinstance(data, list):
            raise RefusedError("nesting")
        return [data]
    if not isinstance(data, list) or len(data) != shape[0]:
        raise RefusedError("nesting")
    return [value for part in data for value in _nested(part, shape[1:])]
