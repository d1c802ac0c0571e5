"""Batching: order, limits, and what is dropped."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from gateway.batching import CostModel, Inference, VersionQueue


def inference(deadline_ns: int = 10, rows: int = 1, key: object = None, gone: bool = False) -> Inference:
    made = Inference(SimpleNamespace(disconnected=gone), 0)
    made.deadline_ns, made.rows, made.key = deadline_ns, rows, key
    return made


@given(
    st.lists(st.tuples(st.integers(5, 50), st.integers(1, 9), st.booleans()), max_size=40), st.integers(1, 16)
)
def test_everything_queued_runs_once_or_is_dropped_once(items, max_rows: int) -> None:
    """Batches and drops together are exactly what was put; rows never exceed the limit but for one request."""
    queue = VersionQueue(max_rows, batchable=True)
    put = [inference(deadline, rows, gone=gone) for deadline, rows, gone in items]
    for one in put:
        queue.put(one)
    dropped: list[Inference] = []
    ran: list[Inference] = []
    while (batch := queue.cut(20, "turn", lambda inf, expired: dropped.append(inf))) is not None:
        assert batch.rows == sum(i.rows for i in batch.inferences)
        assert batch.rows <= max_rows or len(batch.inferences) == 1
        ran += batch.inferences
    assert {id(i) for i in ran} | {id(i) for i in dropped} == {id(i) for i in put}
    assert len(ran) + len(dropped) == len(put)
    assert all(i.sink.disconnected or i.deadline_ns <= 20 for i in dropped)
    assert [i.deadline_ns for i in ran] == sorted(i.deadline_ns for i in ran)
    assert queue.rows == 0
    assert not queue


def test_requests_of_different_keys_do_not_share_a_run() -> None:
    """Shapes that differ beyond the rows cannot be joined."""
    queue = VersionQueue(8, batchable=True)
    for key in ("a", "b", "a"):
        queue.put(inference(key=key))
    sizes = []
    while (batch := queue.cut(0, "turn", lambda *_: None)) is not None:
        assert len({i.key for i in batch.inferences}) == 1
        sizes.append(len(batch.inferences))
    assert sorted(sizes) == [1, 2]


def test_models_that_do_not_batch_run_alone() -> None:
    """One request a run, said in the cut reason."""
    queue = VersionQueue(8, batchable=False)
    queue.put(inference())
    queue.put(inference())
    batch = queue.cut(0, "turn", lambda *_: None)
    assert (len(batch.inferences), batch.cut) == (1, "single")


def test_cost_is_learnt_per_size() -> None:
    """An unknown size is scaled up from a smaller one, a known one is its own mean."""
    cost = CostModel({1: 1000, 32: 8000})
    assert cost.estimate_ns(1) == 1000
    assert cost.estimate_ns(32) == 8000
    assert cost.estimate_ns(64) == 16_000
    for _ in range(200):
        cost.learn(64, 9000)
    assert abs(cost.estimate_ns(64) - 9000) < 100
