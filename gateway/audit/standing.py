"""Standing: how full spool and disk are, how fast they fill, and what waits in the rings; told and exported.

Beside the drain, in the recorder's process. Each second `recorder/status.json` says it (`/metrics`, `tidegate audit
status`); a log line says it once when a threshold is crossed, and again only after it had fallen well below it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger("tidegate.recorder")

SPOOL_LEVELS = (0.5, 0.8, 0.95)
"""Of `audit.max_bytes`."""
REARM = 0.05
"""A threshold is told again after the fill was so much below it."""
FREE_LEVELS = (8, 4, 2)
"""Free room in times of the reserve; below the last the reserve is not taken again either."""
RATE_STEP_S = 10.0
RATE_STEPS = 30
"""The rate is over the last five minutes."""
RATE_LEAST_S = 60.0
"""Before, it is what the files of earlier lives say."""
STATUS_FLOOR_BYTES = 2048
"""The status file is so long at least: a full disk can still take what fits the room that it has."""


class Drained(Protocol):
    """A ring, as far as it is looked at here."""

    @property
    def committed(self) -> int:
        """Bytes ever appended."""
        ...

    @property
    def synced(self) -> int:
        """Bytes ever put on disk."""
        ...


class Rate:
    """Bytes an hour that come to the spool.

    Args:
        before_per_h: what holds until a minute was seen.
    """

    def __init__(self, before_per_h: float, now_s: float) -> None:
        self._before_per_h = before_per_h
        self._points: deque[tuple[float, int]] = deque([(now_s, 0)], maxlen=RATE_STEPS + 1)
        self._written = 0

    def wrote(self, size_bytes: int) -> None:
        """So much came."""
        self._written += size_bytes

    def per_h(self, now_s: float) -> float:
        """Over the last five minutes."""
        if now_s - self._points[-1][0] >= RATE_STEP_S:
            self._points.append((now_s, self._written))
        first_s, first = self._points[0]
        if now_s - first_s < RATE_LEAST_S:
            return self._before_per_h
        return (self._written - first) / (now_s - first_s) * 3600


class Levels:
    """Which thresholds are crossed; each crossing is reported once. Pure."""

    def __init__(self, levels: tuple[float, ...], rearm: float) -> None:
        self._levels = levels
        self._rearm = rearm
        self._at = 0

    def crossed(self, value: float) -> float | None:
        """The highest threshold newly reached, or None."""
        while self._at and value < self._levels[self._at - 1] - self._rearm:
            self._at -= 1
        reached = sum(value >= level for level in self._levels)
        if reached <= self._at:
            return None
        self._at = reached
        return self._levels[reached - 1]


class Unsynced:
    """What lies in rings and not on disk: what power loss would cost. The most since the last `take`."""

    def __init__(self) -> None:
        self._since_ns: dict[str, tuple[int, int]] = {}
        self._bytes = self._age_ns = 0

    def note(self, rings: Iterable[tuple[str, Drained]], now_ns: int) -> None:
        """Look at all rings; a few microseconds."""
        total, seen = 0, {}
        for name, ring in rings:
            synced = ring.synced
            waiting = ring.committed - synced
            at, since_ns = self._since_ns.get(name, (-1, now_ns))
            # From the first look at which something waits, as long as the mark does not move.
            seen[name] = (synced if waiting else -1, since_ns if waiting and at == synced else now_ns)
            total += waiting
            self._age_ns = max(self._age_ns, now_ns - seen[name][1])
        self._since_ns = seen
        self._bytes = max(self._bytes, total)

    def take(self) -> tuple[int, float]:
        """(bytes of all rings, ms since the disk last took something of a ring that waits); begins anew."""
        found = self._bytes, round(self._age_ns / 1e6, 1)
        self._bytes = self._age_ns = 0
        return found


class Alarms:
    """Log lines about how full spool and disk are.

    Args:
        forwarded: whether a forwarder holds records back: else the oldest simply go.
    """

    def __init__(self, *, forwarded: bool, reserve_bytes: int) -> None:
        self._forwarded = forwarded
        self._reserve_bytes = reserve_bytes
        self._spool = Levels(SPOOL_LEVELS, REARM)
        levels = tuple(-float(times * reserve_bytes) for times in FREE_LEVELS)
        self._free = Levels(levels, reserve_bytes / 2)

    def look(self, status: dict[str, Any]) -> None:
        """Tell what was crossed since the last look."""
        level = self._spool.crossed(status["fill"])
        if level is not None:
            self._tell_spool(level, status)
        free = status["free_bytes"]
        if self._reserve_bytes and self._free.crossed(-float(free)) is not None:
            log.warning(
                "disk_filling",
                extra={
                    "free_bytes": free,
                    "bytes_per_h": status["bytes_per_h"],
                    "hours_left": _hours(free, status["bytes_per_h"]),
                    "do": "free room where the state directory lies, or lower audit.max_bytes",
                },
            )

    def _tell_spool(self, level: float, status: dict[str, Any]) -> None:
        facts = {
            "percent": round(level * 100),
            "bytes": status["held_bytes"] if self._forwarded else status["spool_bytes"],
            "max_bytes": status["max_bytes"],
            "bytes_per_h": status["bytes_per_h"],
            "hours_left": status["hours_left"],
        }
        if self._forwarded:
            do = "see why Kafka takes nothing (tidegate audit status), or raise audit.max_bytes; at the limit workers'"
            do += " records wait, then audit.on_unavailable decides"
            log.warning("spool_filling", extra={**facts, "do": do})
        else:
            do = "nothing, if that much is enough: at the limit the oldest records are removed; else raise"
            log.info("spool_filling", extra={**facts, "do": f"{do} audit.max_bytes"})


def _hours(room_bytes: float, bytes_per_h: float) -> float | None:
    return round(max(room_bytes, 0) / bytes_per_h, 1) if bytes_per_h >= 1 else None


def hours_left(used_bytes: int, max_bytes: int, bytes_per_h: float) -> float | None:
    """Until the limit at this rate; None while nothing comes."""
    return _hours(max_bytes - used_bytes, bytes_per_h)


def write_status(directory: Path, status: dict[str, Any]) -> bool:
    """Replace `status.json`; on a disk that takes no new file, overwrite it in its place. Never raises.

    Returns whether it was written: a reader sees otherwise by its age.
    """
    text = json.dumps({"at_ns": time.time_ns(), **status}).ljust(STATUS_FLOOR_BYTES).encode()
    path = directory / "status.json"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        temporary = directory / "status.new"
        temporary.write_bytes(text)
        temporary.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                size = os.fstat(fd).st_size
                return len(text) <= size and os.pwrite(fd, text.ljust(size), 0) == size
            finally:
                os.close(fd)
        return False
    return True


def read_status(state_dir: Path) -> dict[str, Any]:
    """What the recorder last said; empty where it never did."""
    try:
        status = json.loads((state_dir / "recorder" / "status.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}
