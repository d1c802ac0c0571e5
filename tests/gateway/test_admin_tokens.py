"""Tokens over the admin API: made, listed, used, revoked, and told in the log."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.audit.event import Control
from gateway.control import committing
from gateway.control.token_table import TABLE
from gateway.errors import AuditUnavailable
from tests.gateway.control.plane import MODEL
from tests.gateway.test_admin import ROUTE, Admin, refusal
from tests.gateway.test_admin import admin as admin  # a fixture
from tests.gateway.test_admin import plane as plane  # a fixture

TOKENS = "/admin/v1/tokens"


def new(admin: Admin, *scopes: str, principal: str = "ci", **facts: Any) -> dict[str, Any]:
    """A token that is made."""
    body = {"principal": principal, "scopes": scopes, "reason": "for the pipeline", **facts}
    reply = admin.send("POST", TOKENS, body)
    assert reply.status_code == 201, reply.text
    made: dict[str, Any] = reply.json()
    return made


def test_token_is_made_used_and_revoked(admin: Admin) -> None:
    """It may what its scopes say, for its model; changes stand under its name; after its end it opens nothing."""
    made = new(admin, f"shift:{MODEL}")
    bearer = f"Bearer {made['token']}"
    reply = admin.send("POST", f"{ROUTE}/freeze", {"reason": "x"}, if_match="1", authorization=bearer)
    assert reply.status_code == 200
    assert admin.send("GET", ROUTE).json()["changed"]["by"] == "token:ci"
    text = refusal(admin.send("GET", ROUTE, authorization=bearer), 403, "forbidden")
    assert f"needs the scope read; the token:ci has shift:{MODEL}" in text
    other = admin.send("POST", "/admin/v1/routes/n/freeze", {"reason": "x"}, authorization=bearer)
    assert "needs the scope shift:n" in refusal(other, 403, "forbidden")
    word = admin.plane.fleet.tokens
    assert admin.send("DELETE", f"{TOKENS}/{made['id']}", {"reason": "leaked"}).status_code == 200
    assert admin.plane.fleet.tokens > word
    reply = admin.send("POST", f"{ROUTE}/thaw", {"reason": "x"}, if_match="2", authorization=bearer)
    refusal(reply, 401, "unauthorized")


def test_list_has_no_secrets(admin: Admin) -> None:
    """Id, principal, scopes, times; neither secret nor digest, in the answer or in the file's place in the log."""
    made = new(admin, "read", expires_ns=2**62)
    listed = admin.send("GET", TOKENS).json()["tokens"]
    assert [set(token) for token in listed] == [
        {"id", "principal", "scopes", "created_ns", "expires_ns", "automaton"}
    ]
    assert (listed[0]["id"], listed[0]["scopes"]) == (made["id"], ["read"])


def test_dry_run_makes_and_revokes_nothing(admin: Admin) -> None:
    """What would be made is shown, without a secret."""
    body = {"principal": "ci", "scopes": ["read"], "reason": "look"}
    reply = admin.send("POST", f"{TOKENS}?dry_run=true", body)
    assert (reply.status_code, reply.json()["dry_run"], "token" in reply.json()) == (200, True, False)
    assert not (admin.plane.state_dir / TABLE).exists()
    made = new(admin, "read")
    assert admin.send("DELETE", f"{TOKENS}/{made['id']}?dry_run=1", {"reason": "x"}).json()["dry_run"]
    assert len(admin.send("GET", TOKENS).json()["tokens"]) == 1


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"scopes": ["root"]}, 400, "change_invalid"),
        ({"scopes": []}, 400, "invalid_request"),
        ({"principal": "a/b"}, 400, "invalid_request"),
        ({"principal": "../../etc"}, 400, "invalid_request"),
        ({"expires_ns": 1}, 400, "change_invalid"),
        ({"reason": " "}, 400, "reason_required"),
        ({"sha256": "ab"}, 400, "invalid_request"),
    ],
    ids=str,
)
def test_token_that_cannot_be(admin: Admin, change: dict[str, Any], status: int, code: str) -> None:
    """Refused, and nothing is written."""
    body = {"principal": "ci", "scopes": ["read"], "reason": "x", **change}
    refusal(admin.send("POST", TOKENS, body), status, code)
    assert not (admin.plane.state_dir / TABLE).exists()


