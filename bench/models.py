"""Models that benchmarks and proofs serve; made on the spot, seeded. Needs the `dev` extra (onnx)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

WIDTHS = (30, 256, 256, 2)


def write_mlp(repository: Path, version: str = "1", seed: int = 1) -> Path:
    """`mlp`: X [N,30] FP32 -> two hidden layers of 256 -> Y [N,2]; returns the model's file."""
    rng = np.random.default_rng(seed)
    nodes, weights, x = [], [], "X"
    for k, (a, b) in enumerate(zip(WIDTHS, WIDTHS[1:], strict=False)):
        w = (rng.standard_normal((a, b)) / np.sqrt(a)).astype(np.float32)
        weights += [
            numpy_helper.from_array(w, f"w{k}"),
            numpy_helper.from_array(np.zeros(b, np.float32), f"b{k}"),
        ]
        last = k + 2 == len(WIDTHS)
        nodes.append(helper.make_node("Gemm", [x, f"w{k}", f"b{k}"], ["Y" if last else f"h{k}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"h{k}"], [f"r{k}"]))
            x = f"r{k}"
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", WIDTHS[0]])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["N", WIDTHS[-1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = repository / "mlp" / version / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path
