"""The thread budget: how many threads a run may use, over all workers and lanes, from what this process may use.

config -> **budget** -> loaders. One number for all sessions, since a container that sees 64 processors and may use two
would else run 64 threads on them, once per session.
"""

from __future__ import annotations

import os
from pathlib import Path

from gateway.settings import Config

_CGROUP = Path("/sys/fs/cgroup")
_SELF = Path("/proc/self/cgroup")


def effective_cpus(cgroup: Path = _CGROUP, own: Path = _SELF) -> float:
    """Processors that this process may use: by its affinity, and by the quota of its cgroup and all above (v2 or v1).

    Args:
        cgroup: where the hierarchy is mounted.
        own: the file that says which group the process is in.
    """
    cpus = float(len(os.sched_getaffinity(0)))
    for place in _groups(cgroup, own):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            try:
                quota, period = " ".join((place / name).read_text() for name in names).split()
                # No quota is "max", or -1 in version 1.
                if quota != "max" and int(quota) > 0:
                    cpus = min(cpus, int(quota) / int(period))
            except (OSError, ValueError, ZeroDivisionError):
                continue
    return cpus


def _groups(cgroup: Path, own: Path) -> list[Path]:
    """Directories of the process's groups that may hold a quota, and of all above."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines() if line.count(":") >= 2]
    except OSError:
        lines = []
    found = [cgroup, cgroup / "cpu"]
    for _, controllers, path in lines:
        if not controllers or "cpu" in controllers.split(","):
            base = cgroup / "cpu" if controllers else cgroup
            group = base / path.strip("/")
            found += [place for place in (group, *group.parents) if place.is_relative_to(base)]
    return found


def intra_op_threads(config: Config, cpus: float) -> int:
    """Threads of one run: as configured, or what is left of the processors once each worker's loop has one."""
    if config.session.intra_op_threads:
        return config.session.intra_op_threads
    return max(int((cpus - config.workers) / (config.workers * config.batch.lanes)), 1)


def in_words(config: Config, cpus: float) -> str:
    """The sum, for people."""
    each = intra_op_threads(config, cpus)
    total = config.workers * (1 + config.batch.lanes * each)
    over = ": more threads than processors, they will share" if total > cpus + config.workers else ""
    return (
        f"threads: {config.workers} workers x (1 loop + {config.batch.lanes} lanes x {each} of a run) = {total},"
        f" on {cpus:g} processors{over}"
    )
