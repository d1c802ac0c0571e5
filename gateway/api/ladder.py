"""One tensor's JSON text to its bytes, by the fastest way that reads it; all ways give the same bytes.

codec asks with a shape that already fits the model, so the text is held against it before anything is built per
element: nesting must be the shape's or none, and values are read in pieces. The rungs: simdjson into a buffer (extra
fast-json, large arrays); msgspec typed by the model's datatype; the same with null as NaN; the standard parser where
there are Infinity tokens. What one rung does not take goes to the next, and the last one says what is wrong.
docs/protocol-tensors.md is the table of what is taken. Pure.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from gateway import tensors
from gateway.errors import InvalidRequest
from loaders.datatypes import NUMPY
from loaders.signature import TensorSpec

Simd: Any = None
"""simdjson's parser, where the extra is installed."""
with suppress(ImportError):
    from simdjson import Parser as Simd

SIMD_MIN_BYTES = 2048
"""Below this simdjson gains nothing."""
SIMD_MAX_BYTES = 16 << 20
"""Above this its memory, up to 12 times the text, is too much; the typed way takes pieces."""
PIECE_BYTES = 65_536
"""Text decoded at once by the typed way."""
_SPACE = b" \t\n\r"
_NOT_STRUCTURE = bytes(c for c in range(256) if c not in b"[],")

_BLANKED = bytes(32 if c in b"[]" else c for c in range(256))

_FLAT: dict[str, msgspec.json.Decoder[Any]] = {
    "F": msgspec.json.Decoder(list[float]),
    "I": msgspec.json.Decoder(list[int]),
    "B": msgspec.json.Decoder(list[bool]),
    "S": msgspec.json.Decoder(list[str]),
}
_NULLABLE = msgspec.json.Decoder(list[float | None])
_ELEMENTS = msgspec.json.Decoder(list[msgspec.Raw])
_ELEMENT = re.compile(r"at `\$\[(\d+)")
_REFUSED = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


def kind_of(datatype: str) -> str:
    """F, I, B or S: what JSON values a datatype takes."""
    if datatype.startswith("FP"):
        return "F"
    return {"BOOL": "B", "BYTES": "S"}.get(datatype, "I")


def read(spec: TensorSpec, text: bytes, shape: tuple[int, ...], count: int) -> bytes:
    """The tensor in binary form.

    Args:
        text: JSON: an array, flat or nested as the shape says; for a scalar its bare value too.
        count: elements of the shape.

    Raises:
        InvalidRequest: wrong count, nesting, kind or range; names the tensor, found and expected.
    """
    text = text.strip(_SPACE)
    if not shape and text[:1] != b"[":
        text = b"[" + text + b"]"
    kind = kind_of(spec.datatype)
    if kind == "S":
        return _strings(spec, text, shape, count)
    if text[:1] != b"[" or text[-1:] != b"]":
        raise _no_values(spec, text)
    nested = text.find(b"[", 1) >= 0
    if nested or not count:
        _hold_structure(spec, text, shape)
        if not count:
            return b""
    if SIMD_MIN_BYTES <= len(text) <= SIMD_MAX_BYTES and Simd is not None and kind != "B":
        made = _by_simdjson(spec, text, count)
        if made is not None:
            return made
    return _typed(spec, kind, _flattened(spec, text, len(shape)) if nested else text, count)


