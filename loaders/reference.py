"""Reference profiles: what each feature of a version's inputs held in the rows that it was accepted with.

bundle -> **reference** -> gateway.validation, `tidegate model profile`. Read from the bundle's reference file: an .npz
with an array `rows` [rows, features] for a version that describes one input, or `rows.NAME` for each of several.
Numbers for numeric inputs, text (NumPy's `U`) for BYTES. Nothing in the file is executed.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from loaders.bundle import BUNDLE_FILE, Bundle, BundleSettings, InputSettings, open_regular
from loaders.errors import BundleInvalid, VersionChanged
from loaders.signature import Signature, TensorSpec

REFERENCE_MAX_BYTES = 64 << 20
"""Of the file, and of its rows once they are inflated."""
ROWS = "rows"


class FeatureProfile(msgspec.Struct, frozen=True):
    """What the reference held in one feature; text has neither bounds nor missing values."""

    name: str
    minimum: float | int | None
    """None: text, or no value at all."""
    maximum: float | int | None
    has_missing: bool
    """NaN was among its values."""
    categories: tuple[float | int | str, ...] | None
    """Every value, in order; None for a feature that is no category."""


class InputProfile(msgspec.Struct, frozen=True):
    """The features of one input, in the order of its columns."""

    name: str
    kind: str
    """NumPy's letter for the kind of values: f, i, u, b or U."""
    item_bytes: int
    rows: int
    features: tuple[FeatureProfile, ...]


class Profile(msgspec.Struct, frozen=True):
    """What a version's inputs held, by input."""

    inputs: dict[str, InputProfile]


def is_checked(settings: InputSettings) -> bool:
    """Whether any feature of an input has another policy than `pass`."""
    return settings.policy != "pass" or any(policy != "pass" for policy in settings.policies.values())


def checks_inputs(settings: BundleSettings) -> bool:
    """Whether any feature of a version has another policy than `pass`."""
    return any(map(is_checked, settings.inputs.values()))


def read_profile(directory: Path, settings: BundleSettings) -> Profile:
    """The profile of every input that bundle.toml describes.

    Args:
        directory: <model>/<version>.

    Raises:
        BundleInvalid: no reference, or one that does not hold what the inputs need; says what.
        OSError: it cannot be read.
    """
    where = f"{directory.parent.name}/{directory.name}"
    return _profile(_read(directory, settings, where), settings, f"{where}/{settings.reference}")


def read_reference(directory: Path, bundle: Bundle) -> bytes | None:
    """The reference's bytes, where inputs are held against it; None where every policy is `pass`.

    Raises:
        BundleInvalid: there is no reference, or too large a one.
        VersionChanged: the file is not the one that was hashed.
        OSError: it cannot be read.
    """
    if not checks_inputs(bundle.settings):
        return None
    where = f"{directory.parent.name}/{directory.name}"
    content = _read(directory, bundle.settings, where)
    if hashlib.sha256(content).hexdigest() != bundle.reference_sha256:
        msg = (
            f"{where}/{bundle.settings.reference}: changed while the version was loaded:"
            " put its files there whole, then load it again"
        )
        raise VersionChanged(msg)
    return content


def checked_profile(
    content: bytes | None, settings: BundleSettings, signature: Signature, where: str
) -> Profile | None:
    """The profile that a version's inputs are held against; None where there is nothing to hold. Reads no file.

    Args:
        content: what `read_reference` gave.
        where: what messages call the version.

    Raises:
        BundleInvalid: what bundle.toml and reference say does not fit the model.
    """
    if content is None:
        return None
    profile = _profile(content, settings, f"{where}/{settings.reference}")
    specs = {spec.name: spec for spec in signature.inputs}
    for name, one in settings.inputs.items():
        if is_checked(one):
            wrong = _misfit(one, profile.inputs[name], specs.get(name))
            if wrong:
                msg = f"{where}/{BUNDLE_FILE}: inputs.{name}: {wrong}"
                raise BundleInvalid(msg)
    return profile


def _read(directory: Path, settings: BundleSettings, where: str) -> bytes:
    if settings.reference is None:
        msg = f'{where}/{BUNDLE_FILE}: has no reference; expected reference = "reference.npz", to hold inputs against'
        raise BundleInvalid(msg)
    named = f"{where}/{settings.reference}"
    with open_regular(directory / settings.reference, named) as file:
        content = file.read(REFERENCE_MAX_BYTES + 1)
    if len(content) > REFERENCE_MAX_BYTES:
        msg = f"{named}: over {REFERENCE_MAX_BYTES >> 20} MiB; so much is read"
        raise BundleInvalid(msg)
    return content


