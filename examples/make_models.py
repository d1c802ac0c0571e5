"""The example model, from nothing: `python examples/make_models.py`.

`quickstart` tells three kinds of flowers apart by four measures. The data are drawn from three seeded normal
clouds; version 1 is a softmax regression, version 2 has a hidden layer. Plain NumPy trains both, so that the same bytes
come out everywhere; examples/DIGESTS holds what they must be.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
CENTRES = np.array([[5.0, 3.4, 1.5, 0.3], [5.9, 2.8, 4.3, 1.3], [6.6, 3.0, 5.6, 2.0]])
SPREADS = np.array([[0.35, 0.38, 0.17, 0.10], [0.51, 0.31, 0.47, 0.20], [0.63, 0.32, 0.55, 0.27]])
CLASSES = ("small", "middle", "large")
BUNDLE = """# What this version says of itself; every key may be left out.
schema = 1
owner = "examples@tidegate.invalid"
tier = "low"
task = "multiclass"
card = "README.md"

[inputs.X]
features = ["sepal_length", "sepal_width", "petal_length", "petal_width"]

[outputs.probabilities]
kind = "probability"
classes = ["small", "middle", "large"]
"""
CARD = """# quickstart, version {version}

Tells three kinds of flowers apart by four measures: {kind}. Trained by `examples/make_models.py` on 600 seeded,
made-up rows; made for trying Tidegate out and for nothing else.

| | tensor | datatype | shape | what |
|---|---|---|---|---|
| in | `X` | FP32 | [N, 4] | length and width of sepal, length and width of petal, in cm |
| out | `label` | INT64 | [N] | the likeliest kind: 0 small, 1 middle, 2 large |
| out | `probabilities` | FP32 | [N, 3] | of the three kinds; they sum to 1 |
"""
KINDS = {0: "a softmax regression", 8: "one hidden layer of 8"}


def data() -> tuple[Any, Any]:
    """600 seeded rows and their classes."""
    rng = np.random.default_rng(20130101)
    classes = np.repeat(np.arange(3), 200)
    return CENTRES[classes] + rng.standard_normal((600, 4)) * SPREADS[classes], classes


def train(hidden: int) -> list[tuple[Any, Any]]:
    """Weights and biases by gradient descent on the cross-entropy; `hidden` 0 is a regression."""
    rows, classes = data()
    mean, std = rows.mean(axis=0), rows.std(axis=0)
    x = (rows - mean) / std
    rng = np.random.default_rng(7)
    sizes = [4, hidden, 3] if hidden else [4, 3]
    layers = [
        [rng.standard_normal((a, b)) / np.sqrt(a), np.zeros(b)]
        for a, b in zip(sizes, sizes[1:], strict=False)
    ]
    target = np.eye(3)[classes]
    for _ in range(400):
        seen = [x]
        for weights, bias in layers[:-1]:
            seen.append(np.maximum(seen[-1] @ weights + bias, 0))
        logits = seen[-1] @ layers[-1][0] + layers[-1][1]
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        slope = (odds / odds.sum(axis=1, keepdims=True) - target) / len(x)
        for k in range(len(layers) - 1, -1, -1):
            weights, bias = layers[k]
            down = slope @ weights.T
            layers[k] = [weights - 0.5 * seen[k].T @ slope, bias - 0.5 * slope.sum(axis=0)]
            slope = down * (seen[k] > 0)
    # The first layer takes raw measures: standardising is folded into it.
    first_weights, first_bias = layers[0]
    layers[0] = [first_weights / std[:, None], first_bias - (mean / std) @ first_weights]
    # Four decimals, so that the last bits of another machine's arithmetic do not change the file.
    return [(np.round(w, 4).astype(np.float32), np.round(b, 4).astype(np.float32)) for w, b in layers]


def graph(layers: list[tuple[Any, Any]]) -> bytes:
    """X [N,4] -> label [N], probabilities [N,3]."""
    nodes, weights, x = [], [], "X"
    for k, (w, b) in enumerate(layers):
        weights += [numpy_helper.from_array(w, f"w{k}"), numpy_helper.from_array(b, f"b{k}")]
        nodes.append(helper.make_node("Gemm", [x, f"w{k}", f"b{k}"], [f"h{k}"]))
        x = f"h{k}"
        if k + 1 < len(layers):
            nodes.append(helper.make_node("Relu", [x], [f"r{k}"]))
            x = f"r{k}"
    nodes.append(helper.make_node("Softmax", [x], ["probabilities"], axis=1))
    nodes.append(helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0))
    made = helper.make_graph(
        nodes,
        "quickstart",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", 4])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3]),
        ],
        weights,
    )
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, producer_name="tidegate"
    )
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def files() -> dict[str, bytes]:
    """Every file of the example repository by its path under examples/."""
    out = {}
    for version, hidden in (("1", 0), ("2", 8)):
        out[f"models/quickstart/{version}/model.onnx"] = graph(train(hidden))
        out[f"models/quickstart/{version}/bundle.toml"] = BUNDLE.encode()
        card = CARD.format(version=version, kind=KINDS[hidden])
        out[f"models/quickstart/{version}/README.md"] = card.encode()
    return out


def digests(content: dict[str, bytes]) -> str:
    """The text of examples/DIGESTS."""
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(content.items()))


def main() -> int:
    """Write the files and DIGESTS."""
    content = files()
    for name, data_ in content.items():
        path = HERE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data_)
    (HERE / "DIGESTS").write_text(digests(content))
    sys.stdout.write(digests(content))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
