"""Retraining gives the committed models again. Needs the extra `train` (in the development lock) and the data."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from examples.flights import build
from examples.flights.data import Flights

pytest.importorskip("sklearn", reason="scikit-learn (extra train) is not installed: make test installs it")
pytest.importorskip("skl2onnx", reason="skl2onnx (extra train) is not installed: make test installs it")

import onnx

from examples.flights import train

FILES = {
    "1": build.SERVED / "1" / "model.onnx",
    "2": build.SERVED / "2" / "model.onnx",
    "retrain": build.RETRAIN,
}


MADE: dict[str, train.Made] = {}


def made_again(name: str, flights: Flights) -> train.Made:
    """Trained once for all tests."""
    if name not in MADE:
        MADE[name] = train.make(name, flights)
    return MADE[name]


@pytest.mark.parametrize("name", list(FILES))
def test_retraining_gives_the_same_model(flights_2013: Flights, name: str) -> None:
    """The same answers within 1e-5 with any versions; the same digest with those that digests.json names."""
    made = made_again(name, flights_2013)
    committed = FILES[name].read_bytes()
    rows = flights_2013.rows[::10]
    assert (
        np.abs(build.run_bytes(made.content, rows) - build.run_bytes(committed, rows)).max()
        <= train.TOLERANCE
    )
    kept = json.loads(train.DIGESTS.read_text())
    if kept["made_with"] == train.makers():
        assert train.digest(made.content) == kept["models"][name]


@pytest.mark.parametrize("name", list(FILES))
def test_a_committed_file_is_in_canonical_form(name: str) -> None:
    """Its own SHA-256 is its canonical digest, and the one that is kept."""
    content = FILES[name].read_bytes()
    kept = json.loads(train.DIGESTS.read_text())["models"][name]
    assert hashlib.sha256(content).hexdigest() == train.digest(content) == kept


def test_digest_sees_numbers_and_not_names() -> None:
    """Names, texts, producer and the order of operator sets change nothing; a threshold does."""
    content = FILES["1"].read_bytes()
    model = onnx.load_model_from_string(content)
    for node in model.graph.node:
        node.name, node.doc_string = f"node of {node.op_type}", "said"
        node.input[:] = [f"x_{each}" if each.startswith("v") else each for each in node.input]
        node.output[:] = [f"x_{each}" if each.startswith("v") else each for each in node.output]
    for weight in model.graph.initializer:
        weight.name = f"x_{weight.name}"
    model.graph.name, model.producer_name, model.doc_string = "of today", "another", "said"
    model.metadata_props.add(key="when", value="now")
    model.opset_import.extend(list(model.opset_import)[::-1])
    del model.opset_import[: len(model.opset_import) // 2]
    assert model.SerializeToString() != content
    assert train.digest(model.SerializeToString()) == train.digest(content)
    trees = next(node for node in model.graph.node if node.op_type.startswith("TreeEnsemble"))
    values = next(each for each in trees.attribute if each.name == "nodes_values")
    values.floats[0] += 1.0
    assert train.digest(model.SerializeToString()) != train.digest(content)


@pytest.mark.parametrize("name", list(FILES))
def test_file_and_scikit_learn_agree(flights_2013: Flights, name: str) -> None:
    """Within 1e-5 on 30,000 flights of the year and 20,000 rows with values struck out; columns mixed up are found.

    `make train` demands it of every flight.
    """
    made = made_again(name, flights_2013)
    train.check(made, flights_2013.rows[:: len(flights_2013.rows) // 30_000])
    wrong = made._replace(content=build.swapped(made.content, "hour", "dow"))
    with pytest.raises(ArithmeticError, match="ONNX Runtime and scikit-learn differ by"):
        train.check(wrong, flights_2013.rows[:100])


def test_every_file_of_the_models_is_made_here() -> None:
    """Nothing else lies beside the versions that `make train` writes."""
    names = {p.relative_to(build.SERVED).as_posix() for p in Path(build.SERVED).rglob("*") if p.is_file()}
    parts = ("README.md", "SHA256SUMS", "bundle.toml", "golden.jsonl", "model.onnx", "reference.npz")
    assert names == {f"{version}/{part}" for version in ("1", "2") for part in parts}
