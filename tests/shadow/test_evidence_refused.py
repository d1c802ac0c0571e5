"""Requests that got no answer of the version they were drawn for: refused by its signature, dead with a worker."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.audit.event import ModelFacts, Prediction
from shadow.harm import MICRO
from tests.shadow.play import TRUSTING, WORKERS, Play
from tests.shadow.story import MODEL, prediction, route


def on_trial(**more: Any) -> Play:
    """Version 2 has a tenth of the traffic since revision 2."""
    play = Play(**more)
    play.say(route(1), route(2, canary="2"))
    play.tick()
    return play


def failed(play: Play) -> tuple[float, float, float, float]:
    """Requests and failures of the canary and of the control, in requests."""
    (rollout,) = play.watch.state.rollouts.active
    of = rollout.evidence["failed"]
    return tuple(n / MICRO for n in (of.canary_requests, of.canary_bad, of.control_requests, of.control_bad))  # type: ignore[return-value]


def canary(**more: Any) -> Prediction:
    """A request to version 2."""
    return prediction(2, "canary", 1000, "2", **more)


def control(**more: Any) -> Prediction:
    """A request to version 1."""
    return prediction(2, "primary", 9000, "1", **more)


def refused(**more: Any) -> Prediction:
    """A request that version 2 refused by its own signature, or many of them."""
    count = more.pop("count", 1)
    event = canary(kind="refused", code="invalid_request", **more)
    return msgspec.structs.replace(event, status=400, count=count, received_ns=0 if count > 1 else 1)


def aborted(version: str, count: int = 1, model: str = MODEL) -> Prediction:
    """What a worker had admitted when it died."""
    return Prediction(
        kind="aborted", model=ModelFacts(name=model, version=version), status=0, code="aborted", count=count
    )


def test_a_canary_that_refuses_what_the_primary_takes_fails() -> None:
    """Each refusal that names its route, in sums too; it decides."""
    play = on_trial()
    play.say(refused(), refused(count=4), *(control() for _ in range(45)))
    play.tick()
    assert failed(play) == (5, 5, 45, 0)
    play.say(*(refused() for _ in range(5)), *(control() for _ in range(45)))
    play.tick()
    assert play.causes == ["hard_failure"]
    assert play.watch.state.counts == {"done": 90, "refused": 10}


def test_a_refusal_without_a_route_is_no_version_s() -> None:
    """Counted, and no more."""
    play = on_trial()
    play.say(msgspec.structs.replace(refused(), route=None), control())
    play.tick()
    assert failed(play) == (0, 0, 1, 0)
    assert play.watch.state.counts == {"done": 1, "refused": 1}


def test_a_sum_of_keyed_refusals_is_one() -> None:
    """One caller may be behind all of them."""
    play = on_trial(settings=TRUSTING)
    play.say(refused(count=9, reason="key"), control())
    play.tick()
    assert failed(play) == (9, 1, 1, 0)


def test_deaths_with_workers_are_failures_of_the_version() -> None:
    """Of canary and primary of the newest route, each death as one request; versions of no arm are nobody's."""
    play = on_trial()
    play.say(aborted("2"), aborted("3", 7), aborted("2", 7, model="other"), control())
    play.tick()
    assert failed(play) == (1, 1, 1, 0)
    play.say(aborted("2", 2), aborted("1", 6), control())
    play.tick()
    assert failed(play) == (1.25, 1.25, 2.75, 0.75)
    play.say(aborted("1", 90), worker=1)
    play.tick()
    assert failed(play) == (1.25, 1.25, 3.75, 1.75)


@pytest.mark.parametrize("died", [0, 5])
def test_a_canary_that_kills_its_workers_is_rolled_back(died: int) -> None:
    """Five workers die of it, one request each; with no death there is no decision."""
    play = on_trial()
    for death in range(5):
        play.say(*(control() for _ in range(9)), canary())
        if death < died:
            play.feed.deliveries.append([play.numbers.draw(aborted("2"), WORKERS[1], epoch=2 + death)])
            play.numbers.next[WORKERS[1]] = 0
        play.tick()
    assert bool(play.causes) == (died == 5)
