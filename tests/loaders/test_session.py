"""Loading real files: what is refused, what may share a run, what is predictable."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from loaders import graph, material
from loaders.errors import (
    BundleInvalid,
    ModelInvalid,
    ModelUnreadable,
    ProviderUnavailable,
    VersionChanged,
    WeightsInvalid,
)
from loaders.processor import processor
from loaders.session import load
from loaders.signature import Signature, TensorSpec
from tests.loaders import graphs


def test_loads_and_runs(tmp_path: Path) -> None:
    """A file alone is a model: signature, runtime, digests, cost, and an answer."""
    graphs.put(tmp_path, graphs.double())
    session = load(tmp_path, "m", "1")
    spec = ("FP32", (-1, 4))
    assert session.signature == Signature((TensorSpec("X", *spec),), (TensorSpec("Y", *spec),))
    assert (session.model, session.version, session.batchable, session.inline_allowed) == (
        "m",
        "1",
        True,
        True,
    )
    assert session.runtime == f"onnxruntime {onnxruntime.__version__} cpu x1 {processor()}"
    assert set(session.warm_cost_ns) == {1, 32}
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    assert np.array_equal(session.run({"X": x})[0], x + x)
    assert np.array_equal(session.run({"X": x}, ["Y"], session.new_run_options())[0], x + x)


@pytest.mark.parametrize(
    "make", [graphs.fixed, graphs.mixing, graphs.numbering, graphs.total, graphs.infecting]
)
def test_rows_that_must_stay_alone(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    """One fixed row, rows that see their company, place or a NaN, fewer rows out: not batchable, but served."""
    graphs.put(tmp_path, make())
    session = load(tmp_path, "m", "1")
    assert not session.batchable
    # Its cost follows the rows only where their number is fixed.
    assert session.inline_allowed == (make is graphs.fixed)
    assert session.run({"X": np.ones((1, 4), np.float32)})[0].shape == (1, 4)


def test_text_runs_and_is_batchable(tmp_path: Path) -> None:
    """BYTES go in as text and come out so."""
    graphs.put(tmp_path, graphs.echo_text())
    session = load(tmp_path, "m", "1")
    assert session.batchable
    assert session.signature.inputs[0].datatype == "BYTES"
    x = np.array([["a", "\u00e9\U0001f600"]], dtype=object)
    assert session.run({"X": x})[0].tolist() == x.tolist()


@pytest.mark.parametrize("wrapped", ["", "Choose"])
def test_control_flow_is_not_run_inline(tmp_path: Path, wrapped: str) -> None:
    """If, Loop and Scan make cost unpredictable, in a function of the model too."""
    content = graphs.choosing(wrapped)
    assert "If" in graph.parse(content).operators
    graphs.put(tmp_path, content)
    session = load(tmp_path, "m", "1")
    assert (session.inline_allowed, session.batchable) == (False, True)


def test_open_dimensions_are_not_run_inline(tmp_path: Path) -> None:
    """Rows of any length: their number does not tell the cost."""
    graphs.put(tmp_path, graphs.open_ended())
    session = load(tmp_path, "m", "1")
    assert (session.inline_allowed, session.batchable) == (False, True)


@pytest.mark.parametrize("operator", sorted(graph.CONTROL_FLOW))
def test_control_flow_is_found_at_any_depth(operator: str) -> None:
    """In a branch of a branch, too."""
    assert graph.parse(graphs.containing(operator)).operators == {"Wrap", operator}


@pytest.mark.parametrize("name", ["model.onnx_data", "weights", "model.data"])
def test_weights_in_another_file(tmp_path: Path, name: str) -> None:
    """External data load under any name, and are part of the version's digest."""
    directory = graphs.put(tmp_path, graphs.adding_weights(name))
    (directory / name).write_bytes(np.arange(4, dtype="<f4").tobytes())
    session = load(tmp_path, "m", "1")
    assert session.run({"X": np.ones((1, 4), np.float32)})[0].tolist() == [[1, 2, 3, 4]]
    (directory / name).write_bytes(bytes(16))
    assert load(tmp_path, "m", "1").bundle.tree_sha256 != session.bundle.tree_sha256


@pytest.mark.parametrize("location", ["../secret", "gone"])
def test_weights_that_are_not_there(tmp_path: Path, location: str) -> None:
    """Weights outside of the version, or missing, refuse it in one line without a path."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "secret").write_bytes(bytes(16))
    graphs.put(tmp_path, graphs.adding_weights(location))
    with pytest.raises(WeightsInvalid, match=r"^m/1: ") as wrong:
        load(tmp_path, "m", "1")
    assert str(tmp_path) not in str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_files_that_change_while_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that were written to between hash and load refuse the version: it is not what its digest says."""
    weights = graphs.put(tmp_path, graphs.adding_weights("w")) / "w"
    weights.write_bytes(bytes(16))
    hashed = material.read_bundle

    def late(*args, **kwargs):  # type: ignore[no-untyped-def]
        found = hashed(*args, **kwargs)
        weights.write_bytes(bytes(15) + b"x")
        return found

    monkeypatch.setattr(material, "read_bundle", late)
    with pytest.raises(VersionChanged, match=r"^m/1: its files changed while it was loaded"):
        load(tmp_path, "m", "1")


