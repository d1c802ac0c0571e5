"""Completion: scripts that shells can read, names from the gateway, and silence where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from gateway.cli import command
from gateway.cli.completion import PROGRAM, SHELLS, TIMEOUT_S, VARIABLE

ROOT = Path(__file__).parents[3]


@pytest.fixture
def gateway_there(fake, state_dir):
    """A gateway with two models; words for its state directory."""
    fake.on(
        "GET", "/admin/v1/models", {"models": [{"name": "flights"}, {"name": "fraud"}, {"name": "other"}]}
    )
    fake.on("GET", "/admin/v1/models/flights", {"versions": [{"version": "1"}, {"version": "12"}]})
    variants = [{"name": "primary", "role": "primary"}, {"name": "canary", "role": "canary"}]
    fake.on("GET", "/admin/v1/routes/flights", {"variants": variants})
    return ["--state-dir", str(state_dir)]


def offered(words: list[str], incomplete: str) -> list[str]:
    """What the shell is offered behind those words."""
    shell = ShellComplete(command, {}, PROGRAM, VARIABLE)
    return [item.value for item in shell.get_completions(words, incomplete)]


def test_commands_and_options_need_no_gateway() -> None:
    """Of the root from its table alone, of the others from themselves."""
    assert {"route", "rollout"} <= set(offered([], "ro"))
    assert offered(["route"], "fr") == ["freeze"]
    assert "--reason" in offered(["route", "freeze", "m"], "--re")
    assert offered(["completion"], "z") == ["zsh"]


def test_names_come_from_the_gateway(gateway_there) -> None:
    """Models, the versions of the one on the line, its canaries."""
    assert offered(["route", "show", *gateway_there], "f") == ["flights", "fraud"]
    assert offered(["model", "unload", *gateway_there, "flights"], "1") == ["1", "12"]
    assert offered(["route", "shift", *gateway_there, "flights"], "") == ["canary="]
    assert offered(["route", "promote", *gateway_there, "flights"], "") == ["canary"]


def test_no_gateway_no_names_no_words(fake, state_dir, capfd: pytest.CaptureFixture[str]) -> None:
    """Nobody listens, one that refuses, one that hangs for longer than the short time-out: nothing, and nothing on the
    terminal."""
    assert TIMEOUT_S < 1, "somebody is typing"
    assert offered(["route", "show", "--admin", "http://127.0.0.1:9"], "") == []
    assert offered(["route", "show", "--state-dir", str(state_dir)], "") == []
    over = threading.Event()
    fake.on("GET", "/admin/v1/models", lambda seen: over.wait(60) and None)
    started = time.monotonic()
    assert offered(["model", "show", "--state-dir", str(state_dir)], "") == []
    assert time.monotonic() - started < 10
    over.set()
    assert offered(["route", "show", "--admin", "no url"], "") == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_one_that_the_shell_reads(run, shell: str) -> None:
    """It names the program and the variable; where the shell is here, it parses it."""
    script = run("completion", shell).stdout
    assert VARIABLE in script
    assert PROGRAM in script
    if shutil.which(shell):
        done = subprocess.run([shell, "-n"], input=script, text=True, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    """A real bash, the script and the command line: the words that it would offer."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    program = tmp_path / PROGRAM
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m gateway.cli "$@"\n')
    program.chmod(0o755)
    told = (
        'eval "$(tidegate completion bash)"\n'
        "COMP_WORDS=(tidegate route fre); COMP_CWORD=2; _tidegate_completion tidegate\n"
        'echo "${COMPREPLY[@]}"\n'
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}
    done = subprocess.run(
        [bash, "--norc", "-c", told], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.stdout.split(), done.stderr) == (["freeze"], "")


def test_no_shell_of_ours_is_exit_2(run) -> None:
    """Named are those that there are."""
    result = run("completion", "powershell")
    assert result.exit_code == 2
    assert "bash" in result.stderr
