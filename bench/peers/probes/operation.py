"""Operation: metrics, a worker that dies, an orderly end, and requests with a deadline."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.peers.peer import Message
from bench.peers.probes.exposition import rose_by, samples
from bench.peers.probes.line import Line, Reply
from bench.peers.probes.small_models import trips_of
from bench.peers.probes.started import Probe, Started, another
from bench.peers.probes.table import Seen

GROUP = "In operation"
_COUNTED = (17, 29)
_RIGHT = 5
_BACK_S = 30.0
_IN_A_ROW = 50
_ASKED = 500
"""Requests by which it shows who takes part in serving."""
_PART = 0.1
"""Of the busiest's processor time: who spends less takes no part."""
_SLOW_S = 1.5
_DEADLINE_MS = 200
_SETTLE_S = (1.5, 15.0)
"""Some products write their page each second, some each 10 s."""
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_LABEL_CHARACTERS = 24
_TIMES = re.compile(r"seconds|duration|latency|_[mu]s(_|$)")
_NO_PAGE = Seen("no", "no port of it answers /metrics in Prometheus's text form", is_absent=True)
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def counts(started: Started) -> Seen:
    """Metrics that count what was answered."""
    if not _samples(started):
        return _NO_PAGE
    x = np.ones((1, 4), np.float32)

    def ask(count: int) -> int:
        return sum(started.is_right(x) for _ in range(count))

    counting = _counting(started, ask)
    if not counting:
        return Seen("no", f"of {len(_samples(started))} samples none counts answers")
    return Seen("yes", _shown(counting))


def counts_refusals(started: Started) -> Seen:
    """Metrics that count what was refused, and not what was answered."""
    if not _samples(started):
        return _NO_PAGE
    x = np.ones((1, 4), np.float32)
    bad = started.message(np.ones((1, 5), np.float32))
    statuses: list[int] = []

    def ask(count: int) -> int:
        with Line(started.url) as line:
            statuses.extend(line.send(bad).status for _ in range(count))
        for _ in range(_RIGHT):
            started.is_right(x)
        return count

    counting = _counting(started, ask)
    said = f"requests that are too wide were answered {statuses[0]}"
    if not counting:
        return Seen("no", f"{said}: of {len(_samples(started))} samples none counts them alone")
    return Seen("yes", f"{said}: {_shown(counting)}")


def by_version(started: Started) -> Seen:
    """A histogram of latency that names the version."""
    message = started.message(np.ones((1, 4), np.float32))
    # Some count by the version that a client named.
    path = message.path.replace(
        f"/v2/models/{started.what.model}/", f"/v2/models/{started.what.model}/versions/1/"
    )
    with Line(started.url) as line:
        line.send(message._replace(path=path))
    found = _samples(started)
    if not found:
        return _NO_PAGE
    times = [name for name in found if _TIMES.search(name.partition("{")[0])]
    named = [
        name for name in times if re.search(r'version\w*="1"', name) and f'"{started.what.model}"' in name
    ]
    spread = [name for name in named if "_bucket{" in name or 'quantile="' in name]
    if spread:
        return Seen("yes", _shown(set(spread)))
    if named:
        return Seen("partly", f"sums alone, {_shown(set(named))}")
    return Seen("no", f"of {len(times)} samples of times none names model and version")


def _samples(started: Started) -> dict[str, float]:
    running = started.running
    return samples(started.url, running.pids(), str(getattr(running, "metrics_url", "")))


def _shown(names: set[str]) -> str:
    """The one that looks most like a counter, with its labels of few words."""
    name, _, labels = min(names, key=_likeness).partition("{")
    short = [
        f'{key}="{value}"' for key, value in _LABEL.findall(labels) if 0 < len(value) <= _LABEL_CHARACTERS
    ]
    return f"{name}{{{','.join(short)}}}" if short else name


def _likeness(sample: str) -> tuple[bool, bool, int, str]:
    name = sample.partition("{")[0]
    return not name.endswith("_total"), "request" not in name, len(sample), sample


def _counting(started: Started, ask: Callable[[int], int]) -> set[str]:
    """Samples that count: each of two rounds of `ask` made them as much higher as it says.

    What others asked before may come to the page late: it is waited for first, and longer where nothing counted.
    """
    for settle_s in _SETTLE_S:
        time.sleep(settle_s)
        before, names = _samples(started), set[str]()
        for count in _COUNTED:
            done = ask(count)
            time.sleep(settle_s)
            after = _samples(started)
            rose = set(rose_by(before, after, done))
            names, before = rose & names if names else rose, after
            if not names:
                break
        if names:
            return names
    return set()


