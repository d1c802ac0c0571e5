"""What every child process starts with, and what it does first. Standard library only.

`tidegate serve` checks the configuration, then becomes `python -P -m gateway.supervisor`; the supervisor
starts the children as `python -P -m gateway.<role>`. All get one `Context` as JSON in an environment
variable, and listening sockets as inherited descriptors.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gateway import __version__, stacks

CONTEXT_VARIABLE = "TG_CONTEXT"
OTHER_CODE = 4
"""Exit code of a child that is not of its supervisor's version."""
_PR_SET_PDEATHSIG = 1
LOWEST_NICE = 19
GIVING_NICE = 10
PRIVATE_UMASK = 0o077
"""Of every process of a gateway: inputs are recorded, and a state directory that was there before may be open."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """Facts that the supervisor hands to its children. Paths are absolute."""

    config: str
    """The whole configuration as JSON (`gateway.config.decode`)."""
    models: str
    state_dir: str
    gateway_id: str = ""
    ring_dir: str = ""
    fleet_path: str = ""
    data_fd: int = -1
    admin_fd: int = -1
    data_url: str = ""
    admin_url: str = ""
    supervisor_pid: int = 0
    version: str = ""
    """Of the package that the supervisor runs."""
    asked: str = "{}"
    """What `tidegate serve` was given, as JSON, so that an upgrade can read the configuration again."""
    directory: str = ""
    """Where it was given that: paths in it are relative to here."""
    code_path: str = ""
    """What stands in PYTHONPATH so that our packages are found; empty where they are installed."""
    one_more: bool = True
    """Whether the memory plan has room for one more worker during a rolling restart."""

    @property
    def state_path(self) -> Path:
        """`state_dir` as a path."""
        return Path(self.state_dir)

    def to_env(self) -> dict[str, str]:
        """The environment of a child: ours, the context, and telemetry off."""
        return {
            **os.environ,
            CONTEXT_VARIABLE: json.dumps(asdict(self)),
            "ORT_DISABLE_TELEMETRY": "1",
        }

    def with_(self, **changes: object) -> Context:
        """A copy with other values."""
        return replace(self, **changes)  # type: ignore[arg-type]


def read_context() -> Context:
    """The context from the environment; ends the process with one line when there is none."""
    text = os.environ.get(CONTEXT_VARIABLE)
    if text is None:
        sys.stderr.write("tidegate: this process is started by `tidegate serve`, not by hand\n")
        raise SystemExit(2)
    return Context(**json.loads(text))


def enter() -> Context:
    """First call of every child: die with the supervisor, read the context, show stacks when asked for.

    Ends the process with 4 when the package is of another version than the supervisor's: one that was replaced under a
    running gateway would make a gateway of two halves.
    """
    context = read_context()
    os.umask(PRIVATE_UMASK)
    stacks.show_when_asked()
    if context.version not in {"", __version__}:
        sys.stderr.write(
            f"tidegate: this package is version {__version__}, the running gateway {context.version}: it was replaced"
            " under it; finish with `tidegate upgrade`\n"
        )
        raise SystemExit(OTHER_CODE)
    if context.supervisor_pid:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != context.supervisor_pid:
            raise SystemExit(0)
    return context


def lowest_priority() -> None:
    """Run only when no one else wants the processor: SCHED_IDLE, or nice 19 where that is not to be had.

    Never raises; a host that refuses leaves things as they are. Linux keeps this a thread: call it before any other is
    started, they inherit it. Both count only among processes of one session where the kernel groups by session
    (autogroup), which is why all children of the supervisor stay in its own.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (OSError, AttributeError):
        _nice(LOWEST_NICE)


def patient() -> None:
    """Wait for the processor until whoever has it lets go, at most a time slice: SCHED_BATCH.

    For those that wake all the time to take up what the workers leave: each time they would push one off the processor
    for a few bytes more. Never raises, and as `lowest_priority` before any other thread is started.
    """
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def give_way() -> None:
    """Let this thread, and those that it starts, have a tenth of a processor that others want too: nice 10.

    For work of seconds beside serving. Never raises. Linux keeps it a thread.
    """
    _nice(GIVING_NICE)


def _nice(value: int) -> None:
    with contextlib.suppress(OSError):
        # Never up: that needs rights, and who started us nicer meant it.
        if os.getpriority(os.PRIO_PROCESS, 0) < value:
            os.setpriority(os.PRIO_PROCESS, 0, value)
