"""Environments of peers: made from a lock, kept, and honest about what did not install."""

from __future__ import annotations

import base64
import hashlib
import sys
import time
import zipfile
from pathlib import Path

import pytest

from bench.peers import environment
from bench.peers.family import seen
from bench.peers.peer import Unavailable


def wheel(place: Path) -> str:
    """A package of one module in a wheel; the line of a lock that installs it without a network."""
    file = place / "frobnicator-1.5-py3-none-any.whl"
    info = "frobnicator-1.5.dist-info"
    files = {
        "frobnicator.py": b"X = 1\n",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: Frobnicator\nVersion: 1.5\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b'=').decode()},"
        f"{len(content)}\n"
        for name, content in files.items()
    )
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    return f"frobnicator @ {file.as_uri()} --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}\n"


def test_an_environment_is_made_once_and_named_after_its_lock(tmp_path: Path, monkeypatch) -> None:
    """The second time nothing is installed; another lock is another place; one not finished is made again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lock = tmp_path / "thing.lock"
    lock.write_text(wheel(tmp_path))
    said: list[str] = []
    made = environment.made("thing", said.append, lock)
    assert made.versions["frobnicator"] == "1.5"
    assert made.python.is_file()
    assert any("making" in line for line in said)
    said.clear()
    assert environment.made("thing", said.append, lock) == made
    assert said == []
    again: list[Path] = []

    def make(_name: str, _lock: Path, place: Path, _say: object) -> None:
        again.append(place)
        place.mkdir(exist_ok=True)

    monkeypatch.setattr(environment, "_make", make)
    monkeypatch.setattr(environment, "_versions", lambda _name, _place: {})
    (made.place / "complete.json").unlink()
    environment.made("thing", said.append, lock)
    lock.write_text(lock.read_text() + "# another\n")
    environment.made("thing", said.append, lock)
    assert again[0] == made.place
    assert again[1] != made.place


def test_one_that_was_cut_or_lost_its_interpreter_is_made_again(tmp_path: Path, monkeypatch) -> None:
    """A last file that was not written whole, and a Python that was taken away, are no finished environment."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lock = tmp_path / "thing.lock"
    lock.write_text("")
    again: list[Path] = []

    def make(_name: str, _lock: Path, place: Path, _say: object) -> None:
        again.append(place)
        (place / "bin").mkdir(parents=True, exist_ok=True)
        (place / "bin" / "python").touch()

    monkeypatch.setattr(environment, "_make", make)
    monkeypatch.setattr(environment, "_versions", lambda _name, _place: {"thing": "1"})
    made = environment.made("thing", lambda _: None, lock)
    environment.made("thing", lambda _: None, lock)
    assert len(again) == 1
    (made.place / "complete.json").write_text("")
    assert environment.made("thing", lambda _: None, lock).versions == {"thing": "1"}
    assert len(again) == 2
    made.python.unlink()
    environment.made("thing", lambda _: None, lock)
    assert len(again) == 3


def test_who_is_interrupted_leaves_no_installer_behind(tmp_path: Path) -> None:
    """It would go on into a directory that the next one makes anew; what it had started itself ends, too."""
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('Collecting', child.pid, flush=True)\nchild.wait()\n"
    )
    pids: list[int] = []

    def say(line: str) -> None:
        pids.append(int(line.split()[-1]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        environment._run("thing", [sys.executable, "-c", code], say)
    deadline = time.monotonic() + 30
    while (found := seen(pids[0])) and not found.is_zombie:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_nothing_of_the_current_directory_is_loaded(tmp_path: Path, monkeypatch) -> None:
    """Whoever compares products in a directory with a `venv.py` does not run that."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("venv", "pip"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('of the current directory')\n")
    lock = tmp_path / "thing.lock"
    lock.write_text(wheel(tmp_path))
    assert environment.made("thing", lambda _: None, lock).versions["frobnicator"] == "1.5"


def test_what_does_not_install_is_unavailable_with_the_last_lines(tmp_path: Path, monkeypatch) -> None:
    """The installer's own words, and nothing that takes room."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lock = tmp_path / "thing.lock"
    lock.write_text(wheel(tmp_path)[:-10] + "0123456789"[:9] + "\n")
    with pytest.raises(Unavailable, match="cannot be made") as caught:
        environment.made("thing", lambda _: None, lock)
    assert "hash" in caught.value.last_lines.lower()
    assert not [place for place in environment.cache_dir().iterdir() if place.is_dir()]


def test_a_peer_without_a_lock_is_unavailable(tmp_path: Path, monkeypatch) -> None:
    """Named, with the lock that is missing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(Unavailable, match=r"no lock nothing\.lock"):
        environment.made("nothing", lambda _: None)


def test_locks_name_no_index_and_hash_everything() -> None:
    """Whoever installs chooses where from; what is installed is what was locked."""
    for lock in environment.LOCKS.glob("*.lock"):
        text = lock.read_text()
        assert "://" not in "".join(line for line in text.splitlines(True) if not line.startswith("#")), (
            lock.name
        )
        starts = [line for line in text.splitlines() if line and line[0] not in "# "]
        assert all("==" in line for line in starts), lock.name
        assert text.count("--hash=sha256:") >= len(starts), lock.name
