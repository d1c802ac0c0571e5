"""The quick way through decode for the common body: one tensor, flat, of the declared name, datatype and shape.

codec asks it first; whatever is not as usual is left to the codec, which takes it or says what is wrong.
"""

from __future__ import annotations

import struct
from math import prod
from typing import Any

from gateway import tensors
from gateway.batching import Inference
from loaders.signature import Signature, TensorSpec


def single_of(signature: Signature, *, batchable: bool) -> Single | None:
    """The quick way of a signature, None where there is none: several inputs, BYTES, dimensions that vary."""
    if not batchable or len(signature.inputs) != 1:
        return None
    spec = signature.inputs[0]
    tail = spec.shape[1:]
    if not spec.shape or -1 in tail or prod(tail) > tensors.STRUCT_MAX_ELEMENTS:
        return None
    return Single(spec) if spec.datatype in tensors.CODES else None


class Single:
    """One declared tensor whose first dimension alone varies. Keeps no state between calls."""

    def __init__(self, spec: TensorSpec) -> None:
        self._name, self._datatype = spec.name, spec.datatype
        self._code = tensors.CODES[spec.datatype]
        self._tail = list(spec.shape[1:])
        self._elements = prod(self._tail)
        self._row = [1, *self._tail]
        self._row_shapes = [tuple(self._row)]
        self._pack_row = tensors.packer(self._code, self._elements).pack

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
                or not 0 < count <= tensors.STRUCT_MAX_ELEMENTS
                or shape[0] * self._elements != count
            ):
                return False
            into.inputs = [tensors.packer(self._code, count).pack(*data)]
        except (struct.error, OverflowError, TypeError, ValueError, IndexError):
            return False
        into.shapes = [tuple(shape)]
        into.rows = shape[0]
        return True
