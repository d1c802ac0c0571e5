"""Drafting: what a change is called before it is one: its control event, and the refusal of a stale one. Pure.

engine, leasing -> **drafting** -> committing.
"""

from __future__ import annotations

import time
from typing import Any

from gateway.audit.event import Control
from gateway.control.idempotency import BY_HAND, DIGEST_CHARS, Asked
from gateway.errors import ReasonRequired, RevisionConflict
from gateway.routing import Change, Route, iso_time


def draft(
    gateway_id: str,
    kind: str,
    change: Change,
    after: dict[str, Any],
    about: tuple[str | None, int | None],
    asked: Asked = BY_HAND,
) -> Control:
    """A control event as of now.

    Args:
        after: what the change leaves, as its kind has it.
        about: model and revision.
    """
    via = dict(asked.via)
    if asked.key is not None:
        via["digest"] = asked.digest[:DIGEST_CHARS]
    return Control(
        kind=kind,
        at_ns=time.time_ns(),
        gateway_id=gateway_id,
        model=about[0],
        revision=about[1],
        after=after,
        by=change.by,
        reason=change.reason,
        via=via or None,
        key=asked.key,
    )


def check_reason(change: Change) -> None:
    """No change without a reason.

    Raises:
        ReasonRequired: it has none, or a blank one.
    """
    if not change.reason.strip():
        msg = "a change needs a reason: say why, for whoever reads the history"
        raise ReasonRequired(msg)


def check_revision(route: Route, revision: int) -> None:
    """A change was decided on the revision that stands.

    Raises:
        RevisionConflict: it was not; names the one that stands, and who made it, why and when.
    """
    if route.revision == revision:
        return
    c = route.changed
    msg = (
        f"route {route.model} is at revision {route.revision}, you sent {revision}:"
        f" changed by {c.by} ({c.reason}) at {iso_time(c.at_ns)}"
    )
    changed: dict[str, object] = {"by": c.by, "reason": c.reason, "at_ns": c.at_ns}
    raise RevisionConflict(msg, revision=route.revision, event=c.event, changed=changed)
