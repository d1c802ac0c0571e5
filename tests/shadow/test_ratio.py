"""Is traffic split as the route says: how often that is denied wrongly, and how soon rightly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from gateway.audit.event import Control, EpochClose, Event, Feedback, Heartbeat, Prediction
from shadow.documents import Arm, Document
from shadow.ratio import (
    ALPHA,
    PRIOR,
    SETTLED_NS,
    SPAN_NS,
    Alarm,
    Draw,
    Ratio,
    evidence,
    fold,
    forget,
    hold,
    pause,
)
from shadow.state import WatchState
from shadow.status import write_status
from shadow.tally import Tally
from shadow.watch import GONE_NS
from tests.gateway.audit.sim import GATEWAY_ID
from tests.shadow.play import WORKERS, Play, traffic
from tests.shadow.play import Arm as Behaving
from tests.shadow.story import MODEL, SECOND_NS, prediction, route

LATER_NS = 10 * SETTLED_NS
LEVEL = 0.05
"""Of the simulated null: at 1e-4 there would be nothing to see."""


def document(revision: int = 1, **weights_bp: int) -> Document:
    """A route of these canaries."""
    rest = 10_000 - sum(weights_bp.values())
    canaries = tuple(
        Arm(name, str(i), "canary", bp) for i, (name, bp) in enumerate(weights_bp.items(), start=2)
    )
    return Document(MODEL, revision, (Arm("primary", "1", "primary", rest), *canaries))


def told(
    ratio: Ratio, counts: dict[str, int], route: Document, span: int = 0, **logged_bp: int
) -> Alarm | None:
    """Draws of one span, counted at once."""
    known = {arm.name: arm.weight_bp for arm in route.arms} | logged_bp
    draws = {Draw(span, route.revision, name, known.get(name, 0)): n for name, n in counts.items()}
    documents = {route.revision: route}
    hold(ratio, draws, documents)
    return fold(ratio, MODEL, span * SPAN_NS + LATER_NS, documents)


def logs_of(counts: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The same evidence as a log, of many routes at once."""
    gamma = np.vectorize(math.lgamma)
    alpha = PRIOR * shares
    total = counts.sum(axis=1)
    log = gamma(np.full(len(total), PRIOR)) - gamma(PRIOR + total)
    return log + (gamma(alpha + counts) - gamma(alpha) - counts * np.log(shares)).sum(axis=1)


def passes(routes: int, looks: int, seed: int) -> int:
    """How many of so many routes, split as they say, ever reach 1 / LEVEL while they are looked at so often."""
    rng = np.random.default_rng(seed)
    arms = rng.integers(2, 5, routes)
    shares = np.full((routes, 4), 1e-12)
    for index, count in enumerate(arms):
        weights = rng.dirichlet([0.3] * count) * 9_900 + 1
        shares[index, :count] = weights / weights.sum()
    shares /= shares.sum(axis=1, keepdims=True)
    counts = np.zeros((routes, 4), dtype=np.int64)
    ever = np.zeros(routes, dtype=bool)
    for _ in range(looks):
        sizes = rng.integers(1, 1_000, routes)
        counts += np.array([rng.multinomial(n, share) for n, share in zip(sizes, shares, strict=True)])
        ever |= logs_of(counts, shares) >= math.log(1 / LEVEL)
    return int(ever.sum())


def most_by_chance(routes: int) -> int:
    """So many of them at LEVEL, but for one time in a thousand."""
    total, count = 0.0, 0
    while total < 0.999:
        log = math.lgamma(routes + 1) - math.lgamma(count + 1) - math.lgamma(routes - count + 1)
        total += math.exp(log + count * math.log(LEVEL) + (routes - count) * math.log1p(-LEVEL))
        count += 1
    return count


def test_a_route_that_keeps_its_word_is_seldom_denied() -> None:
    """Looked at again and again: no more false alarms than the level allows over all looks together."""
    assert passes(400, 25, 1) <= most_by_chance(400)


@pytest.mark.prove
def test_ten_thousand_routes_that_keep_their_word() -> None:
    """The same over 10,000 routes and 60 looks."""
    assert passes(10_000, 60, 2) <= most_by_chance(10_000)


