"""Bundles: what a version's directory says of itself (bundle.toml), and the digests that name it.

repository -> **bundle** -> session. The file and its keys are optional; an unknown key refuses the version.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from loaders.errors import BundleInvalid

BUNDLE_FILE = "bundle.toml"
BUNDLE_MAX_BYTES = 65_536
_KEY_DOTS_MAX = 64
"""A key of more parts costs its reader the square of them."""
MATURITY_MAX_S = 315_576_000
"""Ten years."""
_REASON_CHARS = 300
"""What a reason quotes of a file at most."""
NAME_CHARS_MAX = 256
_PLAIN = r"^[^\x00-\x1f\x7f-\x9f]*\Z"
Name = Annotated[str, Meta(max_length=NAME_CHARS_MAX, pattern=_PLAIN)]
"""What is shown to people, and stands in reasons: a control character could move their cursor."""


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class AuditSettings(_Section):
    """How this version's predictions are recorded; may raise what the gateway's settings say."""

    level: Literal["none", "spool", "fsync"] | None = None
    on_unavailable: Literal["fail", "degrade"] | None = None
    capture: Literal["hash", "full"] = "hash"
    """Of requests above the gateway's `audit.capture_max_bytes`: by hash, or whole."""


class LabelSettings(_Section):
    """What labels will come, and when they are complete."""

    kind: Literal["class", "value", "rank"] = "class"
    maturity_s: Annotated[int, Meta(ge=0, le=MATURITY_MAX_S)] = 86_400


class Redaction(_Section):
    """A feature that is not recorded as it came: not at all (drop), as a keyed hash by which equal values can be told,
    or as the number of its bucket."""

    input: Name
    feature: Name
    how: Literal["drop", "hash", "bucket"]
    edges: Annotated[tuple[float, ...], Meta(max_length=1000)] = ()
    """Of buckets: below the first is 0, from the last on their number."""


Policy = Literal["pass", "flag", "reject"]


class InputSettings(_Section):
    """Names of an input's columns, and what becomes of values that the version's reference never held."""

    features: tuple[Name, ...] = ()
    categorical: tuple[Name, ...] = ()
    policy: Policy = "pass"
    """Out of the reference: take no notice, flag the request in the log, or refuse it."""
    policies: dict[Name, Policy] = {}
    """By feature, where it differs."""
    range_slack: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    """How far beyond the reference's range counts as inside, as a share of the range's width."""


class Decision(_Section):
    """How an output becomes a decision."""

    column: Annotated[int, Meta(ge=0)] = 0
    threshold: float = 0.5


class OutputSettings(_Section):
    """What an output means."""

    kind: Literal["probability", "score", "value", "label", "rank"] = "value"
    classes: tuple[Name, ...] = ()
    decision: Decision | None = None


class BundleSettings(_Section):
    """bundle.toml."""

    schema: Literal[1] = 1
    owner: Name = ""
    tier: Literal["low", "medium", "high"] = "medium"
    task: Literal["binary", "multiclass", "regression", "ranking", "generic"] = "generic"
    card: str | None = None
    reference: str | None = None
    golden: str | None = None
    audit: AuditSettings = AuditSettings()
    labels: LabelSettings | None = None
    redact: tuple[Redaction, ...] = ()
    inputs: dict[Name, InputSettings] = {}
    outputs: dict[Name, OutputSettings] = {}


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """Settings and digests (hex) of one version.

    `tree_sha256` is over every file of the version's directory, by sorted relative name;
    `config_sha256` over bundle.toml and the model's config.pbtxt.
    """

    settings: BundleSettings
    tree_sha256: str
    config_sha256: str
    reference_sha256: str | None


def is_name(text: str) -> bool:
    """Whether a text can be a `Name`."""
    return len(text) <= NAME_CHARS_MAX and re.match(_PLAIN, text) is not None


def read_bundle(
    directory: Path, known: Mapping[str, bytes] | None = None, model_config: bytes | None = None
) -> Bundle:
    """Read and hash a version's directory. Cost: all its bytes, about 1 GB/s.

    Args:
        directory: <model>/<version>.
        known: content of files that were read already, by relative name: hashed as given.
        model_config: that of the model's config.pbtxt, if it was read already; empty where there is none.

    Raises:
        BundleInvalid: names the file, the key and what was expected.
        OSError: a file cannot be read.
    """
    content = dict(known or {})
    where = f"{directory.parent.name}/{directory.name}"
    text = _text(directory / BUNDLE_FILE, where)
    if text:
        content[BUNDLE_FILE] = text
    settings = _settings(text, where)
    _check_inputs(settings, where)
    for name in (settings.card, settings.reference, settings.golden):
        if name is not None:
            _check_named(directory, name, where)
    reference = None
    if settings.reference is not None:
        reference = _file_sha256(directory / settings.reference, f"{where}/{settings.reference}")
    config = hashlib.sha256(text + b"\0")
    if model_config is not None:
        config.update(model_config)
    else:
        config = _with_model_config(config, directory)
    return Bundle(
        settings=settings,
        tree_sha256=tree_sha256(directory, content),
        config_sha256=config.hexdigest(),
        reference_sha256=reference,
    )


