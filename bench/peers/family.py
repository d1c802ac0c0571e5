"""Family: the processes that came of one, and their end, whatever they did to their family tree.

Some products make daemons that leave their parents, and some overwrite their own environment to set a title, so that a
process is found by any of three signs: the mark in its environment, a session that a known process leads, a known
parent.

Run as a script it is a tree's **guard**: it waits until whoever holds the other end of its input is gone, by kill -9,
too, and ends what is left of the family then. Needs nothing but the standard library, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

MARK = "BENCH_PEER_TREE"
"""Not TIDEGATE_...: those are settings of ours, and an unknown one is refused."""
STOP_S = 20.0
POLL_S = 0.02
_TERM_S = 2.0
_KILL_S = 10.0


class Seen(NamedTuple):
    """A process."""

    pid: int
    parent: int
    session: int
    born_ticks: int
    spent_ticks: int
    """Own, and of children that ended and were waited for."""
    ended_ticks: int
    """Of those children alone."""
    is_zombie: bool


def seen(pid: int) -> Seen | None:
    """A process as it is now; None where it is gone."""
    try:
        # As bytes: a process may call itself anything.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    user, system, ended_user, ended_system = map(int, fields[11:15])
    ended_ticks = ended_user + ended_system
    spent_ticks = user + system + ended_ticks
    return Seen(
        pid, int(fields[1]), int(fields[3]), int(fields[19]), spent_ticks, ended_ticks, fields[0] == b"Z"
    )


class Family:
    """A process that was started with a mark in its environment, and all that came of it.

    Args:
        mark: the value of MARK.
        first: the process, which leads a session of its own; None: not known.
    Threading: one thread.
    Cost: `members` reads /proc once, a few milliseconds.
    """

    def __init__(self, mark: str, first: int | None) -> None:
        self._marked = f"{MARK}={mark}".encode()
        self._first = first
        self._known: dict[int, int] = {}
        """When a process was born, by its pid: pids come again."""

    def members(self) -> list[Seen]:
        """Its live processes."""
        pids = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
        alive = {one.pid: one for one in map(seen, pids) if one is not None and not one.is_zombie}
        known = {pid for pid, born in self._known.items() if pid in alive and alive[pid].born_ticks == born}
        rest = alive.keys() - known
        known |= {pid for pid in rest if alive[pid].session == self._first or self._is_marked(pid)}
        while grown := {
            pid for pid in alive.keys() - known if {alive[pid].session, alive[pid].parent} & known
        }:
            known |= grown
        self._known = {pid: alive[pid].born_ticks for pid in known}
        return [alive[pid] for pid in sorted(known)]

    def pids(self) -> list[int]:
        """Those of its live processes, lowest first."""
        return [one.pid for one in self.members()]

    def end(self, timeout_s: float = STOP_S) -> None:
        """Ask the first to end, then what is left of them all; after `timeout_s` they are killed."""
        deadline_s = time.monotonic() + timeout_s
        _signal([pid for pid in self.pids() if pid == self._first], signal.SIGTERM, deadline_s)
        _signal(self.pids(), signal.SIGTERM, min(deadline_s, time.monotonic() + _TERM_S))
        until_s = time.monotonic() + _KILL_S
        while (left := self.pids()) and time.monotonic() < until_s:
            _signal(left, signal.SIGKILL, until_s)

    def _is_marked(self, pid: int) -> bool:
        try:
            return self._marked in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False


def _signal(pids: Sequence[int], kind: signal.Signals, until_s: float) -> None:
    """Send a signal and wait until nobody is left, or the time is over."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, kind)
    while any((one := seen(pid)) and not one.is_zombie for pid in pids) and time.monotonic() < until_s:
        time.sleep(POLL_S)


def guard(mark: str) -> None:
    """Read the first process's pid, wait for the end of the input, and end the family."""
    told = sys.stdin.buffer.readline().strip()
    while sys.stdin.buffer.read(1):
        pass
    Family(mark, int(told) if told else None).end()


if __name__ == "__main__":
    guard(sys.argv[1])
