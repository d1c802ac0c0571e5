"""Batching: order, limits, and what is dropped."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from gateway.batching import CUT_REASONS, Inference, VersionQueue, order_ns

IDLE = SimpleNamespace(limit_rows=8, whole_rows=8, limit_ns=0)


def cost(limit_rows: int, ns_per_row: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        limit_rows=limit_rows,
        whole_rows=limit_rows,
        limit_ns=limit_rows * ns_per_row,
        rows_within=lambda ns: min(ns // max(ns_per_row, 1), limit_rows),
    )


def inference(
    deadline_ns: int = 10, rows: int = 1, key: object = None, gone: bool = False, priority: int = 0
) -> Inference:
    made = Inference(SimpleNamespace(disconnected=gone), 0)
    made.deadline_ns, made.rows, made.key = deadline_ns, rows, key
    made.order_ns = order_ns(0, deadline_ns, priority)
    return made


def drain(queue: VersionQueue, now_ns: int = 0, **kinds) -> list:
    batches = []
    while (
        batch := queue.cut(now_ns, "turn", kinds.get("cost", IDLE), kinds.get("drop", lambda *_: None))
    ) is not None:
        batches.append(batch)
    return batches


REQUESTS = st.lists(
    st.tuples(st.integers(5, 50), st.integers(1, 9), st.booleans(), st.integers(0, 4), st.sampled_from("ab")),
    max_size=40,
)


@given(REQUESTS, st.integers(1, 16))
def test_everything_queued_runs_once_or_is_dropped_once(items, max_rows: int) -> None:
    """Batches and drops together are exactly what was put; rows never exceed the limit but for one request."""
    queue = VersionQueue(batchable=True)
    put = [inference(deadline, rows, key, gone, level) for deadline, rows, gone, level, key in items]
    for one in put:
        queue.put(one)
    dropped: list[Inference] = []
    batches = drain(queue, 20, cost=cost(max_rows), drop=lambda inf, expired: dropped.append(inf))
    ran = [i for batch in batches for i in batch.inferences]
    for batch in batches:
        assert batch.rows == sum(i.rows for i in batch.inferences)
        assert batch.rows <= max_rows or len(batch.inferences) == 1
        assert len({i.key for i in batch.inferences}) == 1
        assert batch.cut in CUT_REASONS
    assert {id(i) for i in ran} | {id(i) for i in dropped} == {id(i) for i in put}
    assert len(ran) + len(dropped) == len(put)
    assert all(i.sink.disconnected or i.deadline_ns <= 20 for i in dropped)
    firsts = [batch.inferences[0].order_ns for batch in batches]
    assert firsts == sorted(firsts)
    assert queue.rows == 0
    assert not queue


@given(REQUESTS, st.lists(st.integers(0, 40), max_size=10))
def test_the_most_urgent_is_next_whatever_came_between(items, cuts) -> None:
    """Puts and cuts in any order: each cut begins with the earliest place of all that wait, of whichever key."""
    queue = VersionQueue(batchable=True)
    waiting: list[Inference] = []
    for n, (deadline, rows, _, level, key) in enumerate(items):
        one = inference(100 + deadline, rows, key, priority=level)
        waiting.append(one)
        queue.put(one)
        if n in cuts:
            first = min(i.order_ns for i in waiting)
            assert queue.first_ns == first
            batch = queue.cut(0, "turn", cost(4), lambda *_: None)
            assert batch.inferences[0].order_ns == first
            for ran in batch.inferences:
                waiting.remove(ran)
        assert queue.rows == sum(i.rows for i in waiting)


@given(REQUESTS, st.integers(0, 200))
def test_rows_before_a_place_are_those_that_run_before(items, place: int) -> None:
    """Where requests have one row each, admission's reckoning of what is ahead is exact."""
    queue = VersionQueue(batchable=True)
    put = [inference(deadline, 1, key, priority=level) for deadline, _, _, level, key in items]
    for one in put:
        queue.put(one)
    if put:
        assert queue.rows_before(place) == sum(i.order_ns <= place for i in put)
        assert all(i.order_ns > place for _, i in queue.behind(place))


def test_a_priority_draws_nearer_and_starves_nobody() -> None:
    """Priority 1 passes what came with it, not a request that has waited three quarters of its time."""
    queue = VersionQueue(batchable=False)
    old, peer, urgent = inference(100), inference(175), inference()
    urgent.received_ns, urgent.deadline_ns = 76, 176
    urgent.order_ns = order_ns(76, 176, 1)
    for one in (peer, urgent, old):
        queue.put(one)
    assert [b.inferences[0] for b in drain(queue)] == [old, urgent, peer]
    assert [order_ns(0, 100, p) for p in (0, 1, 2, 3, 4)] == [100, 25, 50, 75, 100]


def test_requests_of_different_keys_do_not_share_a_run() -> None:
    """Shapes that differ beyond the rows cannot be joined."""
    queue = VersionQueue(batchable=True)
    for key in ("a", "b", "a"):
        queue.put(inference(key=key))
    assert sorted(len(batch.inferences) for batch in drain(queue)) == [1, 2]


def test_models_that_do_not_batch_run_alone() -> None:
    """One request a run, said in the cut reason."""
    queue = VersionQueue(batchable=False)
    queue.put(inference())
    queue.put(inference())
    assert [(len(b.inferences), b.cut) for b in drain(queue)] == [(1, "single")] * 2


def test_a_batch_is_no_larger_than_its_first_deadline_allows() -> None:
    """With more rows the run would end too late for the most urgent of them; the reason is in the cut."""
    queue = VersionQueue(batchable=True)
    for deadline_ns in (50, 60, 70, 1000):
        queue.put(inference(deadline_ns, rows=2))
    batches = drain(queue, cost=cost(8, ns_per_row=10))
    assert [(b.rows, b.cut) for b in batches] == [(4, "deadline"), (4, "turn")]
