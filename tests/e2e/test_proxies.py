"""Behind nginx and HAProxy, as deploy/ has them: no request is lost, doubled, or answered with another's bytes."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from bench.serving import Gateway, call
from tests.e2e.hostile_matrix import MATRIX
from tests.e2e.onnx_models import write_linear
from tests.e2e.proxies import PROXIES, Proxy, Tap
from tests.e2e.wire import Wire, infer

IDLE_S = 3
"""After so long the gateway of these tests closes an idle connection; proxies must do so before."""
IDLE_PROXY = {
    "nginx": {"    keepalive_timeout 60s;": "    keepalive_timeout 1s;"},
    "haproxy": {"pool-purge-delay 5s": "pool-purge-delay 100ms"},
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One worker that closes idle connections soon."""
    base = tmp_path_factory.mktemp("proxied")
    write_linear(base / "models")
    made = Gateway(base / "models", base / "state", settings=(f"data.keep_alive_s={IDLE_S}",))
    yield made.start()
    assert made.stop() == 0, made.said()


@pytest.fixture(scope="module", params=PROXIES)
def behind(
    request: pytest.FixtureRequest, gateway: Gateway, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Proxy, Tap]]:
    """A proxy, and the tap between it and the gateway."""
    home = tmp_path_factory.mktemp(request.param) / "proxy"
    with Tap(gateway.data_url) as tap, Proxy(request.param, home, tap.url) as proxy:
        yield proxy, tap


def until(holds: Callable[[], bool], within_s: float = 5) -> bool:
    """Whether it comes true in that time."""
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def answers_own(wire: Wire, mark: str) -> bool:
    """Whether a request gets the answer that bears its id."""
    reply = wire.exchange(infer("linear", [[1, 2, 3, 4]], request_id=mark))
    return reply.status == 200 and f'"{mark}"'.encode() in reply.body


def attack(proxy: Proxy, data: bytes, quiet_s: float = 0.15) -> bytes:
    """All that one connection gets for its bytes, until it ends or nothing comes for a while."""
    parts = urlsplit(proxy.url)
    said = b""
    with socket.create_connection((parts.hostname or "", parts.port or 80), 10) as sock:
        sock.sendall(data)
        sock.settimeout(1)
        try:
            while more := sock.recv(65536):
                said += more
                sock.settimeout(quiet_s)
        except (TimeoutError, ConnectionError):
            pass
    return said


@pytest.mark.parametrize("case", MATRIX)
def test_no_case_of_the_matrix_smuggles_a_request(behind: tuple[Proxy, Tap], case: str) -> None:
    """What parsers may differ in: the gateway answers no more than the proxy sent on, and nobody gets another's."""
    proxy, tap = behind
    with Wire(proxy.url) as before, Wire(proxy.url) as after:
        assert answers_own(before, f"before-{case}")
        assert answers_own(before, f"again-{case}")
        attack(proxy, MATRIX[case][0])
        for turn in range(3):
            assert answers_own(after, f"after-{case}-{turn}")
            assert answers_own(before, f"still-{case}-{turn}")
    # Its log is written once an answer left.
    assert until(lambda: proxy.forwarded() >= tap.answered), (proxy.forwarded(), tap.answered)


def test_connections_to_the_gateway_are_shared(behind: tuple[Proxy, Tap]) -> None:
    """Else the matrix proves nothing: clients one after the other use few connections."""
    proxy, tap = behind
    opened = tap.connections
    for client in range(20):
        with Wire(proxy.url) as wire:
            assert all(answers_own(wire, f"{client}-{turn}") for turn in range(3))
    assert tap.connections - opened <= 22
    assert max(bytes(asked).count(b"POST /v2") for asked in tap.asked) >= 20


