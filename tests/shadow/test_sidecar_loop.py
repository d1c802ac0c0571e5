"""The sidecar's loop on a clock of the test's: when it ticks, acts, raises alarms and renews leases."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.audit.event import Gap, Heartbeat, Verdict
from gateway.settings import Policy
from shadow import runner as runner_module
from shadow import sidecar as sidecar_module
from shadow.act import Acted
from shadow.sidecar import LACKING_S, QUIET_TICK_S, REFUSED_S
from shadow.state import Settings
from tests.gateway.audit.sim import Log
from tests.shadow.play import Arm, traffic
from tests.shadow.story import MODEL, FakeActor, Stage, prediction, recording, route

FAILING = {"primary": (8000, Arm("1", 0.01)), "canary": (2000, Arm("2", 0.3))}
WELL = {"primary": (8000, Arm("1")), "canary": (2000, Arm("2"))}


class Clock:
    """Stands still but for `pass_s`; beside it real time goes on, for the recorder's thread."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._began_ns = time.time_ns()
        self.passed_s = 0.0
        self.jumped_s = 0.0

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return self._began_s + self.passed_s

    def time_ns(self) -> int:
        """What the wall clock shows."""
        return self._began_ns + int((self.passed_s + self.jumped_s) * 1e9)

    sleep = staticmethod(time.sleep)


