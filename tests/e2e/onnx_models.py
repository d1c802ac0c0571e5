"""Small ONNX models for whole-process tests: answers that can be told by eye."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def _save(root: Path, name: str, version: str, graph: onnx.GraphProto) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    directory = root / name / version
    directory.mkdir(parents=True)
    (directory / "model.onnx").write_bytes(model.SerializeToString())


def linear_weights(scale: float) -> np.ndarray:
    """The 4x3 matrix of `write_linear`."""
    return (np.arange(12, dtype=np.float32).reshape(4, 3) - 5) * np.float32(scale)


def write_linear(root: Path, name: str = "linear", version: str = "1", scale: float = 0.25) -> None:
    """X[N,4] -> Y[N,3] = X @ linear_weights(scale)."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["X", "W"], ["Y"])],
        name,
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(linear_weights(scale), "W")],
    )
    _save(root, name, version, graph)


def write_two_outputs(root: Path, name: str = "twin", version: str = "1") -> None:
    """X[N,4] -> label[N] INT64 (where the largest of scores is), scores[N,3] FP32."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["X", "W"], ["scores"]),
            helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
        ],
        name,
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", 4])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 3]),
        ],
        [numpy_helper.from_array(linear_weights(0.5), "W")],
    )
    _save(root, name, version, graph)


def write_turns(root: Path, name: str = "turns", version: str = "1", side: int = 512) -> None:
    """X[1,4] -> Y[1,4] = X, after as many `side` x `side` products as X's largest value says.

    One product takes a few milliseconds: the request chooses how long it runs.
    """
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["going_on"]),
            helper.make_node("MatMul", ["m", "eye"], ["m_next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("m", TensorProto.FLOAT, [side, side]),
        ],
        [
            helper.make_tensor_value_info("going_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("m_next", TensorProto.FLOAT, [side, side]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["X"], ["most"], keepdims=0),
            helper.make_node("Cast", ["most"], ["trips"], to=TensorProto.INT64),
            helper.make_node("Loop", ["trips", "yes", "ones"], ["m_last"], body=body),
            helper.make_node("ReduceMax", ["m_last"], ["one"], keepdims=0),
            helper.make_node("Mul", ["X", "one"], ["Y"]),
        ],
        name,
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [1, 4])],
        [
            numpy_helper.from_array(np.array(True), "yes"),
            numpy_helper.from_array(np.ones((side, side), np.float32), "ones"),
            numpy_helper.from_array(np.eye(side, dtype=np.float32), "eye"),
        ],
    )
    _save(root, name, version, graph)
