"""Models that benchmarks and proofs serve; made on the spot, seeded. Needs the `dev` extra (onnx).

`write_trees` needs the `train` extra besides (scikit-learn, skl2onnx).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gateway.errors import ConfigInvalid

WIDTHS = (30, 256, 256, 2)
TREES, TREE_DEPTH = 100, 5
_TRAINED_ROWS = 4000


def write_mlp(
    repository: Path,
    version: str = "1",
    seed: int = 1,
    *,
    name: str = "mlp",
    widths: Sequence[int] = WIDTHS,
) -> Path:
    """`mlp`: X [N,30] FP32 -> two hidden layers of 256 -> Y [N,2]; returns the model's file.

    Args:
        name: of the model.
        widths: of the layers, from input to output.
    """
    rng = np.random.default_rng(seed)
    nodes, weights, x = [], [], "X"
    for k, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        w = (rng.standard_normal((a, b)) / np.sqrt(a)).astype(np.float32)
        weights += [
            numpy_helper.from_array(w, f"w{k}"),
            numpy_helper.from_array(np.zeros(b, np.float32), f"b{k}"),
        ]
        last = k + 2 == len(widths)
        nodes.append(helper.make_node("Gemm", [x, f"w{k}", f"b{k}"], ["Y" if last else f"h{k}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"h{k}"], [f"r{k}"]))
            x = f"r{k}"
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", widths[0]])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["N", widths[-1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = repository / name / version / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def write_squeezenet(repository: Path) -> Path:
    """`squeezenet` from the onnx wheel's light models: one image [1,3,224,224] FP32 a request; returns its file.

    Raises:
        ConfigInvalid: this onnx package has no such file.
    """
    source = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_squeezenet.onnx"
    if not source.is_file():
        msg = f"this onnx package has no {source.name}: 1.19 or later has"
        raise ConfigInvalid(msg)
    path = repository / "squeezenet" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    shutil.copyfile(source, path)
    return path


def write_heavy(repository: Path, version: str, *, megabytes: int, name: str = "big", seed: int = 1) -> Path:
    """A model of the MLP's signature with so many megabytes of weights; returns its file. For what loading costs."""
    # Two square layers of w x w, four bytes a weight.
    width = int((megabytes * 1e6 / 8) ** 0.5)
    return write_mlp(repository, version, seed, name=name, widths=(30, width, width, width, 2))


def write_trees(repository: Path, version: str = "1", seed: int = 1, *, name: str = "trees") -> Path:
    """`trees`: X [N,30] FP32 -> 100 boosted trees -> label [N] INT64, probabilities [N,2]; returns the model's file.

    The rows that it is trained on follow from the seed, and so do the trees.

    Raises:
        ConfigInvalid: scikit-learn or skl2onnx is not installed.
    Cost: trains for some seconds on one processor.
    """
    try:
        from skl2onnx import convert_sklearn
        from skl2onnx.common.data_types import FloatTensorType
        from sklearn.ensemble import GradientBoostingClassifier
    except ImportError as exc:
        msg = f"boosted trees cannot be trained ({exc}): install the extra `train`"
        raise ConfigInvalid(msg) from None
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((_TRAINED_ROWS, WIDTHS[0])).astype(np.float32)
    # Interactions and a bend, so that trees are grown to their full depth.
    score = rows[:, 0] * rows[:, 1] + np.abs(rows[:, 2]) + rows[:, 3:8].sum(axis=1) / 2 - 0.8
    late = score + rng.standard_normal(_TRAINED_ROWS) / 2 > 0
    trees = GradientBoostingClassifier(n_estimators=TREES, max_depth=TREE_DEPTH, random_state=seed)
    trees.fit(rows, late.astype(np.int64))
    made = convert_sklearn(
        trees,
        # Its default is another one each time.
        name=name,
        initial_types=[("X", FloatTensorType([None, WIDTHS[0]]))],
        options={"zipmap": False},
    )
    path = repository / name / version / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(made.SerializeToString(deterministic=True))
    return path
