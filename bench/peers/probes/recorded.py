"""Recorded: whether a prediction can be found again in what a product wrote about it.

The product's nearest equivalent of an audit log is on. Requests are marked (**marks**), and whatever it wrote below
its home is read for them: files of any name and format.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable

from bench.peers.peer import Unavailable
from bench.peers.probes.marks import found_below, marked
from bench.peers.probes.room import note
from bench.peers.probes.small_models import scale_of
from bench.peers.probes.started import Probe, Started
from bench.peers.probes.table import NO_LOG, Answer, Seen

GROUP = "The log of predictions"
_SENT = 60
_KILLED = 300
_APPEARS_S = 20.0


def _send(started: Started, numbers: Iterable[int]) -> set[int]:
    """Send marked requests; the numbers of those that were answered right."""
    chosen = list(numbers)
    rows = marked(chosen)
    replies = started.at_once([started.message(rows[i : i + 1]) for i in range(len(chosen))], 4)
    answered = set()
    for i, (number, reply) in enumerate(zip(chosen, replies, strict=True)):
        with contextlib.suppress(ValueError):
            if not isinstance(reply, OSError) and started.version_of(reply, rows[i : i + 1]) == 1:
                answered.add(number)
    return answered


def _in_files(started: Started, times: int = 1) -> tuple[set[int], str]:
    """Numbers whose marks stand in files of it, and the file that holds most of them."""
    hits = found_below(started.what.home, times)
    numbers = {number for found in hits.values() for number in found}
    if not hits:
        return numbers, "no file"
    most = max(hits, key=lambda path: len(hits[path]))
    return numbers, str(most.relative_to(started.what.home))


def _await(started: Started, wanted: set[int], times: int = 1) -> tuple[set[int], str]:
    deadline = time.monotonic() + _APPEARS_S
    while True:
        numbers, file = _in_files(started, times)
        if wanted <= numbers or time.monotonic() > deadline:
            return numbers & wanted, file
        time.sleep(0.5)


def logs_inputs(started: Started) -> Seen:
    """Inputs, of each request."""
    if not started.peer.audit:
        return NO_LOG
    answered = _send(started, range(_SENT))
    numbers, file = _await(started, answered)
    said = f"inputs of {len(numbers)} of {len(answered)} answered requests in {file} within {_APPEARS_S:g} s"
    return Seen(_share(len(numbers), len(answered)), said)


def logs_outputs(started: Started) -> Seen:
    """Outputs, of each request."""
    if not started.peer.audit:
        return NO_LOG
    answered = _send(started, range(_SENT, 2 * _SENT))
    numbers, file = _await(started, answered, int(scale_of(1)))
    said = f"outputs of {len(numbers)} of {len(answered)} answered requests in {file} within {_APPEARS_S:g} s"
    return Seen(_share(len(numbers), len(answered)), said)


def _share(found: int, answered: int) -> Answer:
    if answered and found == answered:
        return "yes"
    return "partly" if found else "no"


def outlives_kill(started: Started) -> Seen:
    """Everything is killed right after the last answer, then started again over the same home."""
    if not started.peer.audit:
        return NO_LOG
    answered = _send(started, range(1000, 1000 + _KILLED))
    for pid in started.running.pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    started.running.stop()
    at_once = len(_in_files(started)[0] & answered)
    again = ""
    try:
        running = started.peer.begin(started.what)
    except Exception as exc:
        note(exc)
        why = exc.why if isinstance(exc, Unavailable) else str(exc)
        again = f"; it did not start again over the same home: {why}"
    else:
        _await(started, answered)
        running.stop()
    numbers = _in_files(started)[0] & answered
    lost = len(answered) - len(numbers)
    said = f"of {len(answered)} answered predictions {at_once} stood in files after kill -9 of all, {lost} are lost"
    return Seen("yes" if answered and not lost else "no", f"{said}{again}")


PROBES = (
    Probe(GROUP, "inputs of every prediction", f"{_SENT} marked requests; yes: the inputs of all stand in what it"
          f" wrote, within {_APPEARS_S:g} s; partly: of some", logs_inputs, audit=True),
    Probe(GROUP, "outputs of every prediction", "the same, of outputs", logs_outputs, audit=True),
    Probe(GROUP, "outlives kill -9", f"{_KILLED} marked requests, then every process is killed with -9 and the server"
          " is started again over the same directory; yes: no answered prediction is missing", outlives_kill,
          audit=True, alone=True),
)  # fmt: skip
