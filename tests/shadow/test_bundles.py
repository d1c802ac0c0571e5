"""Bundles for readers of the log: only files that the record names give meaning to it."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders.bundle import tree_sha256
from shadow import bundles as bundles_module
from shadow.bundles import REFERENCE_MAX_BYTES, Bundles, read_reference


def npz(**arrays: Any) -> bytes:
    """A reference file's bytes."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


GOOD = {"scores": np.float32([0.5, 0.25]), "labels": np.int64([1, 0]), "times_ns": np.int64([7, 8])}


def write_version(models: Path, text: str = "", reference: bytes | None = None) -> str:
    """flights/2 with these files; returns its digest."""
    directory = models / "flights" / "2"
    directory.mkdir(parents=True)
    (directory / "model.onnx").write_bytes(b"graph")
    if reference is not None:
        (directory / "reference.npz").write_bytes(reference)
        text += '\nreference = "reference.npz"\n'
    (directory / "bundle.toml").write_text(text)
    return tree_sha256(directory)


def test_the_records_files_are_read_once(tmp_path: Path):
    """Settings of the digest that the log names; the disk is asked once."""
    tree = write_version(tmp_path, 'task = "binary"')
    bundles = Bundles(tmp_path)
    found = bundles.settings("flights", "2", tree)
    assert found is not None
    assert found.task == "binary"
    assert bundles.reason("flights", "2", tree) is None
    (tmp_path / "flights" / "2" / "bundle.toml").write_text('task = "regression"')
    assert bundles.settings("flights", "2", tree) is found
    bundles.forget()
    assert bundles.settings("flights", "2", tree) is None


@pytest.mark.parametrize(
    ("model", "version", "tree", "says"),
    [
        ("flights", "2", "ab" * 32, "files changed: the record names abababababab"),
        ("flights", "2", None, "files changed: the record names none"),
        ("flights", "9", "ab" * 32, "flights/9 is not there"),
        ("..", "2", "ab" * 32, "is not there"),
    ],
)
def test_what_does_not_match_is_refused_with_a_reason(
    tmp_path: Path, model: str, version: str, tree: str | None, says: str
):
    """Other files, no digest, no directory, and a name that leads out of the repository."""
    outside = tmp_path / "2"
    outside.mkdir()
    (outside / "model.onnx").write_bytes(b"graph")
    models = tmp_path / "models"
    write_version(models)
    bundles = Bundles(models)
    assert bundles.settings(model, version, tree) is None
    assert says in (bundles.reason(model, version, tree) or "")
    assert bundles.reference(model, version, tree) is None
    assert says in (bundles.reference_reason(model, version, tree) or "")


@pytest.mark.parametrize(
    "text",
    ['reference = "\\u0000"', "a = " + "[" * 50_000, "seed = 0x" + "f" * 5000, "times = 9999-99-99T99:99:99"],
    ids=["nul", "nested", "large number", "no date"],
)
def test_what_nobody_meant_to_be_a_bundle(tmp_path: Path, text: str):
    """Files edited after the fact: a reason, whatever the parser makes of them."""
    tree = write_version(tmp_path)
    (tmp_path / "flights" / "2" / "bundle.toml").write_text(text)
    bundles = Bundles(tmp_path)
    assert bundles.settings("flights", "2", tree) is None
    assert bundles.reason("flights", "2", tree)
    assert bundles.reference("flights", "2", tree) is None


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "../../etc"])
def test_a_name_that_is_no_directory_s(tmp_path: Path, name: str):
    """Of a model or a version: a reason."""
    bundles = Bundles(tmp_path)
    for model, version in ((name, "1"), ("flights", name)):
        assert bundles.settings(model, version, "ab" * 32) is None
        assert bundles.reason(model, version, "ab" * 32)


def test_a_broken_bundle_says_what_is_wrong(tmp_path: Path):
    """The reader goes on; the reason names file and key."""
    tree = write_version(tmp_path, "tasks = 1")
    assert "flights/2/bundle.toml" in (Bundles(tmp_path).reason("flights", "2", tree) or "")


