"""Operation: metrics, a worker that dies, an orderly end, and requests with a deadline."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from pathlib import Path

import numpy as np

from bench.peers.peer import Message
from bench.peers.probes.exposition import rose_by, samples
from bench.peers.probes.line import Line, Reply
from bench.peers.probes.small_models import trips_of
from bench.peers.probes.started import Probe, Started
from bench.peers.probes.table import Seen

GROUP = "In operation"
_COUNTED = 17
_BACK_S = 30.0
_SLOW_S = 1.5
_DEADLINE_MS = 200
_SETTLE_S = 3.0
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def counts(started: Started) -> Seen:
    """Metrics that count what was answered."""
    before = _samples(started)
    if not before:
        return Seen("no", "no port of it answers /metrics in Prometheus's text form")
    x = np.ones((1, 4), np.float32)
    answered = sum(started.is_right(x) for _ in range(_COUNTED))
    rose = _await(lambda: rose_by(before, _samples(started), answered))
    said = f"after {answered} answers: {', '.join(sorted(rose, key=len)[:2])} rose by {answered}"
    return Seen("yes", said) if rose else Seen("no", f"of {len(before)} samples none rose by {answered}")


def by_version(started: Started) -> Seen:
    """A histogram of latency that names the version."""
    started.is_right(np.ones((1, 4), np.float32))
    found = _samples(started)
    if not found:
        return Seen("no", "no port of it answers /metrics in Prometheus's text form")
    buckets = [name for name in found if "_bucket{" in name]
    labelled = [
        name for name in buckets if re.search(r'version\w*="1"', name) and f'"{started.what.model}"' in name
    ]
    if labelled:
        return Seen("yes", min(labelled, key=len))
    return Seen("no", f"of {len(buckets)} buckets none names model and version")


def counts_refusals(started: Started) -> Seen:
    """Metrics that count what was refused."""
    before = _samples(started)
    if not before:
        return Seen("no", "no port of it answers /metrics in Prometheus's text form")
    bad = started.message(np.ones((1, 5), np.float32))
    with Line(started.url) as line:
        statuses = [line.send(bad).status for _ in range(_COUNTED)]
    rose = _await(lambda: rose_by(before, _samples(started), _COUNTED))
    said = f"{_COUNTED} requests were answered {statuses[0]}"
    return (
        Seen("yes", f"{said}: {min(rose, key=len)} rose by it")
        if rose
        else Seen("no", f"{said}: no sample rose by it")
    )


def _samples(started: Started) -> dict[str, float]:
    running = started.running
    return samples(started.url, running.pids(), str(getattr(running, "metrics_url", "")))


def _await(look: object) -> list[str]:
    deadline = time.monotonic() + _SETTLE_S
    while not (found := look()) and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.2)
    return list(found)


def comes_back(started: Started) -> Seen:
    """The busiest process is killed; does the service come back, and what did clients see?"""
    x = np.ones((1, 4), np.float32)
    spent = _spent_s(started)
    for _ in range(200):
        started.is_right(x)
    after = _spent_s(started)
    victim = max(after, key=lambda pid: after[pid] - spent.get(pid, 0.0))
    name = (
        Path(f"/proc/{victim}/cmdline")
        .read_bytes()
        .replace(b"\0", b" ")
        .decode(errors="replace")
        .strip()[:80]
    )
    os.kill(victim, signal.SIGKILL)
    killed_s = time.monotonic()
    failed, right_in_a_row, first_s = 0, 0, 0.0
    while time.monotonic() - killed_s < _BACK_S and right_in_a_row < 50:
        if _answers_soon(started, x):
            right_in_a_row += 1
            first_s = first_s or time.monotonic() - killed_s
        else:
            failed, right_in_a_row, first_s = failed + 1, 0, 0.0
            time.sleep(0.05)
    said = f"kill -9 of `{name}`, one of {len(after)} processes: "
    if right_in_a_row < 50:
        left = len(started.running.pids())
        return Seen("no", f"{said}no service within {_BACK_S:g} s; {left} processes left")
    return Seen("yes", f"{said}answers again after {first_s:.1f} s; {failed} requests failed")


def called(command: bytes) -> str:
    """A process by what tells it apart, without this machine's paths: its program, and a script or module of Python.

    Args:
        command: as /proc/PID/cmdline holds it.
    """
    words = [word for word in command.decode(errors="replace").split("\0") if word]
    program, *rest = [word.rpartition("/")[2] for word in words] or [""]
    if not program.startswith("python"):
        # Some write a title over their command line.
        return program.split(" ", 1)[0] if program else "?"
    if "-m" in words[:-1]:
        return f"python -m {words[words.index('-m') + 1]}"
    if "-c" in words[:-1]:
        return "python -c"
    return " ".join(["python", *[word for word in rest if not word.startswith("-")][:1]])


def _answers_soon(started: Started, x: np.ndarray) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return started.version_of(started.ask(x, timeout_s=2), x) == 1
    return False


def _spent_s(started: Started) -> dict[int, float]:
    spent = {}
    for pid in started.running.pids():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            spent[pid] = (int(fields[11]) + int(fields[12])) * _TICK_S
    return spent


class _Beside:
    """A request on a thread of its own."""

    def __init__(self, started: Started, message: Message) -> None:
        self.reply: Reply | OSError | None = None
        self._thread = threading.Thread(target=self._send, args=(started, message), daemon=True)
        self._thread.start()

    def _send(self, started: Started, message: Message) -> None:
        try:
            with Line(started.url) as line:
                self.reply = line.send(message)
        except OSError as exc:
            self.reply = exc

    def end(self, timeout_s: float = 30) -> Reply | OSError:
        self._thread.join(timeout_s)
        return self.reply if self.reply is not None else OSError(f"no reply within {timeout_s:g} s")


def _slow(started: Started) -> np.ndarray:
    if "slow" not in started.kept:
        started.kept["slow"] = trips_of(started.model_file, _SLOW_S)
    x: np.ndarray = started.kept["slow"]
    return x


def ends_in_order(started: Started) -> Seen:
    """It is told to stop while it works on a request."""
    beside = _Beside(started, started.message(_slow(started)))
    time.sleep(_SLOW_S / 4)
    began_s = time.monotonic()
    started.running.stop()
    took_s = time.monotonic() - began_s
    reply = beside.end()
    said = f"a request of {_SLOW_S:g} s, told to end meanwhile: "
    if isinstance(reply, OSError):
        return Seen("no", f"{said}{reply}; gone after {took_s:.1f} s")
    return Seen("yes" if reply.status == 200 else "no", f"{said}{reply.status}; gone after {took_s:.1f} s")


def deadline_waiting(started: Started) -> Seen | None:
    """A request's own deadline passes while another one is being worked on."""
    message = with_deadline(started, np.ones((1, 4), np.float32))
    if message is None:
        return None
    before = _Beside(started, started.message(_slow(started)))
    time.sleep(0.1)
    with Line(started.url) as line:
        reply = line.send(message)
    first = before.end()
    said = f"{_DEADLINE_MS} ms behind a request of {_SLOW_S:g} s: {reply.status} after {reply.took_s * 1e3:.0f} ms"
    if isinstance(first, OSError) or first.status != 200:
        return Seen("no", f"{said}; the other request failed")
    if reply.status == 200 and reply.took_s < _DEADLINE_MS / 1e3:
        return Seen("yes", f"{said}: it did not have to wait")
    return _in_time(said, reply)


