"""Limits of the data listener: the same behind both doors."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.serving import Gateway
from tests.e2e.onnx_models import write_linear
from tests.e2e.test_hostile import connect, post, reply, row


@pytest.fixture(scope="module", params=["fast", "starlette"])
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One worker with short timeouts and room for eight connections."""
    directory: Path = tmp_path_factory.mktemp("limits")
    write_linear(directory / "models")
    settings = (
        f"data.door={request.param}",
        "data.header_timeout_s=1",
        "data.body_timeout_s=1",
        "data.connections_max=8",
    )
    made = Gateway(directory / "models", directory / "state", settings=settings).start()
    yield made
    assert made.stop() == 0, made.said()


def closes(sock: socket.socket, within_s: float) -> bool:
    """Whether the other side ends the connection in that time."""
    sock.settimeout(within_s)
    try:
        while sock.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /v2/health/live HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
        (b"GET /" + b"u" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", b"414"),
        (b"GET /v2 HTTP/1.1\r\nHost: a\r\n" + b"X-A: b\r\n" * 120 + b"\r\n", b"431"),
        (b"GET /v2 HTTP/1.1\r\nHost: a\r\nX-A: " + b"c" * 40_000 + b"\r\n\r\n", b"431"),
    ],
)
def test_heads_beyond_the_limits_are_refused(gateway: Gateway, head: bytes, status: bytes) -> None:
    """No Host, two Hosts, a long URL, many or large headers: one error shape, then closed."""
    with connect(gateway) as sock:
        sock.sendall(head)
        answer = reply(sock)
        assert status in answer.split(b"\r\n")[0][:20]
        assert json.loads(answer[answer.index(b"{") :])["code"] == "invalid_request"
        assert closes(sock, 2)


def test_a_head_that_does_not_come_is_not_waited_for(gateway: Gateway) -> None:
    """Half a head is closed at the header timeout."""
    with connect(gateway) as sock:
        sock.sendall(b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: a\r\n")
        assert closes(sock, 5)


def test_a_body_that_does_not_come_is_not_waited_for(gateway: Gateway) -> None:
    """Half a body is closed at the body timeout."""
    with connect(gateway) as sock:
        sock.sendall(post(row())[:-5])
        assert closes(sock, 5)


def test_a_body_that_keeps_coming_may_take_longer(gateway: Gateway) -> None:
    """What counts is the rate: a large body over several times the timeout is answered."""
    body = row() + b" " * 400_000
    message = post(body)
    with connect(gateway) as sock:
        for i in range(0, len(message), 40_000):
            sock.sendall(message[i : i + 40_000])
            time.sleep(0.3)
        assert b"200" in reply(sock)


def test_one_connection_too_many_is_told_so(gateway: Gateway) -> None:
    """The cap answers 503 and closes; those that are there go on, and room that is made is used."""
    socks = [connect(gateway) for _ in range(8)]
    for sock in socks:
        sock.sendall(post(row()))
        assert b"200" in reply(sock)
    with connect(gateway) as extra:
        assert b"overloaded" in reply(extra)
        assert closes(extra, 2)
    socks.pop().close()
    deadline = time.monotonic() + 5
    while True:
        with connect(gateway) as again:
            again.sendall(post(row()))
            if b"200" in reply(again):
                break
        assert time.monotonic() < deadline
    for sock in socks:
        sock.sendall(post(row()))
        assert b"200" in reply(sock)
        sock.close()
