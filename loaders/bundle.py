"""Bundles: what a version's directory says of itself (bundle.toml), and the digests that name it.

repository -> **bundle** -> session. The file and its keys are optional; an unknown key refuses the version.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from loaders.errors import BundleInvalid

BUNDLE_FILE = "bundle.toml"


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class AuditSettings(_Section):
    """How this version's predictions are recorded; may raise the gateway's level."""

    level: Literal["none", "spool", "fsync"] | None = None
    on_unavailable: Literal["fail", "degrade"] | None = None


class LabelSettings(_Section):
    """What labels will come, and when they are complete."""

    kind: Literal["class", "value", "rank"] = "class"
    maturity_s: Annotated[int, Meta(ge=0)] = 86_400


class Redaction(_Section):
    """A cell that must not be recorded in the clear."""

    input: str
    feature: str
    how: Literal["drop", "hash", "bucket"]


class InputSettings(_Section):
    """Names of an input's columns."""

    features: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()


class Decision(_Section):
    """How an output becomes a decision."""

    column: Annotated[int, Meta(ge=0)] = 0
    threshold: float = 0.5


class OutputSettings(_Section):
    """What an output means."""

    kind: Literal["probability", "score", "value", "label", "rank"] = "value"
    classes: tuple[str, ...] = ()
    decision: Decision | None = None


class BundleSettings(_Section):
    """bundle.toml."""

    schema: Literal[1] = 1
    owner: str = ""
    tier: Literal["low", "medium", "high"] = "medium"
    task: Literal["binary", "multiclass", "regression", "ranking", "generic"] = "generic"
    card: str | None = None
    reference: str | None = None
    golden: str | None = None
    audit: AuditSettings = AuditSettings()
    labels: LabelSettings | None = None
    redact: tuple[Redaction, ...] = ()
    inputs: dict[str, InputSettings] = {}
    outputs: dict[str, OutputSettings] = {}


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """Settings and digests (hex) of one version.

    `tree_sha256` is over every file of the version's directory, by sorted relative name;
    `config_sha256` over bundle.toml and the model's config.pbtxt.
    """

    settings: BundleSettings
    tree_sha256: str
    config_sha256: str
    reference_sha256: str | None


def read_bundle(directory: Path, known: Mapping[str, bytes] | None = None) -> Bundle:
    """Read and hash a version's directory. Cost: all its bytes, about 1 GB/s.

    Args:
        directory: <model>/<version>.
        known: content of files that were read already, by relative name: hashed as given.

    Raises:
        BundleInvalid: names the file, the key and what was expected.
        OSError: a file cannot be read.
    """
    content = dict(known or {})
    where = f"{directory.parent.name}/{directory.name}"
    text = _bytes(directory / BUNDLE_FILE)
    if text:
        content[BUNDLE_FILE] = text
    try:
        tree: dict[str, Any] = tomllib.loads(text.decode())
        settings = msgspec.convert(tree, BundleSettings)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as exc:
        msg = f"{where}/{BUNDLE_FILE}: {exc}"
        raise BundleInvalid(msg) from exc
    base = directory.resolve()
    for name in (settings.card, settings.reference, settings.golden):
        if name is not None and not (directory / name).resolve().is_relative_to(base):
            msg = f"{where}/{BUNDLE_FILE}: {name!r} lies outside of the version's directory"
            raise BundleInvalid(msg)
        if name is not None and not (directory / name).is_file():
            msg = f"{where}/{BUNDLE_FILE}: names {name!r}, which is not there"
            raise BundleInvalid(msg)
    reference = None
    if settings.reference is not None:
        reference = _file_sha256(directory / settings.reference)
    config = hashlib.sha256(text + b"\0" + _bytes(directory.parent / "config.pbtxt"))
    return Bundle(
        settings=settings,
        tree_sha256=tree_sha256(directory, content),
        config_sha256=config.hexdigest(),
        reference_sha256=reference,
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def tree_sha256(directory: Path, known: Mapping[str, bytes] | None = None) -> str:
    """The digest over sorted relative names and digests of all files; `known` as in `read_bundle`.

    Raises:
        OSError: a file cannot be read, or one that was read already is gone.
    """
    digest = hashlib.sha256()
    known = known or {}
    files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    for name in known:
        if name not in files:
            # Moved away while it was read: the digest would name another version.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    for name, path in sorted(files.items()):
        if name in known:
            one = hashlib.sha256(known[name]).hexdigest()
        else:
            one = _file_sha256(path)
        digest.update(f"{name}\0{one}\n".encode())
    return digest.hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
