"""Faults at system calls: a process under strace, killed or refused at the n-th call of a kind.

    child = subprocess.Popen([*under_strace(kill_at("fdatasync", 7)), sys.executable, "-P", "-m", ...])

Several faults may be given. The process is strace's own child's parent (`strace -D`): pid, signals and exit status of
what is started are those of the process itself. Each thread and each kind of call is counted by itself, from 1, since
the process began; name several kinds with commas to put the same fault on each. A killed call is not carried out.
The program must be a binary: the calls of a shell script in front of it would be counted, too.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

_LINE = re.compile(r"^\d+\s+(\w+)\((.*)")
FILE_CALLS = (
    "openat,write,pwrite64,fdatasync,fsync,ftruncate,rename,unlink,mkdir,mmap,munmap,close,fallocate,flock"
)
"""Calls by which a process changes files, names and locks."""


def kill_at(calls: str, n: int) -> str:
    """SIGKILL at the n-th call."""
    return f"inject={calls}:signal=KILL:when={n}"


def fail_at(calls: str, error: str, when: str = "1+") -> str:
    """An error (`EIO`, `ENOSPC`, ...) instead of the call.

    Args:
        when: `3` the third call; `3+` it and all that follow; `3..5` (strace 6) these; `3+2` every second from it on.
    """
    return f"inject={calls}:error={error}:when={when}"


def under_strace(*faults: str, trace: Path | None = None, calls: str | None = None) -> list[str]:
    """What stands before the command. Skips the test where a process cannot be traced; fails it under CI.

    Args:
        trace: a file for what was called, see `called`.
        calls: which, where `trace` is given.
    """
    path = tracer()
    kinds = calls or ",".join(fault.split("=")[1].split(":")[0] for fault in faults)
    out = os.devnull if trace is None else str(trace)
    options = [option for fault in faults for option in ("-e", fault)]
    # Not --seccomp-bpf, which is faster: strace 6.1 injects no signals with it.
    return [path, "-D", "-f", "-qqq", "-e", f"trace={kinds}", *options, "-o", out]


def called(trace: Path) -> Iterator[tuple[str, int, str]]:
    """Calls of a traced run, in order: the call, how many of its kind there were with it, and its arguments."""
    counts: Counter[str] = Counter()
    for line in trace.read_text(errors="replace").splitlines():
        found = _LINE.match(line)
        if found:
            counts[found[1]] += 1
            yield found[1], counts[found[1]], found[2]


def tracer() -> str:
    """Where strace is. Skips the test where a process cannot be traced; fails it under CI."""
    path, why = _found()
    if why:
        if os.environ.get("CI") == "true":
            pytest.fail(f"required in CI: {why}")
        pytest.skip(why)
    return path


@functools.cache
def _found() -> tuple[str, str]:
    path = shutil.which("strace")
    if path is None:
        return (
            "",
            "strace is not on this machine (the package strace): faults at system calls were not injected",
        )
    with open(sys.executable, "rb") as program:
        if program.read(4) != b"\x7fELF":
            return "", f"{sys.executable} is a script in front of Python: its calls would be counted"
    trial = [
        path,
        "-D",
        "-f",
        "-qqq",
        "-e",
        kill_at("write", 1),
        "-o",
        os.devnull,
        sys.executable,
        "-c",
        "print(1)",
    ]
    run = subprocess.run(trial, capture_output=True, text=True, timeout=20, check=False)
    if run.returncode != -signal.SIGKILL or run.stdout:
        return "", f"strace cannot inject here (ptrace): status {run.returncode}, {run.stderr.strip()[:200]}"
    return path, ""