def test_a_reference_is_read(tmp_path: Path):
    """Three arrays of one length, in the types that statistics take."""
    tree = write_version(tmp_path, reference=npz(rows=np.zeros((2, 3), np.float32), **GOOD))
    found = Bundles(tmp_path).reference("flights", "2", tree)
    assert found is not None
    assert (found.scores.tolist(), found.labels.tolist(), found.times_ns.tolist()) == (
        [0.5, 0.25],
        [1, 0],
        [7, 8],
    )
    assert [array.dtype.name for array in found] == ["float64", "int64", "int64"]


def test_no_reference_says_how_to_name_one(tmp_path: Path):
    """A version without one is no mistake, and the reason says so."""
    tree = write_version(tmp_path)
    assert "name one in bundle.toml" in (Bundles(tmp_path).reference_reason("flights", "2", tree) or "")


class Payload:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a reference was executed",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"not a zip", "npz|pickle"),
        (npz(**GOOD)[:-40], "npz"),
        (npz(scores=np.float32([1])), "has no array 'labels'"),
        (npz(**{**GOOD, "labels": np.array([Payload(), Payload()], dtype=object)}), "allow_pickle"),
        (npz(**{**GOOD, "labels": np.array(["a", "b"])}), "'labels' is <U1"),
        (npz(**{**GOOD, "scores": np.zeros((2, 2), np.float32)}), "'scores' is float32 with shape"),
        (npz(**{**GOOD, "times_ns": np.int64([1])}), "differ in length: scores 2, labels 2, times_ns 1"),
        (npz(**{**GOOD, "scores": np.float64([np.nan, 1e101])}), "none of its 2 scores"),
        (npz(**{**GOOD, "scores": np.full(2, 1e300, np.longdouble) * np.longdouble(1e30)}), "none of its 2"),
        (npz(scores=np.float32([]), labels=np.int64([]), times_ns=np.int64([])), "none of its 0 scores"),
    ],
)
def test_a_broken_reference_is_refused(tmp_path: Path, content: bytes, says: str):
    """Whatever is in the file: nothing is executed, and the reason says what was found."""
    with pytest.raises(ValueError, match=says):
        read_reference(content)
    tree = write_version(tmp_path, reference=content)
    bundles = Bundles(tmp_path)
    assert bundles.reference("flights", "2", tree) is None
    assert "flights/2/reference.npz: " in (bundles.reference_reason("flights", "2", tree) or "")


def test_few_bytes_that_inflate_to_many(tmp_path: Path):
    """Told by what the file says of itself, before anything is inflated; rows that nobody reads do not count."""
    zeros = np.zeros(REFERENCE_MAX_BYTES // 8 + 1)
    file = io.BytesIO()
    np.savez_compressed(file, **{**GOOD, "scores": zeros})
    assert len(file.getvalue()) < 1 << 20
    tracemalloc.start()
    with pytest.raises(ValueError, match="inflate to 64 MiB"):
        read_reference(file.getvalue())
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()
    file = io.BytesIO()
    np.savez_compressed(file, **GOOD, rows=zeros)
    assert read_reference(file.getvalue()).scores.tolist() == [0.5, 0.25]


def test_a_reference_of_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No more is read than a reference may have."""
    monkeypatch.setattr(bundles_module, "REFERENCE_MAX_BYTES", 1000)
    tree = write_version(tmp_path, reference=npz(**GOOD, rows=np.zeros(1000)))
    bundles = Bundles(tmp_path)
    assert bundles.reference("flights", "2", tree) is None
    assert "flights/2/reference.npz is over" in (bundles.reference_reason("flights", "2", tree) or "")


def test_what_cannot_be_read_is_told_once(tmp_path: Path):
    """A reader that goes on without a bundle says so, once; a version that nobody has answered with yet is no news."""
    told: list[str] = []
    tree = write_version(tmp_path)
    bundles = Bundles(tmp_path, told.append)
    assert bundles.settings("flights", "2", tree) is not None
    bundles.settings("flights", "2", "")
    assert told == []
    (tmp_path / "flights" / "2" / "bundle.toml").write_bytes(b"\xff")
    bundles.forget()
    for _ in range(3):
        assert bundles.settings("flights", "2", tree) is None
    assert len(told) == 1
    assert "flights/2/bundle.toml" in told[0]
