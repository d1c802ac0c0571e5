"""A request's JSON but for the numbers: who is asked for what, and where each tensor's data stands.

codec comes here with every body that its quick ways do not take. The text of each array is cut out first, so that
one scan reads it, `gateway.api.ladder`'s, and what is left is small; a body that cannot be cut is read whole.
Nothing here builds a value per element. Pure.
"""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Any, Union

import msgspec
import numpy as np

from gateway.errors import InvalidRequest

DEPTH_MAX = 64
"""Nesting of JSON, in every field, those too that nobody reads."""
RESERVED = ("triton_", "sequence_", "shared_memory_")
Dim = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
Scalar = str | int | float | bool
Parameters = dict[str, Scalar]

_KEY = b'"data"'
_TO_ARRAY = re.compile(rb"[ \t\n\r]*:[ \t\n\r]*(?=\[)")
STRAY_MAX = 8
"""So many arrays called data that are no tensor's are looked past."""
_MARK = secrets.randbits(62) | 1 << 62
"""What stands for an array that was cut out; no client can name it on purpose."""
_SCAN_BYTES = 1 << 20


class Output(msgspec.Struct, forbid_unknown_fields=True):
    """An output as asked for."""

    name: str
    parameters: Parameters | None = None


class LaxOutput(msgspec.Struct):
    """The same with fields that nobody knows."""

    name: str
    parameters: Parameters | None = None


def wire(data: Any, *, strict: bool) -> msgspec.json.Decoder[Any]:
    """A decoder of request bodies.

    Args:
        data: the type of every tensor's data; or, by datatype, of each.
        strict: refuses fields that nobody knows. What it takes is thereby no deeper than its types and all UTF-8.
    """
    if not isinstance(data, dict):
        tensor: Any = _tensor(data, None, strict=strict)
    else:
        tensor = Union[tuple(_tensor(kind, datatype, strict=strict) for datatype, kind in data.items())]  # noqa: UP007
    output: Any = Output if strict else LaxOutput
    request = msgspec.defstruct(
        "WireRequest",
        [
            ("inputs", list[tensor]),
            ("id", str | None, None),
            ("parameters", Parameters | None, None),
            ("outputs", list[output] | None, None),
            # Some clients say again what the address says.
            *([("model_name", str | None, None), ("model_version", str | None, None)] if strict else []),
        ],
        gc=False,
        forbid_unknown_fields=strict,
    )
    return msgspec.json.Decoder(request)


def _tensor(data: Any, datatype: str | None, *, strict: bool) -> Any:
    """A tensor of any datatype, or of this one, by which the decoder then knows what data is to be."""
    fields: list[Any] = [
        ("name", str),
        ("shape", list[Dim]),
        ("data", data, None),
        ("parameters", Parameters | None, None),
    ]
    if datatype is None:
        fields.insert(2, ("datatype", str))
        return msgspec.defstruct("WireTensor", fields, gc=False, forbid_unknown_fields=strict)
    return msgspec.defstruct(
        "WireTensor", fields, gc=False, forbid_unknown_fields=strict, tag_field="datatype", tag=datatype,
        namespace={"datatype": datatype},
    )  # fmt: skip


_RAW = wire(msgspec.Raw, strict=False)


def opened(body: bytes, arrays_max: int) -> Any:
    """The request: `inputs` (each with `data` as JSON text or None), `id`, `parameters`, `outputs`.

    Args:
        arrays_max: how many tensors there can be.

    Raises:
        InvalidRequest: no JSON, not UTF-8, too deep, or not of a request's shape.
    """
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError as exc:
            msg = "request body is not UTF-8"
            raise InvalidRequest(msg) from exc
    request = opened_cut(body, arrays_max)
    if request is not None:
        return request
    try:
        request = _RAW.decode(body)
    except msgspec.ValidationError as exc:
        msg = f"request body: {exc}"
        raise InvalidRequest(msg) from exc
    except RecursionError as exc:
        raise _too_deep() from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        msg = f"request body is not JSON: {exc}"
        raise InvalidRequest(msg) from exc
    if is_deep(body):
        raise _too_deep()
    for tensor in request.inputs:
        tensor.data = bytes(tensor.data) if tensor.data else None
    return request


