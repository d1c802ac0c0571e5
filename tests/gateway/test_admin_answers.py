"""Answers of the admin API that clients act on: no change by mistake, when to come again, what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.control import committing
from tests.gateway.control.plane import Plane
from tests.gateway.test_admin import ROUTE, VARIANTS, Admin
from tests.gateway.test_admin import admin as admin  # a fixture
from tests.gateway.test_admin import plane as plane  # a fixture

CHANGE = {"variants": VARIANTS, "reason": "look"}


@pytest.mark.parametrize("text", ["true", "1", "yes", "TRUE", ""])
def test_dry_run_as_clients_write_it(admin: Admin, text: str) -> None:
    """Any of the usual words, or the bare name."""
    reply = admin.send("PUT", f"{ROUTE}?dry_run={text}", CHANGE, if_match="1")
    assert (reply.status_code, reply.json().get("dry_run")) == (200, True)
    assert admin.plane.engine.route("m").revision == 1


@pytest.mark.parametrize("query", ["dry_run=ture", "dry_run=2", "dry_run=false&dry_run=true", "dryrun=true"])
def test_mistyped_dry_run_changes_nothing(admin: Admin, query: str) -> None:
    """Whoever asked for a dry run and misspelt it is told, and gets no change."""
    reply = admin.send("PUT", f"{ROUTE}?{query}", CHANGE, if_match="1")
    assert (reply.status_code, reply.json()["code"]) == (400, "invalid_request")
    assert admin.plane.engine.route("m").revision == 1


def test_false_dry_run_is_a_change(admin: Admin) -> None:
    """dry_run=false is what it says."""
    assert admin.send("PUT", f"{ROUTE}?dry_run=false", CHANGE, if_match="1").status_code == 200
    assert admin.plane.engine.route("m").revision == 2


def test_change_that_cannot_be_logged_says_when_to_come_again(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 with Retry-After; a hold goes ahead and says that it is not logged."""
    monkeypatch.setattr(committing, "LOG_TIMEOUT_S", 0.02)
    monkeypatch.setattr(admin.plane.writer, "append_events", lambda events: None)
    refused = admin.split()
    assert (refused.status_code, refused.json()["code"]) == (503, "audit_unavailable")
    assert refused.headers["retry-after"] in {"1", "2", "3"}
    held = admin.send("POST", f"{ROUTE}/freeze", {"reason": "stop"}, if_match="1")
    assert (held.status_code, held.json()["logged"]) == (200, False)
    assert held.json()["revision"] == 2


def test_logged_is_said_only_when_it_is_not(admin: Admin) -> None:
    """The usual answer has no such field."""
    assert "logged" not in admin.split().json()


def test_wrong_method_says_which_are_right(admin: Admin) -> None:
    """405 names every method of the address."""
    reply = admin.send("DELETE", ROUTE)
    assert reply.status_code == 405
    assert set(reply.headers["allow"].replace(" ", "").split(",")) == {"GET", "HEAD", "PUT"}


def test_long_reason_is_refused(admin: Admin) -> None:
    """A reason that no event could hold is the client's mistake, not an accident of ours."""
    reply = admin.send("POST", f"{ROUTE}/freeze", {"reason": "x" * 600_000}, if_match="1")
    assert (reply.status_code, reply.json()["code"]) == (400, "invalid_request")


def test_large_body_is_refused(admin: Admin) -> None:
    """413, before it is read as JSON."""
    reply = admin.send("POST", f"{ROUTE}/freeze", {"reason": "x" * 1_100_000}, if_match="1")
    assert (reply.status_code, reply.json()["code"]) == (413, "body_too_large")


def test_status_does_not_need_a_spool(admin: Admin, plane: Plane, tmp_path: Path) -> None:
    """Nothing recorded yet is an empty list, or the sources that are."""
    assert isinstance(admin.send("GET", "/admin/v1/audit/status").json()["sources"], list)
