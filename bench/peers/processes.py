"""Processes: a server and everything that it started, whatever it did to its family tree.

An adapter starts a **Tree**; calibration and comparison ask it for processor time and memory. Some products make
daemons that leave their parents, and some overwrite their own environment to set a title, so that a process is found
by any of three signs: the mark in its environment, a session that a known process leads, a known parent.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.peers.peer import Unavailable

MARK = "BENCH_PEER_TREE"
"""Not TIDEGATE_...: those are settings of ours, and an unknown one is refused."""
SAID_CHARACTERS = 4000
PORTS = (20_000, 32_000)
START_S = 120.0
STOP_S = 20.0
POLL_S = 0.02
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class _Seen(NamedTuple):
    pid: int
    parent: int
    session: int
    born_ticks: int
    spent_ticks: int
    """Own, and of children that ended and were waited for."""
    is_zombie: bool


def free_port() -> int:
    """A port of loopback that nobody listens on now, below those that the kernel gives to outgoing connections.

    Raises:
        OSError: none was found.
    """
    for _ in range(100):
        port = random.randrange(*PORTS)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    msg = f"no free port of loopback between {PORTS[0]} and {PORTS[1]}"
    raise OSError(msg)


def _processes() -> list[_Seen]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            spent = sum(int(field) for field in fields[11:15])
            found.append(
                _Seen(
                    int(entry.name), int(fields[1]), int(fields[3]), int(fields[19]), spent, fields[0] == "Z"
                )
            )
    return found


class Tree:
    """A command and all processes that came of it, in a session of its own.

    Args:
        name: the peer's, for messages.
        command: the command line.
        home: where its output goes (`output.log`, appended to) and where it runs.
        environ: beside this process's environment, over it. PYTHON... and TIDEGATE_... of this process are left out:
            they are meant for others than a server under measurement.
        cpus: processors of the whole tree, as taskset takes them; None: all.

    Raises:
        Unavailable: the command cannot be run at all.
    Threading: one thread.
    Cost: `pids` reads /proc once, a few milliseconds.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        home: Path,
        environ: Mapping[str, str] = {},  # noqa: B006 (never changed)
        cpus: str | None = None,
    ) -> None:
        self.name = name
        self.log = home / "output.log"
        self._mark = uuid.uuid4().hex
        self._known: dict[int, int] = {}
        """When a process was born, by its pid: pids come again."""
        pinned = [] if cpus is None else ["taskset", "-c", cpus]
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "TIDEGATE_"))
        }
        try:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603
                    [*pinned, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    cwd=home, start_new_session=True,
                    env={**inherited, "ORT_DISABLE_TELEMETRY": "1", **environ, MARK: self._mark},
                )  # fmt: skip
        except OSError as exc:
            raise Unavailable(name, f"cannot be started: {exc}") from exc
        self.pid = self._process.pid

    def pids(self) -> list[int]:
        """All live processes of it, lowest pid first."""
        return sorted(seen.pid for seen in self._mine())

    def cpu_s(self) -> float:
        """Processor seconds of all of it so far; what ended counts where its parent waited for it. Grain: 10 ms."""
        return sum(seen.spent_ticks for seen in self._mine()) * _TICK_S

    def said(self) -> str:
        """The end of its output."""
        return self.log.read_text(errors="replace")[-SAID_CHARACTERS:] if self.log.exists() else ""

    def await_answer(self, asked: Callable[[], bool], timeout_s: float = START_S) -> None:
        """Wait until `asked` says that a prediction was answered; OSError from it means not yet.

        Raises:
            Unavailable: it ended, or there was no answer in time; all of it has been ended then.
        """
        try:
            self._await(asked, timeout_s)
        except BaseException:
            self.stop()
            raise

    def _await(self, asked: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(OSError):
                if asked():
                    return
            status = self._process.poll()
            if status is not None or time.monotonic() > deadline:
                why = (
                    f"ended with status {status} before it answered a prediction"
                    if status is not None
                    else f"answered no prediction within {timeout_s:g} s"
                )
                raise Unavailable(self.name, why, self.said())
            time.sleep(POLL_S)

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Ask its first process to end, and kill what is left of it all after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        self._mine()
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
        for kind in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, kind)
            until = min(deadline, time.monotonic() + 2) if kind == signal.SIGTERM else time.monotonic() + 10
            while self.pids() and time.monotonic() < until:
                self._process.poll()
                time.sleep(POLL_S)
        self._process.wait(10)

    def _mine(self) -> list[_Seen]:
        alive = {seen.pid: seen for seen in _processes() if not seen.is_zombie}
        known = {pid for pid, born in self._known.items() if pid in alive and alive[pid].born_ticks == born}
        sessions = {self.pid} | known
        rest = {pid for pid in alive if pid not in known}
        known |= {pid for pid in rest if alive[pid].session in sessions or self._is_marked(pid)}
        while grown := {pid for pid in alive if pid not in known and alive[pid].parent in known}:
            known |= grown
        self._known = {pid: alive[pid].born_ticks for pid in known}
        return [alive[pid] for pid in known]

    def _is_marked(self, pid: int) -> bool:
        try:
            return f"{MARK}={self._mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False


def cpu_s(pids: Sequence[int]) -> float:
    """Processor seconds of these processes so far; of their children that ended and were waited for, too."""
    wanted = set(pids)
    return sum(seen.spent_ticks for seen in _processes() if seen.pid in wanted) * _TICK_S


def pss_bytes(pids: Sequence[int]) -> int:
    """Memory of these processes; pages that several share count once in all."""
    total = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) << 10
    return total