def refuse_reserved(parameters: Parameters, where: str) -> None:
    """Refuse what is spoken for by features that are not offered, so that nobody believes it was heard.

    Raises:
        InvalidRequest: naming the parameter and where it stands.
    """
    for name in parameters:
        if name.startswith(RESERVED):
            msg = f"{where}: parameter {name[:100]} is reserved, and what it asks for is not offered; leave it out"
            raise InvalidRequest(msg)


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"request body: JSON is nested deeper than {DEPTH_MAX}")


def opened_cut(body: bytes, arrays_max: int) -> Any:
    """The request from its cut body; None where that does not hold and the whole must be read.

    What is left is valid JSON with an array in the place of each piece, and ladder takes a piece only if it is a
    valid array: so the body is valid. Every piece must be some tensor's data, or nobody would look at it.
    """
    pieces = cut(body, arrays_max + STRAY_MAX)
    while pieces is not None:
        request, used = _open_around(body, pieces)
        if request is None:
            # An array that goes on with a string or an object was cut short.
            used = [(s, e) for s, e in pieces if body.count(b"[", s, e) == body.count(b"]", s, e)]
        if len(used) == len(pieces):
            return request
        # Others than tensors have data too: they stay where they are.
        pieces = used or None
    return None


def _open_around(body: bytes, pieces: list[tuple[int, int]]) -> tuple[Any, list[tuple[int, int]]]:
    """The request without these pieces, each in its tensor; and those that were a tensor's data."""
    parts: list[bytes] = []
    marks: dict[bytes, tuple[int, int]] = {}
    at = 0
    for k, (start, end) in enumerate(pieces):
        mark = b"[%d]" % (_MARK + k)
        marks[mark] = (start, end)
        parts += (body[at:start], mark)
        at = end
    parts.append(body[at:])
    left = b"".join(parts)
    try:
        request = _RAW.decode(left)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None, []
    if is_deep(left):
        return None, []
    for tensor in request.inputs:
        data = bytes(tensor.data) if tensor.data else None
        place = None if data is None else marks.pop(data, None)
        tensor.data = data if place is None else body[place[0] : place[1]]
    unused = set(marks.values())
    return request, [piece for piece in pieces if piece not in unused]


def cut(body: bytes, arrays_max: int) -> list[tuple[int, int]] | None:
    """Where the arrays of numbers stand that are the value of a key `data`: (start, end), in order.

    Arrays with strings or objects are left out. None when there are none, or more than `arrays_max`.
    """
    text = body
    if b"\\" in body:
        # As long as before, and every quote that is left opens or ends a string.
        text = body.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    found: list[tuple[int, int]] = []
    at = text.find(_KEY)
    while at >= 0:
        at += len(_KEY)
        colon = _TO_ARRAY.match(text, at)
        if colon is not None:
            start = colon.end()
            quote = text.find(b'"', start)
            stop = text.find(b"}", start, quote if quote >= 0 else len(text))
            stop = stop if stop >= 0 else quote
            end = text.rfind(b"]", start, stop) + 1 if stop >= 0 else 0
            if end and not text[end:stop].strip(b" \t\n\r,"):
                if len(found) == arrays_max:
                    return None
                found.append((start, end))
                at = end
        at = text.find(_KEY, at)
    return found or None


def is_deep(text: bytes) -> bool:
    """Whether JSON is nested deeper than `DEPTH_MAX`. Cost: two counts; about 4 ns a byte where brackets are many."""
    if text.count(b"[") + text.count(b"{") <= DEPTH_MAX:
        return False
    if b"\\" in text:
        text = text.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    depth = inside = 0
    for start in range(0, len(text), _SCAN_BYTES):
        part = np.frombuffer(text, np.uint8, min(_SCAN_BYTES, len(text) - start), start)
        folded = part | 0x20  # Brackets and braces differ in this bit alone.
        quotes = np.flatnonzero(part == ord('"'))
        at = np.flatnonzero((folded == ord("{")) | (folded == ord("}")))
        at = at[(np.searchsorted(quotes, at) + inside) % 2 == 0]
        if at.size:
            levels = depth + np.cumsum(np.where(folded[at] == ord("{"), 1, -1))
            if int(levels.max()) > DEPTH_MAX:
                return True
            depth = int(levels[-1])
        inside = (inside + quotes.size) % 2
    return False
