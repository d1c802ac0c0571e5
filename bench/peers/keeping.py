"""Keeping: what was measured so far, so that a run goes on where it was cut.

One file of JSON lines in the run's directory. Each line has the digest of everything that its figure depends on: the
peer, both settings, the cell, the versions, the code on both sides, the machine, the seconds of a load. Whoever asks
for the same gets what is kept; another version or setting is another digest, and is measured anew.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, TypeVar

import msgspec

FILE = "measured.jsonl"
_ROOT = Path(__file__).resolve().parents[2]
_SERVES = ("gateway", "loaders", "bench/peers/adapters", "bench/peers/served")
T = TypeVar("T")


def write_whole(file: Path, content: bytes) -> None:
    """Write a file so that after a kill, or on a full disk, it holds what it held before or all of this."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        part.write_bytes(content)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


class _Line(msgspec.Struct):
    key: str
    kind: str
    value: msgspec.Raw


def digest(*parts: Any) -> str:
    """Of anything that msgspec can encode; the same for the same content."""
    content = msgspec.json.encode(parts, order="deterministic")
    return hashlib.sha256(content).hexdigest()[:24]


def code(root: Path = _ROOT) -> str:
    """Of the code that serves on either side, ours and what runs in the others, as it stands in the tree now."""
    found = hashlib.sha256()
    for directory in _SERVES:
        for file in sorted((root / directory).rglob("*.py")):
            found.update(f"{file.relative_to(root)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()[:24]


class Kept:
    """The lines of one run. A line that was cut in the middle of its writing counts as not there.

    Threading: one process writes.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._file = directory / FILE
        self._found: dict[tuple[str, str], bytes] = {}
        whole = 0
        content = self._file.read_bytes() if self._file.exists() else b""
        for raw in content.splitlines(keepends=True):
            if not raw.endswith(b"\n"):
                break
            whole += len(raw)
            try:
                line = msgspec.json.decode(raw, type=_Line)
            except msgspec.DecodeError:
                continue
            self._found[line.kind, line.key] = bytes(line.value)
        if whole < len(content):
            with self._file.open("r+b") as file:
                file.truncate(whole)

    def get(self, kind: str, key: str, type_: type[T]) -> T | None:
        """What is kept under a key; None where nothing is, or nothing of that type."""
        raw = self._found.get((kind, key))
        try:
            return None if raw is None else msgspec.json.decode(raw, type=type_)
        except msgspec.ValidationError:
            return None

    def put(self, kind: str, key: str, value: Any) -> None:
        """Keep it: once this returns, a kill of this process takes nothing of it away."""
        raw = msgspec.json.encode(value)
        self._found[kind, key] = raw
        with self._file.open("ab") as file:
            file.write(msgspec.json.encode(_Line(key, kind, msgspec.Raw(raw))) + b"\n")
            file.flush()
