"""Revisions as the sidecar reads them: each event that made one holds its route, or it would wait for ever."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.audit.event import Control
from gateway.control.state import ROUTE_KINDS
from shadow.documents import documents_of
from tests.gateway.control.plane import MODEL
from tests.gateway.test_admin import ROUTE, Admin
from tests.gateway.test_admin import admin as admin  # a fixture
from tests.gateway.test_admin import plane as plane  # a fixture

MODELS = f"/admin/v1/models/{MODEL}"
CHANGES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("shift", f"{ROUTE}/shift", {"weights_bp": {"canary": 2_000}}),
    ("freeze", f"{ROUTE}/freeze", {}),
    ("thaw", f"{ROUTE}/thaw", {}),
    ("bounds", f"{ROUTE}/bounds", {"max_canary_bp": 5_000}),
    ("stop", f"{MODELS}/stop", {}),
    ("resume", f"{MODELS}/resume", {}),
    ("rollback", f"{ROUTE}/rollback", {"variant": "canary"}),
    ("rearm", f"{ROUTE}/rearm", {"version": "2"}),
    ("shift", f"{ROUTE}/shift", {"weights_bp": {"canary": 1_000}}),
    ("promote", f"{ROUTE}/promote", {"variant": "canary"}),
)


def test_every_kind_that_makes_a_revision_tells_its_route(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One event a revision, and the document in it is of that revision."""
    kept: list[Any] = []
    append = admin.plane.writer.append_events
    monkeypatch.setattr(
        admin.plane.writer, "append_events", lambda events: (kept.extend(events), append(events))[1]
    )
    assert admin.split().status_code == 200
    for number, (_, path, body) in enumerate(CHANGES):
        reply = admin.send("POST", path, {**body, "reason": "a test"}, if_match=str(2 + number))
        assert reply.status_code == 200, reply.text
    made = [event for event in kept if isinstance(event, Control) and event.kind in ROUTE_KINDS]
    assert {event.kind for event in made} == ROUTE_KINDS
    assert [event.revision for event in made] == list(range(2, 3 + len(CHANGES)))
    for event in made:
        assert [document.revision for document in documents_of(event)] == [event.revision], event.kind
