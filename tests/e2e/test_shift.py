"""Shifts: acknowledged changes hold in every worker, of two at once one wins, kills lose none."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from bench.serving import Gateway, Reply
from tests.e2e.splits import (
    CONNECTIONS,
    REQUEST,
    ask,
    canary_bp,
    connections_to_both,
    controls,
    revision,
    route,
    serving_two,
    shift,
    split,
    variants,
    within,
)
from tests.e2e.wire import Wire

AFTER = 2_000


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Two workers over two versions; version 2 is primary, version 1 a canary without weight."""
    with serving_two(tmp_path_factory.mktemp("shift")) as serving:
        split(serving, variants(0))
        yield serving


def test_weight_0_holds_in_every_worker_once_acknowledged(gateway: Gateway) -> None:
    """After the reply to a shift to 0, no request received later is answered by that version."""
    wires = connections_to_both(gateway)
    assert shift(gateway, 5_000).status == 200
    stop = threading.Event()

    def hammer(wire: Wire) -> Counter[tuple[str, str]]:
        seen: Counter[tuple[str, str]] = Counter()
        while not stop.is_set():
            seen += ask(wire, 5)
        return seen

    try:
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            running = [pool.submit(hammer, wire) for wire in wires]
            time.sleep(0.5)  # the change comes under load
            reply = shift(gateway, 0)
            stop.set()
            before = sum((future.result() for future in running), Counter())
            assert reply.status == 200, reply
            assert {version for _, version in before} == {"1", "2"}
            after = sum(pool.map(lambda wire: ask(wire, AFTER // CONNECTIONS + 1), wires), Counter())
        assert len({source for source, _ in after}) == 2, "both workers must have been asked"
        assert sum(after.values()) >= AFTER
        assert {version for _, version in after} == {"2"}
    finally:
        for wire in wires:
            wire.close()


def test_weight_0_holds_for_a_worker_that_starts_meanwhile(gateway: Gateway) -> None:
    """A worker is killed and the canary's weight taken away before its successor serves: once that is acknowledged,
    neither the one that was there nor the successor answers with that version."""
    assert shift(gateway, 5_000).status == 200
    killed = gateway.kill9("worker")
    within(lambda: shift(gateway, 0).status == 200)
    wires: list[Wire] = []
    seen: Counter[tuple[str, str]] = Counter()
    processes: set[str] = set()

    def both_answered() -> bool:
        wires.append(Wire(gateway.data_url))
        for _ in range(20):
            reply = wires[-1].exchange(REQUEST)
            assert reply.status == 200, reply.body
            process = reply.fields["x-prediction-id"].rpartition("-")[0]
            processes.add(process)
            seen[process, json.loads(reply.body)["model_version"]] += 1
        return len(processes) == 2

    try:
        within(both_answered)
        assert killed not in gateway.pids("worker")
        assert {version for _, version in seen} == {"2"}
    finally:
        for wire in wires:
            wire.close()


def test_requests_sent_during_a_shift_all_get_answers(gateway: Gateway) -> None:
    """Ten shifts under load fail no request."""
    with ThreadPoolExecutor(4) as pool:
        wires = [Wire(gateway.data_url) for _ in range(4)]
        running = [pool.submit(ask, wire, 300) for wire in wires]
        for weight in range(10):
            assert shift(gateway, weight * 1000).status == 200
        assert sum(sum(future.result().values()) for future in running) == 1200
        for wire in wires:
            wire.close()


def test_of_two_shifts_on_one_revision_one_wins(gateway: Gateway) -> None:
    """Both name the same revision: one gets 200, the other 412 and the revision that stands."""
    for _ in range(5):
        known = revision(gateway)
        with ThreadPoolExecutor(2) as pool:
            at_once = functools.partial(shift, gateway, at=known)
            first, second = pool.map(at_once, (1_000, 2_000))
        won, lost = sorted((first, second), key=lambda reply: reply.status)
        assert (won.status, lost.status) == (200, 412)
        assert lost.content["code"] == "revision_conflict"
        assert lost.content["revision"] == known + 1 == revision(gateway)


def _kill_during_shift(gateway: Gateway, weight_bp: int, delay_s: float) -> Reply | None:
    """Shift and kill control `delay_s` later; the reply, if one came."""
    known = revision(gateway)
    (control,) = gateway.pids("control")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(shift, gateway, weight_bp, known)
        time.sleep(delay_s)
        os.kill(control, signal.SIGKILL)
        try:
            reply = future.result()
        except OSError:
            reply = None
    gateway.await_successor("control", control)
    return reply


def _await_route(gateway: Gateway, timeout_s: float = 60) -> dict:
    """The route, once the successor of a killed control answers."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            reply = gateway.admin("GET", "routes/linear")
            if reply.status == 200:
                return reply.content
        except OSError:
            pass
        assert time.monotonic() < deadline, gateway.said()
        time.sleep(0.05)


def test_control_killed_around_a_change_leaves_old_or_new_and_the_log_agrees(
    gateway: Gateway,
) -> None:
    """kill -9 of control at any moment of a shift: the route is whole, and the log's last word."""
    rng = random.Random(3)
    for i in range(5):
        before = route(gateway)
        wanted = 3_000 + 100 * i
        reply = _kill_during_shift(gateway, wanted, rng.uniform(0.0, 0.02))
        found = _await_route(gateway)
        assert found["revision"] - before["revision"] in (0, 1)
        if found["revision"] == before["revision"]:
            assert canary_bp(found) == canary_bp(before)
            assert reply is None or reply.status >= 500, "an acknowledged change was lost"
        else:
            assert canary_bp(found) == wanted
        last = max(controls(gateway), key=lambda event: (event.revision or 0, event.at_ns))
        assert last.revision == found["revision"]
        assert canary_bp(last.after or {}) == canary_bp(found)
