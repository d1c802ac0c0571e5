"""Small ONNX models for whole-process tests: answers that can be told by eye."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from bench.peers.probes.small_models import save, write_slow


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
    save(root, name, version, graph)


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
    save(root, name, version, graph)


def write_turns(root: Path) -> None:
    """X[1,4] -> Y[1,4] = X, after as many products of matrices as X's largest value says.

    One product takes a few milliseconds: the request chooses how long it runs.
    """
    write_slow(root, "turns", rows=1, side=512)


IDENTITIES = {
    "bool": TensorProto.BOOL, "fp16": TensorProto.FLOAT16, "fp32": TensorProto.FLOAT, "fp64": TensorProto.DOUBLE,
    "int64": TensorProto.INT64, "int8": TensorProto.INT8, "string": TensorProto.STRING,
    "uint64": TensorProto.UINT64, "uint8": TensorProto.UINT8,
}  # fmt: skip
"""Types that `write_identity` has models of."""


def write_identity(root: Path, kind: str, shape: tuple[object, ...] = ("N", "M"), name: str = "") -> None:
    """INPUT0 -> OUTPUT0, the same; with rows, at most 8 of them, as its config.pbtxt says."""
    name = name or f"id_{kind}"
    graph = helper.make_graph(
        [helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])],
        name,
        [helper.make_tensor_value_info("INPUT0", IDENTITIES[kind], shape)],
        [helper.make_tensor_value_info("OUTPUT0", IDENTITIES[kind], shape)],
    )
    save(root, name, "1", graph)
    if shape[0] == "N":
        (root / name / "config.pbtxt").write_text("max_batch_size: 8\n")


def write_simple(root: Path, name: str = "simple") -> None:
    """INPUT0[N,16], INPUT1[N,16] INT32 -> OUTPUT0 their sum, OUTPUT1 their difference."""
    ints = [TensorProto.INT32, ["N", 16]]
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
            helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
        ],
        name,
        [helper.make_tensor_value_info(f"INPUT{i}", *ints) for i in (0, 1)],
        [helper.make_tensor_value_info(f"OUTPUT{i}", *ints) for i in (0, 1)],
    )
    save(root, name, "1", graph)


def write_not_finite(root: Path, name: str = "nan") -> None:
    """INPUT0[N,1] -> OUTPUT0[N,5], each row NaN, Inf, -Inf, 1, 0.1."""
    row = np.array([[np.nan, np.inf, -np.inf, 1, 0.1]], np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Shape", ["INPUT0"], ["rows"], start=0, end=1),
            helper.make_node("Concat", ["rows", "five"], ["shape"], axis=0),
            helper.make_node("Expand", ["row", "shape"], ["OUTPUT0"]),
        ],
        name,
        [helper.make_tensor_value_info("INPUT0", TensorProto.FLOAT, ["N", 1])],
        [helper.make_tensor_value_info("OUTPUT0", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(row, "row"), numpy_helper.from_array(np.array([5], np.int64), "five")],
    )
    save(root, name, "1", graph)


def write_protocol_models(root: Path) -> None:
    """The models of tests/contracts/protocol_cases.jsonl."""
    for kind in IDENTITIES:
        write_identity(root, kind)
    write_identity(root, "fp32", (2, "M"), "nobatch")
    write_simple(root)
    write_not_finite(root)


def write_roots(root: Path, name: str = "linear", version: str = "2", scale: float = 0.25) -> None:
    """As `write_linear`, of the square roots of X: what is below 0 has none, and its answers are NaN."""
    graph = helper.make_graph(
        [helper.make_node("Sqrt", ["X"], ["roots"]), helper.make_node("MatMul", ["roots", "W"], ["Y"])],
        name,
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(linear_weights(scale), "W")],
    )
    save(root, name, version, graph)


def write_deaf(root: Path, name: str = "deaf", version: str = "1") -> None:
    """X[1,4] -> Y[1,4] = X, after one product of two matrices whose side is X's largest value.

    One operator: nothing ends it before it is through. Side 6,000 takes ten seconds of a slow core.
    """
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["X"], ["most"], keepdims=0),
            helper.make_node("Cast", ["most"], ["side"], to=TensorProto.INT64),
            helper.make_node("Unsqueeze", ["side", "first"], ["sides"]),
            helper.make_node("Concat", ["sides", "sides"], ["shape"], axis=0),
            helper.make_node(
                "ConstantOfShape",
                ["shape"],
                ["ones"],
                value=helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]),
            ),
            helper.make_node("MatMul", ["ones", "ones"], ["product"]),
            helper.make_node("ReduceMax", ["product"], ["largest"], keepdims=0),
            helper.make_node("Mul", ["largest", "nothing"], ["none"]),
            helper.make_node("Add", ["X", "none"], ["Y"]),
        ],
        name,
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [1, 4])],
        [
            numpy_helper.from_array(np.array([0], np.int64), "first"),
            numpy_helper.from_array(np.array(0, np.float32), "nothing"),
        ],
    )
    save(root, name, version, graph)
