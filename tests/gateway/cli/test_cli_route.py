"""`tidegate route` and `tidegate model` against a fake admin listener."""

from __future__ import annotations

import json

import pytest

ROUTE = {
    "model": "flights",
    "revision": 12,
    "assign_by": "request",
    "frozen": False,
    "variants": [
        {"name": "primary", "version": "1", "role": "primary", "weight_bp": 9000, "state": "ready"},
        {"name": "canary", "version": "2", "role": "canary", "weight_bp": 1000, "state": "ready"},
        {"name": "next", "version": "3", "role": "shadow", "sample_bp": 500},
    ],
    "changed": {
        "by": "token:ci",
        "reason": "stage 3",
        "at_ns": 1_700_000_000_000_000_000,
        "event": "e",
    },
}
DONE = {
    "revision": 13,
    "generation": 32,
    "applied": {"workers": 2, "of": 2, "ms": 14},
    "before_bp": {"primary": 9000, "canary": 1000},
    "after_bp": {"primary": 7500, "canary": 2500},
}
AT = "/admin/v1/routes/flights"


@pytest.fixture
def admin(fake):
    """The fake with one route."""
    fake.on("GET", AT, ROUTE, headers={"etag": '"12"'})
    fake.on("GET", "/admin/v1/routes", {"routes": [ROUTE]})
    return fake


def test_show_prints_variants(run, admin, state_dir) -> None:
    """One row a variant with version, role, weight and state; the token goes along."""
    result = run("route", "show", "flights", "--state-dir", str(state_dir))
    assert result.exit_code == 0, result.stderr
    assert "revision 12" in result.stdout
    assert "90%" in result.stdout
    assert "sees 5%" in result.stdout
    assert admin.seen[-1].headers["authorization"] == "Bearer secret-token"
    assert "flights" in run("route", "show", "--state-dir", str(state_dir)).stdout


def test_show_json_is_the_gateways_document(run, admin, state_dir) -> None:
    """--json prints the reply."""
    result = run("route", "show", "flights", "--json", "--state-dir", str(state_dir))
    assert json.loads(result.stdout) == ROUTE


def test_shift_sends_weights_with_the_revision_shown_now(run, admin, state_dir) -> None:
    """canary=25% becomes weights_bp under If-Match of the present revision."""
    admin.on("POST", f"{AT}/shift", DONE)
    result = run(
        "route",
        "shift",
        "flights",
        "canary=25%",
        "--reason",
        "labels",
        "--state-dir",
        str(state_dir),
    )
    assert result.exit_code == 0, result.stderr
    sent = admin.seen[-1]
    assert sent.body == {"weights_bp": {"canary": 2500}, "reason": "labels"}
    assert sent.headers["if-match"] == '"12"'
    assert "12 -> 13" in result.stdout
    assert "2 of 2 workers" in result.stdout


def test_shift_by_version_uses_its_variant(run, admin, state_dir) -> None:
    """A version that a canary has names that canary; --if-match is sent as given."""
    admin.on("POST", f"{AT}/shift", DONE)
    args = ("route", "shift", "flights", "2=2500", "--reason", "r", "--if-match", "11")
    assert run(*args, "--state-dir", str(state_dir)).exit_code == 0
    assert admin.seen[-1].body["weights_bp"] == {"canary": 2500}
    assert admin.seen[-1].headers["if-match"] == '"11"'


def test_shift_to_a_new_version_adds_a_canary(run, admin, state_dir) -> None:
    """One PUT holds the new canary and the primary's rest."""
    alone = {**ROUTE, "variants": [ROUTE["variants"][0] | {"weight_bp": 10000}]}
    admin.on("GET", AT, alone)
    admin.on("PUT", AT, DONE)
    args = (
        "route",
        "shift",
        "flights",
        "2=25%",
        "--reason",
        "try it",
        "--state-dir",
        str(state_dir),
    )
    assert run(*args).exit_code == 0
    assert admin.seen[-1].body == {
        "variants": [
            {"name": "primary", "version": "1", "role": "primary", "weight_bp": 7500},
            {"name": "canary", "version": "2", "role": "canary", "weight_bp": 2500},
        ],
        "reason": "try it",
    }


def test_show_tells_leases_and_latches(run, admin, state_dir) -> None:
    """Until when a canary is watched, which version is latched, why, since which event, and what ends it."""
    args = ("route", "show", "flights", "--state-dir", str(state_dir))
    plain = run(*args).stdout
    assert "lease" not in plain
    assert "latched" not in plain
    primary, canary, _ = ROUTE["variants"]
    leased = canary | {"lease_until": "2026-11-23T08:05:42.000Z", "lease_over": False}
    since = {"by": "sidecar", "reason": "fails", "at_ns": 1_700_000_000_000_000_000, "event": "e-41"}
    shown = ROUTE | {"variants": [primary, leased], "latched": ["3"], "latches": {"3": since}}
    admin.on("GET", AT, shown)
    text = run(*args).stdout
    assert "until 2026-11-23T08:05:42.000Z" in text
    assert "version 3 is latched since 2023-11-14 22:13:20.000Z by sidecar: fails, event e-41" in text
    assert "`tidegate route rearm flights 3`" in text
    admin.on("GET", AT, shown | {"variants": [primary, leased | {"lease_over": True}]})
    assert "over since 2026-11-23T08:05:42.000Z: the primary has its share" in run(*args).stdout


