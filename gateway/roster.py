"""The roster: what the supervisor says of its children, in `<state_dir>/supervisor/status.json`, once a second.

Read by `/metrics`, `tidegate fleet show` and whoever waits for a rolling restart or an upgrade. Beside it the counts by
role and cause, which a new image of the supervisor carries on. Standard library only; a disk that takes nothing costs
the file, nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway import __version__
from gateway.children import CAUSES, Child

EVERY_S = 1.0
DIRECTORY = "supervisor"


class Roster:
    """Counts deaths and writes the file.

    Args:
        state_dir: the gateway's.
        counts: by role and cause, of an earlier image of this supervisor.
    """

    def __init__(self, state_dir: Path, counts: Mapping[str, Mapping[str, int]] | None = None) -> None:
        self._path = state_dir / DIRECTORY / "status.json"
        self.counts = {role: dict(by) for role, by in (counts or {}).items()}
        """Ends that nobody asked for."""
        self._written_s = 0.0
        self._last = ""

    def died(self, child: Child, cause: str, code: int, now_s: float) -> None:
        """A child ended unasked, and why (`gateway.children.CAUSES`)."""
        by = self.counts.setdefault(child.role, dict.fromkeys(CAUSES, 0))
        by[cause] += 1
        child.last_exit = code
        child.deaths.append(now_s)

    def write(self, children: Sequence[Child], more: Mapping[str, object], now_s: float) -> None:
        """Once a second, and when `more` has changed.

        Args:
            more: what else is told: rolling restart, upgrade.
            now_s: the monotonic clock.
        """
        key = json.dumps([more, [c.name for c in children]])
        if key == self._last and now_s - self._written_s < EVERY_S:
            return
        self._written_s, self._last = now_s, key
        content = {
            "at_ns": time.time_ns(),
            "pid": os.getpid(),
            "version": __version__,
            "children": [_facts(child, now_s) for child in children],
            "deaths": self.counts,
            **more,
        }
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            replace_file(self._path, content)


def _facts(child: Child, now_s: float) -> dict[str, object]:
    return {
        "name": child.name,
        "role": child.role,
        "pid": child.process.pid if child.process is not None else None,
        "up_s": round(now_s - child.started_s, 1) if child.process is not None else None,
        "wanted": child.wanted,
        "starts": child.lives,
        "last_exit": child.last_exit,
        "crash_looping": child.is_crash_looping(now_s),
    }


def replace_file(path: Path, content: Mapping[str, object], *, owner: tuple[int, int] | None = None) -> None:
    """Write JSON, 0600, whole or not at all while we live; after power loss it may be empty.

    Args:
        owner: user and group that it is given to, by who may. Never by name: the directory may be theirs, and a link in
            the file's place would give them whatever it leads to.

    Raises:
        OSError: the disk does not take it.
    """
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    left = json.dumps(content).encode()
    try:
        while left:
            left = left[os.write(fd, left) :]
        if owner is not None:
            os.fchown(fd, *owner)
    finally:
        os.close(fd)
    temporary.rename(path)


def read(state_dir: Path) -> dict[str, Any] | None:
    """What a supervisor last said, however long ago; None when there is nothing readable."""
    try:
        found = json.loads((state_dir / DIRECTORY / "status.json").read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "children" in found else None
