"""docs/tour.md is true: its commands run, in their order, against a real gateway, and print what the page shows.

A command's lines begin with `$ `; what follows is its output. `…` stands for anything within a line, and alone for any
lines. Spaces and rules of tables count for nothing. What only looks is repeated until it shows what the page shows: the
shadow is compared behind the answers.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import click.testing
import pytest

from gateway.cli import command as tidegate

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tour.md"
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
LOOKS = {("shadow", "report"), ("route", "show"), ("route", "history"), ("audit", "tail"), ("model", "list")}
WITHIN_S = 120.0
"""The mirror, which the shadow's figures wait for, runs only when no one else does."""


class Step(NamedTuple):
    """A command of the page, and what it shows."""

    words: list[str]
    shown: list[str]
    exit_code: int | None
    """None: whichever; a load says with it whether this machine is quick."""


def steps(text: str) -> list[Step]:
    """All commands of a page; `# exit 1` behind one says that it is refused, `# exit any` that it may be."""
    found: list[Step] = []
    for block in BLOCK.findall(text):
        for line in block.splitlines():
            if line.startswith("$ "):
                said, _, note = line[2:].partition("  # exit ")
                found.append(Step(shlex.split(said), [], None if note == "any" else int(note or 0)))
            else:
                found[-1].shown.append(line)
    return found


def plain(line: str) -> str:
    """A line as it is compared."""
    return re.sub(r"[─\s]+", " ", line).strip()


def matches(shown: list[str], printed: str) -> bool:
    """Whether an output is what a page shows of it."""
    pattern = "".join(
        r"(?:.*\n)*" if line == "…" else re.escape(line).replace("…", ".*") + r"\n"
        for line in filter(None, map(plain, shown))
    )
    given = "".join(f"{line}\n" for line in filter(None, map(plain, printed.splitlines())))
    return re.fullmatch(pattern, given) is not None


def test_what_matches() -> None:
    """The page's marks, and nothing else, stand for more than themselves."""
    assert matches(["a … c", "…", "end"], " a  b  c\nx\ny\n\nend\n")
    assert matches(["a", "…"], "a\n")
    assert matches([" ─── "], "")
    assert not matches(["a"], "a\nb\n")
    assert not matches(["a.c"], "abc\n")
    assert not matches(["a", "b"], "b\na\n")


@contextmanager
def served(words: list[str], log: Path) -> Iterator[str]:
    """The gateway that the page starts in the background; the address of its data listener."""
    assert words[-1] == "&"
    with log.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "gateway.cli", *words[1:-1]],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    try:
        endpoints = Path(".tidegate/endpoints.json")
        deadline = time.monotonic() + 60
        # Its sockets are there first; a person takes longer to type.
        while not endpoints.exists() or say(["model", "list"]).exit_code != 0:
            assert child.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield json.loads(endpoints.read_text())["data_url"]
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0, log.read_text()
    finally:
        if child.poll() is None:
            # Its children die with it.
            child.kill()
            child.wait()


def say(words: list[str]) -> click.testing.Result:
    """`tidegate ARGS...` in this process, where it costs no start of a Python."""
    result = click.testing.CliRunner().invoke(tidegate, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def take(step: Step, data_url: str) -> None:
    """Run one command, and hold what it printed against the page."""
    words = [word.replace("http://127.0.0.1:8080", data_url) for word in step.words]
    deadline = time.monotonic() + WITHIN_S
    while True:
        result = say(words[1:])
        right = step.exit_code in {None, result.exit_code} and matches(step.shown, result.output)
        if right or tuple(words[1:3]) not in LOOKS or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    told = f"$ {shlex.join(words)}\n{result.output}"
    assert right, f"{told}\nexpected (exit {step.exit_code}):\n" + "\n".join(step.shown)


def test_the_tour_runs_as_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From an empty directory to a rollback, by the page's commands alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for setting, value in (("DATA__PORT", "0"), ("ADMIN__PORT", "0"), ("WORKERS", "2")):
        monkeypatch.setenv(f"TIDEGATE_{setting}", value)
    shutil.copytree(ROOT / "examples", "examples")
    made, start, *rest = steps(PAGE.read_text())
    assert made.words == ["mkdir", "models"]
    Path("models").mkdir()
    with served(start.words, tmp_path / "serve.log") as data_url:
        for step in rest:
            take(step, data_url)
