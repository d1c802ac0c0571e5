"""Operation: metrics, an orderly end, and requests with a deadline."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

import numpy as np

from bench.peers.peer import Message
from bench.peers.probes.exposition import rose_by, samples
from bench.peers.probes.line import Line, Reply
from bench.peers.probes.small_models import trips_of
from bench.peers.probes.started import Probe, Started
from bench.peers.probes.table import Seen

GROUP = "In operation"
_COUNTED = (17, 29)
_RIGHT = 5
_SLOW_S = 1.5
_DEADLINE_MS = 200
_SETTLE_S = (1.5, 15.0)
"""Some products write their page each second, some each 10 s."""
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_LABEL_CHARACTERS = 24
_TIMES = re.compile(r"seconds|duration|latency|_[mu]s(_|$)")
_NO_PAGE = Seen("no", "no port of it answers /metrics in Prometheus's text form", is_absent=True)


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
    Probe(GROUP, "deadline while running", f"on a server that has seen no slow run yet: one that takes longer than its"
          f" {_DEADLINE_MS} ms is refused within {2.5 * _DEADLINE_MS:g} ms; partly: later", deadline_running, "slow",
          fresh=True),
    Probe(GROUP, "ends in order", "told to end while it works on a request, it answers that one first", ends_in_order,
          "slow", alone=True),
)  # fmt: skip
