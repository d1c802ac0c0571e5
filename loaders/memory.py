"""The memory plan: what all workers together may hold, and what they would.

Every worker holds its models itself: memory of a version (measured in its trial) counts once a worker. 80% of the
container's memory may be planned for; the rest is for what no plan sees: requests, files in the page cache.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple

SHARE = 0.8
WORKER_BYTES = 120 << 20
"""A worker without models."""
_ROOT = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 62


class Plan(NamedTuple):
    """What may be planned for.

    Attributes:
        limit_bytes: of the container or the host.
        rings_bytes: of all rings together.
    """

    limit_bytes: int
    workers: int
    rings_bytes: int

    def total(self, models_bytes: int) -> int:
        """What workers and rings take with models of so many bytes."""
        return self.workers * (WORKER_BYTES + models_bytes) + self.rings_bytes

    def says(self, models_bytes: int, versions: int) -> str:
        """The sum, in words."""
        return (
            f"{self.workers} worker{'s' if self.workers > 1 else ''} x ({_mb(WORKER_BYTES)} + {versions}"
            f" version{'s' if versions != 1 else ''} {_mb(models_bytes)}) + rings {_mb(self.rings_bytes)}"
            f" = {_mb(self.total(models_bytes))} of {_mb(int(self.limit_bytes * SHARE))} that may be used"
            f" (80% of {_mb(self.limit_bytes)})"
        )

    def refusal(self, held_bytes: int, more_bytes: int, versions: int) -> str | None:
        """Why a version of `more_bytes` has no room beside what is held; None when it has."""
        both = held_bytes + more_bytes
        if self.total(both) <= self.limit_bytes * SHARE:
            return None
        return (
            f"it needs {_mb(more_bytes)}, for which there is no memory: {self.says(both, versions + 1)};"
            " unload a version, run fewer workers (config: workers), or give more memory"
        )


def limit_bytes(root: Path = _ROOT, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Memory of this container (cgroup v2 or v1; its own group's or that of any above), at most that of the host."""
    found = [_total()]
    with contextlib.suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            base, name = (root, "memory.max")
            if "memory" in controllers.split(","):
                base, name = root / "memory", "memory.limit_in_bytes"
            elif controllers:
                continue
            # In a container the path may be the host's: its own root then holds the limit. Groups above bind too.
            group = base / path.lstrip("/")
            for directory in (group, *(above for above in group.parents if above.is_relative_to(base)), base):
                with contextlib.suppress(OSError, ValueError):
                    found.append(int((directory / name).read_text()))
    return min(number for number in found if number > 0)


def _total() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    return _NO_LIMIT


def _mb(number: int) -> str:
    if number >= 10**9:
        return f"{number / 1e9:.1f} GB"
    return f"{number / 1e6:.0f} MB" if number >= 10**7 else f"{number / 1e6:.1f} MB"
