"""Triton's model configuration, made from the model's own signature."""

from __future__ import annotations

import pytest

from bench.peers.adapters.onnxruntime_server import VARIABLE, OnnxruntimeServer
from bench.peers.adapters.triton import config_text
from bench.peers.onnx_file import is_batchable, ones, signature_of
from bench.peers.peer import Setting, Unavailable
from bench.peers.probes.small_models import write_identity, write_scale
from loaders.pbtxt import read
from loaders.signature import Signature, TensorSpec

ROWS = Signature(
    (TensorSpec("X", "FP32", (-1, 30)),), (TensorSpec("p", "FP32", (-1, 2)), TensorSpec("l", "INT64", (-1,)))
)
FIXED = Signature((TensorSpec("d", "FP32", (1, 3, 8, 8)),), (TensorSpec("s", "FP32", (1, 10)),))


def test_rows_are_batched() -> None:
    """A dynamic batcher, instances as workers, and the row's dimension left out."""
    text = config_text("m", ROWS, Setting(workers=2))
    assert "max_batch_size: 2048" in text
    assert "count: 2 kind: KIND_CPU" in text
    assert "dynamic_batching" in text
    assert 'name: "X" data_type: TYPE_FP32 dims: [ 30 ]' in text
    assert 'name: "l" data_type: TYPE_INT64 dims: [ 1 ]' in text


def test_batching_off_has_no_batcher() -> None:
    """Only the batcher is left out."""
    text = config_text("m", ROWS, Setting(batching=False))
    assert "dynamic_batching" not in text
    assert "max_batch_size: 2048" in text


def test_a_fixed_batch_is_not_batched() -> None:
    """All dimensions stand there, and no batcher."""
    text = config_text("m", FIXED, Setting())
    assert "max_batch_size: 0" in text
    assert "dims: [ 1, 3, 8, 8 ]" in text
    assert "dynamic_batching" not in text


def test_it_is_a_configuration() -> None:
    """It reads as pbtxt."""
    assert read(config_text("m", ROWS, Setting()))


def test_a_signature_is_read_from_a_file(tmp_path) -> None:
    """Names, datatypes and what varies; the smallest right request follows from it."""
    signature = signature_of(write_scale(tmp_path))
    assert signature.inputs == (TensorSpec("X", "FP32", (-1, 4)),)
    assert is_batchable(signature)
    assert ones(signature)["X"].shape == (1, 4)
    assert ones(signature_of(write_identity(tmp_path, "int64")))["INPUT0"].dtype == "int64"
    assert not is_batchable(FIXED)


def test_without_a_binary_it_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which says how to get it and how to name it; a path that is no program is named."""
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(Unavailable, match=r"README says.*--onnxruntime-server"):
        OnnxruntimeServer().prepare(print)
    monkeypatch.setenv(VARIABLE, "/nowhere/onnxruntime_server")
    with pytest.raises(Unavailable, match="/nowhere/onnxruntime_server is no program"):
        OnnxruntimeServer().prepare(print)
    monkeypatch.setenv(VARIABLE, "true")
    with pytest.raises(Unavailable, match="is something else"):
        OnnxruntimeServer().prepare(print)
