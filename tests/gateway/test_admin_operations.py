"""What else the admin API does to a route: stop, resume, bounds, a history in pages, changes asked for twice."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway import roster
from tests.gateway.control.plane import MODEL
from tests.gateway.test_admin import ROUTE, Admin, refusal
from tests.gateway.test_admin import admin as admin  # a fixture
from tests.gateway.test_admin import plane as plane  # a fixture

MODELS = f"/admin/v1/models/{MODEL}"
WHY = {"reason": "x"}


def automaton(admin: Admin, *scopes: str) -> str:
    """The Authorization header of a token that is no person's."""
    body = {"principal": "robot", "scopes": scopes, "automaton": True, "reason": "x"}
    return f"Bearer {admin.send('POST', '/admin/v1/tokens', body).json()['token']}"


def test_stop_and_resume(admin: Admin) -> None:
    """A revision each, by compare-and-set; a person resumes."""
    robot = automaton(admin, f"shift:{MODEL}")
    refusal(admin.send("POST", f"{MODELS}/stop", WHY), 428, "precondition_required")
    reply = admin.send("POST", f"{MODELS}/stop", WHY, if_match="1", authorization=robot)
    assert (reply.status_code, reply.json()["revision"]) == (200, 2)
    assert admin.send("GET", ROUTE).json()["stopped"]["by"] == "token:robot"
    refusal(admin.send("POST", f"{MODELS}/stop", WHY, if_match="2"), 409, "state_conflict")
    reply = admin.send("POST", f"{MODELS}/resume", WHY, if_match="2", authorization=robot)
    assert "for a person" in refusal(reply, 403, "forbidden")
    assert admin.send("POST", f"{MODELS}/resume", WHY, if_match="2").status_code == 200
    assert not admin.send("GET", ROUTE).json().get("stopped")


def test_bounds_are_set_shown_held_and_taken_away(admin: Admin) -> None:
    """An automaton keeps to them, a person does not; taking traffic back is in nobody's way."""
    robot = automaton(admin, f"shift:{MODEL}")
    admin.split()
    body = {**WHY, "max_canary_bp": 1_500, "max_step_bp": 500}
    assert admin.send("POST", f"{ROUTE}/bounds", body, if_match="2").status_code == 200
    shown = admin.send("GET", f"{ROUTE}/bounds")
    assert (shown.headers["etag"], shown.json()["bounds"]["max_canary_bp"]) == ('"3"', 1_500)
    refusal(admin.send("POST", f"{ROUTE}/bounds", body, if_match="3", authorization=robot), 403, "forbidden")
    more = {**WHY, "weights_bp": {"canary": 1_600}}
    reply = admin.send("POST", f"{ROUTE}/shift", more, if_match="3", authorization=robot)
    assert "max_canary_bp" in refusal(reply, 409, "out_of_bounds")
    less = {**WHY, "weights_bp": {"canary": 500}}
    reply = admin.send("POST", f"{ROUTE}/shift", less, if_match="3", authorization=robot)
    assert reply.status_code == 200
    assert admin.send("POST", f"{ROUTE}/shift", more, if_match="4").status_code == 200
    assert admin.send("POST", f"{ROUTE}/bounds", WHY, if_match="5").status_code == 200
    assert admin.send("GET", f"{ROUTE}/bounds").json()["bounds"] is None


@pytest.mark.parametrize(
    "change", [{"max_canary_bp": 10_001}, {"dwell_s": -1}, {"changes_per_h": 1.5}, {"max_step": 1}], ids=str
)
def test_bounds_that_cannot_be(admin: Admin, change: dict[str, Any]) -> None:
    """Refused by their form."""
    refusal(admin.send("POST", f"{ROUTE}/bounds", {**WHY, **change}, if_match="1"), 400, "invalid_request")


def test_history_comes_in_pages(admin: Admin) -> None:
    """Newest first; each page goes on where the last one ended; no salt in any document."""
    for revision in range(1, 8):
        verb = "freeze" if revision % 2 else "thaw"
        sent = {"reason": f"turn {revision}"}
        assert admin.send("POST", f"{ROUTE}/{verb}", sent, if_match=str(revision)).status_code == 200
    seen, before = [], ""
    while page := admin.send("GET", f"{ROUTE}/history?limit=3{before}").json()["entries"]:
        seen += page
        before = f"&before={page[-1]['revision']}"
    assert [entry["revision"] for entry in seen] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert (seen[0]["by"], seen[0]["reason"]) == ("admin", "turn 7")
    assert all("salt" not in entry["after"] for entry in seen)
    made = admin.send("GET", f"{ROUTE}/history").json()
    assert [r["revision"] for r in made["revisions"]] == [8, 7, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "before=0",
        "before=-1",
        "after=1",
        "limit=1&limit=2",
        "limit=\u00b2",
    ],
)
def test_page_that_cannot_be(admin: Admin, query: str) -> None:
    """A slip is told, not taken for the whole."""
    assert "limit=1 to 1000" in refusal(admin.send("GET", f"{ROUTE}/history?{query}"), 400, "invalid_request")


def test_same_key_changes_nothing_twice(admin: Admin) -> None:
    """The answer says so; another request under the key is refused; another principal's key is another."""
    body = {"weights_bp": {"canary": 2_000}, "reason": "x"}
    admin.split()
    first = admin.send("POST", f"{ROUTE}/shift", body, if_match="2", idempotency_key="k1")
    again = admin.send("POST", f"{ROUTE}/shift", body, if_match="2", idempotency_key="k1")
    assert (first.status_code, first.json().get("replayed")) == (200, None)
    assert (again.status_code, again.json()["replayed"]) == (200, True)
    assert again.json()["revision"] == first.json()["revision"] == 3
    other = {**body, "weights_bp": {"canary": 3_000}}
    reply = admin.send("POST", f"{ROUTE}/shift", other, if_match="2", idempotency_key="k1")
    refusal(reply, 422, "idempotency_mismatch")
    assert admin.send("GET", ROUTE).json()["revision"] == 3
    reply = admin.send("POST", f"{ROUTE}/shift", body, if_match="2", idempotency_key="k2")
    assert refusal(reply, 412, "revision_conflict")
    entry = admin.send("GET", f"{ROUTE}/history?limit=1").json()["entries"][0]
    assert entry["revision"] == 3


@pytest.mark.parametrize("key", ["", "k" * 129, "a\tb"])
def test_key_that_is_none(admin: Admin, key: str) -> None:
    """Refused, so that a retry is not taken for a new request."""
    reply = admin.send("POST", f"{ROUTE}/freeze", WHY, if_match="1", idempotency_key=key)
    assert "idempotency-key" in refusal(reply, 400, "invalid_request")


def test_restart_is_asked_of_the_supervisor(
    admin: Admin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of the one that is our parent, and of no other process; logged."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    refusal(admin.send("POST", "/admin/v1/fleet/restart", WHY), 409, "state_conflict")
    path = admin.plane.state_dir / roster.DIRECTORY / "status.json"
    path.parent.mkdir()
    path.write_bytes(msgspec.json.encode({"children": [], "pid": os.getppid() + 1}))
    refusal(admin.send("POST", "/admin/v1/fleet/restart", WHY), 409, "state_conflict")
    assert sent == []
    path.write_bytes(msgspec.json.encode({"children": [], "pid": os.getppid()}))
    assert admin.send("POST", "/admin/v1/fleet/restart", WHY).status_code == 202
    assert sent == [(os.getppid(), signal.SIGHUP)]
