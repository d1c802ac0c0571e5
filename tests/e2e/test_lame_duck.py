"""Lame duck: a worker that stops takes no more connections and tells those that it has, so that no request is lost."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.serving import Gateway, child_pids
from bench.steady import Steady, SteadyPlan
from gateway.head import TIMEOUT_MAX_MS
from gateway.worker import GRACE_S, HURRIED
from tests.e2e.onnx_models import write_linear, write_turns
from tests.e2e.test_drain import _await_running, _turns_for
from tests.e2e.wire import RawReply, Wire, infer

ASK = infer("linear", [[1.0, 2.0, 3.0, 4.0]])
WRONG = infer("linear", [[1.0]])
LIVE = b"GET /v2/health/live HTTP/1.1\r\nhost: h\r\n\r\n"
LAME_S = 3.0
"""Long beside what a busy machine takes to open some connections, or to wake a client."""


def serve(directory: Path, lame_duck_s: float, *, workers: int = 1, door: str = "fast") -> Gateway:
    """A gateway with a lame-duck time."""
    settings = (f"data.lame_duck_s={lame_duck_s}", f"data.door={door}")
    return Gateway(directory / "models", directory / "state", workers=workers, settings=settings)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("lame")
    write_linear(directory / "models")
    with serve(directory, LAME_S, workers=2) as gateway:
        yield gateway


@pytest.fixture
def pair(two: Gateway) -> Gateway:
    """Two workers, both serving, whose lame-duck time is LAME_S."""
    until(lambda: states(two) == ["serving"] * 2, two)
    return two


def tells(reply: RawReply) -> bool:
    """Whether a reply says that it is the connection's last."""
    return reply.fields.get("connection") == "close"


def source_of(reply: RawReply) -> str:
    """The log source of the worker that answered."""
    return reply.fields["x-prediction-id"].split("-")[0]


