"""The way back over the admin API: latches, leases, and what the sidecar may."""

from __future__ import annotations

import time
from typing import Any

import pytest

from gateway import config
from gateway.audit.identity import EventId, source_of
from gateway.control.access import ADMIN_RULES, LEASE, READ, ROLLBACK
from tests.gateway.control.plane import GATEWAY_ID, MODEL
from tests.gateway.test_admin import BEARER, OPEN_ADDRESSES, ROUTE, SIDECAR_TOKEN, VARIANTS, Admin, refusal
from tests.gateway.test_admin import admin as admin  # a fixture
from tests.gateway.test_admin import plane as plane  # a fixture

SIDECAR = f"Bearer {SIDECAR_TOKEN}"
BACK = {"variant": "canary", "reason": "fails twice as often"}
S = 1_000_000_000


EVENT = str(EventId(source_of(GATEWAY_ID, "sidecar", 1), 9, 42))


def young(age_s: float = 1.0) -> dict[str, Any]:
    """Evidence of that age, of the second sidecar of this gateway."""
    return {"event": EVENT, "at_ns": time.time_ns() - int(age_s * S)}


def under(admin: Admin, *settings: str) -> None:
    """The model's policy, as it would be configured."""
    loaded, _ = config.load(overrides=[f"policy.{MODEL}.{text}" for text in settings], environ={})
    admin.plane.engine.policy_of = loaded.policy_of


def ask(admin: Admin, verb: str, body: dict[str, Any], revision: int, **headers: str) -> Any:
    """One change of the route at that revision."""
    return admin.send("POST", f"{ROUTE}/{verb}", body, if_match=f'"{revision}"', **headers)


def test_canary_is_rolled_back_and_shown_latched(admin: Admin) -> None:
    """Its weight is 0 at once, a new revision; the route says which version is latched, why and since which event."""
    admin.split()
    reply = ask(admin, "rollback", BACK, 2)
    assert (reply.status_code, reply.headers["etag"]) == (200, '"3"')
    assert reply.json()["after_bp"] == {"primary": 10_000, "canary": 0}
    shown = admin.send("GET", ROUTE).json()
    assert shown["latched"] == ["2"]
    since = shown["latches"]["2"]
    assert (since["by"], since["reason"], since["event"]) == ("admin", BACK["reason"], reply.json()["event"])


def test_latched_version_is_refused_until_rearmed(admin: Admin) -> None:
    """Shift, set, promote and a revision whose primary it is: 409 naming why, since when and the way out."""
    admin.split()
    ask(admin, "promote", {"variant": "canary", "reason": "x"}, 2)
    ask(admin, "rollback", {"to_revision": 2, "reason": "x"}, 3)
    event = ask(admin, "rollback", BACK, 4).json()["event"]
    for verb, body in (
        ("shift", {"weights_bp": {"canary": 1}}),
        ("promote", {"variant": "canary"}),
        ("rollback", {"to_revision": 3}),
        ("", {"variants": VARIANTS}),
    ):
        method, path = ("POST", f"{ROUTE}/{verb}") if verb else ("PUT", ROUTE)
        reply = admin.send(method, path, {**body, "reason": "again"}, if_match="5")
        text = refusal(reply, 409, "state_conflict")
        assert "version 2 is latched since 20" in text
        assert f"rolled back by admin (fails twice as often, event {event})" in text
        assert f"`tidegate route rearm {MODEL} 2`" in text
    back = ask(admin, "rollback", {"to_revision": 2, "reason": "x"}, 5)
    assert back.json()["after_bp"] == {"primary": 10_000, "canary": 0}
    assert ask(admin, "rearm", {"version": "2", "reason": "fixed"}, 6).status_code == 200
    assert admin.send("GET", ROUTE).json()["latched"] == []
    reply = ask(admin, "shift", {"weights_bp": {"canary": 500}, "reason": "again"}, 7)
    assert reply.json()["after_bp"] == {"primary": 9_500, "canary": 500}


def test_what_cannot_be_rolled_back_or_rearmed(admin: Admin) -> None:
    """Both targets at once, a variant that is no canary, a version that is not latched or no version."""
    admin.split()
    reply = ask(admin, "rollback", {**BACK, "to_revision": 1}, 2)
    assert "not both" in refusal(reply, 400, "change_invalid")
    refusal(ask(admin, "rollback", {**BACK, "variant": "primary"}, 2), 400, "change_invalid")
    refusal(ask(admin, "rearm", {"version": "2", "reason": "x"}, 2), 409, "state_conflict")
    refusal(ask(admin, "rearm", {"version": "two", "reason": "x"}, 2), 400, "invalid_request")


