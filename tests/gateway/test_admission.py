"""Admission: who is refused at once, and what that does for goodput under overload. On a simulated clock."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from gateway import config as configuration
from gateway.admission import Admission
from gateway.api.problems import answered
from gateway.batching import Inference, VersionQueue, order_ns
from gateway.cost import CostModel
from gateway.errors import Overloaded
from gateway.head import Head
from tests.gateway.path import Path_, SumSession

MS = 1_000_000


class Fake(SimpleNamespace):
    """A version; hashed by identity, as the real ones are."""

    __hash__ = object.__hash__


class Lane:
    """One simulated lane: when it is free, and what it takes the run for."""

    def __init__(self) -> None:
        self.count = 1
        self.free_ns = 0
        self.until_ns = 0

    def wait_ns(self, now_ns: int) -> int:
        return abs(self.until_ns - now_ns) if self.free_ns > now_ns else 0


class Simulation:
    """Open-loop arrivals at a model on one lane, with the real queue, cost and admission."""

    def __init__(self, run_ns, *, timeout_ms: int = 1000, seed: int = 1, trial: float = 1.0) -> None:
        self.rng = random.Random(seed)
        self.run_ns = run_ns
        config, _ = configuration.load(overrides=[f"data.request_timeout_ms={timeout_ms}"], environ={})
        self.lane = Lane()
        self.version = Fake(
            model="m", version="1", hung=0, json_rows=1 << 20, ran_ns=0, on_lane=True,
            queue=VersionQueue(batchable=True),
            cost=CostModel({1: int(run_ns(1) * trial), 32: int(run_ns(32) * trial)}, 256),
        )  # fmt: skip
        appender = SimpleNamespace(fails=False)
        waiting = {self.version: None}
        self.admission = Admission(config, None, appender, None, self.lane, waiting)
        self.entry = SimpleNamespace(turn_away_until_ns=0)
        self.head = Head("m", None, None, "")
        self.answered = self.admitted = self.expired = self.rows_done = self.refused = 0

    def arrive(self, now_ns: int, rows: int = 1, timeout_ms: int = 1000, priority: int = 0) -> bool:
        one = Inference(SimpleNamespace(disconnected=False), now_ns, rows=rows, decoded_ns=now_ns)
        one.deadline_ns = now_ns + timeout_ms * MS
        one.order_ns = order_ns(now_ns, one.deadline_ns, priority)
        if now_ns < self.entry.turn_away_until_ns and not priority:
            self.refused += 1
            return False
        try:
            self.admission.check(self.entry, self.version, one)
        except Overloaded as exc:
            self.refused += 1
            self.told = str(exc)
            return False
        self.admitted += 1
        self.version.queue.put(one)
        return True

    def work(self, now_ns: int) -> None:
        """Runs that can have started until now."""
        version, lane = self.version, self.lane
        while version.queue and lane.free_ns <= now_ns:
            start_ns = max(lane.free_ns, self.idle_ns)

            def drop(one: Inference, expired: bool) -> None:
                self.expired += 1

            batch = version.queue.cut(start_ns, "lane_free", version.cost, drop)
            if batch is None:
                return
            took_ns = int(self.run_ns(batch.rows) * self.rng.lognormvariate(0, 0.1))
            if self.rng.random() < 0.01:
                took_ns += 30 * MS
            lane.until_ns = start_ns + version.cost.wall_ns(batch.rows)
            last_ns = max(one.deadline_ns for one in batch.inferences)
            lane.free_ns = version.ran_ns = min(start_ns + took_ns, last_ns)
            if start_ns + took_ns <= last_ns:
                version.cost.learn(batch.rows, took_ns, took_ns)
            else:
                let_ns = last_ns - start_ns
                version.cost.stopped(batch.rows, let_ns, let_ns)
                self.expired += len(batch.inferences)
                continue
            for one in batch.inferences:
                if one.deadline_ns >= lane.free_ns:
                    self.answered += 1
                    self.rows_done += one.rows
                else:
                    self.expired += 1

    def load(self, times: float, seconds: float, **request) -> float:
        """Offer so many times the capacity; returns the goodput as a share of capacity."""
        best = min((self.run_ns(rows) + 0.3 * MS) / rows for rows in (1, 8, 32, 128, 256))
        mean_ns = best / times
        end_ns = seconds * 1e9
        now = 0.0
        self.idle_ns = 0
        while now < end_ns:
            now += self.rng.expovariate(1 / mean_ns)
            self.work(int(now))
            self.idle_ns = int(now)
            self.arrive(int(now), **request)
            self.work(int(now))
        return self.rows_done * best / end_ns


@pytest.mark.parametrize("times", [2, 10])
@pytest.mark.parametrize(
    "run_ns",
    [
        lambda rows: 5 * MS * rows * (1 + 0.1 * (rows.bit_length() - 1)),
        lambda rows: 20 * MS + 0.5 * MS * rows,
    ],
    ids=["dearer in company", "cheaper in company"],
)
def test_goodput_holds_under_overload_and_who_is_taken_is_answered(times: int, run_ns) -> None:
    """At 2 and 10 times capacity the goodput is at least 90% of it, and at most one in a thousand taken expires."""
    simulation = Simulation(run_ns)
    goodput = simulation.load(times, 10)
    assert goodput >= 0.9
    assert simulation.expired <= 0.001 * simulation.admitted


@pytest.mark.parametrize("trial", [0.5, 0.2])
def test_a_model_slower_than_its_trial_said_gives_goodput_though_its_runs_are_stopped(trial: float) -> None:
    """Runs stopped at their deadlines make the next ones smaller, until they end in time."""
    simulation = Simulation(lambda rows: 40 * MS + 4 * MS * rows, timeout_ms=200, trial=trial)
    assert simulation.load(3, 10, timeout_ms=200) >= 0.25


def test_below_capacity_nobody_is_refused() -> None:
    """At 70% of capacity with a deadline of a second every request is taken and answered."""
    simulation = Simulation(lambda rows: 5 * MS * rows)
    simulation.load(0.7, 20)
    assert simulation.refused == 0
    assert simulation.expired == 0


def test_what_cannot_be_answered_in_time_even_alone_is_refused() -> None:
    """A run that takes longer than the deadline allows is not begun."""
    simulation = Simulation(lambda rows: 50 * MS * rows)
    simulation.version.ran_ns = 1
    assert not simulation.arrive(2, timeout_ms=40)
    assert simulation.told.endswith(
        "would need 50 ms, the deadline is in 40 ms; give it more time, or fewer rows"
    )
    assert simulation.arrive(2, timeout_ms=60)


def test_a_version_that_seemed_too_slow_is_tried_again() -> None:
    """What was learnt may be over: after a second without a run one request is taken whatever the estimate."""
    simulation = Simulation(lambda rows: 5000 * MS * rows)
    simulation.version.ran_ns = 1
    assert not simulation.arrive(500 * MS)
    assert simulation.arrive(1002 * MS)


def test_who_would_pass_others_must_leave_them_their_time() -> None:
    """A request with an earlier deadline is refused where those behind it would expire for its sake."""
    simulation = Simulation(lambda rows: 10 * MS * rows)
    simulation.version.ran_ns = 1
    taken = 0
    while simulation.arrive(2, timeout_ms=1000):
        taken += 1
    assert 60 <= taken <= 100
    assert simulation.arrive(2 + 5 * MS, timeout_ms=500)
    assert not simulation.arrive(2 + 5 * MS, rows=38, timeout_ms=500)


def test_a_refusal_stands_for_those_that_come_next() -> None:
    """After one refusal requests of no more time and no priority, for no version, are turned away by their head, for
    2 ms."""
    simulation = Simulation(lambda rows: 10 * MS * rows)
    while simulation.arrive(5):
        pass
    assert 5 < simulation.entry.turn_away_until_ns <= 5 + 2 * MS
    admission, head = simulation.admission, simulation.head
    assert admission.would_fare_no_better(head, b'{"inputs":[]}')
    assert not admission.would_fare_no_better(head, b'{"inputs":[],"parameters":{"priority":1}}')
    assert not admission.would_fare_no_better(head, b'{"inputs":[],"parameters":{"timeout":9000000}}')
    assert not admission.would_fare_no_better(Head("m", None, None, "", timeout_ms=5000), b"")
    assert not admission.would_fare_no_better(Head("m", "1", None, ""), b"")
    assert not admission.would_fare_no_better(Head("m", None, None, "", variant="canary"), b"")


def test_who_is_turned_away_is_told_logged_and_counted(tmp_path: Path) -> None:
    """Replies made before: 503, a code, when to come again; a hundred a second have an event each, the others
    a sum; every one is counted."""

    async def main() -> None:
        session = SumSession()
        session.inline_allowed = False
        path = Path_(tmp_path, session=session)
        entry = path.models.get("sum")
        entry.turn_away_until_ns = time.perf_counter_ns() + 60_000_000_000
        before = answered[Overloaded.code]
        sinks = [path.send([1, 0, 0, 0]) for _ in range(150)]
        assert {(s.status, s.body["code"]) for s in sinks} == {(503, "overloaded")}
        assert all(1 <= int(s.fields["retry-after"]) <= 3 for s in sinks)
        admission = path.core.admission
        assert answered[Overloaded.code] - before + admission.turned_away == admission.refused == 150
        path.core.turn()
        path.appender.flush_sums()
        events = path.predictions()
        assert {(e.kind, e.code, e.model.name) for e in events} == {("refused", "overloaded", "sum")}
        assert sum(e.count for e in events) == 150
        assert len(events) <= 103
        assert (session.runs, path.core.inflight) == ([], 0)
        path.close()

    asyncio.run(main())
