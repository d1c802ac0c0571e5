"""Upgrade: the supervisor becomes another version of itself without giving anything back.

    asked -> the new code checks itself in a child -> exec in place -> children adopted -> replaced one by one

Pid, lock, listening sockets and shared memory stay; the children serve through the exec, which they do not notice:
their parent is the same process. What the new image must know is in a file in memory that it inherits. A check that
fails changes nothing. Standard library only; the check itself (`gateway.cli.preflight`) is the new code's, and may need
all its packages.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

from gateway import __version__
from gateway.children import CRASH_LOOP, Child, Proc, worker_of
from gateway.process import CONTEXT_VARIABLE, Context

log = logging.getLogger("tidegate.supervisor")

REQUEST = "upgrade.json"
"""In `<state_dir>/supervisor`: which installation to become, written by `tidegate upgrade`, taken away when read."""
REQUEST_MAX_BYTES = 65_536
VARIABLE = "TG_HANDOVER_FD"
CHECK_S = 120.0
"""The new code's check may take so long."""
HANDLED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""Signals of the supervisor: blocked while it is no one, between two images."""


class Target(NamedTuple):
    """What the supervisor is to become."""

    python: str
    environment: dict[str, str]
    context: Context


class Upgrade:
    """One upgrade at a time, up to the moment of exec and, in the new image, behind it.

    Args:
        context: the running gateway's.
        told: `facts` of the image before this one, when it made this one.

    Threading: the supervisor's only; never waits.
    """

    def __init__(self, context: Context, told: Mapping[str, Any] | None = None) -> None:
        self._context = context
        self._request = context.state_path / "supervisor" / REQUEST
        self._check: Proc | None = None
        self._out_fd = -1
        self._since_s = 0.0
        self._wanted: tuple[str, str] = ("", "")
        self._facts: dict[str, Any] = {
            "id": "",
            "state": "none",
            "why": None,
            "from": __version__,
            "to": None,
        }
        if told is not None:
            self._facts = {**told, "state": "replacing", "to": __version__}

    def facts(self) -> dict[str, Any]:
        """For the status file: `none`, `checking`, `failed`, `replacing` or `done`, and why it failed."""
        return dict(self._facts)

    @property
    def runs(self) -> bool:
        """Whether the check is under way."""
        return self._check is not None

    def ask(self, now_s: float) -> None:
        """Start the new code's check; a second request while one is under way is not heard."""
        if self._check is not None or self._facts["state"] == "replacing":
            log.warning("upgrade_already_under_way")
            return
        self._facts = {"id": "", "state": "checking", "why": None, "from": __version__, "to": None}
        try:
            asked = self._read_request()
        except PermissionError as exc:
            self.failed(str(exc))
            return
        except (OSError, ValueError) as exc:
            # Which installation is meant is not known: this one would be a guess.
            self.failed(f"the request {REQUEST} cannot be read: {exc}")
            return
        python = str(asked.get("python") or sys.executable)
        code_path = str(asked.get("code_path", self._context.code_path))
        self._facts["id"] = str(asked.get("id", ""))
        log.info("upgrade_asked", extra={"python": python, "code_path": code_path})
        self._wanted, self._since_s = (python, code_path), now_s
        environment = environment_for(self._context, code_path)
        environment[CONTEXT_VARIABLE] = json.dumps(asdict(self._context))
        self._out_fd = os.memfd_create("tidegate-preflight")
        argv = [python, "-P", "-m", "gateway.cli.preflight"]
        try:
            self._check = Proc.start(argv, environment, output=self._out_fd)
        except OSError as exc:
            self.failed(f"{python} cannot be run: {exc.strerror}")

    def advance(self, now_s: float) -> Target | None:
        """What to become, once the new code has found nothing in the way."""
        check = self._check
        if check is None:
            return None
        if check.poll() is None:
            if now_s > self._since_s + CHECK_S:
                check.kill()
            return None
        self._check = None
        size = os.fstat(self._out_fd).st_size
        said = os.pread(self._out_fd, size, 0).decode(errors="replace").strip()
        last = said.splitlines()[-1] if said else ""
        answer: Any = None
        with contextlib.suppress(ValueError):
            answer = json.loads(last)
        if check.returncode != 0 or not isinstance(answer, dict) or "context" not in answer:
            told = answer.get("why") if isinstance(answer, dict) else None
            self.failed(
                told or f"the new code's check ended with {check.returncode}: {last[:500] or 'no word'}"
            )
            return None
        python, code_path = self._wanted
        self._facts["to"] = answer.get("version")
        known = {field.name for field in fields(Context)}
        # As the new code wrote it; what this one does not know of it goes on as it is.
        environment = environment_for(self._context, code_path)
        environment[CONTEXT_VARIABLE] = json.dumps(answer["context"])
        context = Context(**{k: v for k, v in answer["context"].items() if k in known})
        self._close()
        return Target(python, environment, context)

    def replaced(self, why: str | None) -> None:
        """All old processes are gone (`why` None), or some had to stay."""
        self._facts["state"] = "done" if why is None else "failed"
        self._facts["why"] = why

    def failed(self, why: str) -> None:
        """Nothing has changed."""
        self._facts["state"], self._facts["why"] = "failed", why
        log.error("upgrade_refused", extra={"why": why})
        self._close()

    def _close(self) -> None:
        if self._out_fd >= 0:
            os.close(self._out_fd)
            self._out_fd = -1

    def _read_request(self) -> dict[str, Any]:
        """What is asked for; nothing for a signal without a request.

        Raises:
            PermissionError: another may have written it, and it names what we run; or it may not be read.
            OSError, ValueError: it cannot be read.
        """
        try:
            fd = os.open(self._request, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return {}
        try:
            found, content = os.fstat(fd), os.read(fd, REQUEST_MAX_BYTES)
        finally:
            os.close(fd)
        with contextlib.suppress(OSError):
            self._request.unlink()
        if found.st_uid not in {os.geteuid(), 0} or found.st_mode & 0o022:
            msg = (
                f"supervisor/{REQUEST} in the state directory may have been written by another user (mode"
                f" {found.st_mode & 0o777:04o}, uid {found.st_uid}): ask with `tidegate upgrade` as the gateway's user"
            )
            raise PermissionError(msg)
        asked = json.loads(content)
        return asked if isinstance(asked, dict) else {}


def environment_for(context: Context, code_path: str) -> dict[str, str]:
    """Our environment with another package directory in front of PYTHONPATH in place of the present one."""
    environment = dict(os.environ)
    parts = [p for p in environment.pop("PYTHONPATH", "").split(os.pathsep) if p and p != context.code_path]
    if code_path:
        parts.insert(0, code_path)
    if parts:
        environment["PYTHONPATH"] = os.pathsep.join(parts)
    return environment


class Handed(NamedTuple):
    """What an image of the supervisor leaves to the next."""

    lock_fd: int
    children: list[dict[str, Any]]
    counts: dict[str, dict[str, int]]
    asked: int
    upgrade: dict[str, Any]


def facts_of(children: Sequence[Child]) -> list[dict[str, Any]]:
    """What the next image must know of the children."""
    return [
        {
            "role": c.role,
            "index": c.index,
            "pid": c.process.pid if c.process is not None else None,
            "started_s": c.started_s,
            "lives": c.lives,
            "failures": c.failures,
            "wanted": c.wanted,
            "ending_s": c.ending_s,
            "stack_fd": c.stack_fd,
            "deaths": list(c.deaths),
        }
        for c in children
    ]


def become(target: Target, handed: Handed, fds: Sequence[int], notify: Mapping[str, str]) -> str:
    """Replace this image; returns only when that fails, with why.

    Args:
        fds: the lock, the listening sockets, the children's stacks.
        notify: variables that `gateway.notify` took out of the environment.
    """
    fd = os.memfd_create("tidegate-handover", 0)
    os.write(fd, json.dumps(handed._asdict()).encode())
    before = [(one, os.get_inheritable(one)) for one in fds if one >= 0]
    for one in (fd, *(one for one, _ in before)):
        os.set_inheritable(one, True)
    environment = {**target.environment, **notify, VARIABLE: str(fd)}
    sys.stdout.flush()
    sys.stderr.flush()
    # What comes from here on waits until the new image takes signals.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        os.execve(target.python, [target.python, "-P", "-m", "gateway.supervisor"], environment)  # noqa: S606
    except OSError as exc:
        why = f"{target.python} cannot be run: {exc.strerror}"
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.close(fd)
    for one, inheritable in before:
        os.set_inheritable(one, inheritable)
    return why


def take() -> Handed | None:
    """What the image before this one left; None for a supervisor that starts a gateway."""
    text = os.environ.pop(VARIABLE, "")
    if not text.isdigit():
        return None
    fd = int(text)
    content = json.loads(os.pread(fd, os.fstat(fd).st_size, 0))
    os.close(fd)
    os.set_inheritable(content["lock_fd"], False)
    return Handed(**{name: content[name] for name in Handed._fields})


def adopt(planned: list[Child], handed: Handed, data_fd: int) -> tuple[list[Child], list[Child]]:
    """The children of the image before this one, each with its next life planned by this one.

    Returns:
        All children, those that the plan has no more among them (to be ended), and strays that end by themselves.
    """
    found = [c for c in planned if c.role != "worker"]
    strays: list[Child] = []
    for facts in handed.children:
        child = _of_plan(found, facts, data_fd)
        if child is None:
            child = Child(role=facts["role"], argv=[], index=facts["index"], wanted=False)
            (strays if facts["role"] == "announce" else found).append(child)
        elif child not in found:
            found.append(child)
        child.process = Proc(facts["pid"]) if facts["pid"] is not None else None
        child.started_s, child.failures = facts["started_s"], facts["failures"]
        child.lives = max(facts["lives"], 1)
        child.ending_s, child.stack_fd = facts["ending_s"], facts["stack_fd"]
        child.deaths = deque(facts["deaths"], maxlen=CRASH_LOOP[0])
        if child.role == "mirror":
            child.wanted = facts["wanted"]
    # Those who are new in the plan were never alive, and start as at any start.
    return found, strays


def _of_plan(planned: list[Child], facts: Mapping[str, Any], data_fd: int) -> Child | None:
    if facts["role"] == "worker":
        return worker_of(facts["index"], data_fd)
    return next((c for c in planned if c.role == facts["role"]), None)


def forget_request(state_dir: Path) -> None:
    """At the start of a gateway: a request that an earlier life left is nobody's any more."""
    (state_dir / "supervisor" / REQUEST).unlink(missing_ok=True)
