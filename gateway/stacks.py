"""Stacks of a running process, on request: SIGUSR1 makes a child write what each of its threads does.

The supervisor makes a file in memory for each child (`make`), the child has faulthandler write into it
(`show_when_asked`), which works also while its interpreter hangs in C code, and the supervisor takes out what came
(`taken`) and logs it. Standard library only.
"""

from __future__ import annotations

import faulthandler
import os
import signal

VARIABLE = "TG_STACKS_FD"
TEXT_CHARS = 4000
"""What one event of the log shows at most."""


def make() -> int:
    """A file in memory that a child inherits; -1 where the system has none.

    Its number outlives the supervisor's exec, as the child does.
    """
    try:
        fd = os.memfd_create("tidegate-stacks", 0)
    except OSError:
        return -1
    os.set_inheritable(fd, True)
    return fd


def show_when_asked() -> None:
    """In a child, before any thread starts: on SIGUSR1 write the stacks of all threads into the inherited file.

    Without such a file SIGUSR1 stays blocked, as it is when a child starts: it would end the process.
    """
    text = os.environ.pop(VARIABLE, "")
    if not text.isdigit():
        return
    fd = int(text)
    os.set_inheritable(fd, False)
    faulthandler.register(signal.SIGUSR1, file=fd, all_threads=True, chain=False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})


def taken(fd: int) -> str:
    """What a child wrote since the last call, its end where it is long; empty when nothing came."""
    try:
        size = os.fstat(fd).st_size
        text = os.pread(fd, size, 0).decode(errors="replace")
        os.ftruncate(fd, 0)
        # The descriptor is the child's, too: it goes on writing where this says.
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError:
        return ""
    return text.strip()[-TEXT_CHARS:]
