"""The canonical digest: equal for exports that compute the same, another for those that do not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper

from loaders.canonical import canonical_sha256
from tests.loaders import graphs


def changed(change: Callable[[onnx.ModelProto], object], content: bytes | None = None) -> bytes:
    """A model with something else in it."""
    model = onnx.load_from_string(content or graphs.choosing("Wrapped"))
    change(model)
    return bytes(model.SerializeToString())


def _turn(model: onnx.ModelProto) -> None:
    opsets = list(model.opset_import)[::-1]
    del model.opset_import[:]
    model.opset_import.extend(opsets)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "producer_name", "another"),
        lambda m: setattr(m, "producer_version", "9"),
        lambda m: setattr(m, "doc_string", "notes"),
        lambda m: setattr(m, "model_version", 7),
        lambda m: setattr(m.graph, "name", "5f3c0c8e"),
        lambda m: setattr(m.graph, "doc_string", "notes"),
        lambda m: setattr(m.graph.node[0], "doc_string", "where it came from"),
        lambda m: setattr(m.graph.input[0], "doc_string", "notes"),
        _turn,
    ],
    ids=[
        "producer",
        "producer-version",
        "notes",
        "version",
        "graph-name",
        "graph-notes",
        "node",
        "input",
        "opsets",
    ],
)
def test_what_does_not_compute_does_not_count(change: Callable[[onnx.ModelProto], object]) -> None:
    """Names and notes of the exporter, and the order of sets."""
    assert canonical_sha256(changed(change), {}) == canonical_sha256(graphs.choosing("Wrapped"), {})


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m.graph.node[0], "op_type", "Else"),
        lambda m: setattr(m.opset_import[0], "version", 16),
        lambda m: setattr(m.graph.initializer[0], "raw_data", b"\0"),
        lambda m: setattr(m.graph.input[0], "name", "Z"),
        lambda m: setattr(m.functions[0].node[0], "op_type", "Other"),
    ],
    ids=["operator", "opset", "weights", "input", "function"],
)
def test_what_computes_counts(change: Callable[[onnx.ModelProto], object]) -> None:
    """Operators, weights, names of tensors, versions of operator sets."""
    assert canonical_sha256(changed(change), {}) != canonical_sha256(graphs.choosing("Wrapped"), {})


def test_metadata_is_a_set() -> None:
    """Order of metadata does not count, its content does."""
    made = [
        changed(lambda m, p=pairs: helper.set_model_props(m, p))
        for pairs in ({"a": "1", "b": "2"}, {"b": "2", "a": "1"}, {"a": "1", "b": "3"})
    ]
    first, second, third = (canonical_sha256(content, {}) for content in made)
    assert first == second != third


def test_weights_elsewhere_are_weights_in_place() -> None:
    """The same numbers, wherever they lie."""
    weights = np.arange(4, dtype="<f4").tobytes()
    outside = canonical_sha256(graphs.adding_weights("w"), {"w": weights})
    inside = graphs.model(
        [helper.make_node("Add", ["X", "w"], ["Y"])], weights={"w": np.arange(4, dtype=np.float32)}
    )
    assert outside == canonical_sha256(inside, {})
    assert outside != canonical_sha256(graphs.adding_weights("w"), {"w": bytes(16)})
