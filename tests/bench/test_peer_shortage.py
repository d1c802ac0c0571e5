"""A machine that is short of disk, files or memory is no product's fault: what is to start or install one says so."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bench.peers import environment, processes, shortage
from bench.peers.peer import Unavailable
from bench.peers.processes import Tree

SHORT = pytest.mark.parametrize("number", sorted(shortage.SHORT), ids=lambda number: errno.errorcode[number])


@SHORT
def test_a_log_that_cannot_be_opened_for_want_of_room_is_not_the_products_failure(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error goes up as it is, whatever the machine is short of; the guard beside the server ends."""
    dismissed: list[int] = []
    whole = processes.Guard.dismiss
    monkeypatch.setattr(
        processes.Guard, "dismiss", lambda guard: (whole(guard), dismissed.append(guard.pid))[0]
    )

    def short(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", short)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        Tree("thing", ["true"], home=tmp_path)
    assert caught.value.errno == number
    assert len(dismissed) == 1


def test_a_spawn_that_fails_for_want_of_memory_is_not_the_products_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOMEM of the fork; a command that is not there stays the product's."""
    whole = subprocess.Popen

    def short(command: list[str], **given: object) -> object:
        if command == ["true"]:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return whole(command, **given)

    with monkeypatch.context() as patch:
        patch.setattr(processes.subprocess, "Popen", short)
        with pytest.raises(OSError, match="Cannot allocate memory"):
            Tree("thing", ["true"], home=tmp_path)
    with pytest.raises(Unavailable, match="cannot be started"):
        Tree("thing", [str(tmp_path / "absent")], home=tmp_path)


def test_a_server_that_dies_of_a_full_disk_is_not_unavailable(tmp_path: Path) -> None:
    """It says so itself, with the number or in words."""
    for said in ("OSError: [Errno 28] write", "io error: No space left on device", "failed (os error 24)"):
        home = tmp_path / said[:2]
        home.mkdir()
        tree = Tree("thing", [sys.executable, "-c", f"raise SystemExit({said!r})"], home=home)
        with pytest.raises(OSError, match=r"No space left|Too many open files"):
            tree.await_answer(lambda: False, 30)


def test_a_port_is_not_looked_for_without_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """EMFILE says that, and not that all ports are taken."""
    asked: list[object] = []

    def short(*given: object) -> None:
        asked.append(given)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "create_server", short)
    with pytest.raises(OSError, match="Too many open files"):
        processes.free_port()
    assert len(asked) == 1


def test_an_installer_on_a_full_disk_makes_no_product_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what it says, or by what is left of the disk; whatever else it fails with is the product's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    full = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"

    def run(said: str) -> None:
        environment._run("thing", [sys.executable, "-c", f"raise SystemExit({said!r})"], lambda _: None)

    with pytest.raises(OSError, match="No space left"):
        run(full)
    with pytest.raises(Unavailable, match="cannot be made"):
        run("ERROR: No matching distribution")
    monkeypatch.setattr(shortage, "FREE_BYTES", 1 << 62)
    with pytest.raises(OSError, match="MiB are left in"):
        run("killed")
