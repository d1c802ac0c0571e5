"""The quick ways through decode for models of one tensor whose first dimension alone varies.

`take_known`: a client's bodies repeat but for the numbers. What stands before and after the array is remembered, and
a body that has both is no more than its array. `take`: the common body as the typed decoder gave it: one tensor, flat,
of the declared name, datatype and shape. codec asks both; whatever is not as usual is left to it, which takes it or
says what is wrong.
"""

from __future__ import annotations

import struct
from functools import lru_cache, partial
from math import prod
from typing import Any, NamedTuple

import msgspec

from gateway import tensors
from gateway.api.envelope import cut, opened_cut
from gateway.api.ladder import kind_of, read
from gateway.batching import Inference
from gateway.errors import InvalidRequest
from loaders.signature import Signature, TensorSpec

KNOWN_MAX = 4
"""Kinds of bodies remembered of a signature; more would cost those that are not among them."""
QUICK_MAX_BYTES = 4096
"""Longest body that is decoded whole by one typed decoder; for longer ones cutting pays, and bounds memory."""
SINGLE_MAX_ELEMENTS = 2048
"""Elements of a body of that size at most."""
AROUND_MAX_BYTES = 4096
"""Most that may stand around an array that is remembered."""
PATIENCE = 16
"""After so many bodies that were not known, only every 64th of them is learnt."""
_TYPES: dict[str, Any] = {"F": float, "I": int, "B": bool}
_REFUSED = (
    msgspec.MsgspecError, RecursionError, UnicodeDecodeError, struct.error, OverflowError, TypeError, ValueError,
    InvalidRequest,
)  # fmt: skip


@lru_cache(maxsize=256)
def _tuples(kind: str, count: int) -> msgspec.json.Decoder[Any]:
    """A decoder of exactly `count` values: a fifth faster than one of lists."""
    return msgspec.json.Decoder(tuple[(_TYPES[kind],) * count])  # type: ignore[misc]


def single_of(signature: Signature, *, batchable: bool) -> Single | None:
    """The quick way of a signature, None where there is none: several inputs, BYTES, dimensions that vary."""
    if not batchable or len(signature.inputs) != 1:
        return None
    spec = signature.inputs[0]
    tail = spec.shape[1:]
    if not spec.shape or -1 in tail or prod(tail) > tensors.STRUCT_MAX_ELEMENTS:
        return None
    return Single(spec) if spec.datatype in tensors.CODES else None


class _Known(NamedTuple):
    """A body but for its array, and what all requests that have it share."""

    head: bytes
    tail: bytes
    start: int
    stop: int
    decode: Any
    """From the array's text to values; or to bytes, where `pack` is None."""
    pack: Any
    shapes: list[tuple[int, ...]]
    like: Inference | None
    """A request taken before; None where nothing is unusual about it."""


class Single:
    """One declared tensor whose first dimension alone varies.

    Threading: what is learnt is replaced as a whole; bodies may be decoded off the loop.
    """

    def __init__(self, spec: TensorSpec) -> None:
        self._spec = spec
        self._name, self._datatype = spec.name, spec.datatype
        self._kind = kind_of(spec.datatype)
        self._code = tensors.CODES[spec.datatype]
        self._tail = list(spec.shape[1:])
        self._elements = prod(self._tail)
        self._row = [1, *self._tail]
        self._row_shapes = [tuple(self._row)]
        self._pack_row = tensors.packer(self._code, self._elements).pack
        self._known: tuple[_Known, ...] = ()
        self._strangers = 0

    def take_known(self, body: bytes, into: Inference) -> bool:
        """Take a body whose like was learnt; False when it is none, nothing is taken."""
        for head, tail, start, stop, decode, pack, shapes, like in self._known:
            if body[:start] == head and body[stop:] == tail:
                try:
                    if pack is None:
                        into.inputs = [decode(body[start:stop])]
                    else:
                        into.inputs = [pack(*decode(body[start:stop]))]
                except _REFUSED:
                    return False
                into.shapes = shapes
                if like is not None:
                    say_again(like, into)
                return True
        return False

    def learn(self, body: bytes, taken: Inference) -> None:
        """Remember what stands around the array of a body that was taken, without an id of its own.

        A body of the same head and tail is valid, and says the same, if what is between is a valid array: the
        array was cut out of this one, the rest was read, and it was the tensor's data.
        """
        self._strangers += 1
        if self._strangers > PATIENCE and self._strangers % 64:
            return
        count = taken.rows * self._elements
        if not count or taken.request_id is not None:
            return
        pieces = cut(body, 1)
        if pieces is None or not body.isascii() or opened_cut(body, 1) is None:
            return
        start, end = pieces[0]
        if len(body) > QUICK_MAX_BYTES or count > SINGLE_MAX_ELEMENTS:
            decode: Any = partial(read, self._spec, shape=taken.shapes[0], count=count)
            pack: Any = None
        else:
            # Nested data of one row: the innermost array is all that varies.
            array = body[start:end]
            inner, outer = array.rfind(b"["), array.find(b"]") + 1
            if array[:inner].strip(b"[ \t\n\r") or array[outer:].strip(b"] \t\n\r"):
                return
            if inner and array.count(b"[") != len(self._row):
                return
            start, end = start + inner, start + outer
            decode, pack = _tuples(self._kind, count).decode, tensors.packer(self._code, count).pack
        if start - end + len(body) > AROUND_MAX_BYTES:
            return
        made = _Known(
            body[:start], body[end:], start, end - len(body), decode, pack, taken.shapes, like_of(taken)
        )
        self._known = (made, *[k for k in self._known if k[:2] != made[:2]][: KNOWN_MAX - 1])

    def take(self, given: list[Any], into: Inference) -> bool:
        """Pack the inputs as the typed decoder gave them; False when they are not as usual, nothing is taken."""
        if len(given) != 1:
            return False
        tensor = given[0]
        data = tensor.data
        if (
            tensor.name != self._name
            or tensor.datatype != self._datatype
            or data is None
            or tensor.parameters is not None
        ):
            return False
        shape = tensor.shape
        try:
            if shape == self._row:
                into.inputs = [self._pack_row(*data)]
                into.shapes = self._row_shapes
                return True
            count = len(data)
            if (
                shape[1:] != self._tail
                or not 0 < count <= SINGLE_MAX_ELEMENTS
                or shape[0] * self._elements != count
            ):
                return False
            into.inputs = [tensors.packer(self._code, count).pack(*data)]
        except (struct.error, OverflowError, TypeError, ValueError, InvalidRequest, IndexError):
            return False
        into.shapes = [tuple(shape)]
        into.rows = shape[0]
        return True


def like_of(taken: Inference) -> Inference | None:
    """What a request says beside its tensors, to be said of the next; None where that is nothing unusual."""
    like = Inference(None, 0)
    like.rows, like.wanted, like.form, like.key = taken.rows, taken.wanted, taken.form, taken.key
    like.parameters, like.priority, like.log_bytes = taken.parameters, taken.priority, taken.log_bytes
    usual = like.rows == 1 and like.wanted is None and like.form is None and like.parameters is None
    return None if usual and like.key is None else like


def say_again(like: Inference, into: Inference) -> None:
    """Say of a request what was said of one before."""
    into.rows, into.wanted, into.form, into.key = like.rows, like.wanted, like.form, like.key
    into.parameters, into.priority, into.log_bytes = like.parameters, like.priority, like.log_bytes
