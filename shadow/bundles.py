"""What versions say of themselves, for readers of the log: bundle.toml and reference, held against the log's digest.

log (model, version, tree digest) -> **bundles** -> outputs, labels, drift. A record names the files that answered it;
meaning read from other files would be wrong without anyone seeing it. So whatever does not match is refused with a
reason, and the reader goes on without.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loaders.bundle import Bundle, BundleSettings, read_bundle
from loaders.errors import ModelError
from loaders.repository import MODEL_FILE, version_directory

_ARRAYS = {"scores": "f", "labels": "iub", "times_ns": "iu"}
"""What a reference must hold, and the kinds of numbers that are taken."""


REFERENCE_MAX_BYTES = 64 << 20
"""Of a reference file, and of the arrays that are read from it once they are inflated."""
SCORE_MAX = 1e100
"""Beyond it a score is none: its square is no number any more."""


class Reference(NamedTuple):
    """What a version did on the rows that it was accepted with; all of one length."""

    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    times_ns: NDArray[np.int64]


class Bundles:
    """Bundles of one repository, each version read once per digest asked for.

    Args:
        models: the repository.
        tell: called with the reason when a version's files turn out not to be what the log names.

    Threading: one thread. Cost: the first question about a version reads all its files, about 1 GB/s; later ones
    read nothing. A version that does not match is not looked at again until `forget`.
    """

    def __init__(self, models: Path, tell: Callable[[str], object] = lambda why: None) -> None:
        self._models = models
        self._tell = tell
        self._read: dict[tuple[str, str, str], Bundle | str] = {}
        self._references: dict[tuple[str, str, str], Reference | str] = {}

    def directory(self, model: str, version: str) -> Path:
        """Where a version lies, whether or not it is there."""
        return version_directory(self._models, model, version)

    def settings(self, model: str, version: str, tree_sha256: str | None) -> BundleSettings | None:
        """bundle.toml of the version that the log names; None when these are not its files (see `reason`)."""
        found = self._bundle(model, version, tree_sha256)
        return None if isinstance(found, str) else found.settings

    def reason(self, model: str, version: str, tree_sha256: str | None) -> str | None:
        """Why `settings` gives None, in words; None when it does not."""
        found = self._bundle(model, version, tree_sha256)
        return found if isinstance(found, str) else None

    def reference(self, model: str, version: str, tree_sha256: str | None) -> Reference | None:
        """The version's reference; None when it has none or a broken one (see `reference_reason`)."""
        found = self._reference(model, version, tree_sha256)
        return None if isinstance(found, str) else found

    def reference_reason(self, model: str, version: str, tree_sha256: str | None) -> str | None:
        """Why `reference` gives None, in words; None when it does not."""
        found = self._reference(model, version, tree_sha256)
        return found if isinstance(found, str) else None

    def forget(self) -> None:
        """Look at every version anew when it is asked for again."""
        self._read.clear()
        self._references.clear()

    def _bundle(self, model: str, version: str, tree_sha256: str | None) -> Bundle | str:
        key = (model, version, tree_sha256 or "")
        if key not in self._read:
            self._read[key] = found = self._load(*key)
            if isinstance(found, str) and tree_sha256:
                self._tell(found)
        return self._read[key]

    def _load(self, model: str, version: str, tree_sha256: str) -> Bundle | str:
        try:
            directory = self.directory(model, version)
            base = self._models.resolve()
            if not directory.resolve().is_relative_to(base) or not (directory / MODEL_FILE).exists():
                return f"{model}/{version} is not there"
            bundle = read_bundle(directory)
        except ModelError as exc:
            return str(exc)
        except OSError as exc:
            return f"{model}/{version} cannot be read: {exc.strerror}"
        except (ValueError, RecursionError, OverflowError) as exc:
            # Of a bundle.toml that nobody meant to be one, or a name that is no file's.
            return f"{model!r}/{version!r} cannot be read: {type(exc).__name__}: {exc}"
        if bundle.tree_sha256 != tree_sha256:
            return (
                f"{model}/{version}: files changed: the record names {tree_sha256[:12] or 'none'},"
                f" they are {bundle.tree_sha256[:12]} now"
            )
        return bundle

    def _reference(self, model: str, version: str, tree_sha256: str | None) -> Reference | str:
        key = (model, version, tree_sha256 or "")
        if key not in self._references:
            self._references[key] = self._load_reference(*key)
        return self._references[key]

    def _load_reference(self, model: str, version: str, tree_sha256: str) -> Reference | str:
        bundle = self._bundle(model, version, tree_sha256)
        if isinstance(bundle, str):
            return bundle
        name = bundle.settings.reference
        if name is None:
            return f"{model}/{version} has no reference: name one in bundle.toml"
        where = f"{model}/{version}/{name}"
        try:
            with (self.directory(model, version) / name).open("rb") as file:
                content = file.read(REFERENCE_MAX_BYTES + 1)
            if len(content) > REFERENCE_MAX_BYTES:
                return f"{where} is over {REFERENCE_MAX_BYTES >> 20} MiB; so much is read"
            if hashlib.sha256(content).hexdigest() != bundle.reference_sha256:
                return f"{where}: files changed while they were read"
            return read_reference(content)
        except OSError as exc:
            return f"{where} cannot be read: {exc.strerror}"
        except ValueError as exc:
            return f"{where}: {exc}"


def read_reference(content: bytes) -> Reference:
    """Arrays of a reference file; nothing in it is executed.

    Raises:
        ValueError: no .npz, an array missing, of another kind or length, too large, or pickled objects, or no score
            that is a number; says which.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            _check_size(file.zip)
            for name, kinds in _ARRAYS.items():
                if name not in file:
                    msg = f"has no array {name!r}; expected {', '.join(_ARRAYS)}"
                    raise ValueError(msg)
                arrays[name] = file[name]
                if arrays[name].ndim != 1 or arrays[name].dtype.kind not in kinds:
                    msg = f"array {name!r} is {arrays[name].dtype} with shape {arrays[name].shape}"
                    raise ValueError(msg)
    except ValueError:
        raise
    except Exception as exc:  # a file of others: zip, zlib and NumPy each fail in ways of their own
        msg = "not an .npz file that can be read"
        raise ValueError(msg) from exc
    if len({len(array) for array in arrays.values()}) != 1:
        sizes = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
        msg = f"its arrays differ in length: {sizes}"
        raise ValueError(msg)
    with np.errstate(over="ignore"):
        scores = arrays["scores"].astype(np.float64)
    if not (np.abs(scores) < SCORE_MAX).any():
        msg = f"none of its {len(scores)} scores is a finite number below {SCORE_MAX:g}"
        raise ValueError(msg)
    return Reference(
        scores,
        arrays["labels"].astype(np.int64),
        arrays["times_ns"].astype(np.int64),
    )


def _check_size(file: zipfile.ZipFile) -> None:
    """Before anything is inflated: few bytes may hold very many zeros."""
    read = [entry for entry in file.infolist() if entry.filename.removesuffix(".npy") in _ARRAYS]
    inflated = sum(entry.file_size for entry in read)
    if inflated > REFERENCE_MAX_BYTES:
        msg = f"its arrays inflate to {inflated >> 20} MiB; {REFERENCE_MAX_BYTES >> 20} are read"
        raise ValueError(msg)
