"""The end of a gateway: one role after another is told to end, and waited for. Standard library only."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Sequence

from gateway.children import SETTLE_S, STOP_ORDER, Child, limit_s

log = logging.getLogger("tidegate.supervisor")

STEP_S = 0.05


def stop_all(
    children: Sequence[Child], wait: Callable[[float], None], is_impatient: Callable[[], bool]
) -> list[str]:
    """SIGTERM to one role after another; workers drain.

    Args:
        wait: for at most so many seconds, or until a signal comes.
        is_impatient: whether someone asked a second time: from then on nobody is waited for.

    Returns:
        Who had to be killed and may have had something to lose. What sidecar and mirror did not finish they do again.
    """
    killed: list[str] = []
    for role in STOP_ORDER:
        group = [c for c in children if c.role == role and c.process is not None]
        for child in group:
            while time.monotonic() < child.started_s + SETTLE_S.get(role, 0.0) and not is_impatient():
                wait(STEP_S)
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + limit_s(role)
        told: set[str] = set()
        while any(c.runs for c in group):
            if is_impatient() or time.monotonic() > deadline:
                late = [c for c in group if c.runs]
                for child in late:
                    child.signal(signal.SIGKILL)
                for name in {c.name for c in late} - told:
                    told.add(name)
                    why = "a second signal asked for it" if is_impatient() else "it did not end in time"
                    log.warning("child_killed", extra={"child": name, "why": why})
                killed += [c.name for c in late if not c.optional and c.name not in killed]
            wait(STEP_S)
    return killed