def _with_model_config(config: Any, directory: Path) -> Any:
    with contextlib.suppress(FileNotFoundError):
        name = f"{directory.parent.name}/config.pbtxt"
        with open_regular(directory.parent / "config.pbtxt", name) as file:
            hashlib.file_digest(file, lambda: config)
    return config


def _settings(text: bytes, where: str) -> BundleSettings:
    # A file can be wrong in ways that its parser did not think of: nested too deep, numbers without end.
    try:
        if any(line.partition(b"=")[0].count(b".") > _KEY_DOTS_MAX for line in text.split(b"\n")):
            msg = f"a key of more than {_KEY_DOTS_MAX} parts"
            raise ValueError(msg)  # noqa: TRY301
        tree: dict[str, Any] = tomllib.loads(text.decode())
        return msgspec.convert(tree, BundleSettings)
    except (msgspec.ValidationError, ValueError, RecursionError, OverflowError) as exc:
        msg = f"{where}/{BUNDLE_FILE}: {str(exc)[:_REASON_CHARS]}"
        raise BundleInvalid(msg) from exc


def _check_inputs(settings: BundleSettings, where: str) -> None:
    for name, one in settings.inputs.items():
        for feature in (*one.policies, *one.categorical):
            if one.features and feature not in one.features:
                msg = f"{where}/{BUNDLE_FILE}: inputs.{name} has no feature {feature!r}; see its features"
                raise BundleInvalid(msg)


def _check_named(directory: Path, name: str, where: str) -> None:
    try:
        inside = (directory / name).resolve().is_relative_to(directory.resolve())
        there = (directory / name).is_file()
    except (ValueError, RuntimeError) as exc:
        # A null character; a loop of links.
        msg = f"{where}/{BUNDLE_FILE}: {name[:_REASON_CHARS]!r} is no file name"
        raise BundleInvalid(msg) from exc
    if not inside:
        msg = f"{where}/{BUNDLE_FILE}: {name!r} lies outside of the version's directory"
        raise BundleInvalid(msg)
    if not there:
        msg = f"{where}/{BUNDLE_FILE}: names {name!r}, which is not there"
        raise BundleInvalid(msg)


def _text(path: Path, where: str) -> bytes:
    try:
        with open_regular(path, f"{where}/{BUNDLE_FILE}") as file:
            text = file.read(BUNDLE_MAX_BYTES + 1)
    except FileNotFoundError:
        return b""
    if len(text) > BUNDLE_MAX_BYTES:
        msg = f"{where}/{BUNDLE_FILE}: more than {BUNDLE_MAX_BYTES} bytes; expected settings alone"
        raise BundleInvalid(msg)
    return text


def open_regular(path: Path, name: str) -> BufferedReader:
    """Open a file of a model for reading; never waits for a writer, as a named pipe would.

    Args:
        name: what messages call it.

    Raises:
        BundleInvalid: it is no regular file: a pipe, a device, a directory.
        OSError: it cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _irregular(name)
    return open(fd, "rb")  # noqa: PTH123  a descriptor


def _irregular(name: str) -> BundleInvalid:
    return BundleInvalid(f"{name[:_REASON_CHARS]} is no regular file; expected one, or a link to one")


def tree_sha256(directory: Path, known: Mapping[str, bytes] | None = None) -> str:
    """The digest over sorted relative names and digests of all files; `known` as in `read_bundle`.

    Raises:
        BundleInvalid: a pipe, a socket or a device is among them.
        OSError: a file cannot be read, or one that was read already is gone.
    """
    digest = hashlib.sha256()
    known = known or {}
    where = f"{directory.parent.name}/{directory.name}"
    files: dict[str, Path] = {}
    for path in directory.rglob("*"):
        name = path.relative_to(directory).as_posix()
        if _counts(path, f"{where}/{name}"):
            files[name] = path
    for name in known:
        if name not in files:
            # Moved away while it was read: the digest would name another version.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    for name, path in sorted(files.items()):
        if name in known:
            one = hashlib.sha256(known[name]).hexdigest()
        else:
            one = _file_sha256(path, f"{where}/{name}")
        # A name need not be text.
        digest.update(f"{name}\0{one}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _counts(path: Path, name: str) -> bool:
    """Whether it is a file; directories and links that lead nowhere are none."""
    if path.is_file():
        return True
    if path.is_fifo() or path.is_socket() or path.is_block_device() or path.is_char_device():
        raise _irregular(name)
    return False


def _file_sha256(path: Path, name: str) -> str:
    with open_regular(path, name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