def comes_back(started: Started) -> Seen:
    """Each process that takes part in serving is killed, one after the other, until one does not come back; then those
    of a second server, beginning with the other end and other kinds: which one a product cannot do without is told
    by neither chance nor order."""
    if len(started.running.pids()) == 1:
        return Seen("no", "it is one process, and nothing of it would start another one")
    back, failed, kind = _killed_in_turn(started, _taking_part(started))
    if not failed:
        return Seen("yes", back)
    with another(started, started.what.setting) as other:
        least_busy_first = _taking_part(other)[::-1]
        order = sorted(least_busy_first, key=lambda pid: kind_of(pid) == kind)
        also, then, _ = _killed_in_turn(other, order)
    told = "; ".join(text for text in (back, failed, also and f"in a second server {also}", then) if text)
    return Seen("partly" if back or also else "no", told)


def _taking_part(started: Started) -> list[int]:
    """All processes that spent something on requests, the busiest first; but not the one that was born first: it is
    the service itself, for its starter to start again."""
    x = np.ones((1, 4), np.float32)
    before = _spent_s(started)
    for _ in range(_ASKED):
        started.is_right(x)
    after = _spent_s(started)
    others = sorted(after, key=_born_ticks)[1:] or list(after)
    spent_s = {pid: after[pid] - before.get(pid, 0.0) for pid in others}
    least_s = _PART * max(spent_s.values())
    return sorted((pid for pid in others if spent_s[pid] >= least_s), key=lambda pid: -spent_s[pid])


def _killed_in_turn(started: Started, pids: list[int]) -> tuple[str, str, str]:
    """Those that it survived, the one that it did not, and what kind that was."""
    survived: list[str] = []
    for victim in pids:
        kind = kind_of(victim)
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        came_back, told = _came_back(started)
        if not came_back:
            return "; ".join(survived), f"kill -9 of `{kind}`: {told}", kind
        survived.append(f"kill -9 of `{kind}`: {told}")
    return "; ".join(survived), "", ""


def _came_back(started: Started) -> tuple[bool, str]:
    """Whether so many right answers came in a row, after what time, and how many requests failed."""
    x = np.ones((1, 4), np.float32)
    killed_s = time.monotonic()
    failed, right, right_in_a_row, first_s = 0, 0, 0, 0.0
    while time.monotonic() - killed_s < _BACK_S and right_in_a_row < _IN_A_ROW:
        if _answers_soon(started, x):
            right, right_in_a_row = right + 1, right_in_a_row + 1
            first_s = first_s or time.monotonic() - killed_s
        else:
            failed, right_in_a_row, first_s = failed + 1, 0, 0.0
            time.sleep(0.05)
    if right_in_a_row < _IN_A_ROW:
        left = len(started.running.pids())
        return (
            False,
            f"{right} of {right + failed} requests were answered in {_BACK_S:g} s, {left} processes are left",
        )
    return True, f"answers again after {first_s:.1f} s, {failed} requests failed"


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


def _born_ticks(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return 0


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
    """A request that says how long it may take, where the product's form has a place for it (Triton's `timeout`)."""
    message = started.message(x, "json") if "json" in started.peer.forms else None
    if message is None or not message.path.startswith("/v2/models/"):
        return None
    cut = message.body.rfind(b"}")
    timeout_us = _DEADLINE_MS * 1000
    return message._replace(body=message.body[:cut] + b',"parameters":{"timeout":%d}}' % timeout_us)


PROBES = (
    Probe(GROUP, "metrics count answers", f"{_COUNTED[0]} answers, then {_COUNTED[1]}: one and the same sample of a"
          " /metrics page is that much higher each time; every port that its processes listen on is asked", counts),
    Probe(GROUP, "metrics count refusals", f"{_COUNTED[0]} requests that are too wide, then {_COUNTED[1]}, and"
          f" {_RIGHT} right ones with each: a sample counts the wrong ones alone", counts_refusals),
    Probe(GROUP, "latency by version", "a histogram or quantiles of a time name the model and its version; partly: only"
          " sums do", by_version),
    Probe(GROUP, "deadline while waiting", f"a request of {_DEADLINE_MS} ms (`timeout` of Triton's schedule policy)"
          f" behind a slow one is refused within {2.5 * _DEADLINE_MS:g} ms; partly: later", deadline_waiting, "slow"),
    Probe(GROUP, "deadline while running", f"a run that takes longer than its {_DEADLINE_MS} ms is refused within"
          f" {2.5 * _DEADLINE_MS:g} ms; partly: later", deadline_running, "slow"),
    Probe(GROUP, "ends in order", "told to end while it works on a request, it answers that one first", ends_in_order,
          "slow", alone=True),
    Probe(GROUP, "a killed worker comes back", "of two workers' processes, but for the first one, each that takes part"
          f" in serving is killed with -9 in turn; yes is {_IN_A_ROW} right answers in a row within {_BACK_S:g} s, each"
          " time; partly: after some", comes_back, workers=2, alone=True),
)  # fmt: skip
