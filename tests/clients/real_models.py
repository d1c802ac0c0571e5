"""The models of these tests, as repositories: out of published packages, trained here, or a few nodes.

wheels -> **real_models** -> test_real_models, test_real_batches.
"""

from __future__ import annotations

import shutil
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
MAGIKA_BYTES, MAGIKA_PADDING = 1024, 256


def put(repository: Path, name: str, version: str, model: Path | bytes) -> None:
    """A model into a repository; whole before it is seen."""
    directory = repository / name / version
    part = repository / name / f".{version}"
    part.mkdir(parents=True)
    if isinstance(model, bytes):
        (part / "model.onnx").write_bytes(model)
    else:
        shutil.copyfile(model, part / "model.onnx")
    part.rename(directory)


def light(name: str) -> Path:
    """A network of the package onnx, with constant weights."""
    return LIGHT / f"light_{name}.onnx"


def magika_features(content: bytes) -> np.ndarray:
    """A file as Magika sees it: its first and last 1,024 bytes, stripped, padded."""
    first = list(content[:4096].lstrip()[:MAGIKA_BYTES])
    last = list(content[-4096:].rstrip()[-MAGIKA_BYTES:])
    first += [MAGIKA_PADDING] * (MAGIKA_BYTES - len(first))
    last = [MAGIKA_PADDING] * (MAGIKA_BYTES - len(last)) + last
    return np.array([first + last], dtype=np.int32)


def source_files(count: int) -> list[np.ndarray]:
    """Features of files that lie on every machine with this Python."""
    found = sorted(path for path in Path(warnings.__file__).parent.glob("*.py") if path.stat().st_size > 64)
    step = max(len(found) // count, 1)
    return [magika_features(path.read_bytes()) for path in found[::step][:count]]


@cache
def regression() -> tuple[bytes, np.ndarray]:
    """Boosted trees over the diabetes data: X[N,10] -> variable[N,1]; the model and its rows."""
    from sklearn.datasets import load_diabetes
    from sklearn.ensemble import GradientBoostingRegressor

    rows, target = load_diabetes(return_X_y=True)
    rows = rows.astype(np.float32)
    trained = GradientBoostingRegressor(n_estimators=30, random_state=0).fit(rows, target)
    return _converted(trained, rows.shape[1]), rows


@cache
def multiclass() -> tuple[bytes, np.ndarray]:
    """A network over the handwritten digits: X[N,64] -> label[N], probabilities[N,10]."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    rows, target = load_digits(return_X_y=True)
    rows = (rows / 16).astype(np.float32)
    trained = LogisticRegression(max_iter=300).fit(rows, target)
    return _converted(trained, rows.shape[1]), rows


@cache
def words() -> tuple[bytes, np.ndarray]:
    """Strings in and out: X[N,2] BYTES -> label[N] BYTES, probabilities[N,3]."""
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import StringTensorType
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    colours, sizes = ["red", "grün", "青", ""], ["s", "m", "l"]
    rows = np.array([[c, s] for c in colours for s in sizes], dtype=object)
    labels = np.array(["ripe", "naïve", "未知"] * 4, dtype=object)
    trained = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression()).fit(rows, labels)
    made = convert_sklearn(
        trained, initial_types=[("X", StringTensorType([None, 2]))], options={"zipmap": False}
    )
    return made.SerializeToString(), rows


def half() -> bytes:
    """FP16 throughout, with a scalar: (X[N,8] * s) @ W -> Y[N,4]."""
    weights = (np.arange(32).reshape(8, 4) / 7).astype(np.float16)
    graph = helper.make_graph(
        [helper.make_node("Mul", ["X", "s"], ["scaled"]), helper.make_node("MatMul", ["scaled", "W"], ["Y"])],
        "half",
        [
            helper.make_tensor_value_info("X", TensorProto.FLOAT16, ["N", 8]),
            helper.make_tensor_value_info("s", TensorProto.FLOAT16, []),
        ],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT16, ["N", 4])],
        [numpy_helper.from_array(weights, "W")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def _converted(trained: object, features: int) -> bytes:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    options = {"zipmap": False} if hasattr(trained, "predict_proba") else None
    made = convert_sklearn(trained, initial_types=[("X", FloatTensorType([None, features]))], options=options)
    return made.SerializeToString()
