"""What every change on the command line has: a key, a word of who does not run it yet, and what to do when refused."""

from __future__ import annotations

import json

import pytest

ROUTE = {
    "model": "flights",
    "revision": 12,
    "frozen": False,
    "variants": [
        {"name": "primary", "version": "1", "role": "primary", "weight_bp": 9000, "state": "ready"},
        {"name": "canary", "version": "2", "role": "canary", "weight_bp": 1000, "state": "ready"},
    ],
}
DONE = {"revision": 13, "applied": {"workers": 2, "of": 2, "ms": 14}}
PENDING = {"revision": 13, "applied": {"workers": 1, "of": 3, "ms": 2000, "pending": [1, 2]}}
AT = "/admin/v1/routes/flights"
MODEL = "/admin/v1/models/flights"


@pytest.fixture
def admin(fake):
    """The fake with one route."""
    fake.on("GET", AT, ROUTE, headers={"etag": '"12"'})
    return fake


def change(run, state_dir, *words):
    """A command that changes something."""
    return run(*words, "--reason", "r", "--state-dir", str(state_dir))


@pytest.mark.parametrize(
    ("words", "address", "before", "after", "exit_code"),
    [
        (("route", "shift", "flights", "canary=25%"), f"{AT}/shift", 1000, 2500, 0),
        (("route", "shift", "flights", "canary=0"), f"{AT}/shift", 1000, 0, 1),
        (("route", "rollback", "flights"), f"{AT}/rollback", 1000, 0, 1),
        (("route", "promote", "flights"), f"{AT}/promote", 1000, 0, 0),
        (("route", "freeze", "flights"), f"{AT}/freeze", 1000, 1000, 0),
        (("model", "stop", "flights"), f"{MODEL}/stop", 1000, 1000, 1),
        (("model", "resume", "flights"), f"{MODEL}/resume", 1000, 1000, 0),
    ],
)
def test_accepted_is_not_done_where_traffic_is_taken_away(
    run, admin, state_dir, words, address, before, after, exit_code
) -> None:
    """202: the workers that do not run it are named; exit 1 where somebody counts on less traffic, else 0."""
    weights = {"before_bp": {"primary": 9000, "canary": before}, "after_bp": {"canary": after}}
    admin.on("POST", address, PENDING | weights, 202)
    result = change(run, state_dir, *words)
    assert result.exit_code == exit_code, result.stderr
    assert "workers 1, 2" in result.stdout
    assert ("not done yet: workers 1, 2" in result.stderr) == (exit_code == 1)


def test_set_that_lowers_or_drops_a_canary_takes_traffic_away(run, admin, state_dir) -> None:
    """A canary that is gone from the route had its traffic taken."""
    weights = {"before_bp": {"primary": 9000, "canary": 1000}, "after_bp": {"primary": 10000}}
    admin.on("PUT", AT, PENDING | weights, 202)
    words = ("route", "set", "flights", "--variant", "primary=1:primary")
    assert change(run, state_dir, *words).exit_code == 1
    admin.on("PUT", AT, DONE | weights)
    assert change(run, state_dir, *words).exit_code == 0
    dry = run(*words, "--reason", "r", "--dry-run", "--state-dir", str(state_dir))
    assert dry.exit_code == 0


def test_every_change_has_a_key_of_its_own(run, admin, state_dir) -> None:
    """Drawn for each call, and the user's where one is named; reading needs none."""
    admin.on("POST", f"{AT}/freeze", DONE)
    for _ in range(2):
        assert change(run, state_dir, "route", "freeze", "flights").exit_code == 0
    named = change(run, state_dir, "route", "freeze", "flights", "--idempotency-key", "deploy-7")
    assert named.exit_code == 0
    keys = [seen.headers.get("idempotency-key") for seen in admin.seen]
    drawn = [key for key in keys if key is not None]
    assert len(set(drawn)) == 3
    assert drawn[-1] == "deploy-7"
    assert all(len(key) >= 32 for key in drawn[:2])
    assert all((seen.method == "GET") == (key is None) for seen, key in zip(admin.seen, keys, strict=True))
    assert change(run, state_dir, "route", "freeze", "flights", "--idempotency-key", "a\nb").exit_code == 2


