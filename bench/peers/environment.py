"""Environment: a virtual environment for each peer, made from a lock and kept between runs.

locks/NAME.lock (every hash, no index address) -> **environment** -> an adapter starts its server with the interpreter
of it. The place is the user's cache, named after the lock's digest: another lock is another environment, and one that
was begun and not finished is made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec

from bench.peers.peer import Say, Unavailable

LOCKS = Path(__file__).resolve().parent / "locks"
_ASKED = """
import importlib.metadata, json
print(json.dumps({found.name.lower(): found.version for found in importlib.metadata.distributions()}))
"""
_COMPLETE = "complete.json"
_LAST_LINES = 25
_DIGEST_CHARACTERS = 12


class Environment(msgspec.Struct, frozen=True):
    """A finished environment."""

    place: Path
    versions: dict[str, str]
    """Of every package in it, by its normalized name."""

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.place / "bin" / "python"

    def command(self, name: str) -> Path:
        """A command of it, such as `mlserver`."""
        return self.place / "bin" / name

    @property
    def environ(self) -> dict[str, str]:
        """What a server of it is started with: its own commands first."""
        return {
            "PATH": f"{self.place / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "VIRTUAL_ENV": str(self.place),
        }


def cache_dir() -> Path:
    """Where environments, and what else peers need, are kept; made if need be."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    place = Path(home) / "tidegate" / "peers"
    place.mkdir(parents=True, exist_ok=True)
    return place


def made(name: str, say: Say, lock: Path | None = None) -> Environment:
    """The environment of a peer, made now where there is none; minutes then, and up to some gigabytes.

    Args:
        lock: what is installed; None: locks/NAME.lock.

    Raises:
        Unavailable: there is no lock, or it does not install here: with the installer's last lines.
    """
    lock = lock if lock is not None else LOCKS / f"{name}.lock"
    if not lock.is_file():
        raise Unavailable(name, f"there is no lock {lock.name} to install it from")
    digest = hashlib.sha256(lock.read_bytes() + platform.python_version().encode()).hexdigest()
    place = cache_dir() / f"{name}-{digest[:_DIGEST_CHARACTERS]}"
    with place.with_suffix(".flock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        finished = place / _COMPLETE
        if not finished.is_file():
            _make(name, lock, place, say)
            finished.write_text(json.dumps(_versions(name, place)))
        return Environment(place, json.loads(finished.read_text()))


def _make(name: str, lock: Path, place: Path, say: Say) -> None:
    shutil.rmtree(place, ignore_errors=True)
    say(f"{name}: making its environment from {lock.name}")
    python = str(place / "bin" / "python")
    # Where this interpreter has pip, it installs into the other; else that one gets a pip of its own.
    mine = importlib.util.find_spec("pip") is not None
    _run(name, [sys.executable, "-m", "venv", *(["--without-pip"] if mine else []), str(place)], say)
    pip = [sys.executable, "-m", "pip", "--python", python] if mine else [python, "-m", "pip"]
    _run(
        name,
        [*pip, "install", "--disable-pip-version-check", "--no-input",
         "--progress-bar", "off", "--require-hashes", "--no-deps", "-r", str(lock)],
        say,
    )  # fmt: skip


def _run(name: str, command: list[str], say: Say) -> None:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    said: list[str] = []
    with subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", env=inherited,
    ) as process:  # fmt: skip
        for line in process.stdout or ():
            said.append(line.rstrip())
            if line.startswith(("Collecting", "Downloading", "Installing", "Successfully")):
                say(f"{name}: {line.strip()[:100]}")
    if process.returncode:
        raise Unavailable(name, "its environment cannot be made", "\n".join(said[-_LAST_LINES:]))


def _versions(name: str, place: Path) -> dict[str, str]:
    done = subprocess.run(  # noqa: S603
        [str(place / "bin" / "python"), "-I", "-c", _ASKED], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Unavailable(name, "its environment does not run", done.stderr[-2000:])
    return dict(json.loads(done.stdout))
