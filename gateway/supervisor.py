"""The supervisor: `python -P -m gateway.supervisor`, what `tidegate serve` becomes. Standard library only.

Owns the listening sockets, the state directory's lock, the fleet's shared memory and the children. A dead
child is started again with back-off; a worker whose loop stands still is made to dump its stacks, then killed.
It holds no serving state, so that there is little here that could fail. A child that refuses (exit 2) in its
first life stops the gateway, since the configuration is wrong; later it is one more death, and serving goes on.
Serving does not depend on the sidecar and the mirror (`optional`): their refusals stop nothing. The mirror runs only
while a route has a shadow.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import math
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from gateway import fleet as words_of
from gateway import logs
from gateway.claims import StartRefused, listen, make_memory, prepare_state, url_of
from gateway.process import Context, read_context

log = logging.getLogger("tidegate.supervisor")

HEARTBEAT_CHECK_S = 0.25
STALL_S = 5.0
START_STALL_S = 30.0
"""The same while a worker starts. It beats while its models load on a thread, but its first steps meet the disk."""
DUMP_S = 0.5
"""Between asking a stalled worker for its stacks and killing it."""
DRAIN_S = 15.0
"""For each role to end. A worker drains for 10 s at most and then flushes its ring."""
OPTIONAL = frozenset(("sidecar", "mirror"))
"""Roles that serving does not depend on."""
END_S = 10.0
"""For one of those, once it is told to end."""
STOP_ORDER = ("worker", "sidecar", "mirror", "control", "forwarder", "recorder")
"""Those who append first, the sidecar before control, which it speaks to; then who sends it on; last the recorder, so
that all of it gets to disk."""
SETTLE_S = {"recorder": 1.0}
"""So long after its start a role is sent no SIGTERM, which would kill it before it can take it as a request."""
PAUSED_S = 2.0
"""A gap between two checks from which on we were paused (a frozen container), so beats are no evidence."""
BACKOFF_S = (0.1, 10.0)
HEALTHY_S = 10.0
"""A child that lived this long starts again at once when it dies."""
REFUSED = 2
"""Exit code of what cannot start as configured."""


@dataclass
class Child:
    """One role and the process that plays it."""

    role: str
    argv: list[str]
    index: int | None = None
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    lives: int = 0
    failures: int = 0
    start_at_s: float = 0.0
    dumped_s: float | None = None
    extra_fds: tuple[int, ...] = field(default=())
    wanted: bool = True
    """Whether it is to run at present."""
    ending_s: float | None = None
    """When it was told to end because it is no longer wanted."""

    @property
    def name(self) -> str:
        """Role and index."""
        return self.role if self.index is None else f"{self.role}-{self.index}"

    @property
    def optional(self) -> bool:
        """Serving does not depend on it."""
        return self.role in OPTIONAL


def backoff_s(failures: int) -> float:
    """How long to wait before the next start: 0, 0.1, 0.2, 0.4 … 10 s."""
    if failures <= 0:
        return 0.0
    return min(BACKOFF_S[0] * 2.0 ** (failures - 1), BACKOFF_S[1])


def plan(workers: int, *, kafka: bool, sidecar: bool, data_fd: int, admin_fd: int) -> list[Child]:
    """The children in the order in which they start: the recorder before anyone who appends.

    The mirror waits until it is wanted. What is not installed is not planned.
    """
    children = [_child("recorder", "gateway.audit.recorder")]
    children.append(_child("control", "gateway.control", fds=(admin_fd,)))
    children.extend(_child("worker", "gateway.worker", index=i, fds=(data_fd,)) for i in range(workers))
    if kafka:
        children.append(_child("forwarder", "gateway.audit.forwarder"))
    if sidecar and is_installed("shadow.sidecar"):
        children.append(_child("sidecar", "shadow.sidecar"))
    if is_installed("shadow.mirror"):
        children.append(_child("mirror", "shadow.mirror"))
        children[-1].wanted = False
    return children


def is_installed(module: str) -> bool:
    """Whether a module can be started, without importing it (of its package only the empty `__init__`)."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def is_stalled(state: int, silent_s: float) -> bool:
    """Whether a worker's event loop stands still. Draining has a limit of its own."""
    limits_s = {words_of.SERVING: STALL_S, words_of.STARTING: START_STALL_S}
    return silent_s > limits_s.get(state, math.inf)


