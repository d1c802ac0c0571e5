"""Reference profiles: what a version's own rows held, by feature; whatever the file is, nothing is executed."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from loaders.bundle import Bundle, BundleSettings, InputSettings, read_bundle
from loaders.errors import BundleInvalid, VersionChanged
from loaders.reference import FeatureProfile, Profile, checked_profile, read_profile, read_reference
from loaders.signature import Signature, TensorSpec

NAN = float("nan")
ROWS = np.array([[1, 7, NAN], [3, 2, 0.5], [2, 7, 0.25]], dtype=np.float32)
INPUTS = {"X": InputSettings(features=("a", "b", "c"), categorical=("b",), policy="flag")}
MODEL = Signature((TensorSpec("X", "FP32", (-1, 3)),), ())


def version(tmp_path: Path, **arrays: Any) -> Path:
    """A version's directory with such a reference."""
    directory = tmp_path / "m" / "1"
    directory.mkdir(parents=True, exist_ok=True)
    np.savez(directory / "reference.npz", **arrays)
    return directory


def settings(**inputs: InputSettings) -> BundleSettings:
    """A bundle that names the reference."""
    return BundleSettings(reference="reference.npz", inputs=inputs or INPUTS)


def checked(directory: Path, bundle: Bundle, signature: Signature = MODEL) -> Profile | None:
    """What a load finds: the file read, then held against the model."""
    return checked_profile(read_reference(directory, bundle), bundle.settings, signature, "m/1")


def test_a_feature_is_its_range_its_missing_and_its_categories(tmp_path: Path) -> None:
    """What is no number counts for neither range nor categories."""
    found = read_profile(version(tmp_path, rows=ROWS), settings()).inputs["X"]
    assert (found.rows, found.kind, found.item_bytes) == (3, "f", 4)
    assert found.features == (
        FeatureProfile("a", 1.0, 3.0, False, None),
        FeatureProfile("b", 2.0, 7.0, False, (2.0, 7.0)),
        FeatureProfile("c", 0.25, 0.5, True, None),
    )


def test_a_feature_without_any_value(tmp_path: Path) -> None:
    """Nothing is known of it but that it misses."""
    found = read_profile(version(tmp_path, rows=ROWS[:1, 2:]), settings(X=InputSettings())).inputs["X"]
    assert found.features == (FeatureProfile("X", None, None, True, None),)


def test_several_inputs_have_rows_of_their_own(tmp_path: Path) -> None:
    """Text is categories; columns that nobody named have their number as name."""
    directory = version(
        tmp_path, **{"rows.n": np.array([[1, 2], [3, 4]]), "rows.t": np.array(["x", "é", "x"])}
    )
    found = read_profile(directory, settings(n=InputSettings(), t=InputSettings())).inputs
    assert [f.name for f in found["n"].features] == ["0", "1"]
    assert found["t"].features == (FeatureProfile("t", None, None, False, ("x", "é")),)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"scores": ROWS}, "no array 'rows'"),
        ({"rows": ROWS[:, :2]}, r"shape \[3, 2\]; expected .* \[rows, 3\]"),
        ({"rows": ROWS[:0]}, r"shape \[0, 3\]"),
        ({"rows": ROWS.astype(complex)}, "complex"),
        ({"rows": np.array([[1, "x", None]], dtype=object)}, "pickled"),
    ],
)
def test_a_reference_of_another_form(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    """Named by model, version and file, with what was expected; a pickle is not opened."""
    with pytest.raises(BundleInvalid, match=f"^m/1/reference.npz: .*{says}"):
        read_profile(version(tmp_path, **arrays), settings())


def test_a_reference_that_inflates(tmp_path: Path) -> None:
    """Few bytes that hold very many zeros are refused before they are unpacked."""
    directory = version(tmp_path)
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<f4", "fortran_order": False, "shape": (1 << 25, 3)}
    )
    with zipfile.ZipFile(directory / "reference.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("rows.npy", head.getvalue() + bytes(80 << 20))
    with pytest.raises(BundleInvalid, match="inflate to 80 MiB; 64 are read"):
        read_profile(directory, settings())


@pytest.mark.parametrize("content", [b"", b"PK\3\4", pickle.dumps([1]), b"\x93NUMPY"])
def test_what_is_no_reference(tmp_path: Path, content: bytes) -> None:
    """Whatever the bytes are, one reason says so."""
    directory = version(tmp_path)
    (directory / "reference.npz").write_bytes(content)
    with pytest.raises(BundleInvalid, match=r"not an \.npz file"):
        read_profile(directory, settings())


@pytest.mark.parametrize(
    ("inputs", "signature", "says"),
    [
        ({"Y": InputSettings(policy="flag")}, MODEL, "inputs.Y: the model has no such input"),
        (INPUTS, Signature((TensorSpec("X", "FP32", (-1, 4)),), ()), "has 3 features, the model takes 4"),
        (INPUTS, Signature((TensorSpec("X", "BYTES", (-1, 3)),), ()), "holds numbers, the model takes BYTES"),
        ({"X": InputSettings(policies={"9": "flag"})}, MODEL, "a policy for '9'"),
    ],
)
def test_a_reference_that_does_not_fit_the_model(
    tmp_path: Path, inputs: dict[str, InputSettings], signature: Signature, says: str
) -> None:
    """The version is refused at load, not its requests later."""
    directory = version(tmp_path, rows=ROWS)
    (directory / "bundle.toml").write_text('reference = "reference.npz"')
    bundle = msgspec.structs.replace(read_bundle(directory), settings=settings(**inputs))
    with pytest.raises(BundleInvalid, match=says):
        checked(directory, bundle, signature)


def test_policies_decide_whether_it_is_read(tmp_path: Path) -> None:
    """All pass: the file is not looked at. One other: it must be there, and the one that was hashed."""
    directory = version(tmp_path, rows=ROWS)
    text = 'reference = "reference.npz"\n[inputs.X]\nfeatures = ["a", "b", "c"]\n'
    (directory / "bundle.toml").write_text(text)
    assert checked(directory, read_bundle(directory)) is None
    (directory / "bundle.toml").write_text(text + '[inputs.X.policies]\nb = "reject"\n')
    bundle = read_bundle(directory)
    assert checked(directory, bundle) is not None
    np.savez(directory / "reference.npz", rows=ROWS + 1)
    with pytest.raises(VersionChanged):
        checked(directory, bundle)
    (directory / "reference.npz").unlink()
    with pytest.raises(FileNotFoundError):
        checked(directory, bundle)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[inputs.X]\nfeatures = ["a"]\npolicies = { b = "flag" }', "inputs.X has no feature 'b'"),
        ('[inputs.X]\nfeatures = ["a"]\ncategorical = ["b"]', "inputs.X has no feature 'b'"),
        ('[inputs.X]\npolicy = "drop"', "policy"),
        ("[inputs.X]\nrange_slack = -1", "range_slack"),
    ],
)
def test_policies_that_mean_nothing(tmp_path: Path, text: str, says: str) -> None:
    """A feature that is not there, a word that is no policy: the version is refused with its key."""
    directory = version(tmp_path)
    (directory / "bundle.toml").write_text(text)
    with pytest.raises(BundleInvalid, match=says):
        read_bundle(directory)


def test_a_policy_needs_a_reference(tmp_path: Path) -> None:
    """Nothing to hold inputs against is said at load."""
    directory = version(tmp_path)
    (directory / "bundle.toml").write_text('[inputs.X]\npolicy = "flag"')
    with pytest.raises(BundleInvalid, match="has no reference"):
        checked(directory, read_bundle(directory))
