"""The watchdog: a thread that ends runs at their deadline, also when the event loop is what they block.

runs (infer) -> **watchdog**. It sets `terminate` on a run's options, which ONNX Runtime heeds between two
nodes of a graph. Of a run on a lane that goes on all the same the requests are answered a moment later; and it is
reported as hung, once, so that its lane is replaced. A run on the loop that does is only told of in the log: nothing
else can be done until it ends, or until the supervisor takes the worker for stalled.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger("tidegate.worker")

POLL_NS = 50_000_000
"""The longest between two looks; runs on the loop are found by these alone, since waking a thread for each
would cost more than they do."""
LATE_NS = 30_000_000
"""So long after its end was asked for, the requests of a run on a lane are answered without it."""
GRACE_NS = 500_000_000
"""So long after its end was asked for, a run counts as hung."""


class Watched:
    """A run on a lane under watch."""

    __slots__ = ("deadline_ns", "hung", "is_late", "late", "options")

    def __init__(
        self,
        options: Any,
        deadline_ns: int,
        hung: Callable[[], None],
        late: Callable[[], None] = lambda: None,
    ) -> None:
        self.options = options
        self.deadline_ns = deadline_ns
        self.hung = hung
        self.late = late
        self.is_late = False


class Watchdog:
    """Ends runs at their deadline.

    Args:
        clock_ns: the clock of deadlines.

    Attributes:
        inline: (options, deadline_ns, model, version) of the run that is on the loop now, or None. Stored by the loop
            thread.
        terminated: runs that were told to end.

    Threading: `watch` and `forget` from the loop thread; `Watched.late` and `hung` are called on the watchdog's thread.
    Cost: two stores a run on the loop, a dict entry a run on a lane; at rest 20 looks a second.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock_ns = clock_ns
        self.inline: tuple[Any, int, str, str] | None = None
        self.terminated = 0
        self._ended: tuple[Any, int, str, str] | None = None
        self._told: tuple[Any, int, str, str] | None = None
        self._runs: dict[Watched, None] = {}
        self._next_ns = 0
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._wake.set()

    def watch(self, run: Watched) -> None:
        """From now until `forget`."""
        self._runs[run] = None
        if run.deadline_ns < self._next_ns:
            self._wake.set()

    def forget(self, run: Watched) -> None:
        """It has ended."""
        self._runs.pop(run, None)

    def look(self, now_ns: int) -> int:
        """End what is over its deadline; returns when to look again."""
        again_ns = now_ns + POLL_NS
        inline = self.inline
        if inline is not None and now_ns >= inline[1]:
            if inline is not self._ended:
                self._ended = inline
                self.terminated += 1
                inline[0].terminate = True
            elif inline is not self._told and now_ns >= inline[1] + GRACE_NS:
                self._told = inline
                log.error("run_hung_on_loop", extra={"model": inline[2], "version": inline[3]})
        for run in list(self._runs):
            if now_ns >= run.deadline_ns:
                if not run.options.terminate:
                    self.terminated += 1
                    run.options.terminate = True
                elif not run.is_late and now_ns >= run.deadline_ns + LATE_NS:
                    run.is_late = True
                    run.late()
                elif now_ns >= run.deadline_ns + GRACE_NS:
                    self._runs.pop(run, None)
                    run.hung()
                    continue
                next_ns = run.deadline_ns + (GRACE_NS if run.is_late else LATE_NS)
                again_ns = min(again_ns, max(next_ns, now_ns))
            else:
                again_ns = min(again_ns, run.deadline_ns)
        return again_ns

    def _run(self) -> None:
        while not self._closed:
            now_ns = self._clock_ns()
            self._next_ns = again_ns = self.look(now_ns)
            # What was added in between may be due sooner than that: it was there before `_next_ns` was stored.
            due_ns = min((run.deadline_ns for run in list(self._runs)), default=again_ns)
            if due_ns < again_ns and due_ns > now_ns:
                again_ns = due_ns
            self._wake.wait(max(again_ns - self._clock_ns(), 0) / 1e9)
            self._wake.clear()
