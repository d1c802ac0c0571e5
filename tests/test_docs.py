"""The pages agree with the code and with each other."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, get_args

import click
import pytest

from docs.generate import PAGES, error_kinds
from docs.schema import EXAMPLES, PARTS, fields_of
from gateway.audit import event as events
from gateway.audit import frame as frames
from gateway.audit.kinds import KINDS
from gateway.cli import command as tidegate

ROOT = Path(__file__).resolve().parents[1]
WRITTEN = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^]]*\]\(([^)#:]+)(?:#[^)]*)?\)")
SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", PAGES)
def test_made_pages_are_fresh(name: str) -> None:
    """What is made from code was made from this code."""
    assert (ROOT / "docs" / name).read_text() == PAGES[name](), "run `make docs`"


EVENT_STRUCTS = [(kind, events) for kind in (*get_args(events.Event), *PARTS)]
EVENT_STRUCTS += [(frames.Run, frames), (frames.RunTensor, frames)]


@pytest.mark.parametrize(("struct", "module"), EVENT_STRUCTS, ids=lambda value: value.__name__)
def test_every_field_of_the_log_says_what_it_is(struct: Any, module: Any) -> None:
    """Whoever adds a field writes its meaning under it, and the page has a word for its type."""
    fields = fields_of(struct, module)
    assert [name for name, _, meaning, _ in fields if not meaning] == []
    assert [name for name, kind, _, _ in fields if kind == "anything"] == []


def test_the_examples_are_events() -> None:
    """One of each type, of a kind that there is, and it reads back as it was."""
    assert [type(example) for example in EXAMPLES] == list(get_args(events.Event))
    for example in EXAMPLES:
        assert example.kind in KINDS[example.__struct_config__.tag]
        assert events.decode_event(events.encode_event(example, "json")) == example


def test_every_error_says_what_it_is() -> None:
    """Each error class has a code of its own and a docstring to show."""
    codes = [kind.code for kind in error_kinds()]
    assert sorted(codes) == sorted(set(codes))
    assert [kind.__name__ for kind in error_kinds() if not kind.__doc__] == []


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links name files that are here."""
    lost = [target for target in LINK.findall(page.read_text()) if not (page.parent / target).exists()]
    assert lost == []


def commands_in(page: Path) -> list[list[str]]:
    """The `tidegate` and `make` lines of a page's shell blocks."""
    lines = [line for block in SHELL.findall(page.read_text()) for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line and line[0] in {"tidegate", "make"}]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_shell_lines_exist(page: Path) -> None:
    """Commands, options and make targets in shell blocks exist."""
    makefile = (ROOT / "Makefile").read_text()
    for line in commands_in(page):
        if line[0] == "make":
            assert re.search(rf"^{line[1]}:", makefile, re.MULTILINE), line
        else:
            assert unknown_in(line[1:]) is None, f"{' '.join(line)}: {unknown_in(line[1:])}"


def unknown_in(words: list[str]) -> str | None:
    """The first word that the command line does not know."""
    command: click.Command = tidegate
    context = click.Context(command)
    while isinstance(command, click.Group) and words:
        # A synopsis names alternatives: freeze|thaw.
        found = None
        for name in words[0].split("|"):
            found = command.get_command(context, name)
            if found is None:
                return name
        assert found is not None
        command, words = found, words[1:]
        context = click.Context(command, parent=context)
    known = {option for parameter in command.get_params(context) for option in parameter.opts}
    return next((w for w in words if w.startswith("-") and w.partition("=")[0] not in known), None)
