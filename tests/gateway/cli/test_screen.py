"""What is shown of other people's texts: nothing that a terminal would obey."""

from __future__ import annotations

import json

import pytest

from gateway.cli import screen

HOSTILE = "a\x1b]0;owned\x07b\x9b2Jc\x7f\rd\u202ee"
SPELT = "a\\x1b]0;owned\\x07b\\x9b2Jc\\x7f\\x0dd\\u202ee"


def obeyed(text: str) -> set[str]:
    """Control characters but the newline."""
    return {c for c in text if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160 or c == "\u202e")}


def test_lines_and_cells_spell_control_characters_out(capsys: pytest.CaptureFixture[str]) -> None:
    """A line keeps its own newlines; a cell has none, so that no row is made up."""
    screen.say(f"one\n{HOSTILE}")
    assert capsys.readouterr().out == f"one\n{SPELT}\n"
    screen.table(("name", "reason"), [("m", f"x\n{HOSTILE}")], title=None)
    out = capsys.readouterr().out
    assert f"x\\x0a{SPELT}" in out
    assert obeyed(out) == set()


def test_json_is_escaped_and_the_same_value(capsys: pytest.CaptureFixture[str]) -> None:
    """What JSON lets stand raw is escaped too; a reader gets the very text."""
    screen.print_json({"reason": HOSTILE, "é": "日本"})
    out = capsys.readouterr().out
    assert obeyed(out) == set()
    assert json.loads(out) == {"reason": HOSTILE, "é": "日本"}
    screen.print_json_line(json.dumps({"r": HOSTILE}, ensure_ascii=False).encode())
    out = capsys.readouterr().out
    assert (obeyed(out), json.loads(out)) == (set(), {"r": HOSTILE})


def test_errors_of_a_gateway_are_shown_harmless(run, fake, state_dir) -> None:
    """Its words may hold names that a client or a model chose."""
    fake.on("GET", "/admin/v1/models", {"error": f"model {HOSTILE}", "code": "x"}, 404)
    result = run("model", "list", "--state-dir", str(state_dir))
    assert result.exit_code == 2
    assert obeyed(result.stderr) == set()
    assert "\\x1b]0;owned" in result.stderr


def test_reason_of_a_route_is_shown_harmless(run, fake, state_dir) -> None:
    """As old logs may hold it."""
    fake.on("GET", "/admin/v1/models", {"models": [], "problems": [HOSTILE]})
    result = run("model", "list", "--state-dir", str(state_dir))
    assert obeyed(result.stdout) == set()
    assert SPELT in result.stdout
