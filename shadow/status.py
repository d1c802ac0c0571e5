"""What the sidecar says of itself, for `/metrics`: whether it lives, how far behind it is, what it could not do.

    <state_dir>/sidecar/status.json        replaced each two seconds, not synced

A monitor that is dead or behind is the one thing that its own records cannot tell. The age of this file can.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from shadow.act import Pending
from shadow.decide import summary
from shadow.state import WatchState

EVERY_S = 2.0


def write_status(
    path: Path, state: WatchState, pending: Sequence[Pending], stale_s: float, at_ns: int
) -> None:
    """Replace the file; a disk that takes nothing is not worth dying of."""
    content = {
        "at_ns": at_ns,
        "ticks": state.tick,
        "incomplete_ticks": state.incomplete_ticks,
        "stale_s": stale_s if math.isfinite(stale_s) else None,
        "pending": [{"model": p.model, "version": p.version, "decision": p.event} for p in pending],
        "rollouts": [
            {key: found[key] for key in ("model", "version", "requests", "evidence")}
            for found in map(summary, state.rollouts.active)
        ],
        "ratios": [
            {
                "model": model,
                "revision": found.revision,
                "requests": found.requests,
                "evidence": found.evidence,
                "needed": found.needed,
                "alarmed": found.alarmed,
                "paused": found.paused,
            }
            for model, found in sorted(state.ratios.items())
            if found.revision
        ],
    }
    temporary = path.with_suffix(".new")
    try:
        temporary.write_text(json.dumps(content))
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
