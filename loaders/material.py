"""What a version's directory holds, read once: the model's bytes, digests, settings, golden rows, weights elsewhere.

repository -> **material** (bundle, model_config, graph, precheck) -> session. What was hashed is what runs: nothing is
read a second time by ONNX Runtime, which gets bytes alone, those of other files too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from loaders import precheck
from loaders.bundle import Bundle, open_regular, read_bundle, tree_sha256
from loaders.errors import (
    MemoryExceeded,
    ModelError,
    ModelInvalid,
    ModelUnreadable,
    VersionChanged,
    WeightsInvalid,
)
from loaders.golden import GOLDEN_MAX_BYTES
from loaders.graph import Model, parse
from loaders.memory import limit_bytes
from loaders.model_config import ModelConfig, read_config
from loaders.reference import read_reference
from loaders.repository import MODEL_FILE, model_path, version_directory
from loaders.triton import read_labels

MODEL_MAX_BYTES = 2 << 30
"""Protobuf ends there; larger models have their weights in other files."""


class Material(NamedTuple):
    """One version's files.

    `name` is the model file's, relative to `directory`.
    """

    model: str
    version: str
    directory: Path
    name: str
    content: bytes
    bundle: Bundle
    config: ModelConfig
    golden: bytes | None
    reference: bytes | None
    """Where inputs are held against it."""
    labels: dict[str, list[str]]

    @property
    def where(self) -> str:
        """What messages call the version."""
        return f"{self.model}/{self.version}"

    @property
    def file(self) -> str:
        """What messages call the model's file."""
        return f"{self.where}: {MODEL_FILE if self.name.endswith(MODEL_FILE) else self.name}"


def read(root: Path, model: str, version: str) -> Material:
    """Read and hash a version. Cost: all its bytes, about 1 GB/s; the GIL is free meanwhile.

    Raises:
        BundleInvalid, ModelConfigInvalid: bundle.toml or config.pbtxt is wrong.
        ModelUnreadable: a file is not there, or cannot be read.
        ModelInvalid, MemoryExceeded: the model's file is larger than any model, or all files than this host's memory.
    """
    where = f"{model}/{version}"
    directory = version_directory(root, model, version)
    try:
        # Before anything is read: a file may claim to be of any size, and costs nothing if it is all holes.
        _check_size(directory, where)
        config = read_config(directory.parent)
        path = model_path(directory, config.model_filename)
        name = path.relative_to(directory).as_posix()
        try:
            with open_regular(path, f"{where}/{name}") as file:
                size = os.fstat(file.fileno()).st_size
                if size > MODEL_MAX_BYTES:
                    msg = (
                        f"{where}/{name} is over {MODEL_MAX_BYTES >> 30} GiB; expected weights in other files"
                    )
                    raise ModelInvalid(msg)
                content = file.read(size)
        except OSError as exc:
            msg = f"{where}: {name}: {exc.strerror}"
            raise ModelUnreadable(msg) from exc
        known = {name: content}
        bundle = read_bundle(directory, known, config.content)
        golden = None
        if bundle.settings.golden is not None:
            golden = _golden(directory / bundle.settings.golden, f"{where}/{bundle.settings.golden}")
        reference = read_reference(directory, bundle)
    except OSError as exc:
        msg = f"{where}: its files cannot be read: {exc.strerror}"
        raise ModelUnreadable(msg) from exc
    labels = read_labels(directory.parent, config)
    return Material(model, version, directory, name, content, bundle, config, golden, reference, labels)


def size_bytes(directory: Path) -> int:
    """All files of a version's directory."""
    return sum(f.stat().st_size for f in directory.rglob("*") if f.is_file())


def _check_size(directory: Path, where: str) -> None:
    size, most = size_bytes(directory), limit_bytes()
    if size > most:
        msg = f"{where}: its files take {size >> 20:,} MiB, and this host has {most >> 20:,} MiB of memory"
        raise MemoryExceeded(msg)


def _golden(path: Path, where: str) -> bytes:
    with open_regular(path, where) as file:
        content = file.read(GOLDEN_MAX_BYTES + 1)
    if len(content) > GOLDEN_MAX_BYTES:
        msg = f"{where} is over {GOLDEN_MAX_BYTES >> 20} MiB"
        raise ModelInvalid(msg)
    return content


def look(material: Material) -> Model:
    """Look into the model's file and refuse what would harm.

    Raises:
        ModelInvalid: with what was found.
    """
    where = material.file
    precheck.check_format(material.content, where)
    try:
        model = parse(material.content)
    except (ValueError, RecursionError, OverflowError) as exc:
        msg = f"{where}: {str(exc)[:200]}"
        raise ModelInvalid(msg) from exc
    precheck.check(model, where)
    return model


def weights(material: Material, locations: Sequence[str]) -> dict[str, bytes]:
    """Bytes of the other files that hold weights, by the location that the model gives.

    Raises:
        WeightsInvalid: one lies outside of the version's directory, or is no plain file of its own.
        ModelUnreadable: one cannot be read.
        VersionChanged: they are not the files that were hashed.
    """
    if not locations:
        return {}
    base = (material.directory / material.name).parent
    found: dict[str, bytes] = {}
    known = {material.name: material.content}
    try:
        for location in locations:
            path = precheck.external_path(base, location, material.file)
            found[location] = _own(path, f"{material.file}: {location[:60]!r}")
            known[(base / location).relative_to(material.directory).as_posix()] = found[location]
        same = tree_sha256(material.directory, known) == material.bundle.tree_sha256
    except OSError as exc:
        msg = f"{material.where}: its files cannot be read: {exc.strerror}"
        raise ModelUnreadable(msg) from exc
    except ModelError:
        raise
    if not same:
        msg = f"{material.where}: its files changed while it was loaded: put them there whole, then load it again"
        raise VersionChanged(msg)
    return found


def _own(path: Path, what: str) -> bytes:
    """The bytes of a file that has one name; looked at once it is open, so that it cannot be another."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb") as file:  # noqa: PTH123  a descriptor
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            msg = f"{what} is no plain file of its own"
            raise WeightsInvalid(msg)
        return file.read()
