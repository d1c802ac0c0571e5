"""What a tick holds must not stop those that follow: a step that breaks on it is left out, and so it is in a replay."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from shadow.cli.drift import command as drift
from shadow.evidence import Evidence
from shadow.harm import MICRO
from shadow.labels import LabelJoin
from shadow.rollouts import Rollouts
from shadow.watch import Watch
from tests.gateway.audit.sim import Log
from tests.shadow.play import Play
from tests.shadow.story import SECOND_NS, Stage, labels, prediction, route

NO_ROWS = {"scores": []}


def on_trial(play: Play) -> Play:
    """Version 2 has a tenth of the traffic since revision 2."""
    play.say(route(1), route(2, canary="2"))
    play.tick()
    return play


def canary(**more: Any) -> Any:
    """A request to version 2."""
    return prediction(2, "canary", 1000, "2", **more)


def control(**more: Any) -> Any:
    """A request to version 1."""
    return prediction(2, "primary", 9000, "1", **more)


@pytest.mark.parametrize("alone", [True, False])
def test_a_request_without_rows(alone: bool) -> None:
    """There is nothing to score and nothing to label in it; what came beside it counts, as it does itself."""
    play = on_trial(Play())
    for _ in range(3):
        play.say(*(control(scores=[0.3] * 400) for _ in range(3)))
        play.tick()
    (of, *_) = play.say(control(**NO_ROWS), *([] if alone else [control(), canary(), canary(**NO_ROWS)]))
    play.say(labels((of, 0, 1)))
    play.tick()
    state = play.watch.state
    (rollout,) = state.rollouts.active
    assert (state.left_out, state.unread_scores, state.labels) == ({}, 0, {"late": 1})
    assert rollout.evidence["failed"].control_requests == (10 if alone else 11) * MICRO
    play.pass_time(100 * SECOND_NS)
    play.tick()
    assert play.store.join.waiting == 0


def breaks(on: Callable[..., bool], function: Any) -> Any:
    """The function, but it raises halfway for such arguments: what it did until then is done."""

    def made(*args: Any, **more: Any) -> Any:
        found = function(*args, **more)
        if on(*args):
            raise ZeroDivisionError("a test")
        return found

    return made


STEPS = {
    "clock": (Watch, "_set_clock"),
    "routes": (Rollouts, "apply"),
    "read": (Watch, "_read"),
    "arms": (Evidence, "fold_arms"),
    "shift": (Evidence, "fold_shift"),
    "serve": (LabelJoin, "serve"),
    "label": (LabelJoin, "label"),
    "mature": (Watch, "_account"),
    "decide": (Watch, "_decide"),
}


def poisoned(monkeypatch: pytest.MonkeyPatch, step: str, ticks: set[int]) -> Play:
    """Five ticks of a canary that fails; in some of them a step raises after its work."""
    play = on_trial(Play())
    owner, name = STEPS[step]
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, breaks(lambda *_: play.watch.state.tick in ticks, original))
    for tick in range(5):
        at_ns = (tick * 100 + 1) * SECOND_NS
        play.say(*(control(at_ns=at_ns) for _ in range(20)), route(3 + tick, canary="2"))
        ids = play.say(*(canary(at_ns=at_ns, kind="failed") for _ in range(3)), canary(at_ns=at_ns))
        play.say(labels((ids[-1], 0, 1)))
        play.pass_time(at_ns)
        play.tick()
    monkeypatch.setattr(owner, name, original)
    return play


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_breaks_is_left_out(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One tick's evidence is gone and it says so; the next ticks are as they were, and so are their decisions."""
    play = poisoned(monkeypatch, step, {3})
    state = play.watch.state
    assert state.tick == 6
    assert set(state.left_out) == {step}
    assert (state.incomplete_ticks, state.complete) == (1, True)
    (rollout,) = state.rollouts.active
    assert rollout.evidence["failed"].canary_bad == 12 * MICRO
    assert play.causes
    assert state.counts["failed"] == 15


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_always_breaks(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tick is incomplete and none is lost: requests are counted, and whatever does not rest on it goes on."""
    play = poisoned(monkeypatch, step, set(range(9)))
    assert play.watch.state.tick == 6
    assert play.watch.state.left_out[step] >= play.watch.state.incomplete_ticks >= 3
    assert play.watch.state.counts["failed"] == 15


def test_nothing_of_a_broken_step_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left out by its record or by itself: byte-equal state and the same waiting predictions."""
    states = []
    for told in (False, True):
        play = on_trial(Play())
        play.say(*(control() for _ in range(4)), canary(kind="failed"))
        with monkeypatch.context() as patched:
            if told:
                whole = play.watch.close
                patched.setattr(
                    play.watch, "close", lambda tick, fate, of=whole: of(tick, fate, ("serve flights/1",))
                )
            else:
                patched.setattr(LabelJoin, "serve", breaks(lambda *_: True, LabelJoin.serve))
            play.tick()
        assert play.watch.left_out == ("serve flights/1",)
        states.append((msgspec.msgpack.encode(play.watch.state), play.store.join.waiting))
    assert states[0] == states[1]
    assert states[0][1] == 0


@pytest.mark.parametrize("exc", [sqlite3.OperationalError("disk"), OSError(28, "full"), MemoryError()])
def test_what_is_no_fault_of_the_tick_is_raised(exc: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk passes: the tick is made again, and nothing is left out of it."""
    play = on_trial(Play())

    def fails(*_: Any) -> None:
        raise exc

    monkeypatch.setattr(LabelJoin, "serve", fails)
    play.say(control())
    with pytest.raises(type(exc)):
        play.tick()


def test_a_replay_leaves_out_what_was_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of the tick names the step; folding the log again, without the fault, gives the same state."""
    stage = Stage(Log(tmp_path / "state"), tmp_path)
    stage.sidecar.adopt([])
    stage.say(route(1), route(2, canary="2", weight_bp=2000))
    for tick in range(4):
        requests = [prediction(2, "primary", 8000, "1") for _ in range(10)]
        stage.say(*requests, *(prediction(2, "canary", 2000, "2", kind="failed") for _ in range(5)))
        with monkeypatch.context() as patched:
            if tick == 1:
                patched.setattr(Evidence, "fold_arms", breaks(lambda *_: True, Evidence.fold_arms))
            stage.tick()
    second = next(each for each in stage.verdicts() if each.body.get("tick") == 2)
    assert (second.body["left_out"], second.body["complete"]) == (["arms"], False)
    replayed = stage.replayed()
    assert msgspec.msgpack.encode(replayed.state) == msgspec.msgpack.encode(stage.sidecar.watch.state)
    assert replayed.state.left_out == {"arms": 1}
    assert [one.differs for one in replayed.decisions] == [None] * len(replayed.decisions) != []
    (stage.log.state_dir / "gateway_id").write_text("sim")
    options = ["--state-dir", str(stage.log.state_dir), "--models", str(tmp_path)]
    said = CliRunner().invoke(drift, ["report", *options, "--gateway", stage.sidecar._parts.gateway_id])
    assert said.exit_code == 0, said.output
    assert "left out: arms 1" in " ".join(said.output.split())
