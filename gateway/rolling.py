"""One process after another is replaced while the others serve: rolling restart, and the second half of an upgrade.

A worker's successor starts on an index of shared memory that is free, accepts nothing before it can answer all that
the worker does, and only when it serves is the worker told to leave; the listening socket is one, so what waits in its
queue is taken up by whoever accepts. A successor that does not come leaves the worker as it was. Where there is no
memory for one more worker at a time, a worker is told to leave first, and connections wait in the queue; so it is with
all other roles, whose work waits in rings, in the spool or in the queue of the admin listener.

A state machine without waiting: the supervisor calls `advance` each turn. Standard library only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

from gateway import fleet as words_of
from gateway.children import HEALTHY_S, Child, worker_of
from gateway.fleet import Fleet

log = logging.getLogger("tidegate.supervisor")

SUCCESSOR_S = 300.0
"""A successor that does not serve by then is given up; the worker that it was to replace serves on."""
UP_S = 1.0
"""A process without a state of its own in shared memory counts as up when it has run for so long."""
RESTART_ROLES = ("worker",)
UPGRADE_ROLES = ("recorder", "forwarder", "control", "worker", "sidecar", "mirror")
"""In this order: who drains is new before those who append, and control before the workers that follow it."""
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


class Rolling:
    """Replaces children, one at a time. `children` is the supervisor's own list: successors are added to it, those who
    left are taken out.

    Args:
        fleet: its blocks; one more than there are workers.
        start: starts a child now.
        data_fd: the listening socket of the workers.
        one_more: whether the memory plan has room for one more worker.

    Threading: the supervisor's only. `advance` never waits.
    """

    def __init__(
        self,
        fleet: Fleet,
        start: Callable[[Child], None],
        *,
        data_fd: int,
        one_more: bool,
    ) -> None:
        self._children: list[Child] = []
        self._fleet = fleet
        self._start = start
        self._data_fd = data_fd
        self._one_more = one_more
        self._queue: list[Child] = []
        self._old: Child | None = None
        self._new: Child | None = None
        self._since_s = 0.0
        self._ask_again = False
        self._again: list[tuple[Child, int]] = []
        """Those that were replaced in place, each with its lives then."""
        self.asked = 0
        """How often a rolling restart was asked for, this life of the gateway."""
        self.state = "none"
        """`none`, `running`, `done` or `failed`: of the last one."""
        self.kind = "restart"
        self.why: str | None = None
        self._of = 0

    @property
    def runs(self) -> bool:
        """Whether one is under way."""
        return self.state == "running"

    def ask(
        self, children: list[Child], kind: str = "restart", roles: tuple[str, ...] = RESTART_ROLES
    ) -> None:
        """Replace all children of some roles; asked while one is under way, another follows it."""
        self._children = children
        if kind == "restart":
            self.asked += 1
        if self.runs:
            self._ask_again = True
            return
        self.kind, self.state, self.why, self._again = kind, "running", None, []
        self._queue = [
            c for role in roles for c in self._children if c.role == role and c.process is not None
        ]
        self._of = len(self._queue)
        log.info("rolling_begins", extra={"kind": kind, "children": [c.name for c in self._queue]})

    def facts(self) -> dict[str, object]:
        """For the supervisor's status file."""
        left = len(self._queue) + (self._old is not None)
        waits_for = self._new or self._old
        return {
            "asked": self.asked,
            "kind": self.kind,
            "state": "running" if self._ask_again else self.state,
            "children": self._of,
            "replaced": self._of - left,
            "at": waits_for.name if self.runs and waits_for is not None else None,
            "why": self.why,
        }

    def advance(self, children: list[Child], now_s: float) -> None:
        """One look; starts, tells or gives up what is due."""
        self._children = children
        if self._ask_again and not self.runs:
            # A turn after the other one's end, so that the supervisor has seen that.
            self._ask_again = False
            self.asked -= 1
            self.ask(self._children)
        if not self.runs:
            return
        if self._old is None:
            self._begin_next(now_s)
        elif self._new is not None and self._new.replaces is not None:
            self._await_successor(self._new, self._old, now_s)
        elif self._new is not None:
            self._await_leaving(self._old)
        else:
            self._await_again(self._old, now_s)

    def _begin_next(self, now_s: float) -> None:
        while self._queue and not (self._queue[0].runs and self._queue[0] in self._children):
            # It died meanwhile: what starts in its place is new anyway.
            self._queue.pop(0)
        if not self._queue:
            self.why = self._ended_since(now_s)
            self._end("done" if self.why is None else "failed")
            return
        old = self._queue[0]
        if now_s < old.started_s + UP_S:
            # Told to end in its first moments, it would be killed before it can take that as a request.
            return
        self._queue.pop(0)
        self._old, self._new, self._since_s = old, None, now_s
        spare = self._free_index() if old.role == "worker" else None
        if spare is None:
            old.ending_s = now_s
            old.signal(signal.SIGTERM)
            return
        self._new = worker_of(spare, self._data_fd, replaces=old)
        self._children.append(self._new)
        self._start(self._new)
        if self._new.process is None:
            self._give_up("its successor could not be started")

    def _free_index(self) -> int | None:
        """A block of shared memory that no worker has; None where a worker must go before the next one comes."""
        taken = {c.index for c in self._children}
        free = [i for i in range(self._fleet.workers) if i not in taken]
        largest = max((self._fleet.worker(i)[words_of.RSS_BYTES] for i in taken if i is not None), default=0)
        if free and self._one_more and room_bytes() >= largest:
            return free[0]
        log.warning(
            "worker_leaves_before_its_successor_comes",
            extra={"why": "no memory for one more worker", "needs_bytes": largest},
        )
        return None

    def _await_successor(self, new: Child, old: Child, now_s: float) -> None:
        if self._is_serving(new):
            # Seats change: from here on the newcomer is a worker as any other, and the old one is not wanted.
            new.replaces = None
            new.argv = worker_of(new.index or 0, self._data_fd).argv
            old.wanted = False
            self._fleet.set_spare(old.index or 0, spare=True)
            self._fleet.set_spare(new.index or 0, spare=False)
        elif now_s > self._since_s + SUCCESSOR_S:
            self._give_up(f"its successor did not serve within {SUCCESSOR_S:g} s")

    def _await_leaving(self, old: Child) -> None:
        # The supervisor takes it out of its list once it is gone.
        if old not in self._children:
            self._old = self._new = None

    def _await_again(self, old: Child, now_s: float) -> None:
        """In place: the child's next life."""
        if old.ending_s is not None:
            return
        if old.process is None or not old.runs:
            if old.wanted and now_s > self._since_s + SUCCESSOR_S:
                self._give_up("it does not start again")
            elif not old.wanted:
                self._old = None
        elif self._is_serving(old) if old.role == "worker" else now_s > old.started_s + UP_S:
            self._again.append((old, old.lives))
            self._old = None
        elif now_s > self._since_s + SUCCESSOR_S:
            self._give_up(f"it did not serve within {SUCCESSOR_S:g} s")

    def _ended_since(self, now_s: float) -> str | None:
        """Who counted as up and has ended since, and has not lived for long again: it would be no success."""
        for child, lives in self._again:
            if child.wanted and (
                not child.runs or (child.lives != lives and now_s < child.started_s + HEALTHY_S)
            ):
                why = f"{child.name}: it ended with {child.last_exit} after it was replaced; its log lines say why"
                log.error(
                    "restart_given_up", extra={"kind": self.kind, "child": child.name, "why": why, "left": 0}
                )
                return why
        return None

    def _is_serving(self, child: Child) -> bool:
        words = self._fleet.worker(child.index or 0)
        pid = child.process.pid if child.process is not None else 0
        return words[words_of.PID] == pid and words[words_of.STATE] == words_of.SERVING

    def successor_died(self, children: list[Child], child: Child, code: int) -> None:
        """A successor ended before it served; its block is free again."""
        self._children = children
        if child in children:
            children.remove(child)
        if child.stack_fd >= 0:
            os.close(child.stack_fd)
            child.stack_fd = -1
        if child is self._new:
            self._give_up(
                f"its successor ended with {code}; what kept it is in the log lines before this one"
            )

    def _give_up(self, why: str) -> None:
        """The worker serves on; those not yet replaced stay as they are."""
        old, new = self._old, self._new
        name = old.name if old is not None else "?"
        log.error(
            "restart_given_up", extra={"kind": self.kind, "child": name, "why": why, "left": len(self._queue)}
        )
        if new is not None and new.replaces is not None:
            new.signal(signal.SIGKILL)
            new.wanted = False
            if new.process is None and new in self._children:
                self._children.remove(new)
        self.why = f"{name}: {why}"
        self._end("failed")

    def _end(self, state: str) -> None:
        self.state, self._queue = state, []
        self._old = self._new = None
        log.info("rolling_ends", extra={"kind": self.kind, "state": state, "why": self.why})


def room_bytes() -> int:
    """Memory that may still be taken: of the host, and of the container (cgroup v2) where it has a limit."""
    found = [1 << 62]
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text())
        facts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        used = int((_CGROUP / "memory.current").read_text()) - int(facts.get("inactive_file", 0))
        found.append(limit - used)
    return min(found)