class Supervisor:
    """Starts, watches and stops the children.

    Args:
        context: from `tidegate serve`; completed here.
    """

    def __init__(self, context: Context) -> None:
        config = json.loads(context.config)
        state_dir = context.state_path
        if not Path(context.models).is_dir():
            msg = (
                f"model repository {Path(context.models).name!r} is not a directory; make it and put"
                " a model at NAME/1/model.onnx"
            )
            raise StartRefused(msg)
        gateway_id, self._lock = prepare_state(state_dir)
        data, admin = config["data"], config["admin"]
        self._data = listen(data["host"], data["port"], "data")
        self._admin = listen(admin["host"], admin["port"], "admin")
        memory = config["audit"]["ring"] == "memory"
        ring_dir = Path(f"/dev/shm/tidegate-{gateway_id}") if memory else state_dir / "ring"  # noqa: S108
        workers = int(config["workers"])
        self._fleet, fleet_path = make_memory(ring_dir, workers)
        self.context = context.with_(
            gateway_id=gateway_id,
            ring_dir=str(ring_dir),
            fleet_path=str(fleet_path),
            data_fd=self._data.fileno(),
            admin_fd=self._admin.fileno(),
            data_url=url_of(self._data),
            admin_url=url_of(self._admin),
            supervisor_pid=os.getpid(),
        )
        self._endpoints = state_dir / "endpoints.json"
        self.children = plan(
            workers,
            kafka=bool(config.get("kafka")),
            sidecar=config.get("sidecar", {}).get("enabled", True),
            data_fd=self.context.data_fd,
            admin_fd=self.context.admin_fd,
        )
        self._checked_s = self._trust_from_s = time.monotonic()
        self._stopping = False
        self._impatient = False
        self._code = 0
        self._wake_read, self._wake_write = os.pipe()
        for fd in (self._wake_read, self._wake_write):
            os.set_blocking(fd, False)

    def run(self) -> int:
        """Until told to stop; returns the exit code."""
        signal.set_wakeup_fd(self._wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        self._write_endpoints()
        announcer = _child("announce", "gateway.announce")
        self._start(announcer)
        try:
            while not self._stopping:
                self._reap()
                self._follow_shadows()
                self._start_due()
                self._check_heartbeats()
                if announcer.process is not None:
                    announcer.process.poll()
                self._wait(HEARTBEAT_CHECK_S)
        finally:
            self._stop_all()
            _signal(announcer, signal.SIGKILL)
            if announcer.process is not None:
                announcer.process.wait()
            self._endpoints.unlink(missing_ok=True)
            Path(self.context.fleet_path).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                # Not empty when a ring could not be drained: the next start drains it.
                Path(self.context.ring_dir).rmdir()
        return self._code

    def close(self) -> None:
        """Give back addresses, lock and wake-up pipe; the process's end does the same."""
        self._data.close()
        self._admin.close()
        for fd in (self._lock, self._wake_read, self._wake_write):
            os.close(fd)

    def _on_stop(self, number: int, frame: object) -> None:
        if self._stopping:
            self._impatient = True
        self._stopping = True

    def _start(self, child: Child) -> None:
        child.started_s = time.monotonic()
        child.dumped_s = child.ending_s = None
        try:
            # A process group of its own: Ctrl-C in the terminal reaches the supervisor alone. Not a session: the kernel
            # shares processors out by session first, and the lowest class would compete with the workers as an equal.
            child.process = subprocess.Popen(
                child.argv,
                env=self.context.to_env(),
                pass_fds=child.extra_fds,
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        except OSError as exc:
            # No memory or no process ids left: the others serve on, this one is tried again.
            child.failures += 1
            child.start_at_s = time.monotonic() + backoff_s(child.failures)
            log.error("child_not_started", extra={"child": child.name, "why": exc.strerror})
        else:
            child.lives += 1

    def _start_due(self) -> None:
        for child in self.children:
            if self._is_due(child) and time.monotonic() >= child.start_at_s:
                self._start(child)

    def _is_due(self, child: Child) -> bool:
        return child.process is None and child.wanted and not self._stopping

    def _follow_shadows(self) -> None:
        """The mirror runs while a route has a shadow; one told to end ends, also when it is wanted again meanwhile."""
        now = time.monotonic()
        for child in self.children:
            if child.role == "mirror":
                child.wanted = self._fleet.shadows > 0
            if child.ending_s is not None:
                if now - child.ending_s > END_S:
                    _signal(child, signal.SIGKILL)
            elif not child.wanted and child.process is not None:
                log.info("child_ends", extra={"child": child.name})
                child.ending_s = now
                _signal(child, signal.SIGTERM)

    def _reap(self) -> None:
        for child in self.children:
            if child.process is None or child.process.poll() is None:
                continue
            code = child.process.returncode
            child.process = None
            if self._stopping:
                continue
            lived_s = time.monotonic() - child.started_s
            if child.index is not None:
                self._fleet.zero_gauges(child.index)
                self._fleet.worker(child.index)[words_of.RESTARTS] += 1
            if code == REFUSED and child.lives == 1 and lived_s < HEALTHY_S and not child.optional:
                log.error("child_refused_to_start", extra={"child": child.name})
                self._code, self._stopping = REFUSED, True
                return
            self._plan_next(child, code, lived_s)

    def _plan_next(self, child: Child, code: int, lived_s: float) -> None:
        """When a dead child starts again."""
        if child.ending_s is not None:
            child.ending_s, child.failures, wait_s = None, 0, 0.0
        elif code == REFUSED and child.optional:
            # It will hardly start as configured, and no one waits for it.
            child.failures, wait_s = child.failures + 1, BACKOFF_S[1]
            log.error("child_refused_to_start", extra={"child": child.name, "again_in_s": wait_s})
        else:
            child.failures = 0 if lived_s >= HEALTHY_S else child.failures + 1
            wait_s = backoff_s(child.failures - 1)
            log.warning(
                "child_died",
                extra={
                    "child": child.name,
                    "code": code,
                    "lived_s": round(lived_s, 1),
                    "again_in_s": wait_s,
                },
            )
        child.start_at_s = time.monotonic() + wait_s

    def _check_heartbeats(self) -> None:
        now = time.monotonic()
        if now - self._checked_s > PAUSED_S:
            self._trust_from_s = now + STALL_S
        self._checked_s = now
        for child in self.children:
            if child.index is None or child.process is None:
                continue
            words = self._fleet.worker(child.index)
            beat_s = words[words_of.HEARTBEAT_NS] / 1e9
            if words[words_of.PID] != child.process.pid or not beat_s:
                continue
            if child.dumped_s is not None:
                if now - child.dumped_s > DUMP_S:
                    child.process.kill()
            elif now >= self._trust_from_s and is_stalled(words[words_of.STATE], now - beat_s):
                log.error("worker_stalled", extra={"child": child.name, "for_s": round(now - beat_s, 1)})
                child.dumped_s = now
                # faulthandler writes every thread's stack, then the process ends.
                child.process.send_signal(signal.SIGABRT)

    def _wait(self, timeout_s: float) -> None:
        due = [c.start_at_s for c in self.children if self._is_due(c)]
        if due:
            timeout_s = min(timeout_s, max(min(due) - time.monotonic(), 0.0))
        # poll, not select: that refuses descriptors from 1,024 on.
        ready = select.poll()
        ready.register(self._wake_read, select.POLLIN)
        ready.poll(timeout_s * 1000)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    def _stop_all(self) -> None:
        """One role after another; workers drain."""
        log.info("stopping")
        if self._code == 0:
            self._revive_recorder()
        for role in STOP_ORDER:
            group = [c for c in self.children if c.role == role and c.process is not None]
            for child in group:
                while time.monotonic() < child.started_s + SETTLE_S.get(role, 0.0) and not self._impatient:
                    self._wait(0.05)
                _signal(child, signal.SIGTERM)
            deadline = time.monotonic() + (END_S if role in OPTIONAL else DRAIN_S)
            while any(c.process is not None and c.process.poll() is None for c in group):
                if self._impatient or time.monotonic() > deadline:
                    for child in group:
                        _signal(child, signal.SIGKILL)
                self._wait(0.05)
        log.info("stopped")

    def _revive_recorder(self) -> None:
        """Rings in memory may not outlive the container: one dead at this moment comes back to drain them."""
        for child in self.children:
            if child.role == "recorder" and (child.process is None or child.process.poll() is not None):
                self._start(child)

    def _write_endpoints(self) -> None:
        content = {
            "data_url": self.context.data_url,
            "admin_url": self.context.admin_url,
            "pid": os.getpid(),
        }
        temporary = self._endpoints.with_suffix(".new")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.write(fd, json.dumps(content).encode())
        os.close(fd)
        temporary.rename(self._endpoints)


def _child(role: str, module: str, *, index: int | None = None, fds: tuple[int, ...] = ()) -> Child:
    argv = [sys.executable, "-P", "-m", module]
    if index is not None:
        argv += ["--index", str(index)]
    return Child(role=role, argv=argv, index=index, extra_fds=fds)


def _signal(child: Child, number: int) -> None:
    if child.process is not None and child.process.poll() is None:
        child.process.send_signal(number)


def main() -> NoReturn:
    """Entry of the process."""
    context = read_context()
    logs.setup("supervisor")
    try:
        supervisor = Supervisor(context)
    except StartRefused as exc:
        sys.stderr.write(f"tidegate: {exc}\n")
        raise SystemExit(2) from None
    raise SystemExit(supervisor.run())


if __name__ == "__main__":
    main()
