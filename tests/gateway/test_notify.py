"""What systemd would be told, on a socket of ours; and the unit file of deploy/."""

from __future__ import annotations

import configparser
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import fleet as words_of
from gateway.children import DRAIN_S
from gateway.notify import Notify
from gateway.supervisor import Supervisor
from tests.gateway.supervising import ROOT, run_until, stub
from tests.gateway.supervising import supervisor as supervisor  # a fixture


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """systemd's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


def heard(listener: socket.socket) -> list[str]:
    """What was said since the last call."""
    found = []
    while True:
        try:
            found.append(listener.recv(4096).decode())
        except BlockingIOError:
            return found


def test_variables_are_taken_and_kept_for_the_next_image(tmp_path: Path) -> None:
    """A child that spoke in our name would be believed."""
    environ = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "4000000", "PATH": "p"}
    notify = Notify(environ)
    assert environ == {"PATH": "p"}
    assert notify.environment == {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "4000000"}


def test_states_are_as_sd_notify_writes_them(listener: socket.socket) -> None:
    """Ready with our pid, reloading with the clock, stopping; a status once."""
    notify = Notify({"NOTIFY_SOCKET": listener.getsockname()})
    notify.ready("2 of 2")
    notify.reloading("restart")
    notify.status("a")
    notify.status("a")
    notify.stopping()
    ready, reloading, status, stopping = heard(listener)
    assert ready.splitlines() == ["READY=1", f"MAINPID={os.getpid()}", "STATUS=2 of 2"]
    assert reloading.splitlines()[0] == "RELOADING=1"
    clock_us = int(reloading.splitlines()[1].removeprefix("MONOTONIC_USEC="))
    assert abs(clock_us - time.monotonic_ns() // 1000) < 10_000_000
    assert status == "STATUS=a"
    assert stopping.splitlines()[0] == "STOPPING=1"


def test_the_watchdog_is_fed_twice_in_its_time(listener: socket.socket) -> None:
    """4 s: at most one beat in two seconds; none for another process's watchdog, nor without one."""
    address = listener.getsockname()
    notify = Notify({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "4000000"})
    for tenth in range(100):
        notify.beat(1000.0 + tenth / 10)
    assert heard(listener) == ["WATCHDOG=1"] * 5
    for environ in ({}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"}):
        Notify({"NOTIFY_SOCKET": address, **environ}).beat(1000.0)
    assert heard(listener) == []


def test_abstract_addresses() -> None:
    """systemd's own are often such."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0tidegate-test-{os.getpid()}")
        sock.setblocking(False)
        Notify({"NOTIFY_SOCKET": f"@tidegate-test-{os.getpid()}"}).stopping()
        assert heard(sock)[0].startswith("STOPPING=1")


@pytest.mark.parametrize("address", ["", "/nonexistent/socket", "@nobody-is-here"])
def test_nobody_listens(address: str) -> None:
    """Nothing is raised, nothing is waited for."""
    notify = Notify({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1"} if address else {})
    for say in (notify.stopping, lambda: notify.ready("x"), lambda: notify.beat(1.0)):
        say()


def test_a_gateway_says_when_it_is_ready_reloads_and_stops(
    supervisor: Supervisor, listener: socket.socket, tmp_path: Path
) -> None:
    """Ready once all wanted workers serve, not before; a restart is a reload that ends; children are told nothing."""
    supervisor._notify = Notify({"NOTIFY_SOCKET": listener.getsockname(), "WATCHDOG_USEC": "200000"})
    said: list[str] = []
    told = tmp_path / "told"
    code = (
        "import os, pathlib, time\n"
        f"pathlib.Path({str(told)!r}).write_text(str('NOTIFY_SOCKET' in os.environ))\n"
        "time.sleep(60)"
    )
    supervisor.children = [stub("recorder", code)]
    words = supervisor._fleet.worker(0)

    def story() -> bool:
        said.extend(heard(listener))
        flat = "\n".join(said)
        if "STATUS=0 of 1" in flat and "READY=1" not in flat and told.exists():
            words[words_of.STATE] = words_of.SERVING
        elif "READY=1" in flat and "RELOADING=1" not in flat:
            os.kill(os.getpid(), signal.SIGHUP)
        return flat.count("READY=1") == 2 and "WATCHDOG=1" in flat

    assert run_until(supervisor, story) == 0
    said.extend(heard(listener))
    firsts = [text.splitlines()[0] for text in said]
    assert [f for f in firsts if f in {"READY=1", "RELOADING=1", "STOPPING=1"}] == [
        "READY=1",
        "RELOADING=1",
        "READY=1",
        "STOPPING=1",
    ]
    assert told.read_text() == "False"


def test_the_unit_file_fits() -> None:
    """It speaks as the gateway does, leaves time for the drain, and signals the supervisor alone."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(ROOT / "deploy" / "tidegate.service")
    service = unit["Service"]
    assert service["Type"] == "notify-reload"
    assert service["KillMode"] == "mixed"
    assert service["NotifyAccess"] == "main"
    assert service["RestartPreventExitStatus"] == "2"
    assert service["TimeoutStopSec"] == "3min"
    assert DRAIN_S * 4 <= 180
    assert service["ExecStart"].split()[1] == "serve"
    assert sys.platform == "linux"