@pytest.mark.parametrize(
    ("words", "verb", "body"),
    [
        (("rollback", "flights"), "rollback", {}),
        (("rollback", "flights", "--to", "7"), "rollback", {"to_revision": 7}),
        (("rollback", "flights", "--variant", "canary"), "rollback", {"variant": "canary"}),
        (("rearm", "flights", "2"), "rearm", {"version": "2"}),
    ],
)
def test_way_back_as_it_is_sent(run, admin, state_dir, words, verb, body) -> None:
    """Each form is one POST at the present revision, with the reason."""
    admin.on("POST", f"{AT}/{verb}", DONE)
    result = run("route", *words, "--reason", "r", "--state-dir", str(state_dir))
    assert result.exit_code == 0, result.stderr
    assert admin.seen[-1].body == {**body, "reason": "r"}
    assert admin.seen[-1].headers["if-match"] == '"12"'


def test_rollback_has_one_target(run, admin, state_dir) -> None:
    """A revision and a canary at once: exit 2, nothing sent."""
    words = ("rollback", "flights", "--to", "7", "--variant", "canary")
    result = run("route", *words, "--reason", "r", "--state-dir", str(state_dir))
    assert (result.exit_code, admin.seen) == (2, [])
    assert "give one of them" in result.stderr


def test_dry_run_asks_and_changes_nothing(run, admin, state_dir) -> None:
    """--dry-run goes to the gateway, and the words say that nothing changed."""
    admin.on("POST", f"{AT}/shift", DONE)
    args = ("route", "shift", "flights", "canary=25%", "--reason", "r", "--dry-run")
    result = run(*args, "--state-dir", str(state_dir))
    assert admin.seen[-1].query == "dry_run=true"
    assert "nothing changed" in result.stdout


@pytest.mark.parametrize("weight", ["canary", "canary=110%", "canary=x", "canary=0.001%", "=5", "zz=5%"])
def test_bad_weights_are_refused_here(run, admin, state_dir, weight) -> None:
    """What cannot be a weight or a variant exits 2 and sends no change."""
    result = run("route", "shift", "flights", weight, "--reason", "r", "--state-dir", str(state_dir))
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert all(seen.method == "GET" for seen in admin.seen)


def test_a_change_needs_a_reason(run, admin, state_dir) -> None:
    """Without --reason: exit 2, nothing sent."""
    result = run("route", "shift", "flights", "canary=5%", "--state-dir", str(state_dir))
    assert result.exit_code == 2
    assert "--reason" in result.stderr
    assert admin.seen == []


def test_set_replaces_all_variants(run, admin, state_dir) -> None:
    """The primary's weight may be left out; a shadow has sample_bp."""
    admin.on("PUT", AT, DONE)
    result = run(
        "route", "set", "flights", "--variant", "primary=1:primary", "--variant", "b=2:canary:10%",
        "--variant", "s=3:shadow:100%", "--reason", "r", "--state-dir", str(state_dir),
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert admin.seen[-1].body["variants"] == [
        {"name": "primary", "version": "1", "role": "primary", "weight_bp": 9000},
        {"name": "b", "version": "2", "role": "canary", "weight_bp": 1000},
        {"name": "s", "version": "3", "role": "shadow", "sample_bp": 10000},
    ]
    bad = run("route", "set", "flights", "--variant", "b=2:king", "--reason", "r")
    assert bad.exit_code == 2


@pytest.mark.parametrize(
    ("action", "extra", "body"),
    [
        ("promote", (), {"variant": "canary"}),
        ("rollback", (), {}),
        ("rollback", ("--to", "7"), {"to_revision": 7}),
        ("freeze", (), {}),
        ("thaw", (), {}),
    ],
)
def test_actions_send_their_body(run, admin, state_dir, action, extra, body) -> None:
    """Each action posts what it needs and the reason."""
    admin.on("POST", f"{AT}/{action}", DONE)
    args = ("route", action, "flights", *extra, "--reason", "r", "--state-dir", str(state_dir))
    assert run(*args).exit_code == 0
    assert admin.seen[-1].body == {**body, "reason": "r"}
    assert admin.seen[-1].headers["if-match"] == '"12"'


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (400, "change_invalid", 2),
        (401, "unauthorized", 2),
        (403, "forbidden", 2),
        (404, "unknown_model", 2),
        (409, "state_conflict", 1),
        (412, "revision_conflict", 1),
        (503, "audit_unavailable", 1),
    ],
)
def test_refusals_keep_the_gateways_sentence(run, admin, state_dir, status, code, exit_code) -> None:
    """A refusal is one line on stderr; 409, 412 and 5xx are a no, other 4xx are input."""
    admin.on("POST", f"{AT}/freeze", {"error": "because\nof this", "code": code, "revision": 13}, status)
    args = ("route", "freeze", "flights", "--reason", "r", "--state-dir", str(state_dir))
    result = run(*args)
    assert result.exit_code == exit_code
    assert "because of this" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_unreachable_is_3(run, state_dir, fake) -> None:
    """Nobody listens, or something else does: exit 3 and what to do."""
    fake.on("GET", AT, b"<html>nginx</html>")
    other = run("route", "show", "flights", "--state-dir", str(state_dir))
    assert other.exit_code == 3
    result = run("route", "show", "flights", "--admin", "http://127.0.0.1:9")
    assert result.exit_code == 3
    assert "tidegate serve" in result.stderr
    assert run("route", "show", "flights", "--admin", "ftp://x").exit_code == 2


def test_names_are_not_paths(run, admin, state_dir) -> None:
    """A model name cannot reach another address."""
    assert run("route", "show", "a/../tokens", "--state-dir", str(state_dir)).exit_code == 2
    assert admin.seen == []
