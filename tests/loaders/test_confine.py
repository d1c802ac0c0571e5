"""What a model can do in its trial: nothing, on this kernel and on one without Landlock; and what is told of gaps."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from loaders import confine, trial
from loaders.verdicts import Request

ROOT = Path(__file__).parents[2]


def confined(
    tries: dict[str, Callable[[], object]], before: Callable[[], None] = lambda: None
) -> dict[str, str]:
    """What came of each try in a child that gave up its rights: "done", or the error's name."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            before()
            confine.cap(10.0, 1 << 30)
            confine.give_up_rights()
            found = {}
            for name, attempt in tries.items():
                try:
                    attempt()
                    found[name] = "done"
                except OSError as exc:
                    found[name] = type(exc).__name__
            os.write(writing, json.dumps(found).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        content = told.read()
    os.waitpid(pid, 0)
    return dict(json.loads(content or b'{"child": "it died"}'))


def no_landlock() -> None:
    """The kernel says that it has no such call."""
    confine._syscall = lambda number, *args: -1


KERNELS = pytest.mark.parametrize(
    "before", [lambda: None, no_landlock], ids=["this-kernel", "without-landlock"]
)


@KERNELS
def test_it_can_open_nothing(tmp_path: Path, before: Callable[[], None]) -> None:
    """Not for reading, not for writing, no pipe, no file in memory; not even what everybody may read."""
    (tmp_path / "secret").write_text("s")
    found = confined(
        {
            "read": lambda: os.open(tmp_path / "secret", os.O_RDONLY),
            "world": lambda: os.open("/etc/passwd", os.O_RDONLY),
            "path": lambda: os.open("/", os.O_PATH),
            "write": lambda: os.open(tmp_path / "new", os.O_WRONLY | os.O_CREAT),
            "list": lambda: os.listdir("/proc/self/fd"),
            "pipe": os.pipe,
            "dup": lambda: os.dup(1),
            "memory": lambda: os.memfd_create("m"),
        },
        before,
    )
    assert {name for name, came in found.items() if came == "done"} == set()
    assert not (tmp_path / "new").exists()


@KERNELS
def test_it_can_connect_nowhere(before: Callable[[], None]) -> None:
    """TCP, UDP, raw, Unix by path and by abstract name, a pair of its own: there is no socket to begin with."""
    kinds = {
        "tcp": (socket.AF_INET, socket.SOCK_STREAM),
        "tcp6": (socket.AF_INET6, socket.SOCK_STREAM),
        "udp": (socket.AF_INET, socket.SOCK_DGRAM),
        "raw": (socket.AF_INET, socket.SOCK_RAW),
        "netlink": (socket.AF_NETLINK, socket.SOCK_RAW),
        "unix": (socket.AF_UNIX, socket.SOCK_STREAM),
        "unix-datagrams": (socket.AF_UNIX, socket.SOCK_DGRAM),
    }
    tries: dict[str, Callable[[], object]] = {
        name: (lambda kind=kind: socket.socket(*kind)) for name, kind in kinds.items()
    }
    found = confined(tries | {"pair": socket.socketpair}, before)
    assert {name for name, came in found.items() if came == "done"} == set()


def test_it_can_send_no_signal() -> None:
    """Neither to the server that forked it, nor to itself's group; and what it may not name it cannot trace."""
    mine = os.getpid()
    found = confined({"parent": lambda: os.kill(mine, 0), "init": lambda: os.kill(1, 0)})
    assert found == {"parent": "PermissionError", "init": "PermissionError"}


def test_the_limits_cannot_be_raised_again() -> None:
    """By its own call: they are hard ones, and the user is nobody where the gateway was root."""

    def raised(limit: int, value: int) -> Callable[[], object]:
        def attempt() -> None:
            try:
                resource.setrlimit(limit, (value, value))
            except ValueError as exc:
                raise OSError from exc

        return attempt

    tries = {
        "files": raised(resource.RLIMIT_NOFILE, 64),
        "memory": raised(resource.RLIMIT_AS, 1 << 40),
        "time": raised(resource.RLIMIT_CPU, 1000),
    }
    if os.geteuid() == 0:
        tries["user"] = lambda: os.setuid(0)
    assert "done" not in confined(tries).values()


@pytest.mark.parametrize(
    ("version", "euid", "said"),
    [
        (0, 0, None),
        (0, 1000, "no Landlock.*signal and trace"),
        (4, 1000, r"Landlock \(version 4\).*signal"),
        (5, 0, None),
        (6, 1000, None),
        (9, 1000, None),
    ],
)
def test_gaps_are_told(monkeypatch: pytest.MonkeyPatch, version: int, euid: int, said: str | None) -> None:
    """What this kernel cannot close, for whom it matters, and what closes it."""
    monkeypatch.setattr(confine, "_syscall", lambda number, *args: version or -1)
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    told = confine.gaps()
    if said is None:
        assert told == ()
    else:
        (line,) = told
        assert re.search(said, line)
        assert "Linux" in line


def test_the_newest_landlock_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each version's own attributes, no right that it does not know: an older kernel would refuse the whole."""
    asked: dict[int, bytes] = {}
    for version in range(1, 10):

        def call(number: int, *args: object, version: int = version) -> int:
            if args[0] is None:
                return version
            asked.setdefault(version, bytes(args[0]))  # type: ignore[call-overload]
            return -1

        monkeypatch.setattr(confine, "_syscall", call)
        confine._landlock()
    assert {version: len(one) for version, one in asked.items()} == dict(
        zip(range(1, 10), [8, 8, 8, 16, 16, 24, 24, 24, 24], strict=True)
    )
    assert int.from_bytes(asked[6][16:24], "little") == 0b11
    assert all(one[:8] == asked[5][:8] for version, one in asked.items() if version >= 5)


def request_of(cpu_s: float = 20.0) -> Request:
    return Request(
        root="/", model="m", version="1", providers=(), intra_op_threads=1, cpu_s=cpu_s, memory_bytes=1 << 30
    )


def test_no_descriptor_of_the_server_is_left_to_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """It could write a verdict of its own to who asks: what the server says is the server's word alone."""
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)

    def done(request: Request, say: Callable[[bytes], None]) -> None:
        os.write(writing, b"forged")

    monkeypatch.setattr(trial, "_tried_here", done)
    with open(os.devnull, "r+b") as devnull:
        verdict = trial.tried(request_of(), devnull.fileno())
    os.close(writing)
    assert os.read(reading, 100) == b""
    os.close(reading)
    assert verdict.refused is not None