def test_idle_connections_lose_no_request(gateway: Gateway, tmp_path: Path) -> None:
    """POSTs with pauses about the moments at which proxy and gateway close idle connections: all are answered; with
    nginx it is always the proxy that closes."""
    failed: list[str] = []

    def client(kind: str, number: int) -> None:
        try:
            with Wire(proxies[kind].url) as wire:
                for turn in range(4):
                    # From just before the proxy's end of an idle connection to just behind the gateway's.
                    time.sleep((0.98, 1.02, 1.5, IDLE_S - 0.02, IDLE_S, IDLE_S + 0.02)[(turn + number) % 6])
                    if not answers_own(wire, f"{number}-{turn}"):
                        failed.append(f"{kind} {number}-{turn}")
        except OSError as exc:
            failed.append(f"{kind} {number}: {exc}")

    with ExitStack() as stack:
        taps = {kind: stack.enter_context(Tap(gateway.data_url)) for kind in PROXIES}
        proxies = {
            kind: stack.enter_context(Proxy(kind, tmp_path / kind, taps[kind].url, changes))
            for kind, changes in IDLE_PROXY.items()
        }
        clients = [
            threading.Thread(target=client, args=(kind, number)) for kind in PROXIES for number in range(24)
        ]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        assert failed == []
        for kind, tap in taps.items():
            assert until(lambda tap=tap: None not in tap.idle_ends(), IDLE_S + 8), kind
        # HAProxy's pool is not sure to be first (docs/behind-a-proxy.md).
        assert set(taps["nginx"].idle_ends()) == {"proxy"}


def test_the_clients_address_is_the_proxys_word(behind: tuple[Proxy, Tap]) -> None:
    """What a client says of its own address does not get through."""
    proxy, tap = behind
    with Wire(proxy.url) as wire:
        request = infer("linear", [[1, 2, 3, 4]], request_id="spoof", x_forwarded_for="6.6.6.6")
        assert wire.exchange(request).status == 200
    said = b"".join(tap.asked).lower()
    assert b"6.6.6.6" not in said
    assert b"x-forwarded-for: 127.0.0.1\r\n" in said


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_request_that_is_not_whole_never_reaches_the_gateway(behind: tuple[Proxy, Tap], part: str) -> None:
    """Slow clients wait at the proxy."""
    proxy, tap = behind
    marked = infer("linear", [[1, 2, 3, 4]], request_id=f"half-{part}", x_mark=f"half-{part}")
    with Wire(proxy.url) as slow, Wire(proxy.url) as other:
        slow.send(marked[: marked.index(b"\r\n\r\n") + (0 if part == "head" else 10)])
        assert answers_own(other, "quick")
    assert f"x-mark: half-{part}".encode() not in b"".join(tap.asked).lower()


WAITS = {"nginx": ("proxy_read_timeout 35s", "proxy_read_timeout 1s"),
         "haproxy": ("timeout server 35s", "timeout server 1s")}  # fmt: skip


@pytest.mark.parametrize("kind", PROXIES)
def test_a_gateway_that_hangs_is_told_as_504(gateway: Gateway, tmp_path: Path, kind: str) -> None:
    """A worker that stands still: the proxy says 504 after its time, once, and sends the request no second time."""
    (worker,) = gateway.pids("worker")
    with Tap(gateway.data_url) as tap, Proxy(kind, tmp_path / "proxy", tap.url, dict([WAITS[kind]])) as proxy:
        with Wire(proxy.url) as wire:
            assert answers_own(wire, "warm")
            os.kill(worker, signal.SIGSTOP)
            try:
                reply = wire.exchange(infer("linear", [[1, 2, 3, 4]], request_id="hangs"))
            finally:
                os.kill(worker, signal.SIGCONT)
        assert reply.status == 504
        assert sum(bytes(asked).count(b'"hangs"') for asked in tap.asked) == 1


@pytest.mark.parametrize(("kind", "status"), [("nginx", 502), ("haproxy", 503)])
def test_a_gateway_that_is_gone_is_told_at_once(tmp_path: Path, kind: str, status: int) -> None:
    """Nobody listens: an error within the time to connect, not a wait."""
    with Proxy(kind, tmp_path / "proxy", "http://127.0.0.1:9") as proxy:
        assert call(proxy.url, "GET", "/v2/health/ready").status == status
