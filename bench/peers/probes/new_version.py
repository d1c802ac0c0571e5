"""New version: what clients see while a product takes one up, and what it makes of one that is broken.

Two clients ask all the time and a third one asks whether the server is ready; the product's own way of taking up a
version (`Running.new_version`) is gone meanwhile. An answer tells by its value which version gave it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter

import numpy as np

from bench.peers.probes.line import Line
from bench.peers.probes.room import note
from bench.peers.probes.small_models import write_broken, write_scale
from bench.peers.probes.started import Probe, Started
from bench.peers.probes.table import Seen

GROUP = "A new version"
_TAKES_S = 60.0
_AFTER_S = 1.0
_BROKEN_S = 15.0
_PAUSE_S = 0.005


class Watch:
    """Clients that ask all the time; use it as a context.

    Attributes:
        answers: by the version that gave it; 0: nobody's right answer.
        failures: by what was said.
        last: the version that answered last, by any client.
        lies: times that the server said that it was ready, did not answer right after, and said so again.
        asked_ready: times that it said so.
    """

    def __init__(self, started: Started) -> None:
        self.answers: Counter[int] = Counter()
        self.failures: Counter[str] = Counter()
        self.last = 0
        self.lies = self.asked_ready = 0
        self._started = started
        self._ends = threading.Event()
        self._guard = threading.Lock()
        targets = [self._ask, self._ask, *([self._ask_ready] if started.ready_path() else [])]
        self._threads = [threading.Thread(target=target, daemon=True) for target in targets]

    @property
    def failed(self) -> int:
        """Requests that were not answered by a prediction."""
        return sum(self.failures.values())

    def _ask(self) -> None:
        x = np.array([[1, 2, 3, 4]], np.float32)
        message = self._started.message(x)
        with Line(self._started.url, 10) as line:
            while not self._ends.wait(_PAUSE_S):
                try:
                    version = self._started.version_of(line.send(message), x, (1, 2, 3))
                except (OSError, ValueError) as exc:
                    with self._guard:
                        self.failures[str(exc)[:100]] += 1
                    continue
                with self._guard:
                    self.answers[version] += 1
                    self.last = version

    def _ask_ready(self) -> None:
        x = np.array([[1, 2, 3, 4]], np.float32)
        message = self._started.message(x)
        while not self._ends.wait(2 * _PAUSE_S):
            with Line(self._started.url, 10) as line:
                if not self._says_ready(line):
                    continue
                self.asked_ready += 1
                try:
                    self._started.value(line.send(message))
                except (OSError, ValueError):
                    # It may have ended meanwhile: then it does not say so again.
                    self.lies += self._says_ready(line)

    def _says_ready(self, line: Line) -> bool:
        with contextlib.suppress(OSError):
            return line.request("GET", self._started.ready_path()).status == 200
        return False

    def until(self, version: int, seconds: float) -> float:
        """Wait until a version answers; the seconds that took, or inf."""
        began_s = time.monotonic()
        while time.monotonic() - began_s < seconds:
            if self.last == version:
                return time.monotonic() - began_s
            time.sleep(0.005)
        return float("inf")

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        time.sleep(0.5)
        return self

    def __exit__(self, *exc: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join(30)

    def text(self) -> str:
        """In words."""
        said = f"{self.failed} of {self.failed + sum(self.answers.values())} requests failed"
        if self.failures:
            said += f" ({self.failures.most_common(1)[0][0]})"
        return f"{said}, {self.answers[0]} had a wrong answer" if self.answers[0] else said


def takes_it_up(started: Started) -> Seen:
    """Version 2 is put into the repository and taken up."""
    write_scale(started.what.repository, 2)
    said, took_s = "", float("inf")
    with Watch(started) as watch:
        began_s = time.monotonic()
        try:
            started.running.new_version("2")
        except Exception as exc:
            note(exc)
            said = f"; {exc}"
        watch.until(2, _TAKES_S)
        if watch.last == 2:
            took_s = time.monotonic() - began_s
            time.sleep(_AFTER_S)
    started.kept["taking up"] = watch
    if took_s == float("inf"):
        return Seen("no", f"version 2 did not answer within {_TAKES_S:g} s{said}; {watch.text()}")
    is_clean = not watch.failed and not watch.answers[0]
    return Seen("yes" if is_clean else "no", f"{watch.text()}; version 2 answered after {took_s:.2f} s")


def tells_the_truth(started: Started) -> Seen | None:
    """Readiness while the version was taken up."""
    watch: Watch | None = started.kept.get("taking up")
    if not started.ready_path() or watch is None:
        return None
    said = f"{started.ready_path()} said {watch.asked_ready} times that it is ready; {watch.lies} times it said so on"
    return Seen("no" if watch.lies or not watch.asked_ready else "yes", f"{said} both sides of a failure")


def survives_a_broken_one(started: Started) -> Seen:
    """A version whose file is no model is put into the repository and taken up."""
    write_broken(started.what.repository, 3)
    refusals: list[str] = []

    def take() -> None:
        try:
            started.running.new_version("3")
        except Exception as exc:
            note(exc)
            refusals.append(" ".join(str(exc).split())[:120])

    with Watch(started) as watch:
        before, began_s = watch.last, time.monotonic()
        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        thread.join(_BROKEN_S)
        if not refusals:
            # Asked to take it up is all that some products say.
            time.sleep(max(0.0, began_s + _BROKEN_S - time.monotonic()))
        watch.last = 0
        time.sleep(_AFTER_S)
        goes_on = watch.last
    told = f"; said: {refusals[0]}" if refusals else ""
    is_clean = not watch.failed and not watch.answers[0] and goes_on == before != 0
    answering = f"version {goes_on} answers on" if goes_on else "no version answers any more"
    return Seen("yes" if is_clean else "no", f"{watch.text()}; {answering}{told}")


def says_ready(started: Started) -> Seen:
    """It has an address that says so."""
    path = started.ready_path()
    with contextlib.suppress(OSError), Line(started.url) as line:
        if path:
            return Seen("yes", f"GET {path}: {line.request('GET', path).text()}")
    return Seen("no", "none of the usual addresses answers 200")


PROBES = (
    Probe(GROUP, "says that it is ready", "one of the usual addresses for it answers 200", says_ready),
    Probe(GROUP, "taken up without a failed request", "two clients ask all the time while version 2 is taken up by the"
          f" product's own way; yes: none fails, and version 2 answers within {_TAKES_S:g} s", takes_it_up),
    Probe(GROUP, "readiness is true", "whenever it said meanwhile that it is ready, the next request was answered, or"
          " it did not say so again", tells_the_truth),
    Probe(GROUP, "outlives a broken version", "a version whose file is no model is taken up; yes: no request fails and"
          " the version before it answers on", survives_a_broken_one, alone=True),
)  # fmt: skip
