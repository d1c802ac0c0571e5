"""The supervisor's children: who there is, how one is started, when it starts again. Standard library only.

`plan` says which roles a gateway has; a `Child` is one role over all its lives, a `Proc` one of those lives. A `Proc`
knows its process by number alone, so that a supervisor that took the place of another (`gateway.handover`) waits for
those it did not start as for its own: they are children of the same process.
"""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gateway.process import OTHER_CODE

OPTIONAL = frozenset(("sidecar", "mirror"))
"""Roles that serving does not depend on."""
DRAIN_S = 40.0
"""For each role to end. A worker answers what it has, with deadlines of up to 30 s, and then flushes its ring."""
END_S = 10.0
"""For one that serving does not depend on, once it is told to end."""
STOP_ORDER = ("worker", "sidecar", "mirror", "control", "forwarder", "recorder")
"""Those who append first, the sidecar before control, which it speaks to; then who sends it on; last the recorder, so
that all of it gets to disk."""
SETTLE_S = {"recorder": 1.0}
"""So long after its start a role is sent no SIGTERM, which would kill it before it can take it as a request."""
BACKOFF_S = (0.1, 10.0)
JITTER = 0.2
"""Waits differ by so much to either side: what died together must not come back together, again and again."""
HEALTHY_S = 10.0
"""A child that lived this long starts again at once when it dies."""
CRASH_LOOP = (5, 60.0)
"""So many deaths within so many seconds are told as a crash loop."""
UNKNOWN_EXIT = 255
"""Of a process whose end someone else took notice of."""
REFUSED = 2
"""Exit code of what cannot start as configured."""
_POLL_S = 0.005


class Proc:
    """A child process by its number, started by this program or by the one that it took the place of.

    Its number cannot become another's before `poll` or `wait` has seen its end. Not thread-safe.

    Args:
        pid: of a child of this very process.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        env: Mapping[str, str],
        fds: Sequence[int] = (),
        *,
        output: int | None = None,
    ) -> Proc:
        """Start a program with nothing on its standard input; it inherits `fds`, and `output` takes what it says.

        It has a process group of its own: Ctrl-C in the terminal reaches the supervisor alone. Not a session: the
        kernel shares processors out by session first, and the lowest class would compete with the workers as an equal.
        SIGUSR1 is blocked in it until it has said what to do then (`gateway.process.enter`).

        Raises:
            OSError: no memory, no process numbers left, or no such program.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        try:
            started = subprocess.Popen(
                argv,
                env=env,
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # From here on its end is ours to wait for; without this the object would complain that nobody did.
        started.returncode = 0
        return cls(started.pid)

    def poll(self) -> int | None:
        """The exit code once it ended, negative the signal that ended it; None while it runs. Does not wait."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self.returncode = UNKNOWN_EXIT
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout_s: float | None = None) -> int:
        """As `poll`, but waits.

        Raises:
            TimeoutError: it still runs after `timeout_s`.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                msg = f"process {self.pid} still runs after {timeout_s:g} s"
                raise TimeoutError(msg)
            time.sleep(_POLL_S)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal unless its end is known."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


@dataclass
class Child:
    """One role and the process that plays it."""

    role: str
    argv: list[str]
    index: int | None = None
    process: Proc | None = None
    started_s: float = 0.0
    lives: int = 0
    failures: int = 0
    start_at_s: float = 0.0
    dumped_s: float | None = None
    extra_fds: tuple[int, ...] = field(default=())
    wanted: bool = True
    """Whether it is to run at present."""
    ending_s: float | None = None
    """When it was told to end because it is no longer wanted, or because another takes its place."""
    replaces: Child | None = None
    """The worker whose place it is to take; None once it has, and for all that start in a place of their own."""
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=CRASH_LOOP[0]))
    """When it died of late, unasked (monotonic seconds)."""
    last_exit: int | None = None
    stack_fd: int = -1
    """Where it writes its stacks (`gateway.stacks`)."""

    @property
    def name(self) -> str:
        """Role and index."""
        return self.role if self.index is None else f"{self.role}-{self.index}"

    @property
    def optional(self) -> bool:
        """Serving does not depend on it."""
        return self.role in OPTIONAL

    @property
    def runs(self) -> bool:
        """Whether its process has not ended."""
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to its process, if that runs."""
        if self.process is not None:
            self.process.send_signal(number)

    def is_crash_looping(self, now_s: float) -> bool:
        """Whether it died 5 times within the last minute."""
        most, within_s = CRASH_LOOP
        return len(self.deaths) >= most and now_s - self.deaths[-most] <= within_s


def limit_s(role: str) -> float:
    """How long a role may take to end once it is told to."""
    return END_S if role in OPTIONAL else DRAIN_S


def backoff_s(failures: int) -> float:
    """How long to wait before the next start: 0, 0.1, 0.2, 0.4 … 10 s."""
    if failures <= 0:
        return 0.0
    return min(BACKOFF_S[0] * 2.0 ** (failures - 1), BACKOFF_S[1])


def jittered_s(wait_s: float) -> float:
    """A wait that differs by up to a fifth; none stays none."""
    return wait_s * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311


def cause_of(code: int, *, stalled: bool) -> str:
    """One word for why a process ended: `stall`, `refused`, `signal` or `exit`."""
    if stalled:
        return "stall"
    if code in {REFUSED, OTHER_CODE}:
        return "refused"
    return "signal" if code < 0 else "exit"


CAUSES = ("exit", "signal", "stall", "refused")


def plan(workers: int, *, kafka: bool, sidecar: bool, data_fd: int, admin_fd: int) -> list[Child]:
    """The children in the order in which they start: the recorder before anyone who appends.

    The mirror waits until it is wanted. What is not installed is not planned.
    """
    children = [child_of("recorder", "gateway.audit.recorder")]
    children.append(child_of("control", "gateway.control", fds=(admin_fd,)))
    children.extend(worker_of(i, data_fd) for i in range(workers))
    if kafka:
        children.append(child_of("forwarder", "gateway.audit.forwarder"))
    if sidecar and is_installed("shadow.sidecar"):
        children.append(child_of("sidecar", "shadow.sidecar"))
    if is_installed("shadow.mirror"):
        children.append(child_of("mirror", "shadow.mirror"))
        children[-1].wanted = False
    return children


def worker_of(index: int, data_fd: int, *, replaces: Child | None = None) -> Child:
    """A worker; one that replaces another accepts nothing before it can answer all that the other does."""
    child = child_of("worker", "gateway.worker", index=index, fds=(data_fd,))
    if replaces is not None:
        child.replaces = replaces
        child.argv += ["--after", str(replaces.index)]
    return child


def child_of(role: str, module: str, *, index: int | None = None, fds: tuple[int, ...] = ()) -> Child:
    """A child that runs a module of ours."""
    argv = [sys.executable, "-P", "-m", module]
    if index is not None:
        argv += ["--index", str(index)]
    return Child(role=role, argv=argv, index=index, extra_fds=fds)


def is_installed(module: str) -> bool:
    """Whether a module can be started, without importing it (of its package only the empty `__init__`)."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
