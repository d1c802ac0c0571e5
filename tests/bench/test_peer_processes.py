"""A server's whole process tree: found, counted and ended, whatever it did to its family."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from bench.peers.family import Seen
from bench.peers.peer import Unavailable
from bench.peers.processes import Tree, cpu_s, spent_s

DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("daemon", os.getpid(), flush=True)
        time.sleep(600)
    os._exit(0)
os.wait()
print("left", flush=True)
time.sleep(600)
"""
BURN = "import time\nwhile time.process_time() < 0.4: pass\n"


def run(tmp_path: Path, code: str) -> Tree:
    """Python code as a server."""
    return Tree("thing", [sys.executable, "-c", code], home=tmp_path)


def said(tree: Tree, word: str) -> str:
    """Wait for a line of its output."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for line in tree.said().splitlines():
            if word in line:
                return line
        time.sleep(0.01)
    pytest.fail(f"it never said {word}: {tree.said()}")


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_daemon_that_left_session_and_parent_is_of_the_tree(tmp_path: Path) -> None:
    """It is found by the mark in its environment, and ended with the rest."""
    tree = run(tmp_path, DAEMON)
    try:
        daemon = int(said(tree, "daemon").split()[1])
        said(tree, "left")
        assert set(tree.pids()) == {tree.pid, daemon}
    finally:
        tree.stop()
    assert not alive(daemon)
    assert tree.pids() == []


def test_a_process_without_the_mark_is_found_by_its_parent(tmp_path: Path) -> None:
    """A child whose environment is empty and whose session is its own belongs to its known parent."""
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '600'], env={}, start_new_session=True)\n"
        "print('child', child.pid, flush=True)\ntime.sleep(600)\n"
    )
    tree = run(tmp_path, code)
    try:
        child = int(said(tree, "child").split()[1])
        assert child in tree.pids()
    finally:
        tree.stop()
    assert not alive(child)


def test_time_of_a_child_that_ended_counts(tmp_path: Path) -> None:
    """What a worker took before it was replaced is the product's."""
    code = (
        "import subprocess, sys, time\n"
        f"subprocess.run([sys.executable, '-c', {BURN!r}])\nprint('burnt', flush=True)\ntime.sleep(600)\n"
    )
    tree = run(tmp_path, code)
    try:
        said(tree, "burnt")
        assert tree.cpu_s() >= 0.3
        assert cpu_s(tree.pids()) >= 0.3
    finally:
        tree.stop()


def process(pid: int, spent_ticks: int, ended_ticks: int = 0) -> dict[tuple[int, int], Seen]:
    """A process at one time."""
    return {(pid, 7): Seen(pid, 1, 1, 7, spent_ticks, ended_ticks, is_zombie=False)}


def test_seconds_of_a_worker_that_ends_meanwhile_are_not_taken_off() -> None:
    """Waited for by its parent it counts to its end; by nobody, to the beginning; one that is born counts."""
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    before = {**process(1, 100), **process(2, 50)}
    assert spent_s(before, {**process(1, 130), **process(2, 60)}) == pytest.approx(40 * tick_s)
    assert spent_s(before, process(1, 190, 60)) == pytest.approx(40 * tick_s)
    assert spent_s(before, process(1, 130)) == pytest.approx(30 * tick_s)
    assert spent_s(before, {**before, **process(3, 5)}) == pytest.approx(5 * tick_s)


def test_one_that_ends_before_it_answers_is_unavailable_with_its_last_lines(tmp_path: Path) -> None:
    """Its status and what it said; not a time-out."""
    tree = run(tmp_path, "print('cannot open the frobnicator')\nraise SystemExit(7)")
    with pytest.raises(Unavailable, match="ended with status 7") as caught:
        tree.await_answer(lambda: False, 30)
    assert "frobnicator" in caught.value.last_lines


def test_one_that_never_answers_is_unavailable_and_ended(tmp_path: Path) -> None:
    """After the time that it had, nothing of it is left."""
    tree = run(tmp_path, "import time\ntime.sleep(600)")

    def refused() -> bool:
        raise ConnectionRefusedError

    with pytest.raises(Unavailable, match=r"no prediction within 0\.3 s"):
        tree.await_answer(refused, 0.3)
    assert tree.pids() == []


def test_a_command_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    """One message, no traceback of the runner."""
    with pytest.raises(Unavailable, match="cannot be started"):
        Tree("thing", [str(tmp_path / "absent")], home=tmp_path)


def test_strangers_are_not_of_the_tree(tmp_path: Path) -> None:
    """This process, which started it, is not."""
    tree = run(tmp_path, "import time\ntime.sleep(600)")
    try:
        assert os.getpid() not in tree.pids()
    finally:
        tree.stop()


def test_processes_may_call_themselves_anything(tmp_path: Path) -> None:
    """A name that is no UTF-8 (the kernel cuts it after 15 bytes) hides nobody, wherever on the machine it is."""
    code = (
        "import time\nopen('/proc/self/comm', 'wb').write(b'\\xd0) Z \\xff')\n"
        "print('named', flush=True)\ntime.sleep(600)\n"
    )
    tree = run(tmp_path, code)
    try:
        said(tree, "named")
        assert tree.pids() == [tree.pid]
    finally:
        tree.stop()


def test_a_server_has_nothing_that_is_meant_for_another(tmp_path: Path, monkeypatch) -> None:
    """Neither proxies nor settings of these products elsewhere; what its adapter gives it, it has."""
    others = {"https_proxy", "NO_PROXY", "RAY_ADDRESS", "LIT_SERVER_API_KEY", "PYTHONPATH", "TIDEGATE_PORT"}
    for name in others:
        monkeypatch.setenv(name, "elsewhere")
    monkeypatch.setenv("OF_THE_MACHINE", "kept")
    code = "import os, time\nprint(*os.environ, 'all', flush=True)\ntime.sleep(600)\n"
    tree = Tree("thing", [sys.executable, "-c", code], home=tmp_path, environ={"RAY_AUTH_TOKEN": "mine"})
    try:
        names = set(said(tree, "all").split())
    finally:
        tree.stop()
    assert {"OF_THE_MACHINE", "PATH", "RAY_AUTH_TOKEN"} <= names
    assert not names & others
