"""The repository: which models and versions lie in a directory, in Triton's layout.

    <root>/<model>/<version>/model.onnx        version: a positive integer
    <root>/<model>/config.pbtxt                optional: names another file, and which versions are held loaded

First step of loading; next: `material`. What does not fit is reported as a problem, one line each, and never
stops the rest.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from loaders.errors import ModelError, RepositoryMissing
from loaders.model_config import CONFIG_FILE, ModelConfig, read_config

MODEL_FILE = "model.onnx"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_SEEN_MAX = 10_000


class Found(NamedTuple):
    """Models with their versions in ascending order, and what was passed over, in words.

    `chosen` holds, by model, the versions that its settings want loaded (config.pbtxt's version_policy); the newest
    where it is not named.
    """

    models: dict[str, tuple[str, ...]]
    problems: tuple[str, ...]
    chosen: dict[str, tuple[str, ...]] = {}


class _Settings:
    """Settings of models, each file read again only when it has changed."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[tuple[int, int, int], ModelConfig, tuple[str, ...]]] = {}

    def of(self, directory: Path) -> tuple[ModelConfig, tuple[str, ...]]:
        """Settings, and what is to be told of them. A file that cannot be used refuses its versions when they load."""
        try:
            found = (directory / CONFIG_FILE).stat()
        except OSError:
            return ModelConfig(), ()
        mark = (found.st_mtime_ns, found.st_size, found.st_ino)
        known = self._seen.get(str(directory))
        if known is None or known[0] != mark:
            if len(self._seen) >= _SEEN_MAX:
                self._seen.clear()
            try:
                config = read_config(directory)
                told = tuple(f"{directory.name}/{CONFIG_FILE}: {warning}" for warning in config.warnings)
            except ModelError as exc:
                config, told = ModelConfig(), (str(exc),)
            except OSError:
                return ModelConfig(), ()
            known = self._seen[str(directory)] = (mark, config, told)
        return known[1], known[2]


_settings = _Settings()
_NONE = ModelConfig()


def scan(root: Path) -> Found:
    """Look at the repository. Links must stay inside of it.

    Cost: two directory levels, about 30 us a model; of files, only config.pbtxt is read, and only when it is new.

    Raises:
        RepositoryMissing: there is no such directory.
    """
    try:
        with os.scandir(root) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError as exc:
        msg = f"model repository {root.name!r}: {exc.strerror or 'cannot be read'}"
        raise RepositoryMissing(msg) from exc
    base = root.resolve()
    models: dict[str, tuple[str, ...]] = {}
    chosen: dict[str, tuple[str, ...]] = {}
    problems: list[str] = []
    for entry in entries:
        name = entry.name
        if name.startswith("."):
            continue
        if not entry.is_dir():
            if name.endswith(".onnx"):
                problems.append(f"{name}: put it at {name.removesuffix('.onnx')}/1/{MODEL_FILE}")
            continue
        if _NAME.fullmatch(name) is None:
            problems.append(f"{name}: not a model name (letters, digits, . _ -)")
            continue
        if entry.is_symlink() and not Path(entry).resolve().is_relative_to(base):
            problems.append(f"{name}: a link that leaves the repository")
            continue
        try:
            with os.scandir(root / name) as listed:
                inside = sorted(listed, key=lambda entry: entry.name)
            settings = any(one.name == CONFIG_FILE for one in inside)
            config, told = _settings.of(root / name) if settings else (_NONE, ())
            versions = _versions(name, inside, base, config.model_filename, problems)
        except OSError as exc:
            problems.append(f"{name}: {exc.strerror or 'cannot be read'}")
            continue
        if versions:
            models[name] = versions
            if config.policy is not None:
                chosen[name] = config.chosen(versions)
                if not chosen[name]:
                    problems.append(_none_chosen(name, versions))
        elif not any(problem.startswith(f"{name}/") for problem in problems):
            problems.append(f"{name}: has no version: put a model at {name}/1/{MODEL_FILE}")
        problems += told
    # A file's name need not be text, and these are sent to people.
    told = tuple(problem.encode(errors="backslashreplace").decode() for problem in problems)
    return Found(models, told, chosen)


def _none_chosen(name: str, versions: tuple[str, ...]) -> str:
    return (
        f"{name}/config.pbtxt: version_policy asks for no version that is there: loaded are those in the route, if any;"
        f" there is {', '.join(versions)}"
    )


def is_version(text: str) -> bool:
    """Whether a text can be a version's name."""
    return _VERSION.fullmatch(text) is not None


def version_directory(root: Path, model: str, version: str) -> Path:
    """Where a version lies."""
    return root / model / version


def model_path(directory: Path, filename: str = MODEL_FILE) -> Path:
    """The model's file in a version's directory: `filename`, or in a directory of that name beside its weights."""
    path = directory / filename
    return path / MODEL_FILE if path.is_dir() else path


def _versions(
    model: str, entries: Sequence[os.DirEntry[str]], base: Path, filename: str, problems: list[str]
) -> tuple[str, ...]:
    found: list[str] = []
    for entry in entries:
        at = f"{model}/{entry.name}"
        if entry.name.startswith(".") or not entry.is_dir():
            if entry.name.endswith(".onnx"):
                problems.append(f"{at}: put it at {model}/1/{MODEL_FILE}")
            continue
        if _VERSION.fullmatch(entry.name) is None:
            if (Path(entry) / filename).exists() or entry.name[:1].isdigit() or entry.name[:1] == "v":
                problems.append(f"{at}: versions are positive integers without leading zeros")
            continue
        if entry.is_symlink() and not Path(entry).resolve().is_relative_to(base):
            problems.append(f"{at}: a link that leaves the repository")
        elif (wrong := _wrong_with(entry.path, filename, base)) is not None:
            problems.append(f"{at}: {wrong}")
        else:
            found.append(entry.name)
    return tuple(sorted(found, key=int))


def _wrong_with(directory: str, filename: str, base: Path) -> str | None:
    """Why a version's model cannot be its; None when it is a file, as nearly all are: one stat."""
    try:
        if stat.S_ISREG(os.lstat(f"{directory}/{filename}").st_mode):  # noqa: PTH116  thousands of them
            return None
    except OSError:
        return f"has no {filename}"
    path = model_path(Path(directory), filename)
    if not path.is_file():
        return f"has no {filename}"
    if not path.resolve().is_relative_to(base):
        return f"{filename} is a link that leaves the repository"
    return None