class Loop:
    """A sidecar, its log and its clock."""

    def __init__(self, stage: Stage, clock: Clock) -> None:
        self.stage = stage
        self.clock = clock
        self.actor: FakeActor = stage.actor
        self.is_present = True
        """Whether idle sources write."""
        self.stage.sidecar.adopt([])
        self.stage.say(route(1), route(2, canary="2", weight_bp=2000))

    def say(self, arms: dict[str, tuple[int, Arm]], seed: int = 0, count: int = 100, **more: Any) -> None:
        """Traffic that happens now."""
        more.setdefault("at_ns", self.clock.time_ns())
        for event in traffic(count, 2, arms, seed, **more):
            self.stage.workers[0].append_events([event])
        self.stage.say()

    def step(self, pass_s: float = 0.0) -> int:
        """Time passes, then a turn; returns the number of the last tick."""
        self.clock.passed_s += pass_s
        if self.is_present:
            for idle in (self.stage.control, *self.stage.workers):
                idle.append_events([Heartbeat(at_ns=self.clock.time_ns())])
            self.stage.say()
        with recording(self.stage.recorder):
            self.stage.sidecar.step()
        return self.stage.sidecar.watch.state.tick

    def condemn(self) -> None:
        """Ticks until a rollback was decided; the actor was told of it."""
        for seed in range(6):
            self.say(FAILING, seed)
            self.step(1.0)
            if self.stage.sidecar.watch.state.rollouts.active[0].rolled_back:
                return
        raise AssertionError("nothing was decided")

    def alarms(self) -> list[Verdict]:
        """Alarm events in the log."""
        return [event for event in self.stage.verdicts() if event.kind == "alarm"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """In place of time, where the sidecar asks for it."""
    clock = Clock()
    monkeypatch.setattr(sidecar_module, "time", clock)
    monkeypatch.setattr(runner_module, "time", clock)
    return clock


def begin(tmp_path: Path, clock: Clock, **policy: Any) -> Loop:
    """A rollout of version 2 under a policy."""
    settings = Settings(policies={MODEL: Policy(**policy)})
    return Loop(Stage(Log(tmp_path / "state"), tmp_path / "models", settings), clock)


def test_ticks_come_by_time_and_not_for_nothing(tmp_path: Path, clock: Clock) -> None:
    """One each tick_s while something happens, else one a minute."""
    loop = begin(tmp_path, clock)
    loop.say(WELL)
    assert loop.step() == 0
    assert loop.step(1.0) == 1
    assert loop.step(1.0) == 1
    assert loop.step(QUIET_TICK_S - 3) == 1
    assert loop.step(1.0) == 1
    assert loop.step(1.0) == 2
    loop.say(WELL)
    assert loop.step(1.0) == 3


def test_a_tick_waits_for_its_route(tmp_path: Path, clock: Clock) -> None:
    """A revision that was served and not read yet is waited for, ten seconds at most."""
    loop = begin(tmp_path, clock)
    loop.stage.say(prediction(3, "primary", 10_000, "1"))
    assert loop.step(1.0) == 0
    loop.stage.say(route(3))
    assert loop.step() == 1
    loop.stage.say(prediction(9, "primary", 10_000, "1"))
    assert loop.step(1.0) == 1
    assert loop.step(LACKING_S - 1) == 1
    assert loop.step(1.0) == 2


def test_a_decision_is_acted_on_at_once(tmp_path: Path, clock: Clock) -> None:
    """In the turn of its tick, once, with its id and the time until which the log was read."""
    loop = begin(tmp_path, clock)
    loop.condemn()
    (pending,) = loop.actor.rolled_back
    (decision,) = [
        e for e in loop.stage.verdicts() if e.kind == "decision" and e.body["action"] == "rollback"
    ]
    assert pending.event == decision.id
    assert pending.says == decision.body["says"]
    assert abs(loop.actor.at_ns[0] - clock.time_ns()) < 2e9
    assert loop.actor.read_revisions == [2]
    loop.step(100.0)
    assert len(loop.actor.rolled_back) == 1


@pytest.mark.parametrize("policy", [{"ramp": "dry-run"}, {"on_harm": "alert"}, {"on_harm": "hold"}])
def test_what_is_not_to_be_acted_on(tmp_path: Path, clock: Clock, policy: dict[str, Any]) -> None:
    """A dry run, an alert and a hold stand in the log and change nothing."""
    loop = begin(tmp_path, clock, on_relative_drift="alert", **policy)
    for seed in range(6):
        loop.say({"primary": (8000, Arm("1", 0.02)), "canary": (2000, Arm("2", 0.15))}, seed)
        loop.step(1.0)
    assert [event.kind for event in loop.stage.verdicts()].count("decision") == 1
    assert loop.actor.rolled_back == []


def test_an_admin_that_is_away(tmp_path: Path, clock: Clock) -> None:
    """Tried each second, one alarm; done when it is back, however quiet the log is."""
    loop = begin(tmp_path, clock)
    loop.actor.outcome = "unreachable"
    loop.condemn()
    for _ in range(90):
        loop.step(1.0)
    assert len(loop.actor.rolled_back) == 91
    assert len(loop.alarms()) == 1
    assert "unreachable" in loop.alarms()[0].body["says"]
    assert clock.time_ns() - loop.actor.at_ns[-1] < 2e9, "its evidence stays young"
    loop.actor.outcome = "done"
    loop.step(1.0)
    loop.step(100.0)
    assert len(loop.actor.rolled_back) == 92


def test_a_frozen_route(tmp_path: Path, clock: Clock) -> None:
    """Refused: one alarm, tried again each ten seconds until the thaw."""
    loop = begin(tmp_path, clock)
    loop.actor.outcome = "refused"
    loop.condemn()
    for _ in range(int(REFUSED_S) * 3):
        loop.step(1.0)
    assert len(loop.actor.rolled_back) == 4
    assert [event.body["outcome"] for event in loop.alarms()] == ["refused"]


def test_a_conflict_is_no_alarm(tmp_path: Path, clock: Clock) -> None:
    """Someone changed the route just now: looked at again a second later."""
    loop = begin(tmp_path, clock)
    loop.actor.outcome = "conflict"
    loop.condemn()
    loop.actor.outcome = "done"
    loop.step(1.0)
    assert len(loop.actor.rolled_back) == 2
    assert loop.alarms() == []


def test_after_a_conflict_the_newer_route_counts(tmp_path: Path, clock: Clock) -> None:
    """A person raised the weight as the sidecar was about to act: the next act knows of that revision."""
    loop = begin(tmp_path, clock)
    loop.actor.outcome = "conflict"
    loop.condemn()
    loop.stage.say(route(3, canary="2", weight_bp=3000))
    loop.actor.outcome = "done"
    loop.step(1.0)
    assert loop.actor.read_revisions == [2, 3]


def test_the_rollout_ended_otherwise(tmp_path: Path, clock: Clock) -> None:
    """A person took the weight away while the admin was not to be reached: nothing is left to do."""
    loop = begin(tmp_path, clock)
    loop.actor.outcome = "unreachable"
    loop.condemn()
    loop.stage.say(route(3))
    loop.step(1.0)
    tried = len(loop.actor.rolled_back)
    loop.step(30.0)
    assert len(loop.actor.rolled_back) == tried


def test_carried_out_after_both_restart(tmp_path: Path, clock: Clock) -> None:
    """Decided while the admin was down; the sidecar dies, too; both come back into a quiet log."""
    loop = begin(tmp_path, clock)
    loop.actor.outcome = "unreachable"
    loop.condemn()
    loop.stage.die()
    loop.actor.rolled_back.clear()
    loop.actor.outcome = "done"
    loop.stage.succeed()
    loop.step(0.5)
    assert loop.actor.rolled_back == []
    loop.step(1.0)
    assert len(loop.actor.rolled_back) == 1
    assert clock.time_ns() - loop.actor.at_ns[-1] < 2e9


def test_evidence_of_a_reader_that_lags_is_old(tmp_path: Path, clock: Clock) -> None:
    """What was read is an hour old: decided, and not acted on before the present was read."""
    loop = begin(tmp_path, clock)
    loop.is_present = False
    clock.passed_s += 3600
    for seed in range(6):
        loop.say(FAILING, seed, at_ns=clock.time_ns() - 3600 * 10**9)
        loop.step(1.0)
    assert loop.stage.sidecar.watch.state.rollouts.active[0].rolled_back
    assert loop.actor.rolled_back == []
    loop.is_present = True
    loop.step(1.0)
    assert len(loop.actor.rolled_back) == 1


@pytest.mark.parametrize("jump_s", [-86_400, 86_400])
def test_wall_clock_jumps_while_it_runs(tmp_path: Path, clock: Clock, jump_s: int) -> None:
    """A day back or ahead: ticks go on, and so do decisions and acts."""
    loop = begin(tmp_path, clock, ramp="auto")
    loop.say(WELL)
    assert loop.step(1.0) == 1
    clock.jumped_s += jump_s
    loop.say(WELL)
    assert loop.step(1.0) == 2
    loop.actor.renewed.clear()
    loop.condemn()
    loop.say(WELL)
    loop.step(1.0)
    assert len(loop.actor.rolled_back) == 1


def renewals(loop: Loop, pass_s: float = 10.0) -> list[dict[str, frozenset[str]]]:
    """What was asked for in a turn that much later."""
    loop.actor.renewed.clear()
    loop.step(pass_s)
    return loop.actor.renewed


def test_leases_are_renewed_by_one_who_sees(tmp_path: Path, clock: Clock) -> None:
    """At a third of the shortest lease, while the present is read; not before anything was."""
    loop = begin(tmp_path, clock, ramp="auto", lease_s=15)
    loop.say(WELL)
    assert renewals(loop, 0.0) == [{MODEL: frozenset()}]
    assert renewals(loop, 4.9) == []
    assert renewals(loop, 0.2) == [{MODEL: frozenset()}]


def test_manual_ramps_have_no_leases(tmp_path: Path, clock: Clock) -> None:
    """Nothing is asked of the admin."""
    loop = begin(tmp_path, clock)
    loop.say(WELL)
    assert renewals(loop) == []


def test_no_lease_after_an_incomplete_tick(tmp_path: Path, clock: Clock) -> None:
    """Who does not see all cannot vouch; the next whole tick can, and a successor remembers."""
    loop = begin(tmp_path, clock, ramp="auto")
    gap = Gap(source=f"{loop.stage.workers[0].source.source:016x}", epoch=1, from_seq=1, to_seq=2, cause="x")
    gap.at_ns = clock.time_ns()
    loop.stage.say(gap)
    loop.say(WELL)
    assert renewals(loop) == []
    loop.stage.die()
    loop.stage.succeed()
    assert renewals(loop, 0.0) == []
    loop.say(WELL)
    assert renewals(loop) == [{MODEL: frozenset()}]


def test_no_lease_when_it_lags(tmp_path: Path, clock: Clock) -> None:
    """Reading stands an hour back: at most max_staleness_s is vouched for."""
    loop = begin(tmp_path, clock, ramp="auto", max_staleness_s=60)
    loop.is_present = False
    clock.passed_s += 3600
    loop.say(WELL, at_ns=clock.time_ns() - 61 * 10**9)
    assert renewals(loop, 0.0) == [{}]
    loop.is_present = True
    assert renewals(loop) == [{MODEL: frozenset()}]


def test_no_lease_from_a_log_that_stands_still(tmp_path: Path, clock: Clock) -> None:
    """No record came for over max_staleness_s, not even a heartbeat: it reads nothing, so it sees nothing."""
    loop = begin(tmp_path, clock, ramp="auto", max_staleness_s=60)
    loop.say(WELL)
    assert renewals(loop, 5.0) == [{MODEL: frozenset()}]
    read, loop.stage.sidecar.runner.read = loop.stage.sidecar.runner.read, lambda *_: 0  # type: ignore[method-assign]
    assert renewals(loop, 50.0) == [{MODEL: frozenset()}]
    assert renewals(loop, 20.0) == [{}], "no model"
    loop.stage.sidecar.runner.read = read  # type: ignore[method-assign]
    loop.say(WELL)
    assert renewals(loop) == [{MODEL: frozenset()}]


def test_a_source_that_ended_is_not_waited_for(tmp_path: Path, clock: Clock) -> None:
    """A worker less: its last record grows old, and the others are still seen."""
    loop = begin(tmp_path, clock, ramp="auto", max_staleness_s=60)
    loop.say(WELL)
    loop.stage.workers.pop().close()
    loop.step(100.0)
    loop.say(WELL)
    assert renewals(loop) == [{MODEL: frozenset()}]


def test_no_lease_while_one_worker_is_not_seen(tmp_path: Path, clock: Clock) -> None:
    """The others' records are young, its own are not: what it serves is not watched."""
    loop = begin(tmp_path, clock, ramp="auto", max_staleness_s=60)
    loop.say(WELL)
    loop.step(1.0)
    loop.stage.workers.pop()
    clock.passed_s += 100
    loop.say(WELL)
    assert renewals(loop, 0.0) == [{}]


def test_no_lease_for_a_condemned_version(tmp_path: Path, clock: Clock) -> None:
    """Its versions are named, so that no route that gives them weight is renewed."""
    loop = begin(tmp_path, clock, ramp="auto")
    loop.actor.outcome = "refused"
    loop.condemn()
    loop.say(WELL)
    assert renewals(loop) == [{MODEL: frozenset({"2"})}]


def test_a_lease_that_is_refused_is_told_once(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """In the process's own log; the next success is told, too."""
    loop = begin(tmp_path, clock, ramp="auto")
    loop.actor.lease = Acted("refused", "no")
    for _ in range(3):
        loop.say(WELL)
        loop.step(10.0)
    assert [record.message for record in caplog.records].count("lease") == 1


def test_a_record_that_no_frame_takes_is_cut_short(tmp_path: Path, clock: Clock) -> None:
    """Very many rollouts: their summaries are left out of the tick's record, which a replay does without."""
    loop = begin(tmp_path, clock)
    for number in range(400):
        for each in (route(1), route(2, canary="2")):
            name = f"model{number:03}{'x' * 200}"
            assert each.after is not None
            after = {**each.after, "model": name}
            loop.stage.control.append_events([msgspec.structs.replace(each, model=name, after=after)])
        loop.stage.say()
    while loop.stage.sidecar.runner.read():
        pass
    loop.condemn()
    ticks = [event.body for event in loop.stage.verdicts() if event.kind == "tick"]
    assert len(ticks) >= 1
    assert all("rollouts" not in body for body in ticks)
    assert len(loop.actor.rolled_back) == 1
    replayed = loop.stage.replayed()
    assert [one.differs for one in replayed.decisions] == [None]


def test_a_tick_of_large_answers_is_closed_early(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a tick holds in memory is bounded, whatever clients ask; whoever waits for a route waits no longer."""
    monkeypatch.setattr(sidecar_module, "HELD_MAX_BYTES", 120_000)
    loop = begin(tmp_path, clock)
    loop.say(WELL, count=50)
    assert loop.step() == 0
    loop.stage.say(*(prediction(9, "primary", 10_000, "1", scores=[0.3] * 2000) for _ in range(5)))
    assert loop.step() == 1
    assert loop.stage.sidecar.watch.tally.held_bytes == 0
    loop.say(WELL, 1)
    assert loop.step(0.5) == 1
    assert loop.step(0.5) == 2
    assert [event.body["tick"] for event in loop.stage.verdicts()] == [1, 2]
    assert loop.stage.replayed().state.counts == {"done": 155}
