"""What a log may hold that nobody meant: clocks that jump, files that changed, outputs that are not declared."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.audit.event import Tensor
from shadow.state import Settings
from shadow.watch import CLOCK_EVENTS
from tests.shadow.play import LABELLED, Arm, Play, Shelf, reference, traffic
from tests.shadow.story import DAY_NS, MODEL, SECOND_NS, labels, prediction, route

YEAR_2100_NS = 4_102_444_800 * SECOND_NS
NOON_NS = 20_000 * DAY_NS


def by_event() -> Play:
    """A watch whose clock is the callers'."""
    play = Play(settings=Settings(clock="event"))
    play.say(route(1))
    return play


def at(event_ns: Any, **more: Any) -> Any:
    """A request that names its time."""
    return prediction(1, "primary", 10_000, "1", **{"event_ns": event_ns, "at_ns": NOON_NS, **more})


@pytest.mark.parametrize("ahead_ns", [DAY_NS + 1, 365 * DAY_NS])
def test_a_time_that_has_not_come_is_none(ahead_ns: int) -> None:
    """However many callers say so; half a day ahead is a clock that differs."""
    play = by_event()
    play.say(*(at(NOON_NS + DAY_NS // 2) for _ in range(CLOCK_EVENTS)))
    play.tick()
    assert play.watch.state.clock_ns == NOON_NS + DAY_NS // 2
    for _ in range(3):
        play.say(*(at(NOON_NS + ahead_ns) for _ in range(50)))
        play.tick()
    assert play.watch.state.clock_ns == NOON_NS + DAY_NS // 2
    assert play.store.join.waiting == 150 + CLOCK_EVENTS


@pytest.mark.parametrize("odd_ns", [YEAR_2100_NS, 1, 2**62, 2**64 - 1, -5, 0, "noon", 1.5, None])
def test_one_event_does_not_move_the_clock(odd_ns: Any) -> None:
    """A time in 2100, 1970, beyond all numbers or none at all, alone in its tick or among others."""
    play = by_event()
    play.say(*(at(NOON_NS + i) for i in range(CLOCK_EVENTS)))
    play.tick()
    clock_ns = play.watch.state.clock_ns
    assert clock_ns == NOON_NS + CLOCK_EVENTS // 2
    for _ in range(3):
        play.say(at(odd_ns))
        play.tick()
        assert play.watch.state.clock_ns == clock_ns
        play.say(*(at(NOON_NS + 10 + i) for i in range(CLOCK_EVENTS)))
        play.tick()
        clock_ns = play.watch.state.clock_ns
        assert NOON_NS + 10 <= clock_ns <= NOON_NS + 20
    assert play.store.join.waiting > 3 * CLOCK_EVENTS


def test_a_clock_that_was_wrong_is_right_again() -> None:
    """A burst of wrong times moves the clock while it lasts: labels of later predictions are not lost to it."""
    play = by_event()
    play.say(*(at(YEAR_2100_NS, at_ns=YEAR_2100_NS) for _ in range(9)))
    play.tick()
    assert play.watch.state.clock_ns == YEAR_2100_NS
    (of, *_) = play.say(*(at(NOON_NS) for _ in range(9)))
    play.say(labels((of, 0, 0), at_ns=NOON_NS))
    play.tick()
    assert play.watch.state.clock_ns == NOON_NS
    assert play.watch.state.labels == {"kept": 1}


def test_few_events_move_the_clock_together() -> None:
    """One event a tick: the first sets the clock, then it follows each fifth."""
    play = by_event()
    for i in range(2 * CLOCK_EVENTS):
        play.say(at(NOON_NS + i))
        play.tick()
        assert play.watch.state.clock_ns == NOON_NS + (0 if i < 4 else 2 if i < 9 else 7)
    assert play.watch.state.times == []


@pytest.mark.parametrize("jump_ns", [-DAY_NS, DAY_NS])
def test_wall_clock_jumps(jump_ns: int) -> None:
    """A day back or ahead, in records and in ticks: the canary that fails is found all the same, no tick is lost."""
    play = Play()
    play.shelf.references["1"] = reference([i / 100 for i in range(100)])
    play.at_ns = NOON_NS
    play.say(route(1), route(2, canary="2", weight_bp=2000))
    arms = {"primary": (8000, Arm("1", failing=0.01)), "canary": (2000, Arm("2", failing=0.12))}
    for tick in range(8):
        if tick == 2:
            play.at_ns += jump_ns
        play.say(*traffic(200, 2, arms, tick, at_ns=play.at_ns))
        play.tick()
    assert play.watch.state.tick == 8
    assert play.causes == ["harm.failed"]


def hashed(event: Any) -> Any:
    """The same record, outputs by hash."""
    outputs = [Tensor(t.name, t.datatype, t.shape, None, "ab" * 32) for t in event.outputs]
    return msgspec.structs.replace(event, outputs=outputs)


def test_outputs_by_hash() -> None:
    """No score and no label, and that is told; failures count."""
    play = Play()
    play.say(route(1), route(2, canary="2", weight_bp=2000))
    play.say(*(hashed(prediction(2, "canary", 2000, "2")) for _ in range(3)))
    play.say(prediction(2, "canary", 2000, "2", kind="failed"), prediction(2, "primary", 8000, "1"))
    play.tick()
    assert play.watch.state.unread_scores == 3
    assert play.store.join.waiting == 1
    (rollout,) = play.watch.state.rollouts.active
    assert rollout.evidence["failed"].canary_requests == 4_000_000


@pytest.mark.parametrize(
    "outputs",
    [
        [Tensor("other", "FP32", (1, 2), bytes(8))],
        [Tensor("probabilities", "FP32", (1, 1), bytes(4))],
        [Tensor("probabilities", "FP32", (1, 2), bytes(7))],
        [],
    ],
    ids=["another name", "a column too few", "broken", "none"],
)
def test_outputs_that_are_not_declared(outputs: list[Tensor]) -> None:
    """No score for that request, told; those beside it in the tick keep theirs."""
    play = Play()
    play.say(route(1))
    good = prediction(1, "primary", 10_000, "1")
    play.say(good, msgspec.structs.replace(good, outputs=outputs), good)
    play.tick()
    assert play.watch.state.unread_scores == 1
    assert play.store.join.waiting == 2


def test_files_that_changed() -> None:
    """Settings are asked for by the record's digest; where these are not the files there are no labels, and
    failures count."""
    play = Play(Shelf(LABELLED, v2=None))
    play.say(route(1), route(2, canary="2", weight_bp=2000))
    (of,) = play.say(prediction(2, "canary", 2000, "2", tree_sha256="ab" * 32))
    play.say(prediction(2, "canary", 2000, "2", kind="failed"), prediction(2, "primary", 8000, "1"))
    play.say(labels((of, 0, 1)))
    play.tick()
    assert play.watch.state.labels == {"late": 1}
    assert play.watch.state.trees[MODEL]["2"] == "ab" * 32
    (rollout,) = play.watch.state.rollouts.active
    assert rollout.evidence["failed"].canary_bad == 1_000_000