def unnested(spec: TensorSpec, values: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """The values of small data that was decoded as it was nested; flat data as it is.

    Raises:
        InvalidRequest: nested otherwise than its shape.
    """
    if len(shape) < 2 or not values or type(values[0]) is not list:
        return values
    level = [values]
    for dim in shape:
        for part in level:
            if len(part) != dim:
                raise _misnested(spec, shape)
        level = list(chain.from_iterable(level))
    return level


def _by_simdjson(spec: TensorSpec, text: bytes, count: int) -> bytes | None:
    """By simdjson; None for whatever it does not read, another rung says why.

    It flattens what is nested anyhow, so `_hold_structure` comes before; and it would take a byte order mark, which
    no text here has.
    """
    dtype = NUMPY[spec.datatype]
    letter = {"f": "d", "u": "u"}.get(dtype.kind, "i")
    try:
        buffer = Simd().parse(text).as_buffer(of_type=letter)
    except (ValueError, TypeError, RuntimeError, AttributeError):
        return None
    array = np.frombuffer(buffer, {"d": "<f8", "u": "<u8", "i": "<i8"}[letter])
    if len(array) != count:
        raise _miscounted(spec, len(array), count)
    return tensors.cast_finite(spec, array) if letter == "d" else tensors.cast(spec, array)


def _typed(spec: TensorSpec, kind: str, text: bytes, count: int) -> bytes:
    """Flat text by msgspec, in pieces, so that memory stays near that of the tensor."""
    if len(text) <= PIECE_BYTES:
        return tensors.pack(spec, _piece(spec, kind, text), count)
    parts: list[bytes] = []
    done, at, last = 0, 1, len(text) - 1
    while True:
        end = text.find(b",", at + PIECE_BYTES, last)
        values = _piece(spec, kind, b"[%b]" % text[at : end if end >= 0 else last])
        done += len(values)
        if done > count or not values:
            raise _miscounted(spec, done, count, more=end >= 0)
        parts.append(tensors.pack(spec, values, len(values)))
        if end < 0:
            break
        at = end + 1
    if done != count:
        raise _miscounted(spec, done, count)
    return b"".join(parts)


def _piece(spec: TensorSpec, kind: str, text: bytes) -> Sequence[object]:
    try:
        return _FLAT[kind].decode(text)  # type: ignore[no-any-return]
    except _REFUSED as exc:
        if kind != "F":
            raise _no_values(spec, text, exc) from exc
    try:
        return _with_nan(_NULLABLE.decode(text.replace(b"NaN", b"null")))
    except _REFUSED as exc:
        if b"Infinity" not in text:
            raise _no_values(spec, text, exc) from exc
    try:
        values = json.loads(text, parse_float=_finite, parse_int=_number)
    except (ValueError, RecursionError, OverflowError) as exc:
        raise _no_values(spec, text, exc) from exc
    for value in values:
        if value is not None and type(value) is not float:
            msg = f"input '{spec.name}' holds {value!r:.40}; expected {spec.datatype} values"
            raise InvalidRequest(msg)
    return _with_nan(values)


def _with_nan(values: list[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _number(text: str) -> float:
    """A whole number as any other parser reads it: 0 has no sign."""
    return _finite(text) or 0.0


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        msg = f"{text[:40]} is too large"
        raise OverflowError(msg)
    return value


def _strings(spec: TensorSpec, text: bytes, shape: tuple[int, ...], count: int) -> bytes:
    plain = text
    if b"\\" in text:
        plain = text.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    quotes = plain.count(b'"')
    if quotes != 2 * count:
        if len(text) <= PIECE_BYTES:
            _piece(spec, "S", text)  # Something else among them is the better reason.
        raise _miscounted(spec, quotes // 2, count)
    outside = b"".join(plain.split(b'"')[::2]).translate(None, _SPACE)
    flat = b"[" + b"," * (count - 1) + b"]"
    try:
        if outside == flat:
            return tensors.pack(spec, _FLAT["S"].decode(text), count)
        if not _is_skeleton(outside, shape):
            raise _misnested(spec, shape)
        values: Any = msgspec.json.decode(text)
        for _ in shape[1:]:
            values = list(chain.from_iterable(values))
    except _REFUSED as exc:
        raise _no_values(spec, text, exc) from exc
    return tensors.pack(spec, values, count)


def _hold_structure(spec: TensorSpec, text: bytes, shape: tuple[int, ...]) -> None:
    """Nested data must be nested as its shape; without elements, flat is `[]`."""
    if 0 in shape:
        bare = text.translate(None, _SPACE)
        if bare != b"[]" and not _is_skeleton(bare, shape):
            raise _misnested(spec, shape)
    elif not _is_skeleton(text.translate(None, _NOT_STRUCTURE), shape):
        raise _misnested(spec, shape)


def _is_skeleton(found: bytes, shape: tuple[int, ...]) -> bool:
    """Whether brackets and commas are those of this shape. Never builds more than is found."""
    wanted = b""
    for dim in reversed(shape):
        if dim * (len(wanted) + 1) > len(found) + 1:
            return False
        wanted = b"[" + b",".join([wanted] * dim) + b"]"
    return wanted == found


def _flattened(spec: TensorSpec, text: bytes, rank: int) -> bytes:
    """Nested text without its inner brackets. Each must stand where only a comma is between brackets."""
    bare = text.translate(None, _SPACE)
    flat = bare[rank:-rank]
    for depth in range(rank - 1, 0, -1):
        flat = flat.replace(b"]" * depth + b"," + b"[" * depth, b",")
    if b"[" in flat or b"]" in flat:
        raise _no_values(spec, text)
    if len(bare) != len(text):
        # Space between two values is no comma: it has to stay for the parser to see.
        flat = text.translate(_BLANKED)
    return b"[" + flat + b"]"


def _no_values(spec: TensorSpec, text: bytes, exc: Exception | None = None) -> InvalidRequest:
    """The error for text that holds something else, naming what it is where that can be said."""
    found = f"data is no array of {spec.datatype} values: "
    where = _ELEMENT.search(str(exc))
    if where is not None:
        with suppress(*_REFUSED, IndexError):
            value = bytes(_ELEMENTS.decode(text)[int(where[1])])
            return InvalidRequest(
                f"input '{spec.name}' holds {_shown(value)}; expected {spec.datatype} values"
            )
    return InvalidRequest(f"input '{spec.name}': {found}{_shown(text) if exc is None else str(exc)[:200]}")


def _shown(text: bytes) -> str:
    return text[:40].decode(errors="replace")


def _misnested(spec: TensorSpec, shape: tuple[int, ...]) -> InvalidRequest:
    return InvalidRequest(f"input '{spec.name}': data is neither flat nor nested as its shape {list(shape)}")


def _miscounted(spec: TensorSpec, found: int, count: int, *, more: bool = False) -> InvalidRequest:
    at_least = "at least " if more else ""
    return InvalidRequest(
        f"input '{spec.name}' has {at_least}{found} {spec.datatype} elements; its shape takes {count}"
    )
