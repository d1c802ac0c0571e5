"""Each cause of a decision from a story, and what decides nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.settings import Policy, VersionPolicy
from loaders.bundle import BundleSettings
from shadow.decide import Decision, _short, decide, summary
from shadow.documents import Arm as RouteArm
from shadow.documents import Document
from shadow.harm import MICRO, ArmCounts
from shadow.rollouts import Labelled
from shadow.state import Settings
from shadow.watch import DECISIONS_MAX
from tests.shadow.play import Arm, Play, Shelf, reference, traffic
from tests.shadow.story import MODEL, SECOND_NS, labels, prediction, route

CONTROL = Arm("1", failing=0.01)


def play_with(**policy: Any) -> Play:
    """Version 2 at a fifth; version 1 has a reference."""
    play = Play(settings=Settings(policies={MODEL: Policy(**policy)}) if policy else Settings())
    play.shelf.references["1"] = reference([0.1 + 0.6 * i / 500 for i in range(500)])
    play.say(route(1), route(2, canary="2", weight_bp=2000))
    return play


def run(play: Play, canary: Arm, control: Arm = CONTROL, *, ticks: int = 6, each: int = 300) -> Play:
    """Traffic by weight, tick by tick."""
    for tick in range(ticks):
        arms = {"primary": (8000, control), "canary": (2000, canary)}
        play.say(*traffic(each, 2, arms, seed=tick))
        play.tick()
    return play


def only(play: Play) -> Decision:
    """The one decision."""
    (decision,) = play.decisions
    return decision


def test_failing_more_often_is_rolled_back() -> None:
    """harm.failed: the weight back to the primary, the version latched, the counts and words that led to it."""
    play = run(play_with(), Arm("2", failing=0.15))
    decision = only(play)
    assert (decision.cause, decision.action, decision.dry_run) == ("harm.failed", "rollback", False)
    assert decision.before_bp == {"primary": 8000, "canary": 2000}
    assert decision.after_bp == {"primary": 10_000, "canary": 0}
    assert (decision.latched, decision.observed_revision, decision.rollout) == (("2",), 2, 2)
    assert decision.versions == {"primary": "1", "canary": "2"}
    assert decision.evidence["failed"] >= decision.evidence["needed"] == 100
    assert decision.counts["canary"]["bad"] >= 5
    assert decision.says.startswith("version 2 fails ")
    assert "needed 100" in decision.says


def test_values_that_are_not_finite() -> None:
    """harm.nonfinite."""
    play = run(play_with(), Arm("2", nonfinite=0.1), Arm("1", nonfinite=0.01))
    assert only(play).cause == "harm.nonfinite"
    assert "not finite" in only(play).says


def test_wrong_answers_when_their_labels_are_due() -> None:
    """harm.wrong: nothing before the horizon, a rollback after it."""
    play = play_with(max_shift_sd={"probabilities": 10.0})
    arms = {"primary": (8000, Arm("1")), "canary": (2000, Arm("2", mean=0.6))}
    for minute in (0, 2):
        at_ns = (60 * minute + 1) * SECOND_NS
        for tick in range(2):
            ids = play.say(*traffic(200, 2, arms, minute + tick, at_ns=at_ns))
            play.say(labels(*((of, 0, 0) for of in ids), at_ns=at_ns))
            play.tick()
        play.pass_time(at_ns + 59 * SECOND_NS)
        play.tick()
        assert play.decisions == [], "before the horizon, or one burst"
        play.pass_time(at_ns + 60 * SECOND_NS)
        play.tick()
    assert only(play).cause == "harm.wrong"
    assert only(play).says.startswith("version 2 is wrong ")


def test_another_output_on_the_same_traffic() -> None:
    """drift.relative: no labels, no failures; the score is off by half a sd."""
    play = run(play_with(), Arm("2", mean=0.55), Arm("1"))
    decision = only(play)
    assert (decision.cause, decision.action) == ("drift.relative", "rollback")
    assert "probabilities of version 2 is" in decision.says
    assert "sd above version 1's" in decision.says
    assert decision.counts["canary"]["rows"] > 50


@pytest.mark.parametrize("action", ["rollback", "alert"])
def test_plain_failure_within_one_tick(action: str) -> None:
    """hard_failure: every request of the canary fails; two ticks are not waited for. `on_harm` says what is done."""
    play = run(play_with(on_harm=action), Arm("2", failing=1.0), ticks=1, each=100)
    decision = play.decisions[0]
    assert (decision.cause, decision.action) == ("hard_failure", action)
    canary = decision.counts["canary"]
    assert canary["bad"] == canary["requests"] > 10
    assert f"failed {canary['bad']:g} of its last {canary['requests']:g} requests" in decision.says


@pytest.mark.parametrize(
    ("canary", "control"),
    [
        (Arm("2"), Arm("1")),
        (Arm("2", failing=0.3), Arm("1", failing=0.3)),
        (Arm("2", nonfinite=0.3), Arm("1", nonfinite=0.3)),
        (Arm("2", failing=1.0), Arm("1", failing=1.0)),
        (Arm("2", mean=0.9, spread=0.02), Arm("1", mean=0.9, spread=0.02)),
        (Arm("2"), Arm("1", failing=0.2)),
    ],
    ids=["healthy", "both fail", "both not finite", "outage", "common drift", "the primary fails"],
)
def test_what_both_share_decides_nothing(canary: Arm, control: Arm) -> None:
    """Healthy, an outage, a season: no decision over twenty ticks."""
    assert run(play_with(), canary, control, ticks=20).decisions == []


@pytest.mark.parametrize("action", ["hold", "alert"])
def test_policy_says_what_is_done(action: str) -> None:
    """Other answers keep the weight and latch nothing."""
    play = run(play_with(on_harm=action), Arm("2", failing=0.15))
    decision = only(play)
    assert decision.action == action
    assert decision.after_bp == decision.before_bp
    assert decision.latched == ()
    assert not play.watch.state.rollouts.active[0].rolled_back
    play = run(play_with(on_relative_drift=action), Arm("2", mean=0.55), Arm("1"))
    assert only(play).action == action


def test_dry_run_says_so() -> None:
    """ramp = dry-run: the same decision, marked."""
    decision = only(run(play_with(ramp="dry-run"), Arm("2", failing=0.15)))
    assert (decision.action, decision.dry_run) == ("rollback", True)


def test_a_declared_shift_is_none() -> None:
    """max_shift_sd by version: what the retrain announced is allowed for it, and for no other."""
    declared = {"2": VersionPolicy(max_shift_sd={"probabilities": 1.5})}
    assert run(play_with(versions=declared), Arm("2", mean=0.45), Arm("1"), ticks=12).decisions == []
    declared = {"3": VersionPolicy(max_shift_sd={"probabilities": 1.5})}
    assert run(play_with(versions=declared), Arm("2", mean=0.45), Arm("1"), ticks=12).causes == [
        "drift.relative"
    ]


def test_a_cause_is_decided_once_a_rollout() -> None:
    """The same evidence, tick after tick, is one decision; the next rollout may decide it again."""
    play = run(play_with(on_harm="alert"), Arm("2", failing=0.15), ticks=15)
    assert play.causes == ["harm.failed"]
    play.say(route(3), route(4, canary="2", weight_bp=2000))
    arms = {"primary": (8000, CONTROL), "canary": (2000, Arm("2", failing=0.15))}
    for tick in range(6):
        play.say(*traffic(300, 4, arms, seed=tick))
        play.tick()
    assert play.causes == ["harm.failed", "harm.failed"]
    assert [decision.rollout for decision in play.decisions] == [2, 4]


def test_one_rollback_a_rollout() -> None:
    """Two causes that would both roll back: the first one does, the second has nothing to add."""
    play = run(play_with(), Arm("2", failing=0.5, mean=0.9), ticks=10)
    assert [decision.action for decision in play.decisions].count("rollback") == 1


def test_one_burst_is_not_enough() -> None:
    """Bad events of a single tick do not roll back by harm, however many."""
    play = play_with()
    good = {"primary": (8000, Arm("1", failing=0.05)), "canary": (2000, Arm("2"))}
    play.say(
        *traffic(300, 2, good, 1), *(prediction(2, "canary", 2000, "2", kind="failed") for _ in range(12))
    )
    play.tick()
    assert play.watch.state.rollouts.active[0].evidence["failed"].ticks_with_evidence == 1
    assert "harm.failed" not in play.causes


def test_bins_of_the_controls_first_rows() -> None:
    """Without a reference the control's first thousand rows set the unit, prove nothing, and are let go of."""
    play = play_with()
    play.shelf.references.clear()
    run(play, Arm("2", mean=0.55), Arm("1"), ticks=4)
    (rollout,) = play.watch.state.rollouts.active
    assert rollout.bins is None
    assert 900 < len(rollout.first_scores) < 1000
    run(play, Arm("2", mean=0.55), Arm("1"), ticks=1)
    assert rollout.bins is not None
    assert (rollout.bins.source, rollout.first_scores) == ("control", [])
    assert rollout.shift is not None
    assert sum(rollout.shift.canary) == 0
    run(play, Arm("2", mean=0.55), Arm("1"), ticks=6)
    assert play.causes == ["drift.relative"]


