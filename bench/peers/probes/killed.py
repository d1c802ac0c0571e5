"""Killed: each process that takes part in serving is killed with -9 in turn, and must come back.

processor time by process -> victims, the busiest first -> **kill** -> right answers in a row, and as many processes
of its name as before. The first process is spared: it is the service itself, for its starter to start again. Where it
is the only one, it is the one that is asked.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.peers.probes.started import Probe, Started, another
from bench.peers.probes.table import Answer, Seen
from bench.peers.processes import counted

GROUP = "In operation"
_BACK_S = 60.0
"""Some look after their processes every half a minute."""
_IN_A_ROW = 50
_ASKED = 500
"""Requests by which it shows who takes part in serving."""
_PART = 0.1
"""Of the busiest's processor time: who spends less takes no part."""
_PAUSE_S = 0.05
_ANSWERS_S = 2.0
_EVIDENCE_CHARACTERS = 2000


class One(NamedTuple):
    """A process: pids come again, and with another birth."""

    pid: int
    born_ticks: int


class Killed(NamedTuple):
    """One server's processes, killed in turn.

    Attributes:
        back: those that came back, each with how.
        failed: the one that did not; "" where all did.
        kind: what that one was.
        victims: how many could be killed at all.
    """

    back: list[str]
    failed: str
    kind: str
    victims: int


def comes_back(started: Started) -> Seen:
    """Each process that takes part in serving is killed, one after the other, until one does not come back; then those
    of a second server, beginning with the other end and other kinds: which one a product cannot do without is told
    by neither chance nor order."""
    first = killed_in_turn(started, taking_part(started))
    if not first.failed:
        return _judged(first.back, [])
    # What is left of it would take processor time from the second.
    started.running.stop()
    if first.victims == 1:
        return _judged([], [first.failed])
    with another(started, started.what.setting) as other:
        least_busy_first = taking_part(other)[::-1]
        order = sorted(least_busy_first, key=lambda one: kind_of(one.pid) == first.kind)
        second = killed_in_turn(other, order)
    failed, *also = (f"in a second server {text}" if text else "" for text in (second.failed, *second.back))
    return _judged([*first.back, *also], [first.failed, *([failed] if failed else [])])


def _judged(back: list[str], failed: list[str]) -> Seen:
    if not back and not failed:
        return Seen("not seen", "every process that took part had ended by itself before it could be killed")
    answer: Answer = ("partly" if back else "no") if failed else "yes"
    return Seen(answer, "; ".join([*failed, *back]))


def taking_part(started: Started) -> list[One]:
    """All processes that spent something on requests, the busiest first; but not the first one, if there are others.

    What a process spends without a request in the same time is taken off: daemons that are busy with themselves take no
    part.
    """
    x = np.ones((1, 4), np.float32)
    before, began_s = _spent_ticks(started), time.monotonic()
    for _ in range(_ASKED):
        started.is_right(x)
    after, took_s = _spent_ticks(started), time.monotonic() - began_s
    time.sleep(took_s)
    idle = {one: ticks - after[one] for one, ticks in _spent_ticks(started).items() if one in after}
    if not after:
        return []
    first = _first(started, list(after))
    # Own time alone: with that of its ended children a parent would be as busy as they were.
    spent = {
        one: ticks - before.get(one, 0) - idle.get(one, 0)
        for one, ticks in after.items()
        if one != first or len(after) == 1
    }
    most = max(spent.values())
    least = _PART * most if most > 0 else most
    return sorted((one for one in spent if spent[one] >= least), key=lambda one: (-spent[one], one))


def _first(started: Started, members: list[One]) -> One:
    pid = getattr(started.running, "pid", None)
    named = [one for one in members if one.pid == pid]
    return named[0] if named else min(members, key=lambda one: (one.born_ticks, one.pid))


