"""What counts as evidence of a rollout, and what does not."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.audit.event import Control, Gap
from shadow.harm import MICRO
from shadow.rollouts import SHIFT_UNITS_MAX, UNITS_KEPT, Rollout
from tests.shadow.play import TRUSTING, WORKERS, Play, reference
from tests.shadow.story import SECOND_NS, labels, prediction, route


def on_trial(**more: Any) -> Play:
    """Version 2 has a tenth of the traffic since revision 2."""
    play = Play(**more)
    play.shelf.references["1"] = reference([i / 100 for i in range(100)])
    play.say(route(1), route(2, canary="2"))
    play.tick()
    return play


def rollout_of(play: Play) -> Rollout:
    """The only one that runs."""
    (rollout,) = play.watch.state.rollouts.active
    return rollout


def canary(**more: Any) -> Any:
    """A request to version 2."""
    return prediction(more.pop("revision", 2), "canary", more.pop("weight_bp", 1000), "2", **more)


def control(**more: Any) -> Any:
    """A request to version 1."""
    return prediction(more.pop("revision", 2), "primary", more.pop("weight_bp", 9000), "1", **more)


@pytest.mark.parametrize(
    ("reason", "counts"),
    [("weight", 1), ("retry", 1), ("fallback", 1), ("key", 0), ("pinned", 0), ("forced", 0), ("later", 0)],
)
def test_only_what_was_drawn_counts(reason: str, counts: int) -> None:
    """Requests by weight, and those that another version answered; not those whose caller chose version or key."""
    play = on_trial()
    play.say(canary(reason=reason, kind="failed", unit="ab" * 8), control(reason=reason, unit="cd" * 8))
    play.tick()
    evidence = rollout_of(play).evidence["failed"]
    assert (evidence.canary_requests, evidence.canary_bad) == (counts * MICRO, counts * MICRO)
    assert evidence.control_requests == counts * MICRO
    assert play.watch.state.counts == {"done": 1, "failed": 1}


@pytest.mark.parametrize(("code", "kind"), [("nonfinite", "nonfinite"), ("model_failed", "failed")])
def test_a_retry_is_bad_for_the_version_it_was_drawn_for(code: str, kind: str) -> None:
    """The primary answered; the first try stands against the canary."""
    play = on_trial()
    first_try = {"version": "2", "code": code}
    play.say(prediction(2, "canary", 1000, "1", reason="retry", first_try=first_try))
    play.tick()
    assert {name: e.canary_bad for name, e in rollout_of(play).evidence.items() if e.canary_bad} == {
        kind: MICRO
    }


def test_a_lease_that_ran_out_proves_nothing() -> None:
    """All traffic was the primary's, at a weight that the route does not declare: no canary stood beside it."""
    play = on_trial()
    play.say(*(control(weight_bp=10_000, kind="failed") for _ in range(9)), control())
    play.tick()
    evidence = rollout_of(play).evidence["failed"]
    assert (evidence.control_requests, evidence.control_bad) == (MICRO, 0)


