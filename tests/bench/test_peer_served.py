"""The life of a started server, whatever the product: ports, files that are no models, none that outlives the bench."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from fake_product import Fake

from bench.peers import catalog, served_process
from bench.peers.peer import Begin, Setting, Unavailable
from bench.peers.probes.small_models import write_broken

HERE = Path(__file__).parent
OF_THE_FAKE = """
from fake_product import Fake
from bench.peers import catalog
from bench.peers.peer import Begin, Setting
catalog.write(home / "models", "mlp")
server = Fake().begin(Begin(repository=home / "models", model="mlp", home=home, setting=Setting()))
"""
OF_A_CHILD_WITHOUT_A_MARK = """
from bench.peers.processes import Tree
code = "import subprocess, time; subprocess.Popen(['sleep', '600'], env={}, start_new_session=True); time.sleep(600)"
server = Tree("thing", [sys.executable, "-c", code], home=home)
while len(server.pids()) < 2:
    time.sleep(0.01)
"""
OF_A_RECEIVER = """
from bench.peers.probes.receivers import HttpReceiver
server = HttpReceiver(home / "receiver")
server.start()
"""


@pytest.fixture
def what(tmp_path: Path) -> Begin:
    """A start with a model of the catalog."""
    catalog.write(tmp_path / "models", "mlp")
    return Begin(repository=tmp_path / "models", model="mlp", home=tmp_path, setting=Setting())


def test_a_port_that_somebody_took_meanwhile_is_chosen_anew(
    what: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the choice and the server's own start anybody may take it: once more, with others."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        ports: Iterator[int] = iter([taken.getsockname()[1], 1])
        free_port = served_process.free_port
        monkeypatch.setattr(served_process, "free_port", lambda: next(ports, 0) or free_port())
        running = Fake().begin(what)
    try:
        assert served_process.TAKEN in running.said().lower()
        assert running.answers()
    finally:
        running.stop()
    assert running.pids() == []


def test_one_that_does_not_start_for_another_reason_is_started_once(what: Begin) -> None:
    """What it said stands there once, and its status."""
    with pytest.raises(Unavailable, match="ended with status 7") as caught:
        Fake(FAKE_DIES="1").begin(what)
    assert caught.value.last_lines.count("frobnicator") == 1


def test_what_is_no_model_is_said_before_anything_is_started(what: Begin) -> None:
    """A repository without the model, and a file that is none."""
    with pytest.raises(Unavailable, match="no version of scale"):
        Fake().begin(msgspec.structs.replace(what, model="scale"))
    write_broken(what.repository, 1)
    with pytest.raises(Unavailable, match="scale cannot be read"):
        Fake().begin(msgspec.structs.replace(what, model="scale"))


def test_what_a_server_leaves_among_temporary_files_goes_with_it(
    what: Begin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It has a directory of its own for them, which is there while it runs."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    running = Fake().begin(what)
    try:
        (mine,) = place.iterdir()
        environ = Path(f"/proc/{running.pid}/environ").read_bytes().split(b"\0")
        assert f"TMPDIR={mine}".encode() in environ
        (mine / "left").touch()
    finally:
        running.stop()
    assert list(place.iterdir()) == []
    with pytest.raises(Unavailable):
        Fake(FAKE_DIES="1").begin(what)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    "server", [OF_THE_FAKE, OF_A_CHILD_WITHOUT_A_MARK, OF_A_RECEIVER], ids=["daemon", "no mark", "receiver"]
)
def test_no_server_outlives_a_bench_that_was_killed(server: str, tmp_path: Path) -> None:
    """After kill -9 nothing of the tree is left, neither what left its parent nor what lost the mark, nor the receiver
    of a log and what guards it."""
    code = (
        "import sys, time\nfrom pathlib import Path\nhome = Path(sys.argv[1])\n"
        f"{server}\nprint(*server.pids(), flush=True)\ntime.sleep(600)\n"
    )
    environ = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parents[1]}"}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], env=environ, stdout=subprocess.PIPE, text=True
    ) as bench:
        assert bench.stdout is not None
        pids = [int(pid) for pid in bench.stdout.readline().split()]
        bench.send_signal(signal.SIGKILL)
    assert len(pids) >= 2
    deadline_s = time.monotonic() + 30
    while left := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline_s, left
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