def source_of_process(pid: int) -> str:
    """The log source of a worker, by the ring that it has open."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if found := re.search(r"/([0-9a-f]{16})-[0-9a-f]{8}$", os.readlink(fd)):
                return found[1]
    raise AssertionError(f"process {pid} has no ring open")


@pytest.fixture
def held() -> Iterator[contextlib.ExitStack]:
    """Connections that are held until the test is over."""
    with contextlib.ExitStack() as stack:
        yield stack


def connections_to(gateway: Gateway, source: str, count: int, held: contextlib.ExitStack) -> list[Wire]:
    """Kept connections to one of two workers."""
    found: list[Wire] = []
    for _ in range(300):
        wire = held.enter_context(Wire(gateway.data_url))
        if source_of(wire.exchange(ASK)) == source:
            found.append(wire)
        else:
            wire.close()
        if len(found) == count:
            return found
    raise AssertionError(f"{len(found)} connections of 300 went to {source}")


def until(holds: Callable[[], bool], gateway: Gateway, timeout_s: float = 30) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, gateway.said()
        time.sleep(0.02)


def states(gateway: Gateway) -> list[str]:
    """What the workers say they do."""
    return [worker["state"] for worker in gateway.admin("GET", "fleet").content["workers"]]


def lame_connections(gateway: Gateway) -> int:
    """`tidegate_worker_lame_connections_total` of all workers together."""
    with urllib.request.urlopen(f"{gateway.admin_url}/metrics") as reply:
        text = reply.read().decode()
    return sum(
        map(int, map(float, re.findall(r"tidegate_worker_lame_connections_total\{[^}]*\} (\S+)", text)))
    )


def ended(gateway: Gateway, pid: int) -> int:
    """The exit code of a worker, as the supervisor logged it; waits for its successor."""
    gateway.await_successor("worker", pid)
    lines = [json.loads(line) for line in gateway.log.read_text().splitlines() if line.startswith("{")]
    return [line["code"] for line in lines if line["event"] == "child_died"][-1]


@pytest.mark.parametrize("door", ["fast", "starlette"])
def test_the_next_answer_tells(tmp_path: Path, door: str, held: contextlib.ExitStack) -> None:
    """A connection that is idle when SIGTERM comes gets one more answer, with `connection: close`, then its end."""
    write_linear(tmp_path / "models")
    gateway = serve(tmp_path, 8, door=door).start()
    try:
        wires = [held.enter_context(Wire(gateway.data_url)) for _ in range(4)]
        for wire in wires[:-1]:
            assert not tells(wire.exchange(ASK))
        started = time.monotonic()
        gateway.terminate()
        until(lambda: '"event": "drain"' in gateway.said(), gateway)
        for wire, asks, status in zip(wires, (ASK, LIVE, WRONG, ASK), (200, 200, 400, 200), strict=True):
            reply = wire.exchange(asks)
            assert reply.status == status
            assert tells(reply), reply.head
            with pytest.raises(ConnectionError):
                wire.exchange(ASK)
        # All are gone: the rest of the time is not waited for.
        assert gateway.wait(20) == 0, gateway.said()
        assert time.monotonic() - started < 8
    finally:
        gateway.stop()


def test_a_stopping_worker_takes_no_new_connections(pair: Gateway, held: contextlib.ExitStack) -> None:
    """New connections go to the other worker, none is refused, and the old ones are answered meanwhile."""
    pid = pair.pids("worker")[0]
    leaving = source_of_process(pid)
    (old,) = connections_to(pair, leaving, 1, held)
    os.kill(pid, signal.SIGTERM)
    until(lambda: "draining" in states(pair), pair)
    for _ in range(40):
        with Wire(pair.data_url) as wire:
            reply = wire.exchange(ASK)
            assert (reply.status, tells(reply)) == (200, False)
            assert source_of(reply) != leaving
    last = old.exchange(ASK)
    assert (last.status, tells(last), source_of(last)) == (200, True, leaving)


def test_idle_connections_are_closed_when_the_time_is_over(pair: Gateway, held: contextlib.ExitStack) -> None:
    """Who asks nothing is kept for `data.lame_duck_s`, then closed and counted; the worker exits 0."""
    pid = pair.pids("worker")[0]
    wires = connections_to(pair, source_of_process(pid), 3, held)
    before, started = lame_connections(pair), time.monotonic()
    os.kill(pid, signal.SIGTERM)
    for wire in wires:
        with pytest.raises(ConnectionError):
            wire.reply()
    took_s = time.monotonic() - started
    assert LAME_S - 0.1 <= took_s < LAME_S + 10
    assert ended(pair, pid) == 0
    assert lame_connections(pair) - before == 3


def test_who_comes_while_all_workers_stop_is_refused(tmp_path: Path, held: contextlib.ExitStack) -> None:
    """A connection to a gateway that stops fails at once; it does not wait in a queue that nobody takes from."""
    write_linear(tmp_path / "models")
    gateway = serve(tmp_path, 3).start()
    try:
        wire = held.enter_context(Wire(gateway.data_url))
        wire.exchange(ASK)
        gateway.terminate()
        until(lambda: '"event": "drain"' in gateway.said(), gateway)
        with pytest.raises(ConnectionError), Wire(gateway.data_url, timeout_s=1.0) as late:
            late.exchange(ASK)
        assert tells(wire.exchange(ASK))
        assert gateway.wait(20) == 0, gateway.said()
    finally:
        gateway.stop()


def test_told_twice_a_worker_waits_for_nothing(tmp_path: Path) -> None:
    """A second SIGTERM ends a worker at once, with exit code 1, whatever is in flight."""
    write_turns(tmp_path / "models")
    with serve(tmp_path, 8) as gateway, Wire(gateway.data_url) as wire:
        turns = _turns_for(wire, 10.0)
        pid = gateway.pids("worker")[0]
        wire.send(infer("turns", [[turns, 1, 2, 3]], x_request_timeout_ms="20000"))
        _await_running(pid)
        os.kill(pid, signal.SIGTERM)
        until(lambda: "draining" in states(gateway), gateway)
        started = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        until(lambda: pid not in child_pids(gateway.pid), gateway)
        assert time.monotonic() - started < 5
        assert ended(gateway, pid) == HURRIED


def test_steady_clients_lose_nothing_when_workers_stop(pair: Gateway) -> None:
    """Kept connections, POSTs, no retry, clients that think: of all requests around each worker's stop none fails."""
    plan = SteadyPlan(
        path="/v2/models/linear/infer",
        body=ASK.partition(b"\r\n\r\n")[2],
        requests=10**9,
        thinks_s=(0.0, 0.01, 0.2, LAME_S / 2),
        clients=3,
        lame_duck_s=LAME_S,
    )
    steady = Steady(pair.data_url, plan).start()
    steady.await_sent(300, 30)
    for pid in pair.pids("worker"):
        os.kill(pid, signal.SIGTERM)
        pair.await_successor("worker", pid)
        until(lambda: states(pair) == ["serving"] * 2, pair)
    steady.stop()
    report = steady.join(40)
    assert report.failures_by_kind == {}, report
    assert report.told >= 4, report


def test_what_is_in_flight_has_time_to_its_own_deadline() -> None:
    """When the lame-duck time is over a request may still use all of the longest deadline there is."""
    assert GRACE_S > TIMEOUT_MAX_MS / 1000


@pytest.mark.prove
@pytest.mark.parametrize("door", ["fast", "starlette"])
def test_a_request_of_many_seconds_is_answered(tmp_path: Path, door: str) -> None:
    """A request that runs for some twelve seconds more when SIGTERM comes gets its answer; the gateway exits 0."""
    write_turns(tmp_path / "models")
    gateway = serve(tmp_path, 0.2, door=door).start()
    try:
        with Wire(gateway.data_url, timeout_s=60) as wire:
            turns = _turns_for(wire, 12.0)
            wire.send(infer("turns", [[turns, 1, 2, 3]], x_request_timeout_ms="30000"))
            _await_running(gateway.pids("worker")[0])
            gateway.terminate()
            started = time.monotonic()
            reply = wire.reply()
            assert (reply.status, tells(reply)) == (200, True), reply.body
            assert time.monotonic() - started > 5
        assert gateway.wait(20) == 0, gateway.said()
    finally:
        gateway.stop()
