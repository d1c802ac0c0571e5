"""Binary tensors of a request: the bytes behind its JSON, and requests that are nothing but bytes.

codec hands over what the JSON says of a tensor; sizes are held against shapes before a byte is copied. Pure.

Source: Open Inference Protocol, REST; its binary tensor data extension.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

from gateway import tensors
from gateway.api.single import like_of, say_again
from gateway.batching import Inference
from gateway.errors import InvalidRequest
from loaders.datatypes import ITEM_BYTES
from loaders.signature import Signature, TensorSpec

WALKED = frozenset(("BYTES", "BOOL"))
"""Datatypes whose values are looked at, one by one; of others the size says everything."""
HEADS_MAX = 64
"""Heads remembered of a signature."""
HEAD_MAX_BYTES = 4096
ID_MAX_CHARS = 128
"""A longer id is read with the rest of the JSON."""
_ID_FIRST = (b'{"id":"', b'{"id": "')
"""How JSON begins that says its id first, as clients do."""


def take_blob(
    spec: TensorSpec, size: object, blobs: bytes | memoryview | None, offset: int, count: int
) -> tuple[bytes | memoryview, int]:
    """A tensor's bytes and where the next one's start.

    Args:
        size: the parameter binary_data_size, as given.
        blobs: what follows the JSON; None where nothing does.
        count: elements of the tensor's shape.

    Raises:
        InvalidRequest: naming the tensor, its size and what is there.
    """
    if type(size) is not int or size < 0:
        msg = f"input '{spec.name}': binary_data_size is {size!r:.40}; expected a number of bytes"
        raise InvalidRequest(msg)
    # A body whose binary tensors are all empty ends with its JSON.
    have = 0 if blobs is None else len(blobs) - offset
    if size > have:
        msg = f"input '{spec.name}': binary_data_size is {size}, {have} bytes are left in the body"
        raise InvalidRequest(msg)
    blob = b"" if blobs is None else _cut(blobs, offset, offset + size, offset)
    return tensors.checked_binary(spec, blob, count), offset + size


def _cut(body: bytes | memoryview, start: int, stop: int, offset: int) -> bytes | memoryview:
    """Part of a body; of a view a view, where numbers of any size stand in line there.

    Args:
        offset: from the first tensor, which stands in line.
    """
    part = body[start:stop]
    return bytes(part) if offset % 8 and type(part) is memoryview else part


class Heads:
    """JSON that stood before binary tensors, and what it said: a client's requests repeat it.

    Threading: entries are whole; bodies may be decoded off the loop.
    """

    def __init__(self, signature: Signature) -> None:
        self._specs = signature.inputs
        self._index = {spec.name: i for i, spec in enumerate(signature.inputs)}
        self._known: dict[tuple[bool, bytes], _Head] = {}
        """By whether an id was cut out, and what is left."""
        self._strangers = 0

    def take_known(self, body: bytes | memoryview, json_bytes: int, into: Inference) -> bool:
        """Take a body whose JSON is known and whose bytes are as many; False for any other.

        Raises:
            InvalidRequest: BYTES that are malformed.
        """
        rest, own_id = _without_id(bytes(body[:json_bytes]))
        known = self._known.get((bool(own_id), rest))
        if known is None or known.behind_bytes != len(body) - json_bytes:
            return False
        into.inputs = [
            _cut(body, json_bytes + start, json_bytes + stop, start)
            if count is None
            else tensors.checked_binary(spec, body[json_bytes + start : json_bytes + stop], count)
            for spec, (start, stop, count) in zip(self._specs, known.places, strict=True)
        ]
        into.shapes = known.shapes
        if known.like is not None:
            say_again(known.like, into)
        if own_id:
            into.request_id, into.id_json = own_id.decode(), b'"%b"' % own_id
            into.log_bytes += len(into.id_json)
        return True

    def learn(self, body: bytes | memoryview, json_bytes: int, request: Any, taken: Inference) -> None:
        """Remember the JSON of a body that was taken, but for its id, all of it binary, with rows."""
        self._strangers += 1
        seldom = self._strangers > 4 * HEADS_MAX and self._strangers % 64
        if seldom or json_bytes > HEAD_MAX_BYTES or not taken.rows:
            return
        rest, own_id = _without_id(bytes(body[:json_bytes]))
        if own_id.decode() != (request.id or ""):
            # It stands elsewhere, or is written in another way.
            return
        if own_id and b'"id"' in rest:
            # Perhaps it is said again.
            return
        places: list[tuple[int, int, int | None]] = [(0, 0, None)] * len(self._specs)
        start = 0
        for tensor in request.inputs:
            size = (tensor.parameters or {}).get("binary_data_size")
            if size is None:
                return
            i = self._index[tensor.name]
            checked = self._specs[i].datatype in WALKED
            places[i] = (start, start + size, prod(taken.shapes[i]) if checked else None)
            start += size
        if len(self._known) >= HEADS_MAX:
            self._known.clear()
        like = like_of(taken)
        if like is not None and taken.id_json is not None:
            like.log_bytes -= len(taken.id_json)
        self._known[bool(own_id), rest] = _Head(len(body) - json_bytes, places, taken.shapes, like)


def _without_id(text: bytes) -> tuple[bytes, bytes]:
    """JSON in two: what repeats, and an id that stands first and is plain; empty where there is none."""
    for first in _ID_FIRST:
        if text.startswith(first):
            start = len(first)
            end = text.find(b'"', start, start + ID_MAX_CHARS + 1)
            own_id = text[start:end]
            if end > start and own_id.isascii() and b"\\" not in own_id and own_id.decode().isprintable():
                return text[end:], own_id
    return text, b""


class _Head(NamedTuple):
    behind_bytes: int
    """Of the tensors together."""
    places: list[tuple[int, int, int | None]]
    """Of each input: from and to, counted behind the JSON, and its elements where its bytes have to be looked at."""
    shapes: list[tuple[int, ...]]
    like: Inference | None


def take_raw(signature: Signature, body: bytes | memoryview, into: Inference, *, batchable: bool) -> None:
    """A request without JSON: the whole body is the one input's data, one row of it if the model takes rows.

    A dimension that varies follows from the size; a BYTES input takes the body as its one string, without length.

    Raises:
        InvalidRequest: several inputs, more than one dimension that varies, or a size that no shape has.
    """
    if len(signature.inputs) != 1:
        msg = f"a request without JSON is for one input; this model has {len(signature.inputs)}"
        raise InvalidRequest(msg)
    spec = signature.inputs[0]
    shape = [1, *spec.shape[1:]] if batchable else list(spec.shape)
    if shape.count(-1) > 1:
        msg = f"input '{spec.name}' has shape {list(spec.shape)}: without JSON at most one dimension can vary"
        raise InvalidRequest(msg)
    if spec.datatype == "BYTES":
        shape = [1 if dim == -1 else dim for dim in shape]
        if prod(shape) != 1:
            msg = f"input '{spec.name}' takes {prod(shape)} strings; without JSON there is one"
            raise InvalidRequest(msg)
        body = len(body).to_bytes(4, "little") + bytes(body)
    elif -1 in shape:
        each = ITEM_BYTES[spec.datatype] * prod(dim for dim in shape if dim != -1)
        if not each or len(body) % each:
            msg = f"input '{spec.name}' has {len(body)} bytes; its shape {list(spec.shape)} takes multiples of {each}"
            raise InvalidRequest(msg)
        shape[shape.index(-1)] = len(body) // each
    into.inputs = [tensors.checked_binary(spec, body, prod(shape))]
    into.shapes = [tuple(shape)]
