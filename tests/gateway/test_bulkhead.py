"""A model with a share: its flood neither takes the lanes from others nor makes admission refuse them."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

from gateway import config as configuration
from gateway.admission import Admission
from gateway.batching import Inference, VersionQueue
from gateway.cost import CostModel
from gateway.fairness import Turns
from gateway.runs import Runs
from gateway.settings import ModelShare

MS = 1_000_000


class Fake(SimpleNamespace):
    """A version on a lane; hashed by identity, as the real ones are."""

    __hash__ = object.__hash__

    def runs_inline(self) -> bool:
        return self.inline


def version(model: str, run_ms: int = 10, *, inline: bool = False) -> Fake:
    """A version whose rows take so long, one a run."""
    return Fake(
        model=model, version="1", hung=0, json_rows=1 << 20, ran_ns=0, on_lane=True, linger_ns=0, inline=inline,
        inputs=1, queue=VersionQueue(batchable=False), cost=CostModel({1: run_ms * MS}, 1),
        session=SimpleNamespace(new_run_options=lambda: SimpleNamespace(terminate=False)),
    )  # fmt: skip


def wait(one: Fake, count: int, in_ms: int = 10_000) -> None:
    """Let requests wait for it, due in that time."""
    due_ns = time.perf_counter_ns() + in_ms * MS
    for _ in range(count):
        request = Inference(SimpleNamespace(disconnected=False), 0)
        request.deadline_ns = request.order_ns = due_ns
        one.queue.put(request)


class OneLane:
    """A lane that is free again as soon as the test says; keeps what it was given."""

    count = idle = 1

    def submit(self, job: object) -> None:
        self.idle = 0

    def close(self) -> None:
        """Nothing to end."""


def order(turns: Turns | None, *versions: Fake, runs: int) -> list[str]:
    """Whose run the lane gets, one after the other."""
    loop = asyncio.new_event_loop()
    made = Runs(loop, 1, SimpleNamespace(flush=lambda: None))
    made.lanes.close()
    made.lanes = lane = OneLane()  # type: ignore[assignment]
    made.turns = turns
    made.waiting.update(dict.fromkeys(versions))  # type: ignore[arg-type]
    got = []
    for _ in range(runs):
        before = {one.model: one.queue.rows for one in versions}
        lane.idle = 1
        made.work("lane_free")
        got += [one.model for one in versions if one.queue.rows < before[one.model]]
    made.close()
    loop.close()
    return got


def test_without_shares_the_most_urgent_is_next() -> None:
    """As ever."""
    flood, other = version("flood"), version("other")
    wait(flood, 20, in_ms=1000)
    wait(other, 5, in_ms=5000)
    assert order(None, flood, other, runs=8) == ["flood"] * 8


def test_lanes_go_in_turn_where_models_have_shares() -> None:
    """A model whose flood is more urgent has its weight of the runs, the other the rest."""
    flood, other = version("flood"), version("other")
    wait(flood, 60, in_ms=1000)
    wait(other, 60, in_ms=5000)
    got = order(Turns({"flood": ModelShare(share_pct=20)}), flood, other, runs=36)
    assert 5 <= got.count("flood") <= 7


def test_a_long_run_is_paid_for() -> None:
    """By time, not by runs: who has runs of ten times the length has a tenth of them."""
    heavy, light = version("heavy", 100), version("light", 10)
    wait(heavy, 60)
    wait(light, 60)
    got = order(Turns({}), heavy, light, runs=33)
    assert 2 <= got.count("heavy") <= 4


def test_admission_counts_no_more_than_the_others_share() -> None:
    """A queue of ten seconds for another model refuses nobody whose own model has a turn soon."""
    flood, other = version("flood"), version("other")
    wait(flood, 1000)
    config, _ = configuration.load(overrides=["limits.models.flood.share_pct=50"], environ={})
    lane = SimpleNamespace(count=1, wait_ns=lambda now_ns: 0)
    waiting = {flood: None}
    appender = SimpleNamespace(fails=False)
    now_ns = time.perf_counter_ns()
    one = Inference(SimpleNamespace(disconnected=False), now_ns, decoded_ns=now_ns)
    one.deadline_ns = one.order_ns = now_ns + 60_000 * MS
    shared = Admission(config, None, appender, None, lane, waiting)  # type: ignore[arg-type]
    assert shared._need_ns(other, one, 1, now_ns) < 60 * MS
    alone, _ = configuration.load(environ={})
    urgent = Admission(alone, None, appender, None, lane, waiting)  # type: ignore[arg-type]
    assert urgent._need_ns(other, one, 1, now_ns) > 5000 * MS


def test_a_turn_that_was_too_short_goes_on_with_the_others() -> None:
    """Runs on the loop: a model that used the turn up is behind those that had none of it."""
    loop = asyncio.new_event_loop()
    made = Runs(loop, 1, SimpleNamespace(flush=lambda: None))
    greedy, other = version("greedy", inline=True), version("other", inline=True)
    wait(greedy, 5)
    wait(other, 5)
    made.waiting.update(dict.fromkeys((greedy, other)))  # type: ignore[arg-type]
    ran = []

    def run(one: Fake, batch: SimpleNamespace) -> None:
        ran.append(one.model)
        batch.ended_ns = time.perf_counter_ns() + 20 * MS

    made._run_inline = run  # type: ignore[assignment, method-assign]
    for _ in range(4):
        assert made.work("turn")
    assert ran == ["greedy", "other", "greedy", "other"]
    made.close()
    loop.close()
