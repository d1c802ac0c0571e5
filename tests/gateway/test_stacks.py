"""Files in memory for the stacks of children: what is inherited, what all is shown, and systems without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from gateway import stacks
from tests.gateway.supervising import ROOT, until

CHILD = """
import os, sys, threading, time
sys.path.insert(0, {root!r})
from gateway import stacks
number = os.environ[stacks.VARIABLE]
stacks.show_when_asked()
def the_other_one():
    time.sleep(60)
threading.Thread(target=the_other_one, daemon=True).start()
print(os.get_inheritable(int(number)), stacks.VARIABLE in os.environ, flush=True)
def the_main_one():
    time.sleep(60)
the_main_one()
"""


def test_a_child_shows_all_its_threads_and_hands_the_file_to_nobody() -> None:
    """It inherits the file, and its own children do not, nor are they told of it; the main thread is not all."""
    fd = stacks.make()
    assert os.get_inheritable(fd)
    with subprocess.Popen(
        [sys.executable, "-S", "-c", CHILD.format(root=str(ROOT))],
        env={**os.environ, stacks.VARIABLE: str(fd)},
        pass_fds=[fd],
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "False False\n"
            child.send_signal(signal.SIGUSR1)
            found: list[str] = []
            until("stacks", lambda: found.append(stacks.taken(fd)) or "the_main_one" in "".join(found))
            assert "the_other_one" in "".join(found)
        finally:
            child.kill()
    os.close(fd)


def test_without_a_file_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child of a system without such files starts as any, and SIGUSR1 stays as it was: blocked, if it was."""
    monkeypatch.delenv(stacks.VARIABLE, raising=False)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        stacks.show_when_asked()
        assert signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, set())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_system_without_such_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """-1, which no child inherits, and of which there is nothing to take."""

    def refused(name: str, flags: int) -> int:
        raise OSError

    monkeypatch.setattr(os, "memfd_create", refused)
    assert stacks.make() == -1
    assert stacks.taken(-1) == ""
