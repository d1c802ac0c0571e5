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
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec

from bench.peers.keeping import write_whole
from bench.peers.peer import Say, Unavailable
from bench.peers.shortage import demand_none

LOCKS = Path(__file__).resolve().parent / "locks"
_ASKED = """
import importlib.metadata, json
print(json.dumps({found.name.lower(): found.version for found in importlib.metadata.distributions()}))
"""
_COMPLETE = "complete.json"
_LAST_LINES = 25
_TOLD = ("Collecting", "Downloading", "Installing", "Successfully", "WARNING: Retrying")
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
    place = Path(home).absolute() / "tidegate" / "peers"
    place.mkdir(parents=True, exist_ok=True)
    return place


def made(name: str, say: Say, lock: Path | None = None) -> Environment:
    """The environment of a peer, made now where there is none; minutes then, and up to some gigabytes.

    Args:
        lock: what is installed; None: locks/NAME.lock.

    Raises:
        Unavailable: there is no lock, or it does not install here: with the installer's last lines.
        OSError: this machine is short of disk, files or memory.
    """
    lock = lock if lock is not None else LOCKS / f"{name}.lock"
    if not lock.is_file():
        raise Unavailable(name, f"there is no lock {lock.name} to install it from")
    digest = hashlib.sha256(lock.read_bytes() + platform.python_version().encode()).hexdigest()
    place = cache_dir() / f"{name}-{digest[:_DIGEST_CHARACTERS]}"
    with place.with_suffix(".flock").open("w") as held:
        _lock(held, lambda: say(f"{name}: another process makes its environment: waiting for it"))
        versions = _finished(place)
        if versions is None:
            try:
                _make(name, lock, place, say)
                versions = _versions(name, place)
            except BaseException:
                # What is half made would only take room.
                shutil.rmtree(place, ignore_errors=True)
                raise
            write_whole(place / _COMPLETE, json.dumps(versions).encode())
        return Environment(place, versions)


def _lock(held: IO[str], told: Callable[[], None]) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        told()
        fcntl.flock(held, fcntl.LOCK_EX)


def _finished(place: Path) -> dict[str, str] | None:
    """Versions of an environment that is whole and whose interpreter is still there; None: it is to be made."""
    try:
        versions = dict(json.loads((place / _COMPLETE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return versions if (place / "bin" / "python").exists() else None


def _make(name: str, lock: Path, place: Path, say: Say) -> None:
    shutil.rmtree(place, ignore_errors=True)
    say(f"{name}: making its environment from {lock.name}")
    python = str(place / "bin" / "python")
    # Where this interpreter has pip, it installs into the other; else that one gets a pip of its own. -P: modules of
    # the directory that this was started in are nobody's.
    mine = importlib.util.find_spec("pip") is not None
    venv = [sys.executable, "-P", "-m", "venv", *(["--without-pip"] if mine else []), str(place)]
    _run(name, venv, say)
    pip = [sys.executable, "-P", "-m", "pip", "--python", python] if mine else [python, "-P", "-m", "pip"]
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
        errors="replace", env=inherited, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            for line in process.stdout or ():
                said.append(line.rstrip())
                if line.lstrip().startswith(_TOLD):
                    say(f"{name}: {line.strip()[:100]}")
        except BaseException:
            # pip runs another one: they would go on into a directory that whoever comes next makes anew.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if process.returncode:
        last_lines = "\n".join(said[-_LAST_LINES:])
        demand_none(last_lines, cache_dir())
        raise Unavailable(name, "its environment cannot be made", last_lines)


def _versions(name: str, place: Path) -> dict[str, str]:
    done = subprocess.run(  # noqa: S603
        [str(place / "bin" / "python"), "-I", "-c", _ASKED], capture_output=True, text=True, check=False
    )
    if done.returncode:
        demand_none(done.stderr, place)
        raise Unavailable(name, "its environment does not run", done.stderr[-2000:])
    return dict(json.loads(done.stdout))
