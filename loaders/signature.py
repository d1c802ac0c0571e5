"""Signatures: what tensors a model takes and gives."""

from __future__ import annotations

from typing import NamedTuple


class TensorSpec(NamedTuple):
    """One declared tensor; -1 in `shape` is a dimension that varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Signature(NamedTuple):
    """Declared inputs and outputs, in the graph's order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