def test_dry_run_of_a_rollback(admin: Admin) -> None:
    """It shows what would be, and latches nothing."""
    admin.split()
    reply = admin.send("POST", f"{ROUTE}/rollback?dry_run=true", BACK, if_match="2")
    assert (reply.json()["dry_run"], reply.json()["after_bp"]["canary"]) == (True, 0)
    assert admin.send("GET", ROUTE).json()["latched"] == []


@pytest.mark.parametrize(
    ("method", "path"), [pair for pair in ADMIN_RULES if pair[1] not in OPEN_ADDRESSES], ids=str
)
def test_sidecar_reads_leases_and_rolls_back_and_no_more(admin: Admin, method: str, path: str) -> None:
    """Every other address is 403 for its token, before the body is looked at."""
    reply = admin.send(method, path.replace("{model}", "nobody"), {}, authorization=SIDECAR)
    scope = ADMIN_RULES[method, path].scope
    if scope in {READ, LEASE, ROLLBACK}:
        assert reply.status_code != 401
        assert scope == ROLLBACK or reply.status_code != 403
    else:
        assert "sidecar has lease, read, rollback" in refusal(reply, 403, "forbidden")


def test_sidecars_rollback_stands_under_its_name_with_its_evidence(admin: Admin) -> None:
    """`by` is the principal, and the change names the event that it rests on."""
    admin.split()
    reply = ask(admin, "rollback", {**BACK, "evidence": young()}, 2, authorization=SIDECAR)
    assert (reply.status_code, reply.json()["after_bp"]["canary"]) == (200, 0)
    changed = admin.send("GET", ROUTE).json()["changed"]
    assert (changed["by"], changed["evidence"]) == ("sidecar", EVENT)


def test_sidecar_rolls_back_canaries_only(admin: Admin) -> None:
    """A revision is 403, a canary without evidence 400."""
    admin.split()
    for body in ({"reason": "x"}, {"reason": "x", "to_revision": 1}):
        refusal(
            ask(admin, "rollback", {**body, "evidence": young()}, 2, authorization=SIDECAR), 403, "forbidden"
        )
    text = refusal(ask(admin, "rollback", BACK, 2, authorization=SIDECAR), 400, "change_invalid")
    assert "needs evidence" in text


@pytest.mark.parametrize(
    ("age_s", "code"), [(5, None), (-50, None), (31, "evidence_stale"), (-70, "evidence_stale")]
)
@pytest.mark.parametrize("who", [SIDECAR, None], ids=["sidecar", "admin"])
def test_evidence_is_held_against_the_clock(
    admin: Admin, age_s: float, code: str | None, who: str | None
) -> None:
    """Older than the policy allows, or from the future: 409, whoever brings it; nothing moves."""
    under(admin, "max_staleness_s=30")
    admin.split()
    headers = {} if who is None else {"authorization": who}
    reply = ask(admin, "rollback", {**BACK, "evidence": young(age_s)}, 2, **headers)
    if code is None:
        assert reply.status_code == 200
    else:
        assert "max_staleness_s" in refusal(reply, 409, code)
        assert admin.send("GET", ROUTE).json()["revision"] == 2


@pytest.mark.parametrize(
    "event",
    [
        "because I say so",
        EVENT.upper(),
        EVENT + "0",
        str(EventId(source_of(GATEWAY_ID, "worker", 0), 9, 42)),
        str(EventId(source_of("ffffffffffffffff", "sidecar", 0), 9, 42)),
    ],
)
def test_sidecars_evidence_is_an_event_of_its_own(admin: Admin, event: str) -> None:
    """Words, and events of others: 400; nothing moves. A person may name what they like."""
    admin.split()
    body = {**BACK, "evidence": {**young(), "event": event}}
    text = refusal(ask(admin, "rollback", body, 2, authorization=SIDECAR), 400, "change_invalid")
    assert "no event of this gateway's sidecar" in text
    assert admin.send("GET", ROUTE).json()["revision"] == 2
    assert ask(admin, "rollback", body, 2).status_code == 200


def test_sidecar_moves_nothing_in_a_dry_run(admin: Admin) -> None:
    """The policy says that nothing moves by itself: 409 for its token, and a person still may."""
    under(admin, "ramp=dry-run")
    admin.split()
    body = {**BACK, "evidence": young()}
    text = refusal(ask(admin, "rollback", body, 2, authorization=SIDECAR), 409, "state_conflict")
    assert 'ramp is "dry-run"' in text
    assert ask(admin, "rollback", body, 2).status_code == 200


