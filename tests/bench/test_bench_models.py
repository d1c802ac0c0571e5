"""The models that benchmarks serve."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.models import write_mlp, write_trees
from loaders.session import load


def test_mlp_is_what_figures_say(tmp_path: Path) -> None:
    """30 FP32 inputs, two outputs, rows may share a run and go inline; the same bytes each time."""
    path = write_mlp(tmp_path / "a")
    assert path.read_bytes() == write_mlp(tmp_path / "b").read_bytes()
    assert path.read_bytes() != write_mlp(tmp_path / "a", version="2", seed=2).read_bytes()
    session = load(tmp_path / "a", "mlp", "1")
    assert session.signature == ((("X", "FP32", (-1, 30)),), (("Y", "FP32", (-1, 2)),))
    assert (session.batchable, session.inline_allowed) == (True, True)


def test_trees_are_what_figures_say(tmp_path: Path) -> None:
    """30 FP32 inputs, a label and two probabilities; the same bytes each time, other ones for another seed."""
    for needed in ("sklearn", "skl2onnx"):
        pytest.importorskip(needed, reason=f"{needed} (extra train) is not installed: make test installs it")
    path = write_trees(tmp_path / "a")
    assert path.read_bytes() == write_trees(tmp_path / "b").read_bytes()
    assert path.read_bytes() != write_trees(tmp_path / "a", version="2", seed=2).read_bytes()
    session = load(tmp_path / "a", "trees", "1")
    assert session.signature == (
        (("X", "FP32", (-1, 30)),),
        (("label", "INT64", (-1,)), ("probabilities", "FP32", (-1, 2))),
    )
    assert session.batchable
