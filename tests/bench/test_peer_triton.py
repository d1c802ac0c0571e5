"""Triton's model configuration, made from the model's own signature."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.peers.adapters import triton
from bench.peers.adapters.onnxruntime_server import VARIABLE, OnnxruntimeServer
from bench.peers.adapters.triton import config_text
from bench.peers.onnx_file import is_batchable, ones, signature_of
from bench.peers.peer import Begin, Setting, Unavailable
from bench.peers.probes import features, loss
from bench.peers.probes.small_models import write_identity, write_scale
from loaders.pbtxt import read
from loaders.signature import Signature, TensorSpec
from tests.bench.fake_peer import FakePeer, Ways

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


def test_a_trace_is_asked_request_by_request_and_loaded_as_its_page_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held back when the log is what is asked would be our setting's loss; under load it is the example's."""
    monkeypatch.setattr(triton, "_distribution", lambda _: tmp_path)
    monkeypatch.setattr(triton._Served, "installed", None)
    for one_by_one, traces in ((True, 1), (False, triton.TRACES_A_FILE)):
        served = object.__new__(triton._Served)
        served.what = Begin(
            repository=tmp_path,
            model="m",
            home=tmp_path,
            setting=Setting(),
            audit=True,
            one_by_one=one_by_one,
        )
        served.home, served.models, served.port, served.side_port = tmp_path, tmp_path, 1, 2
        assert f"--trace-config=triton,log-frequency={traces}" in served.command()
    assert "log-frequency" in triton.Triton.audit


def test_the_log_is_asked_record_by_record() -> None:
    """The probes of the log and the loss probe ask for it, others have no log."""
    peer = FakePeer(Ways(log="file"))
    names = ("inputs of every prediction", "JSON")
    for name, wanted in zip(names, (True, False), strict=True):
        probes = [probe for probe in features.PROBES if probe.name == name]
        features.probe_all([peer], lambda _: None, probes=probes)
        assert peer.running[-1].what.one_by_one is wanted
    loss.measure_all([peer], lambda _: None, requests=10, outage_s=0.01)
    assert peer.running[-1].what.one_by_one


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
