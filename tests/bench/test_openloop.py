"""The open loop under virtual time: a stalled server yields the latencies that the due times imply."""

from __future__ import annotations

import heapq

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.arrivals import schedule
from bench.openloop import OpenLoop, Records
from bench.outcome import outcome

MS = 1_000_000


def serve(due_ns, connections: int, begins_ns, service_ns: int) -> Records:
    """Run an open loop against a server with one queue, in virtual time.

    Args:
        begins_ns: when a request that could begin at a time does begin (a stall moves it on).
    """
    loop: OpenLoop[int] = OpenLoop(due_ns, range(connections))
    replies: list[tuple[int, int, int]] = []
    now = free_at = 0
    while not loop.is_over:
        for connection, number in loop.advance(now):
            free_at = begins_ns(max(now, free_at)) + service_ns
            heapq.heappush(replies, (free_at, connection, number))
        times = [t for t in (loop.next_due_ns, replies[0][0] if replies else None) if t is not None]
        now = min(times)
        while replies and replies[0][0] <= now:
            _, connection, number = heapq.heappop(replies)
            loop.answer(number, 200, now)
            loop.release(connection)
    return loop.records()


def stalled(now_ns: int) -> int:
    """A server that does nothing from second 1 to second 2."""
    return 2000 * MS if 1000 * MS <= now_ns < 2000 * MS else now_ns


def test_a_stall_is_seen_by_all_who_came_meanwhile() -> None:
    """With one connection and a stall of a second, latencies fall from 1 s to nothing over those due in it."""
    due_ns = np.arange(0, 4000 * MS, 10 * MS)
    records = serve(due_ns, 1, stalled, 10_000)
    took_ms = (records.done_ns - due_ns) / MS
    for number in range(100, 200):
        # Due at number x 10 ms, begun at 2 s in turn.
        assert abs(took_ms[number] - (2000 - 10 * number + 0.01 * (number - 99))) < 0.01
    assert took_ms[:100].max() < 0.02
    assert took_ms[300:].max() < 0.02


def test_counting_from_the_send_would_hide_it() -> None:
    """The same run counted from when a connection took the request shows one slow request: coordinated omission."""
    due_ns = np.arange(0, 4000 * MS, 10 * MS)
    records = serve(due_ns, 1, stalled, 10_000)
    from_send_ms = (records.done_ns - records.sent_ns) / MS
    assert (from_send_ms > 1).sum() == 1
    seen = outcome(records, seconds=4, end_ns=4000 * MS, codes={})
    assert (seen.latency_ms.p99, seen.latency_ms.max) > (900, 900)
    assert np.percentile(from_send_ms, 99) < 1
    assert seen.waited_for_connection == 99
    assert seen.sends_late == 0


def test_queue_of_a_poisson_load_is_the_textbooks() -> None:
    """Poisson arrivals at 80% of a server of constant service wait rho / (2 (1 - rho)) services on average (M/D/1)."""
    service_ns = MS
    due_ns = schedule("poisson", 800, 100, seed=5)
    records = serve(due_ns, 400, lambda now: now, service_ns)
    waited = (records.done_ns - due_ns) / service_ns - 1
    assert abs(waited.mean() - 0.8 / (2 * 0.2)) < 0.15


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=60).map(sorted),
    st.integers(1, 8),
    st.integers(1, 20),
)
def test_nothing_is_lost_and_order_is_kept(due, connections, service) -> None:
    """Each request is handed over when due, sent once in order of due time, answered once."""
    records = serve(np.array(due, np.int64), connections, lambda now: now, service)
    assert (records.status == 200).all()
    assert (records.handed_ns == records.due_ns).all()
    assert (np.diff(records.sent_ns) >= 0).all()
    assert (records.done_ns >= records.sent_ns + service).all()


def test_a_late_generator_says_so() -> None:
    """When the generator comes to requests late, sends are late and the outcome names it as the bottleneck."""
    due_ns = np.arange(0, 1000 * MS, 10 * MS)
    loop: OpenLoop[int] = OpenLoop(due_ns, range(200))
    for now in range(0, 1100 * MS, 50 * MS):
        for connection, number in loop.advance(now):
            loop.answer(number, 200, now)
            loop.release(connection)
    seen = outcome(loop.records(), seconds=1, end_ns=1100 * MS, codes={})
    assert seen.sends_late == 80
    assert seen.generator_limited


def test_what_is_unanswered_counts_with_its_wait() -> None:
    """A server that dies does not look quick: what had no reply by the end is as slow as the end."""
    due_ns = np.arange(0, 1000 * MS, 10 * MS)
    loop: OpenLoop[int] = OpenLoop(due_ns, range(100))
    for now in due_ns.tolist():
        for _, number in loop.advance(now):
            if number < 60:
                loop.answer(number, 200, now + MS)
    seen = outcome(loop.records(), seconds=1, end_ns=3000 * MS, codes={})
    assert (seen.ok, seen.errors) == (60, {"unanswered": 40})
    assert seen.latency_ms.p50 == 1.0
    assert seen.latency_ms.p90 == 2000 + 10 * 31


def test_goodput_is_what_came_in_time() -> None:
    """Under twice its capacity a server answers the rest later: its backlog is no goodput."""
    due_ns = np.arange(0, 4000 * MS, 5 * MS)
    records = serve(due_ns, 2000, lambda now: now, 10 * MS)
    seen = outcome(records, seconds=4, end_ns=9000 * MS, codes={})
    assert seen.ok == 800
    assert (seen.goodput_per_second, seen.steady_per_second) == (100, 100)