@pytest.mark.parametrize("scores", [[float("nan")] * 5, [1e200] * 5, []])
def test_a_reference_without_a_number_is_none(scores: list[float]) -> None:
    """Bins come from the control instead; nothing breaks."""
    play = play_with()
    play.shelf.references["1"] = reference(scores)
    run(play, Arm("2"), Arm("1"), ticks=5)
    (rollout,) = play.watch.state.rollouts.active
    assert rollout.bins is not None
    assert rollout.bins.source == "control"


def test_scores_that_are_not_finite_make_no_bins() -> None:
    """A control that gives NaN alone never has a unit, and its state does not grow."""
    play = play_with()
    play.shelf.references.clear()
    run(play, Arm("2"), Arm("1", nonfinite=1.0), ticks=6)
    (rollout,) = play.watch.state.rollouts.active
    assert (rollout.bins, rollout.first_scores) == (None, [])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0"),
        (12.345, "12.3"),
        (100.0, "100"),
        (4567.8, "4,570"),
        (9.376e18, "9.38e+18"),
        (1e304, "1e+304"),
    ],
)
def test_evidence_in_three_digits(value: float, said: str) -> None:
    """Large e-values are told short."""
    assert _short(value) == said


def test_a_shelf_without_settings_counts_failures() -> None:
    """No bundle at all: harm by failures is seen all the same."""
    play = Play(Shelf(None))
    play.say(route(1), route(2, canary="2", weight_bp=2000))
    assert run(play, Arm("2", failing=0.15)).causes == ["harm.failed"]


