"""The steps of a tick, each of which may be left out. Watch stage.

What one tick holds must not stop all that follow: a step that breaks on it would break again each time that the tick is
made. So the tick is made once more without that step, as if it had never begun, and says so in its record; who folds
the log again leaves out the same.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection
from typing import TypeVar

LEFT_OUT_MAX = 8
"""When so many steps of a tick broke, every step is left out."""
EVERY = "every"
STEP_CHARS = 150

_Of = TypeVar("_Of")


class StepBroken(Exception):
    """A step raised; its cause is what it raised."""

    def __init__(self, step: str) -> None:
        super().__init__(step)
        self.step = step


class Steps:
    """The steps of one try at a tick.

    Args:
        left_out: names of steps that are not made.
    """

    def __init__(self, left_out: Collection[str]) -> None:
        self._left_out = frozenset(left_out)

    def leaves_out(self, name: str) -> bool:
        """Whether a step is not made."""
        return EVERY in self._left_out or name[:STEP_CHARS] in self._left_out

    def do(self, name: str, otherwise: _Of, step: Callable[[], _Of]) -> _Of:
        """Make a step.

        Args:
            name: a word, and what it is about where it is made several times in a tick.
            otherwise: what it comes to when it is left out.

        Raises:
            StepBroken: it raised.
            sqlite3.Error, OSError, MemoryError: no fault of what the tick holds; it can be made again.
        """
        if self.leaves_out(name):
            return otherwise
        try:
            return step()
        except (sqlite3.Error, OSError, MemoryError):
            raise
        except Exception as exc:
            raise StepBroken(name[:STEP_CHARS]) from exc


def word(step: str) -> str:
    """A step's name without what it is about."""
    return step.partition(" ")[0]
