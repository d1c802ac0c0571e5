"""Small models: what probes have served, so that a right answer can be told without a runtime.

| name | in | out |
|---|---|---|
| `scale` | X FP32 [N,4] | Y = X * (version + 2); a version 3 of it may answer NaN, or be no model |
| `slow` | X FP32 [N,4] | Y = X, after as many matrix products as X's largest value says |
| `id_fp32`, `id_int64` | INPUT0 [N,M] | OUTPUT0, the same |

Needs the `dev` extra (onnx), as the bench's other models do.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper

import loaders  # noqa: F401  (turns ONNX Runtime's telemetry off before it is imported)

_SIDE = 192


def scale_of(version: int) -> float:
    """What a version of `scale` multiplies by."""
    return version + 2.0


def write_scale(repository: Path, version: int = 1, name: str = "scale") -> Path:
    """`scale`; returns its file."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["X", "factor"], ["Y"])], name,
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.array(scale_of(version), np.float32), "factor")],
    )  # fmt: skip
    return save(repository, name, version, graph)


def write_not_finite(repository: Path, version: int = 3) -> Path:
    """A version of `scale` that answers square roots, of which negative inputs have none; returns its file."""
    graph = helper.make_graph(
        [helper.make_node("Sqrt", ["X"], ["Y"])], "scale",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["N", 4])],
    )  # fmt: skip
    return save(repository, "scale", version, graph)


def write_broken(repository: Path, version: int, name: str = "scale") -> Path:
    """A version whose file is no model."""
    path = repository / name / str(version) / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"this is no model" * 64)
    return path


def write_identity(repository: Path, kind: str) -> Path:
    """`id_<kind>`, kind fp32 or int64; returns its file."""
    datatype = {"fp32": TensorProto.FLOAT, "int64": TensorProto.INT64}[kind]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])], f"id_{kind}",
        [helper.make_tensor_value_info("INPUT0", datatype, ["N", "M"])],
        [helper.make_tensor_value_info("OUTPUT0", datatype, ["N", "M"])],
    )  # fmt: skip
    return save(repository, f"id_{kind}", 1, graph)


def write_slow(repository: Path, name: str = "slow", *, rows: int | str = "N", side: int = _SIDE) -> Path:
    """`slow`; returns its file.

    Args:
        rows: how many it takes; a letter: any.
        side: of the square matrices, a product of which takes the longer the larger it is.
    """
    square = [side, side]
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["going_on"]),
            helper.make_node("MatMul", ["m", "eye"], ["m_next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("m", TensorProto.FLOAT, square),
        ],
        [
            helper.make_tensor_value_info("going_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("m_next", TensorProto.FLOAT, square),
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
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [rows, 4])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [rows, 4])],
        [
            numpy_helper.from_array(np.array(True), "yes"),
            numpy_helper.from_array(np.ones(square, np.float32), "ones"),
            numpy_helper.from_array(np.eye(side, dtype=np.float32), "eye"),
        ],
    )
    return save(repository, name, 1, graph)


def trips_of(slow_file: Path, seconds: float) -> NDArray[np.float32]:
    """The input of `slow` that takes about so long here, found by running it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    ran: Any = onnxruntime.InferenceSession(str(slow_file), options, providers=["CPUExecutionProvider"])
    trips, took_s = 16, 0.0
    while took_s < 0.1:
        trips *= 2
        started_s = time.perf_counter()
        ran.run(None, {"X": np.full((1, 4), trips, np.float32)})
        took_s = time.perf_counter() - started_s
    return np.full((1, 4), max(1, round(trips * seconds / took_s)), np.float32)


def save(repository: Path, name: str, version: int | str, graph: Any) -> Path:
    """A graph as a version of a model; returns its file."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    path = repository / name / str(version) / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path
