"""Whether workers' loops turn, and what they do when they do not: the supervisor's look at the fleet's heartbeats.

A task of each worker's loop stores the time. One whose beats stop is made to write its stacks (`gateway.stacks`), which
go into the log, and is then killed; the whole takes less than five seconds. Standard library only.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Sequence

from gateway import fleet as words_of
from gateway import stacks
from gateway.children import Child
from gateway.fleet import Fleet

log = logging.getLogger("tidegate.supervisor")

CHECK_S = 0.25
STALL_S = 3.5
"""With two of the check's steps and the wait for the stacks it makes 4.3 seconds, which leaves a busy host the rest of
five."""
START_STALL_S = 30.0
"""The same while a worker starts. It beats while its models load on a thread, but its first steps meet the disk."""
DUMP_S = 0.3
"""Between asking a process for its stacks and taking them."""
PAUSED_S = 2.0
"""A gap between two checks from which on we were paused (a frozen container), so beats are no evidence."""


def is_stalled(state: int, silent_s: float) -> bool:
    """Whether a worker's event loop stands still. Draining has a limit of its own."""
    limits_s = {words_of.SERVING: STALL_S, words_of.STARTING: START_STALL_S}
    return silent_s > limits_s.get(state, math.inf)


class Heartbeats:
    """Looks at all workers, and takes stacks of whoever is asked.

    Args:
        fleet: where workers store their beats.

    Threading: the supervisor's only; never waits.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.checked_s = self.trust_from_s = time.monotonic()
        self.stacks_due_s: float | None = None
        """When stacks that were asked for are to be logged."""

    def check(self, children: Sequence[Child]) -> None:
        """One look; asks stalled workers for their stacks, and kills those asked before."""
        now_s = time.monotonic()
        if now_s - self.checked_s > PAUSED_S:
            self.trust_from_s = now_s + STALL_S
        self.checked_s = now_s
        for child in children:
            if child.index is None or child.process is None:
                continue
            words = self._fleet.worker(child.index)
            beat_s = words[words_of.HEARTBEAT_NS] / 1e9
            if words[words_of.PID] != child.process.pid or not beat_s:
                continue
            if child.dumped_s is not None:
                if now_s - child.dumped_s > DUMP_S and child.runs:
                    # None: it is stopped from outside, and can say nothing.
                    stack = stacks.taken(child.stack_fd) or None
                    more = {"child": child.name, "for_s": round(now_s - beat_s, 1), "stack": stack}
                    log.error("worker_stalled", extra=more)
                    child.process.kill()
            elif now_s >= self.trust_from_s and is_stalled(words[words_of.STATE], now_s - beat_s):
                child.dumped_s = now_s
                self._ask(child)

    def ask_stacks(self, children: Sequence[Child], now_s: float) -> None:
        """Have all children write their stacks; `log_stacks` takes them a moment later."""
        for child in children:
            self._ask(child)
        self.stacks_due_s = now_s + DUMP_S

    def log_stacks(self, children: Sequence[Child], now_s: float) -> None:
        """Log what was asked for, an event a child, once all had the time to write."""
        if self.stacks_due_s is None or now_s < self.stacks_due_s:
            return
        self.stacks_due_s = None
        for child in children:
            if child.runs:
                log.info("stack", extra={"child": child.name, "stack": stacks.taken(child.stack_fd) or None})

    def _ask(self, child: Child) -> None:
        if child.stack_fd >= 0:
            child.signal(signal.SIGUSR1)
