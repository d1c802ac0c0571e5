"""A sidecar that no lock keeps apart from another: as where the state directory's file system has none."""

from __future__ import annotations

import fcntl
import functools
from types import SimpleNamespace

from gateway.audit.drained import wait_drained
from shadow import sidecar


def main() -> None:
    """The sidecar's own `main`, which neither waits for another's lock nor for its ring."""
    sidecar.fcntl = SimpleNamespace(LOCK_EX=fcntl.LOCK_EX, flock=lambda fd, how: None)  # type: ignore[assignment]
    sidecar.wait_drained = functools.partial(wait_drained, peers=True)  # type: ignore[assignment]
    sidecar.main()


if __name__ == "__main__":
    main()