@pytest.mark.parametrize("name", ["p" * 256, "p" * 65])
def test_long_names_are_cut_in_sentences(name: str) -> None:
    """An output may be called anything; what is said stays short enough for a route's reason."""
    settings = msgspec.convert({"outputs": {name: {"kind": "probability"}}}, BundleSettings)
    play = Play(Shelf(settings), Settings(policies={MODEL: Policy(on_harm="alert")}))
    play.shelf.references["1"] = reference([0.1 + 0.6 * i / 500 for i in range(500)])
    play.say(route(1), route(2, canary="2", weight_bp=2000))
    for tick in range(8):
        arms = {"primary": (8000, CONTROL), "canary": (2000, Arm("2", mean=0.7))}
        for event in traffic(300, 2, arms, seed=tick):
            event.outputs = [msgspec.structs.replace(of, name=name) for of in event.outputs]
            play.say(event)
        play.tick()
    assert "drift.relative" in play.causes
    for decision in play.decisions:
        assert len(decision.says) < 1000
    (shift,) = [decision.says for decision in play.decisions if decision.cause == "drift.relative"]
    assert shift.startswith("p" * 63 + "… of version 2 is ")


def test_decisions_of_one_tick_are_bounded() -> None:
    """One frame of the log holds them; those that are left come with the next tick, and none is lost."""
    play = Play()
    names = [f"model{i:02}" for i in range(DECISIONS_MAX + 10)]
    for name in names:
        for each in (route(1), route(2, canary="2", weight_bp=5000)):
            assert each.after is not None
            play.say(msgspec.structs.replace(each, model=name, after={**each.after, "model": name}))
    arms = {"primary": (5000, Arm("1")), "canary": (5000, Arm("2", failing=1.0))}
    for name in names:
        for event in traffic(60, 2, arms, 1):
            assert event.model is not None
            event.model = msgspec.structs.replace(event.model, name=name)
            play.say(event)
    assert len(play.tick()) == DECISIONS_MAX
    assert len(play.tick()) == 10
    assert play.tick() == []
    assert {decision.model for decision in play.decisions} == set(names)


def test_an_alert_becomes_a_rollback_once_the_policy_says_so() -> None:
    """What was decided as an alert, or in a dry run, does not stand in the way of the act itself."""
    for before in ({"on_harm": "alert"}, {"ramp": "dry-run"}):
        play = run(play_with(**before), Arm("2", failing=0.5), ticks=4)
        assert play.decisions
        told = len(play.decisions)
        assert not any(rollout.rolled_back for rollout in play.watch.state.rollouts.active)
        play.watch.use(Settings(policies={MODEL: Policy()}))
        run(play, Arm("2", failing=0.5), ticks=2)
        assert [each.action for each in play.decisions[told:]][:1] == ["rollback"]
        assert not play.decisions[told].dry_run


def test_wrong_answers_of_an_arm_that_is_looked_at_more_often_prove_nothing() -> None:
    """Equal versions, and labels for a third of one and a fifth of the other: the assumption fails, and it is told."""
    rollout = run(play_with(), Arm("2"), ticks=1).watch.state.rollouts.active[0]
    rollout.evidence["wrong"].fold_tick(
        [ArmCounts(2000, 300 * MICRO, 200 * MICRO, 800 * MICRO, 100 * MICRO)], 0.1
    )
    rollout.evidence["wrong"].fold_tick(
        [ArmCounts(2000, 300 * MICRO, 200 * MICRO, 800 * MICRO, 100 * MICRO)], 0.1
    )
    document = Document(
        MODEL, 2, (RouteArm("primary", "1", "primary", 8000), RouteArm("canary", "2", "canary", 2000))
    )
    rollout.labelled = Labelled(600 * MICRO, 2000 * MICRO, 1600 * MICRO, 8000 * MICRO)
    assert decide(rollout, document, Policy(), 3, "score") == []
    assert summary(rollout)["labels_even"] is False
    rollout.labelled = Labelled(600 * MICRO, 2000 * MICRO, 2400 * MICRO, 8000 * MICRO)
    assert [each.cause for each in decide(rollout, document, Policy(), 3, "score")] == ["harm.wrong"]
