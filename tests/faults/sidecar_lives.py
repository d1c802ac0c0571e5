"""Sidecars one after another without the cost of a start: forks, for each line on stdin, and prints the pid."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from shadow import sidecar


def main() -> None:
    """Each child is the sidecar's process from its `main` on, and dies with this one at the latest."""
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
            sidecar.main()
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        os.waitpid(pid, 0)
        sys.stdout.write("dead\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