def deadline_running(started: Started) -> Seen | None:
    """A request's own deadline passes while it runs."""
    message = with_deadline(started, _slow(started))
    if message is None:
        return None
    with Line(started.url) as line:
        reply = line.send(message)
    said = f"{_DEADLINE_MS} ms for a run of {_SLOW_S:g} s: {reply.status} after {reply.took_s * 1e3:.0f} ms"
    return _in_time(said, reply)


def _in_time(said: str, reply: Reply) -> Seen:
    is_refused = reply.status >= 400
    if is_refused and reply.took_s < 2.5 * _DEADLINE_MS / 1e3:
        return Seen("yes", said)
    return Seen("partly" if is_refused else "no", said)


def with_deadline(started: Started, x: np.ndarray) -> Message | None:
    """A request that says how long it may take, where the product's form has a place for it (OIP's `timeout`)."""
    message = started.message(x, "json") if "json" in started.peer.forms else None
    if message is None or not message.path.startswith("/v2/models/"):
        return None
    cut = message.body.rfind(b"}")
    timeout_us = _DEADLINE_MS * 1000
    return message._replace(body=message.body[:cut] + b',"parameters":{"timeout":%d}}' % timeout_us)


PROBES = (
    Probe(GROUP, "metrics count answers", f"after {_COUNTED} answers a sample of a /metrics page is {_COUNTED} higher;"
          " every port that its processes listen on is asked", counts),
    Probe(GROUP, "metrics count refusals", f"after {_COUNTED} requests that are too wide a sample is {_COUNTED} higher",
          counts_refusals),
    Probe(GROUP, "latency by version", "a histogram's buckets name the model and its version", by_version),
    Probe(GROUP, "deadline while waiting", f"a request of {_DEADLINE_MS} ms (OIP `timeout`) behind a slow one is"
          f" refused within {2.5 * _DEADLINE_MS:g} ms; partly: later", deadline_waiting, "slow"),
    Probe(GROUP, "deadline while running", f"a run that takes longer than its {_DEADLINE_MS} ms is refused within"
          f" {2.5 * _DEADLINE_MS:g} ms; partly: later", deadline_running, "slow"),
    Probe(GROUP, "ends in order", "told to end while it works on a request, it answers that one first", ends_in_order,
          "slow", alone=True),
    Probe(GROUP, "a killed worker comes back", "its busiest process is killed with -9 (two workers); yes is 50 right"
          f" answers in a row within {_BACK_S:g} s", comes_back, workers=2, alone=True),
)  # fmt: skip