@pytest.mark.parametrize(
    ("end", "ended"),
    [
        (route(3, canary="2", weight_bp=0), "weight_zero"),
        (route(3, primary="2", kind="promote"), "promoted"),
        (route(3, canary="2", weight_bp=0, latched=["2"], kind="rollback"), "latched"),
        (route(3, primary="3", canary="2"), "primary_changed"),
        (route(3), "removed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_ends_a_rollout(end: Control, ended: str) -> None:
    """Each end has its name; a later trial of the same version begins with nothing."""
    play = on_trial()
    play.say(*(canary(kind="failed") for _ in range(4)), control())
    play.tick()
    assert rollout_of(play).number == 2
    play.say(end)
    play.tick()
    (over,) = play.watch.state.rollouts.ended
    assert (over.number, over.ended, over.requests) == (2, ended, 4)
    # What was drawn in the earlier trial and is read only now is nobody's.
    play.say(route(4, canary="2"), canary(kind="failed", revision=2), canary(revision=4))
    play.tick()
    again = rollout_of(play)
    assert (again.number, again.requests, again.evidence["failed"].canary_bad) == (4, 1, 0)
    assert over.evidence["failed"].canary_bad == 4 * MICRO


def test_a_rollout_goes_on_through_a_ramp() -> None:
    """More weight, a freeze and a lease are the same trial; counts are kept by weight."""
    play = on_trial()
    play.say(canary(kind="failed"), control())
    play.say(route(3, canary="2", weight_bp=3000))
    play.say(route(3, canary="2", weight_bp=3000, kind="lease"))
    play.say(route(4, canary="2", weight_bp=3000, kind="freeze"))
    play.tick()
    play.say(canary(kind="failed", revision=3, weight_bp=3000), control(revision=4, weight_bp=7000))
    play.tick()
    rollout = rollout_of(play)
    assert (rollout.number, rollout.requests) == (2, 2)
    assert [stratum.weight_bp for stratum in rollout.evidence["failed"].strata] == [1000, 3000]


def test_two_canaries_stand_each_against_the_primary() -> None:
    """Shares are of canary + primary; one canary's failures are none of the other's."""
    play = Play()
    play.say(route(1), route(2, canary="2", weight_bp=1000, others={"b": ("3", 3000)}))
    play.say(canary(kind="failed"), prediction(2, "b", 3000, "3"), control(weight_bp=6000, kind="failed"))
    play.tick()
    by_version = {rollout.version: rollout for rollout in play.watch.state.rollouts.active}
    bad = {version: rollout.evidence["failed"].canary_bad for version, rollout in by_version.items()}
    assert bad == {"2": MICRO, "3": 0}
    shares = {
        version: rollout.evidence["failed"].strata[0].weight_bp for version, rollout in by_version.items()
    }
    assert shares == {"2": 1429, "3": 3333}
    assert {r.evidence["failed"].control_bad for r in by_version.values()} == {MICRO}


@pytest.mark.parametrize("how", ["gap", "hole"])
def test_an_incomplete_tick_proves_nothing(how: str) -> None:
    """Whoever is missing may have been well: no evidence, but counted and told; the next tick counts again."""
    play = on_trial()
    play.say(control())
    if how == "gap":
        play.say(Gap(source=f"{WORKERS[0]:016x}", epoch=1, from_seq=7, to_seq=9, cause="ring_full"))
    else:
        play.lose(3)
    play.say(*(canary(kind="failed") for _ in range(9)), control())
    while play.feed.deliveries:
        play.runner.read()
    (missing,) = play.watch.tally.missing
    assert missing.startswith(f"{WORKERS[0]:016x}-00000001 ")
    play.tick()
    state = play.watch.state
    assert (state.incomplete_ticks, state.complete, rollout_of(play).requests) == (1, False, 0)
    assert state.counts == {"done": 2, "failed": 9}
    play.say(canary(kind="failed"), control())
    play.tick()
    assert play.watch.state.complete
    assert rollout_of(play).evidence["failed"].canary_bad == MICRO


def test_what_was_read_and_then_trimmed_is_not_missing() -> None:
    """Retention tells which numbers left the spool: they had records, which count."""
    play = on_trial()
    play.say(control(), canary(kind="failed"))
    play.say(Gap(source=f"{WORKERS[0]:016x}", epoch=1, from_seq=0, to_seq=1, cause="retention"))
    while play.feed.deliveries:
        play.runner.read()
    assert play.watch.tally.missing == []
    play.tick()
    assert play.watch.state.complete
    assert rollout_of(play).evidence["failed"].canary_bad == MICRO


def test_rows_of_a_request_weigh_as_one() -> None:
    """Eight rows are one request: for shift each weighs an eighth, for wrong answers too."""
    play = on_trial()
    (eight, one) = play.say(canary(scores=[0.9] * 8), control(scores=[0.1]))
    play.say(labels(*((eight, row, 0) for row in range(8)), (one, 0, 0)))
    play.tick()
    play.pass_time(100 * SECOND_NS)
    play.tick()
    rollout = rollout_of(play)
    assert rollout.shift is not None
    assert (sum(rollout.shift.canary), sum(rollout.shift.control)) == (MICRO, MICRO)
    wrong = rollout.evidence["wrong"]
    assert (wrong.canary_requests, wrong.canary_bad, wrong.control_bad) == (MICRO, MICRO, 0)
    assert rollout.requests == 1


def test_a_trusted_key_is_bad_once() -> None:
    """One unit was drawn once, however often it comes back: one bad event of each kind, rows for shift in one tick."""
    play = on_trial(settings=TRUSTING)
    for _ in range(3):
        ids = play.say(*(canary(scores=[0.3], reason="key", unit="ab" * 8) for _ in range(5)))
        play.say(labels(*((of, 0, 1) for of in ids)))
        failed = (canary(kind="failed", reason="key", unit="ab" * 8) for _ in range(5))
        play.say(*failed, control())
        play.tick()
    play.pass_time(100 * SECOND_NS)
    play.tick()
    rollout = rollout_of(play)
    assert rollout.evidence["failed"].canary_bad == MICRO
    assert rollout.evidence["wrong"].canary_bad == MICRO
    assert rollout.evidence["failed"].canary_requests == 30 * MICRO
    assert rollout.shift is not None
    assert (sum(rollout.shift.canary), sum(rollout.shift.control)) == (MICRO, 3 * MICRO)
    assert play.decisions == []


def test_chosen_keys_decide_nothing() -> None:
    """Ninety callers with keys that fall to the canary, all of whose requests fail: no evidence, no decision."""
    play = on_trial()
    for tick in range(5):
        for caller in range(30):
            unit = f"{tick * 30 + caller:016x}"
            play.say(canary(kind="failed", reason="key", unit=unit), control(reason="key", unit=unit))
        play.say(*(control() for _ in range(9)), canary())
        play.tick()
    assert rollout_of(play).evidence["failed"].canary_bad == 0
    assert play.decisions == []


def test_keys_that_count_for_shift_are_bounded() -> None:
    """The state does not grow with callers: further keys are left out, known ones do not count again."""
    rollout = Rollout("m", 1, "canary", "2", "1")
    assert rollout.newly_seen({"b", "a"}) == {"a", "b"}
    assert rollout.newly_seen({"b", "c"}) == {"c"}
    assert len(rollout.newly_seen({f"{unit:05}" for unit in range(SHIFT_UNITS_MAX)})) == SHIFT_UNITS_MAX - 3
    assert rollout.newly_seen({"one more"}) == frozenset()


@pytest.mark.parametrize("how", ["failed", "first try"])
def test_a_deadline_is_nobody_s_fault(how: str) -> None:
    """It depends on load and on what the caller asked: neither bad nor good, the request is left out."""
    play = on_trial()
    facts = (
        {"kind": "failed", "code": "deadline_exceeded"}
        if how == "failed"
        else {"reason": "retry", "first_try": {"version": "2", "code": "deadline_exceeded"}}
    )
    play.say(*(canary(**facts) for _ in range(9)), canary(kind="failed", code="inference_failed"), control())
    play.tick()
    evidence = rollout_of(play).evidence["failed"]
    assert (evidence.canary_requests, evidence.canary_bad) == (MICRO, MICRO)
    assert play.decisions == []


def test_known_units_are_bounded() -> None:
    """The state does not grow with failures: the latest units are kept."""
    rollout = Rollout("m", 1, "canary", "2", "1")
    for start in range(0, 3 * UNITS_KEPT, 100):
        units = {f"{unit:016x}": MICRO for unit in range(start, start + 100)}
        assert rollout.newly_bad("failed", units, {}) == [100 * MICRO, 0]
        assert rollout.newly_bad("failed", units, {}) == [0, 0]
    assert len(rollout.bad_units["failed"]) == UNITS_KEPT
    assert rollout.newly_bad("failed", {"w-1": 5}, {"w-2": 7}) == [5, 7]
    assert len(rollout.bad_units["failed"]) == UNITS_KEPT


def test_wrong_answers_wait_for_their_horizon() -> None:
    """A label that is there at once counts when the horizon has passed, labelled or not, not before."""
    play = on_trial()
    wrong, unlabelled = play.say(canary(scores=[0.9]), canary(scores=[0.9]))
    play.say(labels((wrong, 0, 0)))
    play.tick()
    play.pass_time(60 * SECOND_NS)
    play.tick()
    assert rollout_of(play).evidence["wrong"].canary_requests == 0
    play.pass_time(61 * SECOND_NS)
    play.tick()
    evidence = rollout_of(play).evidence["wrong"]
    assert (evidence.canary_requests, evidence.canary_bad) == (MICRO, MICRO)
    assert unlabelled


def test_a_control_event_that_is_no_route_changes_nothing() -> None:
    """Later kinds and broken documents: no document, no accident."""
    play = on_trial()
    for after in (
        {"variants": 7},
        {"variants": [{"name": "x"}], "model": "m", "revision": 1},
        {"variants": [], "model": "m", "revision": 1},
        {"variants": [{"name": "c", "version": "1", "role": "canary"}], "model": "m", "revision": 1},
        {"versions": ["1"]},
    ):
        play.say(Control(kind="route", after=after))
    play.say(Control(kind="routes", after={"m": {"variants": ["x"], "model": "m", "revision": 2}, "n": 3}))
    play.tick()
    assert play.watch.state.rollouts.documents.keys() == {"flights"}
