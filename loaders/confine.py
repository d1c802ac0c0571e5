"""Caps and rights of a child that loads a stranger's model. Linux; what a host lacks is left out, and told (`gaps`).

trial -> **confine**. Called in the forked child only: none of this can be taken back. Two fences stand one behind the
other. No descriptor can be had any more (RLIMIT_NOFILE 0): no file, socket, pipe or memory file, on every kernel.
Landlock, where there is one, closes the ways that need none: signals and tracing; and files and TCP once more.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
import sys
import time
from pathlib import Path

NOBODY = 65_534
_PAGE = resource.getpagesize()
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
_ROUNDS = 100
_SIGKILL = 9
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FS_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_NET_RIGHTS, _NET_SINCE = 3, 4
_SCOPES, _SCOPES_SINCE = 3, 6
"""No abstract Unix socket and no signal beyond this process's own children."""
_libc = ctypes.CDLL(None, use_errno=True)


def cap(cpu_s: float, memory_bytes: int) -> None:
    """Bound memory, processor time and files of this process; it dies with its parent and leaves no core.

    Args:
        memory_bytes: beyond what the process has mapped already.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seconds = int(cpu_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 2))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with contextlib.suppress(OSError, ValueError):
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory_bytes, mapped + memory_bytes))


def give_up_rights() -> None:
    """From here on: no new privileges, no user's rights, nothing that is not open already: no files, no network.

    Raises nothing: a host without Landlock, or a process that is not root, keeps what `gaps` says.
    """
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    with contextlib.suppress(OSError):
        _landlock()
    # Last but one: rules of Landlock name directories by descriptors.
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        # The kernel forgets it when the user changes.
        _libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)


def adopt_orphans() -> None:
    """Make this process, the trial server, the parent of what its children leave behind."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_orphans() -> None:
    """Kill and reap every child of this process: what a model started in its trial does not outlive it.

    A process that the kernel has no more room to count, or that starts others faster than they are killed, is left
    after some rounds. Cost: one system call when there is none, as nearly always.
    """
    for _ in range(_ROUNDS):
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for pid in _children():
            with contextlib.suppress(OSError):
                os.kill(pid, _SIGKILL)
        time.sleep(0.001)


def _children() -> list[int]:
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208  thousands of names
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                # The command's name, in brackets, may hold anything.
                after = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
                if int(after[1]) == os.getpid():
                    found.append(int(name))
    return found


def gaps() -> tuple[str, ...]:
    """What a model could still do in a trial on this host, a sentence each, with what closes it; none: nothing known.

    Cost: one system call.
    """
    found = []
    version = landlock_abi()
    as_nobody = os.geteuid() == 0
    if version < 1 and not as_nobody:
        found.append(
            "this kernel has no Landlock, and the gateway does not run as root: a model in its trial may signal and"
            " trace processes of the gateway's user; enable Landlock (lsm=landlock, Linux 5.13 and later)"
        )
    elif version < _SCOPES_SINCE and not as_nobody:
        found.append(
            f"this kernel's Landlock (version {version}) lets a model in its trial signal processes of the gateway's"
            f" user; version {_SCOPES_SINCE} (Linux 6.12) does not"
        )
    return tuple(found)


def landlock_abi() -> int:
    """The version of Landlock that this kernel has; 0: none, or it is switched off."""
    return max(_syscall(_CREATE_RULESET, None, 0, 1), 0)


def _landlock() -> None:
    """Deny every file but the libraries, for reading; since ABI 4 TCP, since ABI 6 signals and abstract sockets."""
    version = landlock_abi()
    if version < 1:
        return
    rights = _FS_RIGHTS[min(version, 5)]
    net = _NET_RIGHTS if version >= _NET_SINCE else 0
    scopes = _SCOPES if version >= _SCOPES_SINCE else 0
    attributes = struct.pack("=QQQ", rights, net, scopes)[: 24 if scopes else 16 if net else 8]
    ruleset = _syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        return
    try:
        for place in {sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64", *sys.path}:
            with contextlib.suppress(OSError):
                fd = os.open(place, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
                rule = struct.pack("=Qi", _READ_FILE | _READ_DIR, fd)
                _syscall(_ADD_RULE, ruleset, 1, rule, 0)
                os.close(fd)
        _syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _syscall(number: int, *args: object) -> int:
    return int(_libc.syscall(ctypes.c_long(number), *args))


class Memory:
    """What this process has grown by since this was made: anonymous memory, that of a session."""

    def __init__(self) -> None:
        # Opened now: later it may not be.
        self._file = open("/proc/self/statm", "rb", buffering=0)  # noqa: SIM115, PTH123  kept open
        self._start = self._anonymous()

    def grown_bytes(self) -> int:
        """Bytes since then, never below 0."""
        return max(self._anonymous() - self._start, 0)

    def _anonymous(self) -> int:
        self._file.seek(0)
        _, resident, shared = self._file.read().split()[:3]
        return (int(resident) - int(shared)) * _PAGE
