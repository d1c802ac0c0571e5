"""The repository: which models and versions lie in a directory, in Triton's layout.

    <root>/<model>/<version>/model.onnx        version: a positive integer

First step of loading; next: `bundle`. What does not fit is reported as a problem, one line each, and never
stops the rest.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from loaders.errors import RepositoryMissing

MODEL_FILE = "model.onnx"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


class Found(NamedTuple):
    """Models with their versions in ascending order, and what was passed over, in words."""

    models: dict[str, tuple[str, ...]]
    problems: tuple[str, ...]


def scan(root: Path) -> Found:
    """Look at the repository. Cost: two directory levels, no file is read. Links must stay inside of it.

    Raises:
        RepositoryMissing: there is no such directory.
    """
    try:
        entries = sorted(root.iterdir())
    except OSError as exc:
        msg = f"model repository {root.name!r}: {exc.strerror or 'cannot be read'}"
        raise RepositoryMissing(msg) from exc
    base = root.resolve()
    models: dict[str, tuple[str, ...]] = {}
    problems: list[str] = []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            if entry.suffix == ".onnx":
                problems.append(f"{entry.name}: put it at {entry.stem}/1/{MODEL_FILE}")
            continue
        if _NAME.fullmatch(entry.name) is None:
            problems.append(f"{entry.name}: not a model name (letters, digits, . _ -)")
            continue
        if not entry.resolve().is_relative_to(base):
            problems.append(f"{entry.name}: a link that leaves the repository")
            continue
        try:
            versions = _versions(entry, base, problems)
        except OSError as exc:
            problems.append(f"{entry.name}: {exc.strerror or 'cannot be read'}")
            continue
        if versions:
            models[entry.name] = versions
        elif not any(problem.startswith(f"{entry.name}/") for problem in problems):
            problems.append(f"{entry.name}: has no version: put a model at {entry.name}/1/{MODEL_FILE}")
    return Found(models, tuple(problems))


def is_version(text: str) -> bool:
    """Whether a text can be a version's name."""
    return _VERSION.fullmatch(text) is not None


def version_directory(root: Path, model: str, version: str) -> Path:
    """Where a version lies."""
    return root / model / version


def _versions(directory: Path, base: Path, problems: list[str]) -> tuple[str, ...]:
    found: list[str] = []
    for entry in sorted(directory.iterdir()):
        if entry.name.startswith(".") or not entry.is_dir():
            if entry.suffix == ".onnx":
                problems.append(f"{directory.name}/{entry.name}: put it at {directory.name}/1/{MODEL_FILE}")
            continue
        if _VERSION.fullmatch(entry.name) is None:
            problems.append(
                f"{directory.name}/{entry.name}: versions are positive integers without leading zeros"
            )
        elif not entry.resolve().is_relative_to(base):
            problems.append(f"{directory.name}/{entry.name}: a link that leaves the repository")
        elif not (entry / MODEL_FILE).is_file():
            problems.append(f"{directory.name}/{entry.name}: has no {MODEL_FILE}")
        elif not (entry / MODEL_FILE).resolve().is_relative_to(base):
            problems.append(
                f"{directory.name}/{entry.name}: {MODEL_FILE} is a link that leaves the repository"
            )
        else:
            found.append(entry.name)
    return tuple(sorted(found, key=int))
