"""Sizes that values decide: which models may run on the event loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from loaders import graph, sizes
from loaders.session import load
from tests.loaders import graphs

INT64 = TensorProto.INT64


def squared() -> bytes:
    """From one number n the product of two n x n matrices: a digit more is a thousand times the cost."""
    nodes = [
        helper.make_node("Concat", ["X", "X"], ["shape"], axis=0),
        helper.make_node("ConstantOfShape", ["shape"], ["A"]),
        helper.make_node("MatMul", ["A", "A"], ["B"]),
        helper.make_node("ReduceSum", ["B"], ["Y"], keepdims=0),
    ]
    return graphs.model(nodes, (INT64, (1,)), (graphs.FLOAT, ()))


def tiled(by: str) -> bytes:
    """X, repeated so often as an initializer, or as X's own first value, says; or as its shape does."""
    nodes = [
        helper.make_node("Shape", ["X"], ["shape"]),
        helper.make_node("Cast", ["X"], ["values"], to=INT64),
        helper.make_node("Reshape", ["values", "flat"], ["flattened"]),
        helper.make_node("Slice", ["flattened", "zero", "two"], ["value"]),
        helper.make_node("Tile", ["X", by], ["tiled"]),
        helper.make_node("ReduceMax", ["tiled"], ["Y"], axes=[0], keepdims=1),
    ]
    weights = {
        "weight": np.array([1, 2]), "flat": np.array([-1]), "zero": np.array([0]), "two": np.array([2]),
    }  # fmt: skip
    return graphs.model(nodes, y=(graphs.FLOAT, (1, None)), weights=weights)


@pytest.mark.parametrize(("by", "expected"), [("weight", False), ("shape", False), ("value", True)])
def test_only_a_size_that_comes_from_a_request_counts(by: str, expected: bool) -> None:
    """One that is stored, or follows from the number of rows, is the same for every request of so many rows."""
    assert sizes.by_values(graph.parse(tiled(by))) is expected


def test_a_model_whose_cost_is_in_its_values_never_runs_on_the_loop(tmp_path: Path) -> None:
    """Its warm run takes microseconds, and a request may ask for minutes."""
    graphs.put(tmp_path, squared())
    assert not load(tmp_path, "m", "1").inline_allowed


def test_what_a_model_makes_by_its_rows_is_no_reason() -> None:
    """A constant of the batch's shape follows from the number of rows."""
    assert not sizes.by_values(graph.parse(graphs.numbering()))
