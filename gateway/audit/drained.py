"""Drained: whether a dead predecessor's records are all on disk. For those that begin where it ended.

Control, the sidecar and the mirror recover from their own role's events. Those of a predecessor that was killed may
still lie in its ring; so each claims its source, waits here, and only then reads.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from gateway.audit.identity import source_of

WAIT_S = 10.0
POLL_S = 0.01
INDICES = range(4)
"""Processes of one role that ever lived side by side."""


def sources_of(gateway_id: str, role: str) -> tuple[int, ...]:
    """A role's own sources, in order of index."""
    return tuple(source_of(gateway_id, role, index) for index in INDICES)


def wait_drained(ring_dir: Path, sources: tuple[int, ...], own_ring: str, *, peers: bool = False) -> bool:
    """Wait until the recorder is done with the rings of predecessors; False when that takes over 10 s.

    It removes a ring once its owner is dead and all of it can be read. An empty ring is not enough: its marks move
    just before the spool's. Blocks the calling thread; looks each 10 ms.

    Args:
        sources: the role's, from `sources_of`.
        own_ring: name of the caller's ring, claimed already.
        peers: others of the role may live beside the caller: a ring whose owner lives is not waited for.
    """
    prefixes = tuple(f"{source:016x}-" for source in sources)
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        left = [
            path
            for path in ring_dir.iterdir()
            # Those that are set aside or half made have longer names.
            if path.name.startswith(prefixes) and len(path.name) == len(own_ring) and path.name != own_ring
        ]
        if not left or (peers and all(_is_peer(path, own_ring) for path in left)):
            return True
        time.sleep(POLL_S)
    return False


def _is_peer(ring: Path, own_ring: str) -> bool:
    """Whether a ring belongs to another source whose owner lives. Earlier epochs of our own source have no owner."""
    if ring.name.partition("-")[0] == own_ring.partition("-")[0]:
        return False
    try:
        fd = os.open(ring, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        # The recorder was done with it just now; the next look does not find it.
        return False
    try:
        # Shared, and let go at once: the recorder looks in the same way.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
