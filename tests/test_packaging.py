"""What is shipped and how it is built: image, locks, make, CI."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

import gateway

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements.lock", "requirements-dev.lock")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def last_stage() -> list[tuple[str, str]]:
    """The stage that becomes the image."""
    found = instructions()
    start = max(i for i, (word, _) in enumerate(found) if word == "FROM")
    return found[start:]


def test_image_runs_as_nobody_special() -> None:
    """The image's process has uid 10001; nothing is installed as that user."""
    stage = last_stage()
    users = [i for i, (word, _) in enumerate(stage) if word == "USER"]
    assert [stage[i][1] for i in users] == ["10001"]
    assert [word for word, _ in stage[users[0] :] if word in {"RUN", "COPY", "ADD"}] == []


def test_image_keeps_state_and_says_how_it_is() -> None:
    """State volume, health check, telemetry off, exec forms so that signals reach the supervisor."""
    stage = last_stage()
    by_word = dict(stage)
    assert by_word["VOLUME"] == "/var/lib/tidegate"
    assert "/v2/health/ready" in by_word["HEALTHCHECK"]
    assert any("ORT_DISABLE_TELEMETRY=1" in rest for word, rest in stage if word == "ENV")
    assert by_word["ENTRYPOINT"].startswith("[")
    assert by_word["CMD"].startswith("[")


def test_image_is_built_from_what_is_here() -> None:
    """Copied files exist and are not kept from the build; the base is a named Python that we support."""
    ignored = (ROOT / ".dockerignore").read_text().split()
    for word, rest in instructions():
        assert word != "ADD"
        if word == "FROM":
            version = re.match(r"python:3\.(\d+)-slim", rest)
            assert version is not None
            assert 11 <= int(version[1]) <= 14
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert not any(fnmatch(source, pattern) for pattern in ignored), source
        if word == "RUN" and "pip install" in rest:
            assert "--require-hashes" in rest


def test_image_holds_bytecode_of_every_package() -> None:
    """It may write none, so what is copied is compiled in the build, to be taken whatever times its files have."""
    (command,) = [rest for word, rest in instructions() if word == "RUN" and "compileall" in rest]
    assert "--invalidation-mode unchecked-hash" in command
    copied = {rest.split()[0] for word, rest in instructions() if word == "COPY"}
    assert {name for name in copied if (ROOT / name).is_dir()} <= set(command.split())


@pytest.mark.parametrize("name", LOCKS)
def test_locks_name_no_place(name: str) -> None:
    """Every requirement is one exact version with hashes; no index address, no path, nothing editable."""
    text = (ROOT / name).read_text()
    entries = re.split(r"\n(?=\S)", text.replace("\\\n", " ").strip())
    assert [e for e in entries if not re.match(r"[a-z0-9._-]+==[^ ]+( ; [^-]+)?\s+--hash=sha256:", e)] == []
    assert not re.search(r"://|file:|^-|\s/", text, re.MULTILINE)


def pinned(name: str) -> dict[str, set[str]]:
    """Versions by package of a lock (one for each Python it is split by)."""
    found: dict[str, set[str]] = {}
    for package, version in re.findall(
        r"^([a-z0-9._-]+)==([^ ;\\]+)", (ROOT / name).read_text(), re.MULTILINE
    ):
        found.setdefault(package, set()).add(version)
    return found


def test_dev_lock_holds_the_other() -> None:
    """What is tested is what runs: both locks agree."""
    runtime, dev = (pinned(name) for name in LOCKS)
    assert {p: (v, dev.get(p)) for p, v in runtime.items() if dev.get(p) != v} == {}


@pytest.mark.parametrize(
    ("name", "texts"), [(LOCKS[0], "dependencies"), (LOCKS[1], "dev"), (LOCKS[1], "train")]
)
def test_locks_hold_what_is_asked(name: str, texts: str) -> None:
    """No dependency was added without locking it; exact pins are met."""
    asked = PROJECT["dependencies"] if texts == "dependencies" else PROJECT["optional-dependencies"][texts]
    locked = pinned(name)
    for text in asked:
        package, exact = re.match(r"([A-Za-z0-9._-]+)(?:==(\S+))?", text).groups()  # type: ignore[union-attr]
        assert package.lower() in locked, f"{package}: run `make lock`"
        assert exact is None or locked[package.lower()] == {exact}


def test_changelog_knows_this_version() -> None:
    """The version is either released with a heading of its own or still in the works."""
    text = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {gateway.__version__}" in text or "## Unreleased" in text


def make(tmp_path: Path, *words: str, path: str) -> subprocess.CompletedProcess[str]:
    """`make` with a search path and an environment of its own."""
    return subprocess.run(
        ["/usr/bin/make", "-s", "-C", str(ROOT), f"VENV={tmp_path / 'venv'}", *words],
        env={"PATH": path, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


needs_make = pytest.mark.skipif(not Path("/usr/bin/make").exists(), reason="make is not here")


@needs_make
def test_no_python_is_one_line(tmp_path: Path) -> None:
    """Without a Python that fits, `make run` says what to install and exits with 2."""
    done = make(tmp_path, "run", "PYTHON=", path="/nowhere")
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode == 2
    assert said == [said[0]]
    assert "no Python 3.11 to 3.14 with venv found" in said[0]


@needs_make
def test_no_index_is_one_line(tmp_path: Path) -> None:
    """When packages cannot be had, `make run` says so in one line and exits with 2; the next run tries again."""
    pip = tmp_path / "venv" / "bin" / "pip"
    pip.parent.mkdir(parents=True)
    pip.write_text("#!/bin/sh\nexit 1\n")
    pip.chmod(0o755)
    for _ in range(2):
        done = make(tmp_path, "run", path=os.environ["PATH"])
        said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
        assert done.returncode == 2
        assert len(said) == 1
        assert "packages could not be installed" in said[0]


@needs_make
def test_warm_start_installs_nothing(tmp_path: Path) -> None:
    """With the stamp newer than the lock, `make run` goes straight to serving the example models."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    for name, says in (("pip", "echo pip ran; exit 1"), ("python", 'echo "$ORT_DISABLE_TELEMETRY $@"')):
        (venv / "bin" / name).write_text(f"#!/bin/sh\n{says}\n")
        (venv / "bin" / name).chmod(0o755)
    (venv / ".run").touch()
    done = make(tmp_path, "run", path=os.environ["PATH"])
    assert done.stdout == "1 -m gateway.cli serve examples/models\n"


def test_ci_script_is_sound() -> None:
    """Executable, stops at the first failure, checks and tests, valid for bash."""
    script = ROOT / ".ci" / "run"
    text = script.read_text()
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in text
    assert text.index("make check") < text.index("make test")
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