def test_evidence_is_what_the_simulation_uses() -> None:
    """The product's own arithmetic, term by term."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        weights = {"primary": 8_900, "a": 1_000, "b": 100}
        counts = dict(zip(weights, rng.integers(0, 2_000, 3).tolist(), strict=True))
        shares = np.array([[bp / 10_000 for bp in weights.values()]])
        (log,) = logs_of(np.array([list(counts.values())]), shares)
        assert math.log(evidence(counts, weights)) == pytest.approx(min(log, 700.0))


def test_nothing_seen_is_no_evidence() -> None:
    """It starts at 1, and one request of each arm, weighted by its chance, gives 1 again: a fair game."""
    weights = {"primary": 7_000, "a": 2_500, "b": 500}
    assert evidence({}, weights) == pytest.approx(1.0)
    mean = sum(bp / 10_000 * evidence({name: 1}, weights) for name, bp in weights.items())
    assert mean == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("says_bp", "true_share", "within"), [(100, 0.02, 10_000), (1_000, 0.11, 60_000), (5_000, 0.55, 5_000)]
)
def test_another_split_is_found(says_bp: int, true_share: float, within: int) -> None:
    """1% that gets 2%, 10% that gets 11%, half that gets 55%: in 95 of 100 routes within so many requests."""
    rng = np.random.default_rng(5)
    found = 0
    for _ in range(100):
        ratio, alarm = Ratio(), None
        for span in range(20):
            got = int(rng.binomial(within // 20, true_share))
            counts = {"a": got, "primary": within // 20 - got}
            alarm = alarm or told(ratio, counts, document(a=says_bp), span)
        found += alarm is not None
    assert found >= 95


def test_an_arm_at_0_that_is_served_is_found_at_once() -> None:
    """A peer served 1% to an arm at 0: the first request that fell on it is proof."""
    ratio = Ratio()
    assert told(ratio, {"primary": 99}, document(a=0)) is None
    alarm = told(ratio, {"primary": 99, "a": 1}, document(a=0), 1)
    assert alarm is not None
    assert alarm.says.endswith("is not split as the route says: 1 requests fell on a, which has no weight")


def test_an_alarm_is_raised_once_a_revision_and_says_what_was_seen() -> None:
    """With counts, weights, and the variant that is furthest off."""
    ratio = Ratio()
    alarm = told(ratio, {"a": 900, "primary": 9_100}, document(a=500))
    assert alarm is not None
    assert alarm.evidence >= alarm.needed == 2 / ALPHA
    assert (alarm.revision, alarm.counts, alarm.weights_bp) == (
        1,
        {"a": 900, "primary": 9_100},
        {"primary": 9_500, "a": 500},
    )
    assert (
        "a got 900 of 10,000 requests, and 5% are its share" in alarm.says
        or "primary got 9,100" in alarm.says
    )
    assert told(ratio, {"a": 900, "primary": 9_100}, document(a=500), 1) is None
    assert told(ratio, {"a": 900, "primary": 9_100}, document(2, a=500), 2) is not None


def test_each_revision_is_tested_at_a_part_of_the_level() -> None:
    """k (k + 1) / alpha sums to alpha over all revisions of a model, and counts of one are none of the next."""
    ratio, spent = Ratio(), 0.0
    for revision in range(1, 200):
        told(ratio, {"a": 5, "primary": 5}, document(revision, a=5_000))
        spent += 1 / ratio.needed
        assert ratio.requests == 10
    assert spent < ALPHA


def test_requests_are_counted_once_all_that_came_with_them_are_logged() -> None:
    """A slow canary's answers come late: nothing is concluded from those that are there already."""
    ratio, only = Ratio(), document(a=5_000)
    documents = {1: only}
    hold(ratio, {Draw(0, 1, "primary", 5_000): 1_000}, documents)
    assert fold(ratio, MODEL, SPAN_NS + SETTLED_NS - 1, documents) is None
    assert ratio.requests == 0
    hold(ratio, {Draw(0, 1, "a", 5_000): 1_000}, documents)
    assert fold(ratio, MODEL, SPAN_NS + SETTLED_NS, documents) is None
    assert ratio.counts == {"a": 1_000, "primary": 1_000}