def _profile(content: bytes, settings: BundleSettings, named: str) -> Profile:
    wanted = settings.inputs
    arrays = _arrays(content, {f"{ROWS}.{name}" for name in wanted} | {ROWS}, named)
    profiles = {}
    for name, one in wanted.items():
        array = arrays.get(f"{ROWS}.{name}")
        if array is None and len(wanted) == 1:
            array = arrays.get(ROWS)
        if array is None:
            expected = f"{ROWS!r}" if len(wanted) == 1 else f"'{ROWS}.{name}'"
            msg = f"{named}: has no array {expected}; expected the rows of input {name!r}"
            raise BundleInvalid(msg)
        profiles[name] = _input_profile(name, one, array, named)
    return Profile(profiles)


def _misfit(settings: InputSettings, profile: InputProfile, spec: TensorSpec | None) -> str | None:
    """Why an input cannot be held against its reference; None where it can."""
    if spec is None:
        return "the model has no such input"
    found = len(profile.features)
    width = spec.shape[-1] if len(spec.shape) > 1 else 1
    if width not in (-1, found):
        return f"the reference has {found} features, the model takes {width}"
    if (spec.datatype == "BYTES") != (profile.kind == "U"):
        return f"the reference holds {_KINDS[profile.kind]}, the model takes {spec.datatype}"
    names = {feature.name for feature in profile.features}
    unknown = [name for name in settings.policies if name not in names]
    return f"has a policy for {unknown[0]!r}, which is none of its features" if unknown else None


_KINDS = {"f": "numbers", "i": "integers", "u": "integers", "b": "booleans", "U": "text"}


def _arrays(content: bytes, names: set[str], named: str) -> dict[str, NDArray[Any]]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            _check_size(file.zip, names, named)
            return {name: file[name] for name in names if name in file}
    except BundleInvalid:
        raise
    except Exception as exc:  # a file of others: zip, zlib and NumPy each fail in ways of their own
        msg = f"{named}: not an .npz file that can be read: expected one without pickled objects"
        raise BundleInvalid(msg) from exc


def _check_size(file: zipfile.ZipFile, names: set[str], named: str) -> None:
    """Before anything is inflated: few bytes may hold very many zeros."""
    inflated = sum(e.file_size for e in file.infolist() if e.filename.removesuffix(".npy") in names)
    if inflated > REFERENCE_MAX_BYTES:
        msg = f"{named}: its rows inflate to {inflated >> 20} MiB; {REFERENCE_MAX_BYTES >> 20} are read"
        raise BundleInvalid(msg)


def _input_profile(name: str, settings: InputSettings, array: NDArray[Any], named: str) -> InputProfile:
    if array.ndim == 1:
        array = array.reshape(-1, 1)
    columns = array.shape[1] if array.ndim == 2 else 0
    features = settings.features or ((name,) if columns == 1 else tuple(map(str, range(columns))))
    if columns != len(features) or not array.size or array.dtype.kind not in _KINDS:
        expected = len(features) or "features"
        msg = (
            f"{named}: the rows of input {name!r} are {array.dtype} with shape {list(array.shape)};"
            f" expected numbers or text with shape [rows, {expected}]"
        )
        raise BundleInvalid(msg)
    profiles = tuple(
        _feature(
            feature, array[:, index], is_category=feature in settings.categorical or array.dtype.kind == "U"
        )
        for index, feature in enumerate(features)
    )
    return InputProfile(name, array.dtype.kind, array.dtype.itemsize, len(array), profiles)


def _feature(name: str, column: NDArray[Any], *, is_category: bool) -> FeatureProfile:
    has_missing = False
    if column.dtype.kind == "f":
        missing = np.isnan(column)
        has_missing, column = bool(missing.any()), column[~missing]
    categories = tuple(np.unique(column).tolist()) if is_category else None
    if column.dtype.kind == "U" or not len(column):
        return FeatureProfile(name, None, None, has_missing, categories)
    return FeatureProfile(name, column.min().item(), column.max().item(), has_missing, categories)