def killed_in_turn(started: Started, victims: list[One]) -> Killed:
    """Kill them until one does not come back. One that ended meanwhile is passed over: it was not killed."""
    back: list[str] = []
    usual = _kinds(started)
    for victim in victims:
        if victim not in _members(started):
            continue
        kind = kind_of(victim.pid)
        # Some have more of a kind for a moment, while one takes the other's place.
        wanted = min(usual.get(kind, 1), _kinds(started).get(kind, 1))
        try:
            os.kill(victim.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        is_back, told = _comes_back(started, victim, kind, wanted)
        told = f"kill -9 of `{kind}`: {told}"
        if not is_back:
            return Killed(back, told, kind, len(victims))
        back.append(told)
    return Killed(back, "", "", len(victims))


def _comes_back(started: Started, victim: One, kind: str, wanted: int) -> tuple[bool, str]:
    """Whether so many right answers come in a row while there are as many of its kind again, and what was seen."""
    x = np.ones((1, 4), np.float32)
    killed_s = time.monotonic()
    failed = asked = in_a_row = 0
    there_s: float | None = None
    right_s = 0.0
    while time.monotonic() - killed_s < _BACK_S:
        if there_s is None and _left(started, victim, kind) >= wanted:
            # Right answers count from here on: before it, others may have given them.
            there_s, in_a_row = time.monotonic() - killed_s, 0
        is_right = _answers_soon(started, x)
        if in_a_row == 0:
            right_s = time.monotonic() - killed_s
        asked, failed, in_a_row = asked + 1, failed + (not is_right), in_a_row + 1 if is_right else 0
        if there_s is not None and in_a_row >= _IN_A_ROW:
            if _left(started, victim, kind) >= wanted:
                answered = f"right answers from {right_s:.1f} s on, {failed} requests failed"
                return True, f"there again after {there_s:.1f} s, {answered}"
            there_s = None
        if not is_right or there_s is None:
            time.sleep(_PAUSE_S)
    left, all_left = _left(started, victim, kind), len(_members(started) - {victim})
    answered = f"{asked - failed} of {asked} requests were answered in {_BACK_S:g} s"
    return False, f"{answered}; left of {wanted} such: {left}, of all: {all_left}"


def _answers_soon(started: Started, x: np.ndarray) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return started.version_of(started.ask(x, timeout_s=_ANSWERS_S), x) == 1
    return False


def _members(started: Started) -> set[One]:
    return {One(*key) for key, one in counted(started.running.pids()).items() if not one.is_zombie}


def _spent_ticks(started: Started) -> dict[One, int]:
    found = counted(started.running.pids())
    return {One(*key): one.spent_ticks - one.ended_ticks for key, one in found.items() if not one.is_zombie}


def _kinds(started: Started) -> Counter[str]:
    return Counter(kind_of(one.pid) for one in _members(started))


def _left(started: Started, victim: One, kind: str) -> int:
    """How many of a kind there are, without one that was killed and has not gone yet."""
    return sum(kind_of(one.pid) == kind for one in _members(started) - {victim})


def kind_of(pid: int) -> str:
    """A process by what tells it apart."""
    with contextlib.suppress(OSError):
        return called(Path(f"/proc/{pid}/cmdline").read_bytes())
    return "?"


def called(command: bytes) -> str:
    """A process by what tells it apart, without this machine's paths: its program, and a script or module of Python.

    Args:
        command: as /proc/PID/cmdline holds it.
    """
    words = [word for word in command.decode(errors="replace").split("\0") if word]
    program, *rest = [word.rpartition("/")[2] for word in words] or [""]
    if "::" in program:
        # A title that some write over their command line: behind a dot stands what it does just now.
        return program.split(" ", 1)[0].split(".", 1)[0]
    if not program.startswith("python"):
        return program.split(" ", 1)[0] if program else "?"
    if "-m" in words[:-1]:
        return f"python -m {words[words.index('-m') + 1]}"
    if "-c" in words[:-1]:
        return "python -c"
    return " ".join(["python", *[word for word in rest if not word.startswith("-")][:1]])


PROBES = (
    Probe(GROUP, "a killed worker comes back", "of two workers' processes, but for the first one, each that spends"
          " processor time on requests is killed with -9 in turn; yes: each time there are as many of its name again as"
          f" before, within {_BACK_S:g} s, and {_IN_A_ROW} right answers in a row from then on; partly: after some;"
          " that others answer meanwhile is not enough; who is one process is asked by that one", comes_back, workers=2,
          alone=True, characters=_EVIDENCE_CHARACTERS),
)  # fmt: skip
