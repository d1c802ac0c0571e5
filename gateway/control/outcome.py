"""Outcome: what a change begins with and what it comes to, for those who ask for it.

admin API, placement -> `changed_by` -> engine -> **Outcome** -> answer.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from gateway.routing import Change, Route


class Applied(msgspec.Struct, frozen=True):
    """How far a generation got: workers that run it, of how many live, after so many ms."""

    workers: int
    of: int
    ms: int
    pending: tuple[int, ...] = ()


class Outcome(msgspec.Struct, frozen=True):
    """What a change did (or, on a dry run, would do)."""

    route: Route | None
    before: Route | None
    generation: int
    applied: Applied | None
    logged: bool = True
    """False: in effect, and owed to the log."""
    replayed: bool = False
    """It was made when the request came first; this one, with the same idempotency key, changed nothing."""


def changed_by(by: str, reason: Any, evidence: str | None = None) -> Change:
    """A change as of now."""
    return Change(by=by, reason=str(reason or "").strip(), at_ns=time.time_ns(), evidence=evidence)
