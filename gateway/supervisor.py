"""The supervisor: `python -P -m gateway.supervisor`, what `tidegate serve` becomes. Standard library only.

Owns the listening sockets, the state directory's lock, the fleet's shared memory and the children
(`gateway.children`). A dead child is started again with back-off; a worker whose loop stands still is made to show its
stacks, which go into the log, then killed. It holds no serving state, so that there is little here that could fail. A
child that refuses (exit 2) in its first life stops the gateway, since the configuration is wrong; later it is one more
death, and serving goes on. Serving does not depend on the sidecar and the mirror (`optional`): their refusals stop
nothing. The mirror runs only while a route has a shadow.

Signals (docs/operation.md) are noted by their handlers and acted on in `run`: TERM, INT and QUIT drain and a second one
ends at once, HUP is a rolling restart (`gateway.rolling`), USR1 logs all stacks, USR2 is an upgrade
(`gateway.handover`). What it says of itself is in the roster (`gateway.roster`) and goes to systemd (`gateway.notify`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from gateway import claims, handover, logs, stacks
from gateway import fleet as words_of
from gateway.children import (
    BACKOFF_S,
    HEALTHY_S,
    REFUSED,
    Child,
    Proc,
    backoff_s,
    cause_of,
    child_of,
    jittered_s,
    limit_s,
    plan,
)
from gateway.claims import StartRefused
from gateway.ending import stop_all
from gateway.handover import Handed, Upgrade
from gateway.heartbeats import CHECK_S, Heartbeats
from gateway.notify import Notify
from gateway.process import OTHER_CODE, PRIVATE_UMASK, Context, read_context
from gateway.rolling import UPGRADE_ROLES, Rolling
from gateway.roster import Roster, replace_file

log = logging.getLogger("tidegate.supervisor")

DRAINED_BADLY = 1
"""Exit code when a child had to be killed at the end."""
_DRAIN = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class Supervisor:
    """Starts, watches, replaces and stops the children.

    Args:
        context: from `tidegate serve`, completed here; or complete, from the image before this one.
        handed: what that image left.

    Raises:
        StartRefused: what the gateway must hold is not to be had.
    """

    def __init__(self, context: Context, handed: Handed | None = None) -> None:
        self._notify = Notify(os.environ)
        self._held, self.context = (
            claims.claim(context) if handed is None else claims.resume(context, handed.lock_fd)
        )
        self._fleet = self._held.fleet
        config = json.loads(context.config)
        data_fd = self.context.data_fd
        self.children = plan(
            int(config["workers"]),
            kafka=bool(config.get("kafka")),
            sidecar=config.get("sidecar", {}).get("enabled", True),
            data_fd=data_fd,
            admin_fd=self.context.admin_fd,
        )
        self._strays: list[Child] = []
        if handed is not None:
            self.children, self._strays = handover.adopt(self.children, handed, data_fd)
        else:
            handover.forget_request(context.state_path)
            self._strays = [child_of("announce", "gateway.announce")]
        self._roster = Roster(context.state_path, handed.counts if handed is not None else None)
        self.upgrade = Upgrade(self.context, handed.upgrade if handed is not None else None)
        self.rolling = Rolling(self._fleet, self._start, data_fd=data_fd, one_more=context.one_more)
        if handed is not None:
            self.rolling.asked = handed.asked
            self.rolling.ask(self.children, "upgrade", UPGRADE_ROLES)
        self.heartbeats = Heartbeats(self._fleet)
        self._ready = handed is not None
        self._stopping = False
        self._impatient = False
        self._signals: list[int] = []
        self._code = 0
        self._wake_read, self._wake_write = os.pipe()
        for fd in (self._wake_read, self._wake_write):
            os.set_blocking(fd, False)

    def run(self) -> int:
        """Until told to stop; returns the exit code: 0, 1 when a child had to be killed, 2 when one refused."""
        self._take_signals()
        endpoints = self.context.state_path / "endpoints.json"
        replace_file(
            endpoints,
            {"data_url": self.context.data_url, "admin_url": self.context.admin_url, "pid": os.getpid()},
        )
        for stray in self._strays:
            if stray.process is None:
                self._start(stray)
        try:
            while not self._stopping:
                self._turn(time.monotonic())
                self._wait(CHECK_S)
        finally:
            self._stop_all()
            for stray in self._strays:
                stray.signal(signal.SIGKILL)
                if stray.process is not None:
                    stray.process.wait()
            endpoints.unlink(missing_ok=True)
            Path(self.context.fleet_path).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                # Not empty when a ring could not be drained: the next start drains it.
                Path(self.context.ring_dir).rmdir()
        return self._code

    def close(self) -> None:
        """Give back addresses, lock and wake-up pipe; the process's end does the same."""
        self._held.close()
        for fd in (self._wake_read, self._wake_write):
            os.close(fd)

    def _turn(self, now_s: float) -> None:
        self._obey(now_s)
        self._reap()
        self._follow_wanted()
        self._roll(now_s)
        self._start_due()
        self.heartbeats.check(self.children)
        self.heartbeats.log_stacks(self.children, now_s)
        for stray in self._strays:
            if stray.process is not None:
                stray.process.poll()
        self._tell(now_s)

    def _take_signals(self) -> None:
        signal.set_wakeup_fd(self._wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        for number in handover.HANDLED:
            signal.signal(number, self._on_drain if number in _DRAIN else self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handover.HANDLED)

    def _on_drain(self, number: int, frame: object) -> None:
        if self._stopping:
            self._impatient = True
        self._stopping = True

    def _on_signal(self, number: int, frame: object) -> None:
        self._signals.append(number)

    def _obey(self, now_s: float) -> None:
        """What signals asked for since the last turn."""
        while self._signals:
            number = self._signals.pop(0)
            if number == signal.SIGHUP:
                self._notify.reloading("rolling restart")
                self.rolling.ask(self.children)
            elif number == signal.SIGUSR2:
                self.upgrade.ask(now_s)
            elif number == signal.SIGUSR1:
                self.heartbeats.ask_stacks(self.children, now_s)

    def _start(self, child: Child) -> None:
        child.started_s = time.monotonic()
        child.dumped_s = child.ending_s = None
        if child.stack_fd < 0:
            child.stack_fd = stacks.make()
        environment = self.context.to_env()
        fds = child.extra_fds
        if child.stack_fd >= 0:
            environment[stacks.VARIABLE] = str(child.stack_fd)
            fds = (*fds, child.stack_fd)
        try:
            child.process = Proc.start(child.argv, environment, fds)
        except OSError as exc:
            # No memory or no process ids left: the others serve on, this one is tried again.
            child.failures += 1
            child.start_at_s = time.monotonic() + jittered_s(backoff_s(child.failures))
            log.error("child_not_started", extra={"child": child.name, "why": exc.strerror})
        else:
            child.lives += 1

    def _start_due(self) -> None:
        for child in self.children:
            if self._is_due(child) and time.monotonic() >= child.start_at_s:
                self._start(child)

    def _is_due(self, child: Child) -> bool:
        return child.process is None and child.wanted and child.replaces is None and not self._stopping

    def _follow_wanted(self) -> None:
        """Who is not wanted is told to end, and ends, also when it is wanted again meanwhile; the mirror is wanted
        while a route has a shadow."""
        now = time.monotonic()
        for child in self.children:
            if child.role == "mirror" and child.argv:
                child.wanted = self._fleet.shadows > 0
            if child.ending_s is not None:
                if now - child.ending_s > limit_s(child.role) and child.runs:
                    log.warning("child_killed", extra={"child": child.name, "why": "it did not end in time"})
                    child.signal(signal.SIGKILL)
            elif not child.wanted and child.process is not None:
                log.info("child_ends", extra={"child": child.name})
                child.ending_s = now
                child.signal(signal.SIGTERM)

    def _roll(self, now_s: float) -> None:
        """One step of a rolling restart; between two of them an upgrade may begin."""
        was_running = self.rolling.runs
        self.rolling.advance(self.children, now_s)
        if was_running and not self.rolling.runs:
            if self.rolling.kind == "upgrade":
                self.upgrade.replaced(self.rolling.why)
            self._notify.ready("serving")
        if self.rolling.runs:
            return
        target = self.upgrade.advance(now_s)
        if target is not None and not self._stopping:
            self._notify.reloading("upgrade")
            everyone = [*self.children, *self._strays]
            handed = Handed(
                lock_fd=self._held.lock_fd,
                children=handover.facts_of(everyone),
                counts=self._roster.counts,
                asked=self.rolling.asked,
                upgrade=self.upgrade.facts(),
            )
            log.info("becomes", extra={"python": target.python, "version": self.upgrade.facts()["to"]})
            fds = [*self._held.fds, *(child.stack_fd for child in everyone)]
            # Returns only when it failed.
            self.upgrade.failed(handover.become(target, handed, fds, self._notify.environment))
            self._notify.ready("serving")

    def _reap(self) -> None:
        for child in list(self.children):
            if child.process is None or child.process.poll() is None:
                continue
            code = child.process.returncode or 0
            child.process = None
            if self._stopping:
                continue
            now_s = time.monotonic()
            asked, stalled, lived_s = (
                child.ending_s is not None,
                child.dumped_s is not None,
                now_s - child.started_s,
            )
            if child.index is not None:
                self._fleet.zero_gauges(child.index)
            if not asked:
                self._roster.died(child, cause_of(code, stalled=stalled), code, now_s)
                if child.index is not None:
                    self._fleet.worker(child.index)[words_of.RESTARTS] += 1
            if child.replaces is not None:
                # Before it took the other's place; whatever it said, the gateway serves.
                self.rolling.successor_died(self.children, child, code)
            elif not child.wanted and child.role != "mirror":
                self._forget(child)
            elif (
                code == REFUSED
                and not asked
                and child.lives == 1
                and lived_s < HEALTHY_S
                and not child.optional
            ):
                log.error("child_refused_to_start", extra={"child": child.name})
                self._code, self._stopping = REFUSED, True
                return
            else:
                self._plan_next(child, code, lived_s)

    def _forget(self, child: Child) -> None:
        self.children.remove(child)
        if child.stack_fd >= 0:
            os.close(child.stack_fd)

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
            wait_s = jittered_s(backoff_s(child.failures - 1))
            more = {
                "child": child.name,
                "code": code,
                "lived_s": round(lived_s, 1),
                "again_in_s": round(wait_s, 2),
            }
            log.warning("child_died", extra=more)
            if code == OTHER_CODE:
                log.error(
                    "package_replaced_under_the_gateway",
                    extra={"child": child.name, "todo": "finish the upgrade: `tidegate upgrade`"},
                )
            if child.is_crash_looping(time.monotonic()):
                log.error("child_crash_loops", extra={"child": child.name, "last_exit": code})
        child.start_at_s = time.monotonic() + wait_s

    def _tell(self, now_s: float) -> None:
        """The roster on disk, and systemd."""
        self._roster.write(
            self.children, {"restart": self.rolling.facts(), "upgrade": self.upgrade.facts()}, now_s
        )
        blocks = (self._fleet.worker(i) for i in range(self._fleet.workers))
        serving = sum(words[words_of.STATE] == words_of.SERVING for words in blocks)
        said = f"{serving} of {self._fleet.wanted} workers serve"
        if not self._ready and serving >= self._fleet.wanted:
            self._ready = True
            self._notify.ready(said)
        self._notify.status(said)

    def _wait(self, timeout_s: float) -> None:
        now_s = time.monotonic()
        self._notify.beat(now_s)
        due = [c.start_at_s for c in self.children if self._is_due(c)]
        if self.heartbeats.stacks_due_s is not None:
            due.append(self.heartbeats.stacks_due_s)
        if due:
            timeout_s = min(timeout_s, max(min(due) - now_s, 0.0))
        # poll, not select: that refuses descriptors from 1,024 on.
        ready = select.poll()
        ready.register(self._wake_read, select.POLLIN)
        ready.poll(timeout_s * 1000)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    def _stop_all(self) -> None:
        """One role after another; workers drain."""
        log.info("stopping")
        self._notify.stopping()
        if self._code == 0:
            self._revive_recorder()
        # Ours is the last copy once the workers closed theirs: who comes now is refused, and does not wait for nobody.
        self._held.data.close()
        killed = stop_all(self.children, self._wait, lambda: self._impatient)
        if killed and self._code == 0:
            self._code = DRAINED_BADLY
        log.info("stopped", extra={"code": self._code, "killed": killed or None})

    def _revive_recorder(self) -> None:
        """Rings in memory may not outlive the container: one dead at this moment comes back to drain them."""
        for child in self.children:
            if child.role == "recorder" and not child.runs:
                self._start(child)


def main() -> NoReturn:
    """Entry of the process."""
    context = read_context()
    os.umask(PRIVATE_UMASK)
    handed = handover.take()
    logs.setup("supervisor")
    try:
        supervisor = Supervisor(context, handed)
    except StartRefused as exc:
        sys.stderr.write(f"tidegate: {exc}\n")
        raise SystemExit(REFUSED) from None
    raise SystemExit(supervisor.run())


if __name__ == "__main__":
    main()