def test_model_that_changes_while_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was hashed is what runs, whatever is written to the file meanwhile."""
    path = graphs.put(tmp_path, graphs.double()) / "model.onnx"
    before = load(tmp_path, "m", "1").bundle
    hashed = material.read_bundle

    def late(*args, **kwargs):  # type: ignore[no-untyped-def]
        path.write_bytes(graphs.mixing())
        return hashed(*args, **kwargs)

    monkeypatch.setattr(material, "read_bundle", late)
    session = load(tmp_path, "m", "1")
    assert session.bundle == before
    assert session.run({"X": np.ones((1, 4), np.float32)})[0].tolist() == [[2, 2, 2, 2]]


def test_file_is_not_kept_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's wrapper keeps the file's bytes; it goes once the model is loaded."""
    kept: list[weakref.ref[object]] = []
    opened = onnxruntime.InferenceSession

    def noted(*args, **kwargs):  # type: ignore[no-untyped-def]
        made = opened(*args, **kwargs)
        kept.append(weakref.ref(made))
        return made

    monkeypatch.setattr(onnxruntime, "InferenceSession", noted)
    graphs.put(tmp_path, graphs.double())
    session = load(tmp_path, "m", "1")
    gc.collect()
    assert kept[0]() is None
    assert session.run({"X": np.ones((1, 4), np.float32)})[0].tolist() == [[2, 2, 2, 2]]


def test_operators_are_found_in_branches() -> None:
    """Subgraphs are looked through; without control flow there is none."""
    assert graph.parse(graphs.choosing()).operators == {"If", "Add", "Identity"}
    assert not graph.parse(graphs.mixing()).operators & graph.CONTROL_FLOW


@pytest.mark.parametrize(
    "content",
    [b"\xff" * 64, b"no model at all", b"", graphs.double()[:-40], b"version https://git-lfs.example/spec\n"],
    ids=["noise", "text", "empty", "cut", "pointer"],
)
def test_corrupt_file(tmp_path: Path, content: bytes) -> None:
    """Bytes that are no model are one line that names model and file, never a path."""
    graphs.put(tmp_path, content)
    with pytest.raises(ModelInvalid, match=r"^m/1: .*model\.onnx") as wrong:
        load(tmp_path, "m", "1")
    assert "\n" not in str(wrong.value)
    assert str(tmp_path) not in str(wrong.value)


def test_missing_file(tmp_path: Path) -> None:
    """A version whose file is gone by now says so; it may come back."""
    (graphs.put(tmp_path, b"") / "model.onnx").unlink()
    with pytest.raises(ModelUnreadable, match=r"m/1: model\.onnx: No such file") as wrong:
        load(tmp_path, "m", "1")
    assert wrong.value.retryable


def test_moved_away_while_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that goes away between the model and its bundle is unreadable, not one with other settings."""
    directory = graphs.put(tmp_path, graphs.double(), bundle="tier = 'high'")
    hashed = material.read_bundle

    def late(*args, **kwargs):  # type: ignore[no-untyped-def]
        directory.rename(tmp_path / "away")
        return hashed(*args, **kwargs)

    monkeypatch.setattr(material, "read_bundle", late)
    with pytest.raises(ModelUnreadable, match=r"^m/1: its files cannot be read: No such file") as wrong:
        load(tmp_path, "m", "1")
    assert str(tmp_path) not in str(wrong.value)


def test_datatype_that_is_not_served(tmp_path: Path) -> None:
    """Refused with the tensor's name and type."""
    graphs.put(tmp_path, graphs.short_floats())
    with pytest.raises(ModelInvalid, match=r"m/1: input 'X' is tensor\(bfloat16\), which is not served"):
        load(tmp_path, "m", "1")


@pytest.mark.parametrize("name", ["Y\x1b[2J", "Y\x9b", "Y" * 257])
def test_name_that_cannot_be_shown(tmp_path: Path, name: str) -> None:
    """An output's name stands in reasons of rollbacks: one that these cannot hold would keep its version in traffic."""
    graphs.put(tmp_path, graphs.double(name))
    with pytest.raises(
        ModelInvalid, match=r"m/1: output 'Y.* cannot be shown: expected a name of at most 256"
    ):
        load(tmp_path, "m", "1")


def test_bad_bundle_refuses_before_the_model(tmp_path: Path) -> None:
    """A wrong bundle.toml refuses the version."""
    graphs.put(tmp_path, graphs.double(), bundle="tire = 'low'")
    with pytest.raises(BundleInvalid, match="tire"):
        load(tmp_path, "m", "1")


def test_provider_that_this_build_lacks(tmp_path: Path) -> None:
    """Named, beside those there are."""
    graphs.put(tmp_path, graphs.double())
    with pytest.raises(ProviderUnavailable, match=r"'AbacusExecutionProvider'.*CPUExecutionProvider"):
        load(tmp_path, "m", "1", providers=["AbacusExecutionProvider"])


@pytest.mark.parametrize("content", [b"\x3a", b"\x3a\x7f\x01", b"\x3b", b"\x80" * 12], ids=lambda c: c.hex())
def test_structure_that_is_none(content: bytes) -> None:
    """Cut or odd bytes end the look into a file, quickly and as an error of their own."""
    with pytest.raises(ValueError, match="not an ONNX file"):
        graph.parse(content)
