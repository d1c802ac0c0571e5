"""Steady clients: each way in which an answer can fail to come is entered as what it is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bench.steady import Steady, SteadyPlan, SteadyReport, run

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
TOLD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"
REFUSED = b'HTTP/1.1 503 Service Unavailable\r\ncontent-length: 21\r\n\r\n{"code":"overloaded"}'
Script = Callable[[Any, int], None]
"""What to do on a transport with its n-th request, from 1."""


class _Server(asyncio.Protocol):
    def __init__(self, script: Script) -> None:
        self._script = script
        self._count = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._count += 1
        self._script(self._transport, self._count)


@contextmanager
def served(script: Script) -> Iterator[str]:
    """A server of one script on a thread; its URL."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(lambda: _Server(script), "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        server.close()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def asked(script: Script, **plan: Any) -> SteadyReport:
    """One client's report."""
    made: dict[str, Any] = {"requests": 6, "thinks_s": (0.0,), "clients": 1, "timeout_s": 30.0, **plan}
    with served(script) as url:
        report = run(url, SteadyPlan(path="/v2/models/m/infer", body=b"{}", **made))
    assert report.sent == report.answered + report.failed + report.idle_resets
    return report


def test_a_kept_connection_is_used_again() -> None:
    """Answers without `connection: close` leave one connection for all requests."""
    report = asked(lambda transport, _: transport.write(OK))
    assert (report.answered, report.connections, report.told) == (6, 1, 0)


def test_a_told_connection_is_left_without_a_failure() -> None:
    """`connection: close` costs a new connection and nothing else."""

    def script(transport: Any, count: int) -> None:
        transport.write(TOLD if count == 2 else OK)

    report = asked(script)
    assert (report.answered, report.failed, report.told, report.connections) == (6, 0, 3, 3)


def test_a_connection_that_closes_while_idle_is_no_failure() -> None:
    """The client sees the close before it sends, and makes a new connection."""

    def script(transport: Any, count: int) -> None:
        transport.write(OK)
        transport.close()

    report = asked(script, thinks_s=(0.05,), requests=3)
    assert (report.answered, report.failed, report.connections) == (3, 0, 3)
    assert report.closed_idle >= 2


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        (lambda transport: transport.close(), "closed"),
        (lambda transport: transport.abort(), "reset"),
        (lambda transport: (transport.write(OK[:-1]), transport.close()), "cut"),
        (lambda transport: transport.write(b"HTTP/1.1 200 OK\r\n\r\n"), "no_length"),
        (lambda transport: transport.write(REFUSED), "503 overloaded"),
        (lambda transport: None, "timeout"),
    ],
    ids=["closed", "reset", "cut", "no_length", "refusal", "timeout"],
)
def test_a_failure_has_its_kind_and_is_not_asked_again(first: Callable[[Any], object], kind: str) -> None:
    """A request that failed is one failure, and the server never sees it twice."""
    seen = []

    def script(transport: Any, count: int) -> None:
        seen.append(count)
        if len(seen) == 1:
            first(transport)
        else:
            transport.write(OK)

    report = asked(script, timeout_s=1.0 if kind == "timeout" else 30.0)
    if kind == "reset" and "closed" in report.failures_by_kind:
        # A socket with nothing unread is closed in order, whatever the server meant.
        kind = "closed"
    assert report.failures_by_kind == {kind: 1}
    assert (report.answered, len(seen)) == (5, 6)
    assert report.first_failures[0].kind == kind


def test_what_fails_after_a_long_idle_time_is_apart() -> None:
    """A connection that was idle for the lame-duck time and goes with the request on it is an idle reset."""

    def script(transport: Any, count: int) -> None:
        if count == 2:
            transport.close()
        else:
            transport.write(OK)

    report = asked(script, requests=2, thinks_s=(0.1,), lame_duck_s=0.05)
    assert (report.idle_resets, report.failed) == (1, 0)
    report = asked(script, requests=2, thinks_s=(0.1,), lame_duck_s=5.0)
    assert (report.idle_resets, report.failed) == (0, 1)


def test_a_server_that_is_not_there_refuses() -> None:
    """No listener: each request is entered as refused."""
    with served(lambda transport, _: None) as url:
        pass
    plan = SteadyPlan(path="/", body=b"{}", requests=3, thinks_s=(0.0,), clients=1)
    assert run(url, plan).failures_by_kind == {"refused": 3}


def test_stop_ends_after_what_was_sent() -> None:
    """`stop` sends no more, and what is in flight is still answered."""
    with served(lambda transport, _: transport.write(OK)) as url:
        plan = SteadyPlan(path="/", body=b"{}", requests=10**9, thinks_s=(0.001,), clients=3)
        steady = Steady(url, plan).start()
        steady.await_sent(20, 10)
        steady.stop()
        report = steady.join(10)
    assert report.sent == report.answered >= 20
