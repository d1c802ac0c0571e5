"""How full spool and disk are, in words: what `tidegate audit status` says of the recorder.

recorder/status.json (`gateway.audit.standing`) -> **this**. Nothing here asks a process: a gateway may be gone.
"""

from __future__ import annotations

import time
from typing import Any

OLD_S = 5.0
"""Said each second: what is so old was said by one that stands still, is gone, or can write nothing."""
_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def in_words(status: dict[str, Any], now_s: float | None = None) -> list[str]:
    """A line each for spool, disk and rings, and one for all that is wrong; none where the recorder never ran."""
    if not status:
        return []
    held = f", {_size(status['held_bytes'])} of it not in the topic" if status["held_bytes"] else ""
    hours = status["hours_left"]
    left = "" if hours is None else f": {hours:g} h left"
    lines = [
        f"spool: {_size(status['spool_bytes'])} of {_size(status['max_bytes'])}{held};"
        f" {_size(status['bytes_per_h'])} an hour{left}",
        f"disk: {_size(status['free_bytes'])} free, {_size(status['reserve_bytes'])} in reserve",
        f"rings: up to {_size(status['unsynced_bytes'])} not on disk, for {status['unsynced_ms']:g} ms at most",
    ]
    if status["failing"]:
        lines.append(f"RECORDS CANNOT BE WRITTEN since {status['failing_s']:g} s: {status['failing_why']}")
    if status["waiting"]:
        lines.append(f"WORKERS' RECORDS WAIT: {status['waiting_why'].replace('_', ' ')}")
    age_s = (time.time() if now_s is None else now_s) - status["at_ns"] / 1e9
    if age_s > OLD_S:
        lines.append(f"said {age_s:.0f} s ago: the recorder does not run, stands still, or can write nothing")
    return lines


def _size(size_bytes: float) -> str:
    for unit, name in _UNITS:
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes:.0f} bytes"
