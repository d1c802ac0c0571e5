"""Small ONNX files, each with one property that loading must notice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
STRING = TensorProto.STRING


def model(
    nodes: Sequence[onnx.NodeProto],
    x: tuple[int, Sequence[object]] = (FLOAT, ("N", 4)),
    y: tuple[int, Sequence[object]] = (FLOAT, ("N", 4)),
    weights: dict[str, np.ndarray] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
    output: str = "Y",
) -> bytes:
    """A model from X to Y, or to another name."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("X", x[0], list(x[1]))],
        [helper.make_tensor_value_info(output, y[0], list(y[1]))],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid("own", 1)] if functions else [])]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=list(functions))
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def double(output: str = "Y") -> bytes:
    """Y = X + X, row by row."""
    return model([helper.make_node("Add", ["X", "X"], [output])], output=output)


def fixed() -> bytes:
    """One row, always."""
    return model([helper.make_node("Add", ["X", "X"], ["Y"])], (FLOAT, (1, 4)), (FLOAT, (1, 4)))


def mixing() -> bytes:
    """Y = X less the mean over the batch: rows depend on their company."""
    mean = helper.make_node("ReduceMean", ["X"], ["mean"], axes=[0], keepdims=1)
    return model([mean, helper.make_node("Sub", ["X", "mean"], ["Y"])])


def numbering() -> bytes:
    """Y = X plus the row's number in the run: rows depend on their place."""
    ones = helper.make_node(
        "ConstantOfShape", ["shape"], ["ones"], value=numpy_helper.from_array(np.ones(1, np.float32))
    )
    nodes = [
        helper.make_node("Shape", ["X"], ["shape"]),
        ones,
        helper.make_node("CumSum", ["ones", "axis"], ["places"]),
        helper.make_node("Add", ["X", "places"], ["Y"]),
    ]
    return model(nodes, weights={"axis": np.array(0, np.int64)})


def total() -> bytes:
    """Y has one row, however many X has."""
    return model(
        [helper.make_node("ReduceSum", ["X", "axis"], ["Y"], keepdims=1)], weights={"axis": np.array([0])}
    )


def infecting() -> bytes:
    """Y = X plus 0 times the run's largest value: only a row of NaN shows that rows meet."""
    nodes = [
        helper.make_node("ReduceMax", ["X"], ["most"], axes=[0], keepdims=1),
        helper.make_node("Mul", ["most", "zero"], ["nothing"]),
        helper.make_node("Add", ["X", "nothing"], ["Y"]),
    ]
    return model(nodes, weights={"zero": np.zeros(1, np.float32)})


def echo_text() -> bytes:
    """Text in, text out."""
    return model([helper.make_node("Identity", ["X"], ["Y"])], (STRING, ("N", 2)), (STRING, ("N", 2)))


def short_floats() -> bytes:
    """A datatype that no protocol of ours has."""
    kind = TensorProto.BFLOAT16
    return model([helper.make_node("Identity", ["X"], ["Y"])], (kind, ("N",)), (kind, ("N",)))


def choosing(wrapped: str = "") -> bytes:
    """Y = X or X + X, by a condition; `wrapped` hides the If in a function."""
    bodies = [
        helper.make_graph([node], name, [], [helper.make_tensor_value_info(out, FLOAT, None)])
        for name, out, node in (
            ("then", "t", helper.make_node("Add", ["X", "X"], ["t"])),
            ("else", "e", helper.make_node("Identity", ["X"], ["e"])),
        )
    ]
    node = helper.make_node("If", ["yes"], ["Y"], then_branch=bodies[0], else_branch=bodies[1])
    if not wrapped:
        return model([node], weights={"yes": np.array(True)})
    function = helper.make_function(
        "own", wrapped, ["X", "yes"], ["Y"], [node], [helper.make_opsetid("", 17)]
    )
    call = helper.make_node(wrapped, ["X", "yes"], ["Y"], domain="own")
    return model([call], weights={"yes": np.array(True)}, functions=[function])


def open_ended() -> bytes:
    """Y = X + X, of rows of any length."""
    return model([helper.make_node("Add", ["X", "X"], ["Y"])], (FLOAT, ("N", "L")), (FLOAT, ("N", "L")))


def adding_weights(location: str) -> bytes:
    """Y = X plus four floats that lie in another file."""
    made = onnx.load_from_string(
        model([helper.make_node("Add", ["X", "w"], ["Y"])], weights={"w": np.zeros(4, np.float32)})
    )
    weights = made.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        weights.external_data.add(key=key, value=value)
    return bytes(made.SerializeToString())


def containing(operator: str) -> bytes:
    """A graph, not a valid one, with this operator in a branch of a branch."""
    inner = helper.make_graph([helper.make_node(operator, ["a"], ["b"])], "inner", [], [])
    outer = helper.make_graph([helper.make_node("Wrap", [], ["c"], body=inner)], "outer", [], [])
    graph = helper.make_graph([helper.make_node("Wrap", [], ["d"], bodies=[outer])], "g", [], [])
    return bytes(helper.make_model(graph).SerializeToString())


def put(root: Path, content: bytes, name: str = "m", version: str = "1", bundle: str | None = None) -> Path:
    """A version on disk; returns its directory."""
    directory = root / name / version
    directory.mkdir(parents=True)
    (directory / "model.onnx").write_bytes(content)
    if bundle is not None:
        (directory / "bundle.toml").write_text(bundle)
    return directory
