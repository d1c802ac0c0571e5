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
from tests.e2e.onnx_models import write_linear
from tests.e2e.wire import Wire, infer

CONNECTIONS = 12
AFTER = 2_000
REQUEST = infer("linear", [[1.0, 2.0, 3.0, 4.0]])


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Two workers over two versions; version 2 is primary, version 1 a canary without weight."""
    base = tmp_path_factory.mktemp("shift")
    write_linear(base / "models", version="1", scale=0.25)
    write_linear(base / "models", version="2", scale=0.5)
    with Gateway(base / "models", base / "state", workers=2) as serving:
        variants = [
            {"name": "primary", "version": "2", "role": "primary", "weight_bp": 10_000},
            {"name": "canary", "version": "1", "role": "canary", "weight_bp": 0},
        ]
        deadline = time.monotonic() + 20
        while True:  # weight goes only to versions that every worker holds warm
            reply = serving.admin(
                "PUT",
                "routes/linear",
                {"variants": variants, "reason": "two versions"},
                revision=_revision(serving),
            )
            if reply.status in (200, 202):
                break
            assert time.monotonic() < deadline, reply
            time.sleep(0.1)
        yield serving


def _route(gateway: Gateway) -> dict:
    reply = gateway.admin("GET", "routes/linear")
    assert reply.status == 200, reply
    return reply.content


def _revision(gateway: Gateway) -> int:
    return _route(gateway)["revision"]


def _shift(gateway: Gateway, weight_bp: int, revision: int | None = None) -> Reply:
    body = {"weights_bp": {"canary": weight_bp}, "reason": "test"}
    at = _revision(gateway) if revision is None else revision
    return gateway.admin("POST", "routes/linear/shift", body, revision=at)


def _ask(wire: Wire, count: int) -> Counter[tuple[str, str]]:
    """(source of the worker, version) of `count` answers."""
    seen: Counter[tuple[str, str]] = Counter()
    for _ in range(count):
        reply = wire.exchange(REQUEST)
        assert reply.status == 200, reply.body
        source = reply.fields["x-prediction-id"].split("-")[0]
        seen[source, json.loads(reply.body)["model_version"]] += 1
    return seen


def _connections_to_both(gateway: Gateway) -> list[Wire]:
    """`CONNECTIONS` connections, at least two of them to each worker."""
    held: dict[str, list[Wire]] = {}
    for _ in range(500):
        wire = Wire(gateway.data_url)
        ((source, _),) = _ask(wire, 1)
        held.setdefault(source, []).append(wire)
        counts = [len(wires) for wires in held.values()]
        if len(counts) == 2 and min(counts) >= 2 and sum(counts) >= CONNECTIONS:
            break
    else:
        pytest.fail(f"connections go to one worker only: {[len(w) for w in held.values()]}")
    first, second = held.values()
    few, many = sorted((first, second), key=len)
    few = few[: CONNECTIONS // 2]
    kept = CONNECTIONS - len(few)
    for wire in many[kept:]:
        wire.close()
    return [*few, *many[:kept]]


def test_weight_0_holds_in_every_worker_once_acknowledged(gateway: Gateway) -> None:
    """After the reply to a shift to 0, no request received later is answered by that version."""
    wires = _connections_to_both(gateway)
    assert _shift(gateway, 5_000).status == 200
    stop = threading.Event()

    def hammer(wire: Wire) -> Counter[tuple[str, str]]:
        seen: Counter[tuple[str, str]] = Counter()
        while not stop.is_set():
            seen += _ask(wire, 5)
        return seen

    try:
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            running = [pool.submit(hammer, wire) for wire in wires]
            time.sleep(0.5)  # the change comes under load
            reply = _shift(gateway, 0)
            stop.set()
            before = sum((future.result() for future in running), Counter())
            assert reply.status == 200, reply
            assert {version for _, version in before} == {"1", "2"}
            after = sum(pool.map(lambda wire: _ask(wire, AFTER // CONNECTIONS + 1), wires), Counter())
        assert len({source for source, _ in after}) == 2, "both workers must have been asked"
        assert sum(after.values()) >= AFTER
        assert {version for _, version in after} == {"2"}
    finally:
        for wire in wires:
            wire.close()


def test_requests_sent_during_a_shift_all_get_answers(gateway: Gateway) -> None:
    """Ten shifts under load fail no request."""
    with ThreadPoolExecutor(4) as pool:
        wires = [Wire(gateway.data_url) for _ in range(4)]
        running = [pool.submit(_ask, wire, 300) for wire in wires]
        for weight in range(10):
            assert _shift(gateway, weight * 1000).status == 200
        assert sum(sum(future.result().values()) for future in running) == 1200
        for wire in wires:
            wire.close()


def test_of_two_shifts_on_one_revision_one_wins(gateway: Gateway) -> None:
    """Both name the same revision: one gets 200, the other 412 and the revision that stands."""
    for _ in range(5):
        revision = _revision(gateway)
        with ThreadPoolExecutor(2) as pool:
            shift = functools.partial(_shift, gateway, revision=revision)
            first, second = pool.map(shift, (1_000, 2_000))
        won, lost = sorted((first, second), key=lambda reply: reply.status)
        assert (won.status, lost.status) == (200, 412)
        assert lost.content["code"] == "revision_conflict"
        assert lost.content["revision"] == revision + 1 == _revision(gateway)


def _weight(route: dict) -> int:
    return next(v["weight_bp"] for v in route["variants"] if v["name"] == "canary")


def _kill_during_shift(gateway: Gateway, weight_bp: int, delay_s: float) -> Reply | None:
    """Shift and kill control `delay_s` later; the reply, if one came."""
    revision = _revision(gateway)
    (control,) = gateway.pids("control")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(_shift, gateway, weight_bp, revision)
        time.sleep(delay_s)
        os.kill(control, signal.SIGKILL)
        try:
            reply = future.result()
        except OSError:
            reply = None
    gateway.await_successor("control", control)
    return reply


def _await_route(gateway: Gateway, timeout_s: float = 20) -> dict:
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
        before = _route(gateway)
        wanted = 3_000 + 100 * i
        reply = _kill_during_shift(gateway, wanted, rng.uniform(0.0, 0.02))
        route = _await_route(gateway)
        assert route["revision"] - before["revision"] in (0, 1)
        if route["revision"] == before["revision"]:
            assert _weight(route) == _weight(before)
            assert reply is None or reply.status >= 500, "an acknowledged change was lost"
        else:
            assert _weight(route) == wanted
        last = _last_logged(gateway)
        assert last["revision"] == route["revision"]
        assert _weight(last["after"]) == _weight(route)


def _last_logged(gateway: Gateway) -> dict:
    """The newest event of this model's route in the spool, read as consumers do."""
    from gateway.audit.spool_feed import SpoolFeed  # noqa: PLC0415

    feed = SpoolFeed(gateway.state_dir / "spool")
    found: list[dict] = []
    try:
        while events := feed.read(10_000, 200).events:
            found.extend(
                {"revision": event.revision, "after": event.after, "at_ns": event.at_ns}
                for event in events
                if type(event).__name__ == "Control" and event.model == "linear" and event.revision
            )
    finally:
        feed.close()
    return max(found, key=lambda event: (event["revision"], event["at_ns"]))