@pytest.mark.parametrize("why", ["breaker", "lease"])
def test_a_revision_that_rightly_does_otherwise_is_left(why: str) -> None:
    """An open breaker, or a lease that ended (the primary's logged weight is more than its own), ends the test of a
    revision; the next is tested again."""
    ratio, first = Ratio(), document(a=5_000)
    if why == "breaker":
        pause(ratio, first)
    else:
        assert told(ratio, {"primary": 10}, first, primary=10_000) is None
    assert ratio.paused
    assert told(ratio, {"primary": 10_000}, first, 1) is None
    assert told(ratio, {"primary": 10_000}, document(2, a=5_000), 2) is not None


def test_what_misses_records_is_left_out() -> None:
    """What came before the hole ended is not counted, also where it is read later."""
    ratio, only = Ratio(), document(a=5_000)
    hold(ratio, {Draw(1, 1, "a", 5_000): 500}, {1: only})
    forget(ratio, 5 * SPAN_NS)
    assert told(ratio, {"a": 500}, only, 4) is None
    assert told(ratio, {"a": 10, "primary": 10}, only, 5) is None
    assert ratio.requests == 20


@pytest.mark.parametrize(
    ("more", "counts"),
    [
        ({}, True),
        ({"kind": "failed"}, True),
        ({"kind": "cancelled"}, True),
        ({"kind": "refused", "code": "overloaded"}, True),
        ({"kind": "failed", "code": "deadline_exceeded"}, True),
        ({"reason": "fallback"}, True),
        ({"reason": "retry"}, True),
        ({"reason": "key"}, False),
        ({"reason": "pinned"}, False),
        ({"reason": "forced"}, False),
    ],
)
def test_what_is_a_draw(more: dict[str, Any], counts: bool) -> None:
    """Whatever became of it, as long as it was drawn by weight; keys, versions and variants are the callers'."""
    event = prediction(1, "canary", 1_000, "2")
    reason = more.pop("reason", "weight")
    event = msgspec.structs.replace(event, route=msgspec.structs.replace(event.route, reason=reason), **more)
    tally = Tally("log")
    tally.take(event)
    assert (sum(tally.draws.get(MODEL, {}).values()) == 1) is counts


def test_a_full_queue_is_no_failure_of_an_arm() -> None:
    """It says on whom the draw fell, and no more."""
    event = msgspec.structs.replace(prediction(1, "canary", 1_000, "2"), kind="refused", code="overloaded")
    tally = Tally("log")
    tally.take(event)
    assert tally.arms == {}


def lived(share: float, *events: Control) -> Play:
    """A canary at 10% by its route that fails plainly and gets `share` of the traffic."""
    play = Play()
    play.say(route(1), route(2, canary="2", weight_bp=1_000), *events)
    arms = {"canary": (1_000, Behaving("2", failing=0.5)), "primary": (9_000, Behaving("1"))}
    rng = np.random.default_rng(7)
    for _ in range(8):
        drawn: list[Prediction] = []
        for event in traffic(300, 2, arms, int(rng.integers(1 << 30)), at_ns=play.at_ns):
            drawn.append(event)
        wanted = round(300 * share)
        canary = [e for e in drawn if e.route.assigned == "canary"]
        rest = [e for e in drawn if e.route.assigned != "canary"]
        while len(canary) < wanted:
            canary += canary
        play.say(*rest[: 300 - wanted], *canary[:wanted])
        play.at_ns += SPAN_NS
        play.tick()
    return play


def test_verdicts_are_held_while_traffic_is_not_split_as_routed() -> None:
    """What would be a rollback says so and is held: by wrong odds of the draw anything can be proved."""
    fair = lived(0.1)
    assert {d.action for d in fair.decisions} == {"rollback"}
    assert not fair.watch.state.ratios[MODEL].alarmed
    play = Play()
    play.say(route(1), route(2, canary="2", weight_bp=1_000))
    play.say(*(prediction(2, "canary", 1_000, "2", at_ns=SECOND_NS) for _ in range(200)))
    play.say(*(prediction(2, "primary", 9_000, "1", at_ns=SECOND_NS) for _ in range(200)))
    play.tick()
    play.at_ns += LATER_NS
    play.say(Heartbeat(at_ns=play.at_ns))
    play.tick()
    assert [alarm.model for alarm in play.watch.alarms] == [MODEL]
    assert [r.suspended for r in play.watch.state.rollouts.active] == [True]
    arms = {"canary": (1_000, Behaving("2", failing=0.5)), "primary": (9_000, Behaving("1"))}
    for seed in range(4):
        play.say(*traffic(500, 2, arms, seed, at_ns=play.at_ns))
        play.tick()
    assert {d.action for d in play.decisions} == {"hold"}
    assert all("held: traffic was not split" in d.says for d in play.decisions)
    assert {d.latched for d in play.decisions} == {()}