def test_a_change_whose_answer_was_lost_is_asked_for_again_under_its_key(run, admin, state_dir) -> None:
    """Control dies in the middle of a change: the command ends as if nothing had been."""
    answers = [None, None, DONE]
    admin.on("POST", f"{AT}/freeze", lambda seen: answers.pop(0))
    result = change(run, state_dir, "route", "freeze", "flights")
    assert result.exit_code == 0, result.stderr
    keys = {seen.headers["idempotency-key"] for seen in admin.seen if seen.method == "POST"}
    assert len(keys) == 1
    assert answers == []


def test_a_question_whose_answer_was_lost_is_not_repeated(run, admin, state_dir) -> None:
    """Only what has a key is asked for again: exit 3 at once."""
    admin.on("GET", AT, lambda seen: None)
    assert run("route", "show", "flights", "--state-dir", str(state_dir)).exit_code == 3
    assert len(admin.seen) == 1


REFUSED = "/admin/v1/routes/flights/freeze"


@pytest.mark.parametrize(
    ("status", "code", "text", "headers", "exit_code", "step"),
    [
        (401, "unauthorized", "no token", {}, 2, "--token-file"),
        (403, "forbidden", "it needs the scope shift:flights; ci has read", {}, 2, "--scope shift:flights"),
        (403, "forbidden", "foreign Host", {}, 2, None),
        (404, "unknown_model", "'flights' is not found", {}, 2, "`tidegate model list`"),
        (404, "not_found", "no such address", {}, 2, "`tidegate version`"),
        (404, "not_found", "no token 'zzz'", {}, 2, None),
        (409, "state_conflict", "route flights is frozen", {}, 1, "`tidegate route thaw flights"),
        (409, "state_conflict", "it is frozen; `tidegate route thaw flights` ends it", {}, 1, None),
        (409, "out_of_bounds", "30% is over the bound of 20%", {}, 1, "`tidegate route bounds flights`"),
        (412, "revision_conflict", "it is at 13", {}, 1, "`tidegate route show flights`"),
        (422, "idempotency_mismatch", "other body", {}, 2, "--idempotency-key"),
        (428, "precondition_required", "no If-Match", {}, 2, "--if-match"),
        (429, "rate_limited", "too many", {"retry-after": "7"}, 1, "in 7 s"),
        (503, "model_stopped", "it is stopped", {}, 1, "`tidegate model resume flights"),
        (503, "upgrading", "not now", {}, 1, "upgraded"),
        (503, "audit_unavailable", "the log is full", {}, 1, "`tidegate audit status`"),
        (400, "change_invalid", "weights do not sum", {}, 2, None),
    ],
)
def test_a_refusal_says_what_to_do(
    run, admin, state_dir, status, code, text, headers, exit_code, step
) -> None:
    """One line: the gateway's sentence, then the command that helps, unless the sentence names it already."""
    admin.on("POST", REFUSED, {"error": text, "code": code}, status, headers)
    result = change(run, state_dir, "route", "freeze", "flights")
    assert result.exit_code == exit_code
    (line,) = result.stderr.splitlines()
    assert text in line
    if step is None:
        assert line == f"tidegate: {text}"
    else:
        assert step in line


def test_json_stays_whole_where_a_change_is_pending(run, admin, state_dir) -> None:
    """stdout holds the gateway's document, stderr the complaint."""
    admin.on("POST", f"{MODEL}/stop", PENDING, 202)
    result = change(run, state_dir, "model", "stop", "flights", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == PENDING
    assert len(result.stderr.splitlines()) == 1
