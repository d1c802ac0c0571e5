"""The root of the command line: what is listed, and how it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli import TABLE, command
from gateway.cli.group import Entry


def test_help_lists_what_works_and_nothing_else(run, monkeypatch) -> None:
    """A command whose module is not installed is neither listed nor found."""
    monkeypatch.setitem(command.table, "ghost", Entry("ghost.cli:command", "Boo.", needs="ghost.cli"))
    result = run("--help")
    assert result.exit_code == 0
    assert "ghost" not in result.stdout
    assert all(name in result.stdout for name in ("serve", "predict", "route", "audit"))
    assert run("ghost").exit_code == 2


@pytest.mark.parametrize("name", [n for n, e in TABLE.items() if e.usable and n != "bench"])
def test_every_listed_command_has_help(run, name) -> None:
    """What is listed can be imported and explains itself."""
    result = run(name, "--help")
    assert result.exit_code == 0
    assert "Usage: tidegate" in result.stdout


def test_a_command_without_its_package_says_so(run, monkeypatch, tmp_path) -> None:
    """A missing package is one line that names it."""
    (tmp_path / "half_there.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(command.table, "half", Entry("half_there:command", "Half."))
    result = run("half")
    assert result.exit_code == 2
    assert "no_such_package" in result.stderr


def test_listing_imports_no_command() -> None:
    """`--help` prints from the table; commands are imported when used."""
    code = (
        "import sys; from gateway.cli import command\n"
        "try: command.main(['--help'], prog_name='tidegate')\n"
        "except SystemExit: pass\n"
        "assert 'gateway.cli.route' not in sys.modules, 'imported'\n"
        "assert 'onnxruntime' not in sys.modules, 'imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_mistakes_are_one_line_on_stderr_and_exit_2(run) -> None:
    """A wrong command or option: one line that says where help is, nothing on stdout."""
    for args in (("nope",), ("route", "shift"), ("route", "nope"), ("serve", "--workers", "many")):
        result = run(*args)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1
        assert "--help" in result.stderr


def test_no_arguments_prints_help_and_exits_2(run) -> None:
    """`tidegate` alone helps, and is not a success."""
    result = run()
    assert result.exit_code == 2
    assert "Commands:" in result.stderr


def test_version(run) -> None:
    """`version --json` is JSON with the version."""
    assert '"tidegate"' in run("version", "--json").stdout
    assert run("version").stdout.startswith("tidegate ")


def test_module_entry_points_run() -> None:
    """`python -m gateway.cli` and `python -m gateway` are the command."""
    for module in ("gateway.cli", "gateway"):
        done = subprocess.run(
            [sys.executable, "-m", module, "version"],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[3],
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("tidegate ")