def test_a_new_trial_is_judged_again() -> None:
    """Evidence of a rollout that was suspended is never trusted again; that of the next one is its own."""
    play = Play()
    play.say(route(1), route(2, canary="2", weight_bp=1_000))
    play.say(*(prediction(2, "canary", 1_000, "2", at_ns=SECOND_NS) for _ in range(200)))
    play.tick()
    play.at_ns += LATER_NS
    play.say(Heartbeat(at_ns=play.at_ns))
    play.tick()
    assert [r.suspended for r in play.watch.state.rollouts.active] == [True]
    play.say(route(3), route(4, canary="2", weight_bp=1_000))
    play.tick()
    assert [r.suspended for r in play.watch.state.rollouts.active] == [False]


def drawn(assigned: str, count: int) -> list[Prediction]:
    """Requests of one span to a canary at half of the traffic."""
    version = "2" if assigned == "canary" else "1"
    return [prediction(2, assigned, 5_000, version, at_ns=SPAN_NS) for _ in range(count)]


@pytest.mark.parametrize("how", [Heartbeat, partial(Feedback, kind="label")])
def test_who_catches_up_does_not_take_what_is_unread_for_missing(how: Callable[..., Event]) -> None:
    """Of records that are hours old, those of the slow canary stand behind the end of a tick: both are counted once
    the worker's log was read beyond them, whatever the time is, and whatever was read of another's."""
    play = Play()
    play.at_ns = 1_000 * SPAN_NS
    play.say(route(1), route(2, canary="2", weight_bp=5_000))
    play.say(*drawn("primary", 500))
    play.say(*drawn("primary", 5), *drawn("canary", 5), Heartbeat(at_ns=900 * SPAN_NS), worker=1)
    play.tick()
    found = play.watch.state.ratios[MODEL]
    assert (play.watch.alarms, found.requests) == ([], 0)
    play.say(*drawn("canary", 500), how(at_ns=SPAN_NS + LATER_NS))
    play.tick()
    assert (play.watch.alarms, found.requests) == ([], 1_010)


@pytest.mark.parametrize("how", ["closed", "silent"])
def test_a_worker_that_is_gone_is_not_waited_for(how: str) -> None:
    """Its epoch is closed, or ended a day before what another's log was read to."""
    play = Play()
    play.at_ns = GONE_NS + 1_000 * SPAN_NS
    play.say(route(1), route(2, canary="2", weight_bp=5_000))
    play.say(*drawn("primary", 5), *drawn("canary", 5))
    play.say(*drawn("primary", 5), *drawn("canary", 5), worker=1)
    play.tick()
    late_ns = SPAN_NS + LATER_NS
    if how == "closed":
        play.say(EpochClose(f"{WORKERS[0]:016x}", 1, 11, "owner_died", at_ns=late_ns))
    else:
        late_ns += GONE_NS
    play.tick()
    play.say(Heartbeat(at_ns=late_ns), worker=1)
    play.tick()
    assert play.watch.state.ratios[MODEL].requests == 20


def test_a_breaker_in_the_log_pauses_the_test() -> None:
    """As a worker logs it, among the control events of the tick."""
    opened = Control(
        kind="breaker", gateway_id=GATEWAY_ID, model=MODEL, revision=2, after={"variant": "canary"}
    )
    play = lived(0.1, opened)
    assert play.watch.state.ratios[MODEL].paused
    assert play.watch.state.ratios[MODEL].requests == 0


def test_status_tells_it(tmp_path: Path) -> None:
    """For /metrics and people: model, revision, evidence, what is needed, and whether it is reached."""
    ratio = Ratio()
    told(ratio, {"a": 900, "primary": 100}, document(3, a=500))
    write_status(tmp_path / "status.json", WatchState(ratios={MODEL: ratio}), (), 0.0, 5)
    (found,) = json.loads((tmp_path / "status.json").read_text())["ratios"]
    assert (found["model"], found["revision"], found["requests"]) == (MODEL, 3, 1_000)
    assert (found["alarmed"], found["needed"]) == (True, 2 / ALPHA)