ORPHANS = """
import os, signal, sys, time
from loaders import confine
confine.adopt_orphans()
pid = os.fork()
if pid == 0:
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            if os.fork():
                os._exit(0)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(1, b"%d\\n" % os.getpid())
            time.sleep(600)
            os._exit(0)
    time.sleep(600)
while sys.stdin.readline() != "end\\n":
    pass
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
confine.end_orphans()
print("ended", flush=True)
sys.stdin.readline()
"""


def test_what_a_model_started_does_not_outlive_its_trial() -> None:
    """Processes of its own, in sessions of their own, whose parents are gone: all are found and killed."""
    server = subprocess.Popen(
        [sys.executable, "-c", ORPHANS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert server.stdin is not None
    assert server.stdout is not None
    pids: list[int] = []
    try:
        pids += [int(server.stdout.readline()) for _ in range(3)]
        server.stdin.write("end\n")
        server.stdin.flush()
        assert server.stdout.readline() == "ended\n"
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        assert server.poll() is None
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        server.communicate("\n")


def test_a_trial_that_runs_for_ever_is_killed_with_all_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """By processor time, whatever handlers it sets."""

    def done(request: Request, say: Callable[[bytes], None]) -> None:
        say(b"probe")
        for number in (signal.SIGTERM, signal.SIGXCPU):
            signal.signal(number, signal.SIG_IGN)
        while True:
            pass

    monkeypatch.setattr(trial, "_tried_here", done)
    started = time.monotonic()
    with open(os.devnull, "r+b") as devnull:
        verdict = trial.tried(request_of(cpu_s=0.0), devnull.fileno())
    assert time.monotonic() - started < 30
    assert verdict.refused is not None
    assert "its trial was killed" in verdict.refused.text
