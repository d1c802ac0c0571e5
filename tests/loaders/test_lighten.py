"""A model without its large weights computes the same, the weights read from where they stand in its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import loaders  # noqa: F401  (turns ONNX Runtime's telemetry off before it is imported)
from loaders.lighten import LOCATION, WEIGHT_MIN_BYTES, lightened
from loaders.session import load

WIDTH = 160
"""Of a square of floats that is large enough to be taken out."""


def model(*initializers: TensorProto) -> bytes:
    """Y = X times each of these, one after another."""
    nodes, last = [], "X"
    for index, weight in enumerate(initializers):
        nodes.append(helper.make_node("MatMul", [last, weight.name], [f"h{index}"]))
        last = f"h{index}"
    nodes.append(helper.make_node("Identity", [last], ["Y"]))
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["N", WIDTH])],
        list(initializers),
    )  # fmt: skip
    return helper.make_model(
        graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]
    ).SerializeToString()


def square(name: str, *, raw: bool = True, seed: int = 1) -> TensorProto:
    """A weight, its values as raw bytes or as a list of floats."""
    values = np.random.default_rng(seed).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    if raw:
        return numpy_helper.from_array(values, name)
    return helper.make_tensor(name, TensorProto.FLOAT, values.shape, values.ravel().tolist())


def places(content: bytes) -> dict[str, dict[str, str]]:
    """Of each initializer that stands elsewhere, where."""
    graph = onnx.ModelProto.FromString(content).graph
    return {t.name: {e.key: e.value for e in t.external_data} for t in graph.initializer if t.data_location}


def test_places_are_where_the_weights_stand() -> None:
    """Each is named with the bytes that it had in the file; all else is as it was."""
    first, second = square("A"), square("B", seed=2)
    content = model(first, square("F", raw=False), second)
    light = lightened(content)
    assert light is not None
    found = places(light)
    assert set(found) == {"A", "B"}
    for weight in (first, second):
        place = found[weight.name]
        start = int(place["offset"])
        assert place["location"] == LOCATION
        assert content[start : start + int(place["length"])] == weight.raw_data
    made = onnx.ModelProto.FromString(light)
    for tensor in made.graph.initializer:
        for field in ("external_data", "data_location"):
            tensor.ClearField(field)
    whole = onnx.ModelProto.FromString(content)
    for tensor in whole.graph.initializer:
        if tensor.name in found:
            tensor.ClearField("raw_data")
    assert made == whole


@pytest.mark.parametrize(
    "content",
    [
        b"",
        model(square("F", raw=False)),
        b"\0" * (WEIGHT_MIN_BYTES - 1),
    ],
)
def test_a_model_without_large_weights_stays_as_it_is(content: bytes) -> None:
    """There is nothing to take out of it."""
    assert lightened(content) is None


def test_weights_in_other_files_stay_there() -> None:
    """What is named already is not named again."""
    weight = square("A")
    weight.data_location = TensorProto.EXTERNAL
    assert lightened(model(weight)) is None


def test_a_name_that_is_there_twice_leaves_the_model_as_it_is() -> None:
    """Which of the two counts is ONNX Runtime's own."""
    assert lightened(model(square("A"), square("A", seed=2))) is None


def test_another_file_of_that_name_is_that_file(tmp_path: Path) -> None:
    """A model that names its weights' file as we would name its own is served with that file's bytes."""
    inside, outside = square("A"), square("B", seed=2)
    values = numpy_helper.to_array(outside)
    path = tmp_path / "m" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    (path.parent / LOCATION).write_bytes(outside.raw_data)
    outside.ClearField("raw_data")
    outside.data_location = TensorProto.EXTERNAL
    for key, value in (("location", LOCATION), ("offset", "0"), ("length", str(values.nbytes))):
        outside.external_data.add(key=key, value=value)
    path.write_bytes(model(inside, outside))
    session: Any = load(tmp_path, "m", "1")
    rows = np.random.default_rng(4).standard_normal((2, WIDTH)).astype(np.float32)
    np.testing.assert_allclose(
        session.run({"X": rows})[0], rows @ numpy_helper.to_array(inside) @ values, rtol=1e-3, atol=1e-2
    )


def test_answers_are_the_same_bit_for_bit(tmp_path: Path) -> None:
    """A loaded version gives what ONNX Runtime gives for the file as it is."""
    import onnxruntime

    content = model(square("A"), square("F", raw=False, seed=3), square("B", seed=2))
    path = tmp_path / "m" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    session: Any = load(tmp_path, "m", "1")
    plain = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    rows = np.random.default_rng(4).standard_normal((5, WIDTH)).astype(np.float32)
    assert session.run({"X": rows})[0].tobytes() == plain.run(None, {"X": rows})[0].tobytes()
