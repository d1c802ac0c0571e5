"""`--watch`: a picture for people, a line a change for programs."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.cli import watching

AT = "/admin/v1/routes/flights"
WITHIN_S = 20.0


def route(weight_bp: int) -> dict[str, object]:
    """A route whose canary has that weight."""
    canary = {"name": "canary", "version": "2", "role": "canary", "weight_bp": weight_bp, "state": "ready"}
    return {"model": "flights", "revision": 12, "variants": [canary]}


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Ends a watch, as Ctrl-C does, behind so many looks; none of them is waited for."""

    def end_after(count: int) -> None:
        left = [count]

        def sleep(_: float) -> None:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

        monkeypatch.setattr(watching.time, "sleep", sleep)

    return end_after


def test_a_pipe_gets_one_line_a_change(run, fake, state_dir, looks) -> None:
    """The first at once, then only what differs; each line is the whole document. Ctrl-C is exit 0."""
    weights = [100, 100, 1000, 1000, 0]
    fake.on("GET", AT, lambda seen: route(weights.pop(0)))
    looks(5)
    result = run("route", "show", "flights", "--watch", "--state-dir", str(state_dir))
    assert result.exit_code == 0, result.stderr
    assert [json.loads(line) for line in result.stdout.splitlines()] == [route(100), route(1000), route(0)]


def test_models_and_all_routes_can_be_watched(run, fake, state_dir, looks) -> None:
    """`model list` and `route show` without a model."""
    fake.on("GET", "/admin/v1/models", {"models": [], "problems": []})
    fake.on("GET", "/admin/v1/routes", {"routes": [route(1)]})
    for words in (("model", "list"), ("route", "show")):
        looks(2)
        result = run(*words, "--watch", "--json", "--state-dir", str(state_dir))
        assert result.exit_code == 0, result.stderr
        assert len(result.stdout.splitlines()) == 1


def test_a_gateway_that_is_away_for_a_while_is_waited_for(run, fake, state_dir, looks) -> None:
    """Told once on stderr; what it says when it is back is shown. At the first look it is exit 3."""
    answers = [route(1), None, None, route(2)]
    fake.on("GET", AT, lambda seen: answers.pop(0))
    looks(4)
    result = run("route", "show", "flights", "--watch", "--state-dir", str(state_dir))
    assert result.exit_code == 0, result.stderr
    assert [json.loads(line) for line in result.stdout.splitlines()] == [route(1), route(2)]
    assert len(result.stderr.splitlines()) == 1
    assert "looking on" in result.stderr
    first = run("route", "show", "flights", "--watch", "--admin", "http://127.0.0.1:9")
    assert first.exit_code == 3


def test_a_refusal_ends_it(run, fake, state_dir, looks) -> None:
    """A model that is gone is no outage."""
    looks(9)
    fake.on("GET", AT, {"error": "gone", "code": "unknown_model"}, 404)
    assert run("route", "show", "flights", "--watch", "--state-dir", str(state_dir)).exit_code == 2


@contextmanager
def on_terminal(term: str, *args: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The command line as a child on a terminal of 100 columns, and the terminal's other end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    child = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", *args],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "TERM": term},
        # Ctrl-C is ignored by children of a shell that put this in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(theirs)
    try:
        yield child, ours
    finally:
        child.kill()
        child.wait()
        os.close(ours)


def until(ours: int, *words: str) -> str:
    """What the terminal got, as soon as all of that is in it."""
    got = b""
    deadline = time.monotonic() + WITHIN_S
    while not all(word in got.decode(errors="replace") for word in words):
        assert time.monotonic() < deadline, got
        try:
            got += os.read(ours, 4096)
        except OSError:
            pytest.fail(f"it ended: {got!r}")
    return got.decode(errors="replace")


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_terminal_gets_a_picture(fake, state_dir, term) -> None:
    """A table that is drawn over with each change, below it where the terminal cannot; Ctrl-C ends it with 0."""
    now = [100]
    fake.on("GET", AT, lambda seen: route(now[0]))
    words = ("route", "show", "flights", "--watch", "--state-dir", str(state_dir))
    with on_terminal(term, *words) as (child, ours):
        until(ours, "flights", "1%")
        now[0] = 2500
        drawn = until(ours, "25%")
        assert ("\x1b[" in drawn) == (term == "xterm")
        child.send_signal(signal.SIGINT)
        assert child.wait(WITHIN_S) == 0