def test_third_token_is_refused(admin: Admin) -> None:
    """Two live ones a principal: 409 naming them."""
    ids = [new(admin, "read")["id"] for _ in range(2)]
    body = {"principal": "ci", "scopes": ["read"], "reason": "x"}
    text = refusal(admin.send("POST", TOKENS, body), 409, "state_conflict")
    assert all(token_id in text for token_id in ids)
    refusal(admin.send("DELETE", f"{TOKENS}/nope", {"reason": "x"}), 404, "not_found")


def test_automaton_makes_no_tokens(admin: Admin) -> None:
    """Not even with every scope: it would make itself a person."""
    made = new(admin, "admin", automaton=True)
    body = {"principal": "me", "scopes": ["admin"], "reason": "x"}
    reply = admin.send("POST", TOKENS, body, authorization=f"Bearer {made['token']}")
    assert "for a person to decide" in refusal(reply, 403, "forbidden")


def test_unlogged_token_is_not_made_and_a_revocation_goes_ahead(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What opens a door needs its record; what shuts one does not wait for a disk, and is owed to the log."""
    made = new(admin, "read")
    monkeypatch.setattr(committing, "LOG_TIMEOUT_S", 0.02)
    monkeypatch.setattr(admin.plane.writer, "append_events", lambda events: None)
    body = {"principal": "ci", "scopes": ["read"], "reason": "x"}
    refusal(admin.send("POST", TOKENS, body), 503, "audit_unavailable")
    assert len(admin.send("GET", TOKENS).json()["tokens"]) == 1
    reply = admin.send("DELETE", f"{TOKENS}/{made['id']}", {"reason": "leaked"})
    assert (reply.status_code, reply.json()["logged"]) == (200, False)
    refusal(admin.send("GET", ROUTE, authorization=f"Bearer {made['token']}"), 401, "unauthorized")
    assert [e["kind"] for e in admin.plane.engine.state.ledger.unlogged] == ["token"]


def test_token_change_is_logged_without_what_opens(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kind `token`, who and why, id and scopes; neither secret nor digest."""
    kept: list[Control] = []
    append = admin.plane.writer.append_events
    monkeypatch.setattr(
        admin.plane.writer, "append_events", lambda events: (kept.extend(events), append(events))[1]
    )
    made = new(admin, "read")
    admin.send("DELETE", f"{TOKENS}/{made['id']}", {"reason": "leaked"})
    assert [(e.kind, e.by, e.reason) for e in kept] == [
        ("token", "admin", "for the pipeline"),
        ("token", "admin", "leaked"),
    ]
    assert [list(e.after or {}) for e in kept] == [["made"], ["revoked"]]
    digest = (made["token"], "sha256")
    assert all(word not in repr(e) for e in kept for word in digest)


def test_broken_file_is_told(admin: Admin) -> None:
    """What is on disk and not taken up stands in the list's refusal; what was known goes on."""
    made = new(admin, "read")
    (admin.plane.state_dir / TABLE).write_text("[[")
    assert admin.send("GET", ROUTE, authorization=f"Bearer {made['token']}").status_code == 200
    assert TABLE in refusal(admin.send("GET", TOKENS), 409, "tokens_unusable")


def test_asked_again_under_its_key_no_second_token_is_made(admin: Admin) -> None:
    """The secret went with the first answer: a second, live and in nobody's hands, is not made in silence."""
    body = {"principal": "ci", "scopes": ["read"], "reason": "x"}
    key = {"idempotency_key": "k"}
    assert admin.send("POST", TOKENS, body, **key).status_code == 201
    text = refusal(admin.send("POST", TOKENS, body, **key), 409, "state_conflict")
    assert "revoke it" in text
    refusal(admin.send("POST", TOKENS, {**body, "reason": "y"}, **key), 422, "idempotency_mismatch")
    assert len(admin.send("GET", TOKENS).json()["tokens"]) == 1


def test_revocation_holds_where_control_can_write_nothing(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither log nor snapshot: the door is shut, and the answer says that it is not logged."""
    made = new(admin, "read")

    async def failing(*args: Any, **rest: Any) -> bool:
        msg = "control restarts"
        raise AuditUnavailable(msg)

    monkeypatch.setattr(admin.plane.engine, "note", failing)
    reply = admin.send("DELETE", f"{TOKENS}/{made['id']}", {"reason": "leaked"})
    assert (reply.status_code, reply.json()["logged"]) == (200, False)
    refusal(admin.send("GET", ROUTE, authorization=f"Bearer {made['token']}"), 401, "unauthorized")
