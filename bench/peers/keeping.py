"""Keeping: what was measured so far, so that a run goes on where it was cut.

One file of JSON lines in the run's directory, of one process at a time. Each line has the digest of everything that
its figure depends on: the peer and its lock, both settings, the cell, the model's file, the versions, the code that
serves and measures, the machine, the seconds of a load. Whoever asks for the same gets what is kept; another version
or setting is another digest, and is measured anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from gateway.errors import ConfigInvalid

FILE = "measured.jsonl"
HELD_FILE = "held"
_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("gateway", "loaders", "shadow", "bench")
LOCKS = "bench/peers/locks"
RENDERS = (
    "bench/cli*.py", "bench/plot.py", "bench/peers/page.py", "bench/peers/summary.py", "bench/peers/verdicts.py",
    "bench/peers/ahead.py", "bench/peers/wording.py", "bench/peers/agreement.py", "bench/peers/ending.py",
    "bench/peers/probes/*", "bench/cases/*",
)  # fmt: skip
"""What says what was measured, or measures something else: no figure of a comparison depends on it..."""
COUNTS = frozenset(("bench/peers/probes/table.py",))
"""...but on these of it."""
T = TypeVar("T")


def write_whole(file: Path, content: bytes) -> None:
    """Write a file so that after a kill, or on a full disk, it holds what it held before or all of this.

    A link stays one, and so does the file's mode. What is no file (/dev/stdout) is written as it is.
    """
    file = file.resolve()
    if file.exists() and not file.is_file():
        file.write_bytes(content)
        return
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        part.write_bytes(content)
        if file.exists():
            shutil.copymode(file, part)
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


def file_digest(file: Path) -> str:
    """Of a file's content."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


class Code(msgspec.Struct, frozen=True):
    """The code that a figure depends on, ours, what runs in the others, what measures, and locks: at one time."""

    files: dict[str, str]
    """Digests by path."""

    @classmethod
    def now(cls, root: Path = _ROOT) -> Code:
        """As it stands in the tree now. Cost: reads some hundred files, tens of milliseconds."""
        found = [file for package in _PACKAGES for file in (root / package).rglob("*.py")]
        found += (root / LOCKS).glob("*.lock")
        named = {file.relative_to(root): file for file in sorted(found)}
        return cls(
            {
                path.as_posix(): file_digest(file)
                for path, file in named.items()
                if path.as_posix() in COUNTS
                or not any(fnmatch.fnmatchcase(path.as_posix(), one) for one in RENDERS)
            }
        )

    def of(self, peer: str) -> str:
        """The digest of what a peer's figures depend on: of locks its own alone."""
        lock = lock_of(peer)
        its = {path: seen for path, seen in self.files.items() if not path.endswith(".lock") or path == lock}
        return digest(its)

    def demand_same(self, now: Code) -> None:
        """Raise ConfigInvalid if another one is in the tree by now: servers and loads start from there."""
        names = sorted(
            name
            for name in self.files.keys() | now.files.keys()
            if self.files.get(name) != now.files.get(name)
        )
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            msg = (
                f"the code changed while it was measured ({', '.join(names[:3])}{more}): what was measured before that"
                " is kept; --resume goes on with it once the code is as it was, else it measures all anew"
            )
            raise ConfigInvalid(msg)


def lock_of(peer: str) -> str:
    """Where a peer's lock is, if it has one."""
    return f"{LOCKS}/{peer.replace('-', '_')}.lock"


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """A run's directory, made if need be, for one process alone; a kill gives it back.

    Raises:
        ConfigInvalid: another process has it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / HELD_FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = f"process {pid}" if (pid := file.read().strip()) else "another process"
            msg = f"{directory}: {who} is at it: wait until it has ended, or run without --resume"
            raise ConfigInvalid(msg) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


class Kept:
    """The lines of one run. A line that was cut in the middle of its writing counts as not there.

    Args:
        code: what is measured and measures; None: what is in the tree now.
    Threading: one process writes: whoever has it `held`.
    """

    def __init__(self, directory: Path, code: Code | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.code = code if code is not None else Code.now()
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

    def demand_same_code(self) -> None:
        """Raise ConfigInvalid if the code is another by now."""
        self.code.demand_same(Code.now())

    def put(self, kind: str, key: str, value: Any) -> None:
        """Keep it: once this returns, a kill of this process takes nothing of it away.

        Raises:
            ConfigInvalid: the code is another by now: what was measured is of neither, and is not kept.
        """
        self.demand_same_code()
        raw = msgspec.json.encode(value)
        self._found[kind, key] = raw
        with self._file.open("ab") as file:
            file.write(msgspec.json.encode(_Line(key, kind, msgspec.Raw(raw))) + b"\n")
            file.flush()
