"""The models that benchmarks serve."""

from __future__ import annotations

from pathlib import Path

from bench.models import write_mlp
from loaders.session import load


def test_mlp_is_what_figures_say(tmp_path: Path) -> None:
    """30 FP32 inputs, two outputs, rows may share a run and go inline; the same bytes each time."""
    path = write_mlp(tmp_path / "a")
    assert path.read_bytes() == write_mlp(tmp_path / "b").read_bytes()
    assert path.read_bytes() != write_mlp(tmp_path / "a", version="2", seed=2).read_bytes()
    session = load(tmp_path / "a", "mlp", "1")
    assert session.signature == ((("X", "FP32", (-1, 30)),), (("Y", "FP32", (-1, 2)),))
    assert (session.batchable, session.inline_allowed) == (True, True)