@pytest.mark.parametrize("answer", ["hold", "alert"])
def test_answers_to_statistics_forbid_no_rollback(admin: Admin, answer: str) -> None:
    """A version that fails hard may go back also where harm and drift are only told."""
    under(admin, f"on_harm={answer}", f"on_relative_drift={answer}")
    admin.split()
    assert ask(admin, "rollback", {**BACK, "evidence": young()}, 2, authorization=SIDECAR).status_code == 200


@pytest.mark.parametrize("digits", [19, 400, 5000])
def test_number_beyond_64_bits_is_refused(admin: Admin, digits: int) -> None:
    """Wherever a number stands, and however long it is: a 400 of its form."""
    admin.split()
    number = "9" * digits
    for verb, body in (
        ("rollback", '{"variant":"canary","reason":"x","evidence":{"event":"e","at_ns":%s}}'),
        ("rollback", '{"reason":"x","to_revision":%s}'),
        ("shift", '{"reason":"x","weights_bp":{"canary":%s}}'),
    ):
        headers = {**BEARER, "if-match": "2"}
        reply = admin.plain("POST", f"{ROUTE}/{verb}", content=(body % number).encode(), headers=headers)
        refusal(reply, 400, "invalid_request")


@pytest.mark.parametrize("verb", ["rollback", "lease"])
def test_hold_beats_the_sidecar(admin: Admin, verb: str) -> None:
    """On a route that a human froze it is 409, naming who froze it and why."""
    under(admin, "ramp=auto")
    admin.split()
    ask(admin, "freeze", {"reason": "audit week"}, 2)
    body = {**BACK, "evidence": young()} if verb == "rollback" else {"reason": "watched"}
    text = refusal(ask(admin, verb, body, 3, authorization=SIDECAR), 409, "state_conflict")
    assert "frozen by admin (audit week)" in text


def canary(admin: Admin) -> dict[str, Any]:
    """The canary as it is shown."""
    variants: list[dict[str, Any]] = admin.send("GET", ROUTE).json()["variants"]
    return variants[1]


def test_lease_is_begun_shown_and_renewed(admin: Admin) -> None:
    """A split under ramp "auto" begins it; a renewal moves its end, gives a new generation and the same revision."""
    under(admin, "ramp=auto", "lease_s=20")
    admin.split()
    begun, generation = canary(admin), admin.plane.fleet.generation
    assert 0 < begun["lease_until_ns"] - time.time_ns() <= 20 * S
    assert begun["lease_over"] is False
    reply = ask(admin, "lease", {"reason": "watched"}, 2, authorization=SIDECAR)
    assert (reply.status_code, reply.headers["etag"]) == (200, '"2"')
    held = canary(admin)
    assert held["lease_until_ns"] > begun["lease_until_ns"]
    assert reply.json() == {
        "revision": 2,
        "generation": generation + 1,
        "lease_until": {"canary": held["lease_until"]},
    }
    assert held["lease_until"].endswith("Z")
    assert admin.plane.fleet.generation == generation + 1
    assert len(admin.send("GET", f"{ROUTE}/history").json()["revisions"]) == 2


def test_what_has_no_lease(admin: Admin) -> None:
    """A manual ramp: none is begun, and 409 to renew it; nor is there one without a canary that has weight."""
    admin.split()
    assert "lease_until" not in canary(admin)
    assert 'ramp is "manual"' in refusal(ask(admin, "lease", {"reason": "x"}, 2), 409, "state_conflict")
    under(admin, "ramp=auto")
    ask(admin, "shift", {"weights_bp": {"canary": 0}, "reason": "x"}, 2)
    assert "no canary has weight" in refusal(ask(admin, "lease", {"reason": "x"}, 3), 409, "state_conflict")


def test_renewal_is_compare_and_set(admin: Admin) -> None:
    """428 without If-Match, 412 behind a change, 400 without a reason, and a dry run renews nothing."""
    under(admin, "ramp=auto")
    admin.split()
    refusal(admin.send("POST", f"{ROUTE}/lease", {"reason": "x"}), 428, "precondition_required")
    refusal(ask(admin, "lease", {"reason": "x"}, 1), 412, "revision_conflict")
    refusal(ask(admin, "lease", {"reason": " "}, 2), 400, "reason_required")
    before = canary(admin)
    reply = admin.send("POST", f"{ROUTE}/lease?dry_run=true", {"reason": "x"}, if_match="2")
    assert (reply.json()["dry_run"], canary(admin)) == (True, before)
