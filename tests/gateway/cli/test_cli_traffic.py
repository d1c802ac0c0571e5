"""Stop and resume, leases, bounds and history on the command line, against a fake admin listener."""

from __future__ import annotations

import json

import pytest

AT = "/admin/v1/routes/flights"
CHANGED = {"by": "token:ci", "reason": "stage 3", "at_ns": 1_700_000_000_000_000_000, "event": "e-7"}
ROUTE = {
    "model": "flights",
    "revision": 12,
    "frozen": False,
    "variants": [
        {"name": "primary", "version": "1", "role": "primary", "weight_bp": 9000, "state": "ready"},
        {"name": "canary", "version": "2", "role": "canary", "weight_bp": 1000, "state": "ready"},
    ],
    "changed": CHANGED,
}
DONE = {"revision": 13, "applied": {"workers": 2, "of": 2, "ms": 14}}


@pytest.fixture
def admin(fake):
    """The fake with one route."""
    fake.on("GET", AT, ROUTE, headers={"etag": '"12"'})
    return fake


@pytest.mark.parametrize("action", ["stop", "resume"])
def test_stop_and_resume_are_changes_of_the_model(run, admin, state_dir, action) -> None:
    """One POST to the model's address, at the route's present revision, with the reason."""
    admin.on("POST", f"/admin/v1/models/flights/{action}", DONE)
    result = run("model", action, "flights", "--reason", "it lies", "--state-dir", str(state_dir))
    assert result.exit_code == 0, result.stderr
    assert admin.seen[-1].body == {"reason": "it lies"}
    assert admin.seen[-1].headers["if-match"] == '"12"'
    assert "12 -> 13" in result.stdout
    # No weight changes: a table of weights would look as if nothing had.
    assert "before" not in result.stdout
    assert ("flights is stopped" in result.stdout) == (action == "stop")


def test_a_stopped_model_shows_by_whom_and_what_ends_it(run, admin, state_dir) -> None:
    """As a latch does."""
    admin.on("GET", AT, ROUTE | {"stopped": CHANGED, "bounds": {"max_canary_bp": 2000, "max_step_bp": None}})
    shown = run("route", "show", "flights", "--state-dir", str(state_dir)).stdout
    assert "revision 12, stopped" in shown
    assert "stopped since 2023-11-14 22:13:20.000Z by token:ci: stage 3" in shown
    assert "`tidegate model resume flights`" in shown
    assert "held to at most 20% for a canary" in shown


def test_lease_renew(run, admin, state_dir) -> None:
    """One POST at the present revision; each canary's new end is said."""
    until = {"canary": "2026-11-23T08:05:42.000Z"}
    admin.on("POST", f"{AT}/lease", {"revision": 12, "lease_until": until})
    words = ("lease", "renew", "flights", "--reason", "the sidecar is down", "--state-dir", str(state_dir))
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    assert admin.seen[-1].headers["if-match"] == '"12"'
    assert admin.seen[-1].body == {"reason": "the sidecar is down"}
    assert "canary has its lease until 2026-11-23T08:05:42.000Z" in result.stdout
    admin.on("POST", f"{AT}/lease", {"revision": 12, "lease_until": {}})
    assert "no canary holds a lease" in run(*words).stdout


def test_bounds_are_shown(run, admin, state_dir) -> None:
    """In words, and as the gateway's document."""
    held = {"bounds": {"max_canary_bp": 2000, "max_step_bp": 500, "changes_per_h": 6, "dwell_s": 600}}
    admin.on("GET", f"{AT}/bounds", held)
    shown = run("route", "bounds", "flights", "--state-dir", str(state_dir))
    assert "at most 20% for a canary, steps of at most 5%, 6 changes in an hour, 600 s" in shown.stdout
    as_json = run("route", "bounds", "flights", "--json", "--state-dir", str(state_dir))
    assert json.loads(as_json.stdout) == held
    unbound = {"max_canary_bp": 10_000, "max_step_bp": 10_000, "changes_per_h": None, "dwell_s": 0.0}
    for none in ({"bounds": None}, {"bounds": unbound}, unbound):
        admin.on("GET", f"{AT}/bounds", none)
        assert "no bounds" in run("route", "bounds", "flights", "--state-dir", str(state_dir)).stdout
    admin.on("GET", f"{AT}/bounds", {"bounds": None})
    assert "no bounds" in run("route", "bounds", "flights", "--state-dir", str(state_dir)).stdout


def test_a_change_of_bounds_keeps_what_is_not_named(run, admin, state_dir) -> None:
    """All go along, as they are now or as they are named; `--clear` sends none."""
    admin.on("GET", AT, ROUTE | {"bounds": {"max_canary_bp": 2000, "max_step_bp": 500}})
    admin.on("POST", f"{AT}/bounds", DONE)
    at = ("--reason", "r", "--state-dir", str(state_dir))
    result = run("route", "bounds", "flights", "--max-step", "1%", "--dwell-s", "60", *at)
    assert result.exit_code == 0, result.stderr
    wanted = {"max_canary_bp": 2000, "max_step_bp": 100, "dwell_s": 60}
    assert admin.seen[-1].body == wanted | {"reason": "r"}
    assert admin.seen[-1].headers["if-match"] == '"12"'
    assert run("route", "bounds", "flights", "--clear", *at).exit_code == 0
    assert admin.seen[-1].body == {"reason": "r"}


def test_a_change_of_bounds_needs_a_reason_and_one_meaning(run, admin, state_dir) -> None:
    """Exit 2, nothing sent."""
    at = ("--state-dir", str(state_dir))
    assert run("route", "bounds", "flights", "--max-step", "1%", *at).exit_code == 2
    both = run("route", "bounds", "flights", "--clear", "--max-step", "1%", "--reason", "r", *at)
    assert both.exit_code == 2
    assert all(seen.method == "GET" for seen in admin.seen)


def test_history_has_revisions_and_what_was_none(run, admin, state_dir) -> None:
    """One row each: who, when, why; a lease that ran out stands between the revisions."""
    at = {"at_ns": 1_700_000_060_000_000_000, "by": "gateway", "reason": "", "event": "e-8", "revision": 12}
    over = at | {"kind": "lease_over", "after": {"canary": 0}}
    made = CHANGED | {
        "kind": "freeze",
        "is_revision": True,
        "after": ROUTE | {"frozen": True},
        "revision": 13,
    }
    renewed = at | {"kind": "lease", "count": 40, "after": ROUTE}
    admin.on("GET", f"{AT}/history", {"entries": [made, renewed, over, ROUTE | {"kind": "shift"}]})
    result = run("route", "history", "flights", "--state-dir", str(state_dir))
    assert result.exit_code == 0, result.stderr
    assert "2023-11-14 22:13:20.000Z" in result.stdout
    assert "shift: 1: 90%, 2: 10%" in result.stdout
    assert "lease_over: canary 0" in result.stdout
    assert "freeze: 1: 90%, 2: 10% (frozen)" in result.stdout
    assert "(40 times)" in result.stdout
    assert "stage 3" in result.stdout


def test_history_is_read_in_parts(run, admin, state_dir) -> None:
    """`--limit` and `--before` go along; where a part is full, the command for the next one is said."""
    admin.on("GET", f"{AT}/history", {"entries": [ROUTE, ROUTE | {"revision": 11}]})
    at = ("--state-dir", str(state_dir))
    result = run("route", "history", "flights", "--limit", "2", "--before", "13", *at)
    assert admin.seen[-1].query == "limit=2&before=13"
    assert "`tidegate route history flights --before 11`" in result.stdout
    assert "older" not in run("route", "history", "flights", *at).stdout
