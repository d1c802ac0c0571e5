"""Processes: a server and everything that it started.

An adapter's server is a **Tree**; calibration and comparison ask it for processor time and memory. Its processes are
found and ended by `family`, and a guard beside them ends them when this process could not.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.peers import family
from bench.peers.family import MARK, POLL_S, STOP_S, Family, Seen
from bench.peers.peer import Unavailable
from bench.peers.shortage import demand_none, is_short

SAID_CHARACTERS = 4000
PORTS = (20_000, 32_000)
"""Below those that the kernel gives to outgoing connections, and what a signed number of 16 bits holds."""
START_S = 120.0
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_FOR_OTHERS = (
    "PYTHON", "TIDEGATE_", "BENTOML_", "LIT_", "LITSERVE_", "MLSERVER_", "OTEL_", "RAY_", "TRITON", "UVICORN_",
)  # fmt: skip
_PROXIES = frozenset(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"))


def inherited() -> dict[str, str]:
    """This process's environment without what is meant for others than a server under measurement.

    Settings of these products are for one that its user runs elsewhere (RAY_ADDRESS, LIT_SERVER_API_KEY), and a proxy
    would be asked for 127.0.0.1.
    """
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(_FOR_OTHERS) and key.upper() not in _PROXIES
    }


class Guard:
    """A process that ends a family as soon as this process is gone, by kill -9, too.

    Args:
        mark: of the family.
    """

    def __init__(self, mark: str) -> None:
        # A session of its own: what ends this process by its terminal does not end the guard.
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", family.__file__, mark],
            stdin=subprocess.PIPE, bufsize=0, start_new_session=True,
        )  # fmt: skip
        self.pid = self._process.pid

    def watch(self, first: int) -> None:
        """Tell it the first process of the family, which leads a session."""
        if self._process.stdin is not None:
            self._process.stdin.write(b"%d\n" % first)

    def dismiss(self) -> None:
        """End it: there is nothing to guard any more."""
        self._process.kill()
        self._process.communicate()


def free_port() -> int:
    """A port that nobody listens on now, on any of this machine's addresses.

    Raises:
        OSError: none was found, or this machine is short of files.
    """
    for _ in range(100):
        port = random.randrange(*PORTS)
        try:
            with socket.create_server(("0.0.0.0", port)):
                return port
        except OSError as exc:
            if is_short(exc):
                raise
    msg = f"no free port between {PORTS[0]} and {PORTS[1]}"
    raise OSError(msg)


class Tree:
    """A command and all processes that came of it, in a session of its own; they do not outlive this process.

    Args:
        name: the peer's, for messages.
        command: the command line.
        home: where its output goes (`output.log`, appended to) and where it runs.
        environ: beside what is `inherited`, over it.
        cpus: processors of the whole tree, as taskset takes them; None: all.

    Raises:
        Unavailable: the command cannot be run at all.
        OSError: this machine is short of disk, files or memory.
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
        pinned = [] if cpus is None else ["taskset", "-c", cpus]
        mark = uuid.uuid4().hex
        self._guard = Guard(mark)
        try:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603
                    [*pinned, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    cwd=home, start_new_session=True,
                    env={**inherited(), "ORT_DISABLE_TELEMETRY": "1", **environ, MARK: mark},
                )  # fmt: skip
        except OSError as exc:
            self._guard.dismiss()
            if is_short(exc):
                raise
            raise Unavailable(name, f"cannot be started: {exc}") from exc
        self.pid = self._process.pid
        self._family = Family(mark, self.pid)
        self._guard.watch(self.pid)

    def pids(self) -> list[int]:
        """All live processes of it, lowest pid first."""
        return self._family.pids()

    def cpu_s(self) -> float:
        """Processor seconds of all of it so far; what ended counts where its parent waited for it. Grain: 10 ms."""
        return sum(one.spent_ticks for one in self._family.members()) * _TICK_S

    def said(self) -> str:
        """The end of its output."""
        return self.log.read_text(errors="replace")[-SAID_CHARACTERS:] if self.log.exists() else ""

    def await_answer(self, asked: Callable[[], bool], timeout_s: float = START_S) -> None:
        """Wait until `asked` says that a prediction was answered; OSError from it means not yet.

        Raises:
            Unavailable: it ended, or there was no answer in time; all of it has been ended then.
            OSError: that, and this machine is short of disk, files or memory.
        """
        try:
            self._await(asked, timeout_s)
        except BaseException:
            self.stop()
            raise

    def _await(self, asked: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if asked():
                    return
            except OSError as exc:
                if is_short(exc):
                    raise
            status = self._process.poll()
            if status is not None or time.monotonic() > deadline:
                why = (
                    f"ended with status {status} before it answered a prediction"
                    if status is not None
                    else f"answered no prediction within {timeout_s:g} s"
                )
                demand_none(self.said(), self.log.parent)
                raise Unavailable(self.name, why, self.said())
            time.sleep(POLL_S)

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Ask its first process to end, and kill what is left of it all after `timeout_s`."""
        self._family.end(timeout_s)
        self._process.wait(10)
        self._guard.dismiss()


Counted = Mapping[tuple[int, int], Seen]
"""Processes at one time, by pid and birth: pids come again."""


def counted(pids: Sequence[int]) -> Counted:
    """These processes as they are now."""
    return {(one.pid, one.born_ticks): one for one in map(family.seen, pids) if one is not None}


def spent_s(before: Counted, now: Counted) -> float:
    """Processor seconds that a tree took between two times. Grain: 10 ms.

    Those that were born meanwhile count from their birth. What ended counts to its end where its parent waited for it,
    else to `before`: nobody's earlier seconds are taken off for having ended.
    """
    gone_ticks = sum(before[key].spent_ticks for key in before.keys() - now.keys())
    waited_ticks = sum(one.ended_ticks for one in now.values())
    waited_ticks -= sum(before[key].ended_ticks for key in before.keys() & now.keys())
    total_ticks = sum(one.spent_ticks for one in now.values())
    total_ticks -= sum(one.spent_ticks for one in before.values())
    return (total_ticks + max(0, gone_ticks - waited_ticks)) * _TICK_S


def cpu_s(pids: Sequence[int]) -> float:
    """Processor seconds of these processes so far; of their children that ended and were waited for, too."""
    return spent_s({}, counted(pids))
