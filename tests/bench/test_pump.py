"""The pump against real sockets: bytes go out whole, replies come back however they are cut."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from bench.openloop import ClosedLoop, OpenLoop
from bench.pump import Connection, Pump, Server, content_length
from gateway.errors import ConfigInvalid

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@contextlib.contextmanager
def server(answer: Callable[[socket.socket, bytes], None]) -> Iterator[Server]:
    """A server of threads on loopback; `answer` gets each whole request."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads = []

    def serve(peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            data = b""
            while piece := peer.recv(1 << 16):
                data += piece
                head, gap, body = data.partition(b"\r\n\r\n")
                if gap and len(body) >= content_length(head):
                    answer(peer, data)
                    data = b""

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                threads.append(threading.Thread(target=serve, args=(peer,), daemon=True))
                threads[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield Server(f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in (acceptor, *threads):
            thread.join(5)


def run(where: Server, loop, requests, **options) -> None:
    """Pump for at most five seconds."""
    pump = Pump(where, requests, connections=4, **options)
    now = time.perf_counter_ns()
    pump.run(loop, now, now + 5_000_000_000)


def request(body: bytes) -> bytes:
    """A POST."""
    return b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body


def test_large_requests_and_cut_replies_are_whole() -> None:
    """Requests of two parts beyond any socket buffer arrive as they are; a reply in pieces is one reply."""
    seen: list[bytes] = []
    tail = b"t" * 3_000_000

    def answer(peer: socket.socket, data: bytes) -> None:
        seen.append(data)
        for at in range(0, len(OK), 17):
            peer.sendall(OK[at : at + 17])
            time.sleep(0.001)

    kept: list[tuple[int, int, bytes]] = []
    stems = [b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n%d" % (1 + len(tail), i) for i in range(3)]
    with server(answer) as where:
        loop: OpenLoop[Connection] = OpenLoop(np.zeros(3, np.int64), ())
        run(where, loop, [(stem, tail) for stem in stems], kept=lambda *a: kept.append((a[0], a[1], a[3])),
            keep=frozenset({1}))  # fmt: skip
    assert sorted(seen) == [stem + tail for stem in stems]
    assert kept == [(1, 200, b"hello")]
    assert loop.records().status.tolist() == [200, 200, 200]


def test_a_broken_connection_fails_its_request_alone() -> None:
    """The server hangs up on one request: that one is a socket error, the others are answered."""

    def answer(peer: socket.socket, data: bytes) -> None:
        if data.endswith(b"bad"):
            peer.shutdown(socket.SHUT_RDWR)
        else:
            peer.sendall(OK)

    with server(answer) as where:
        loop: OpenLoop[Connection] = OpenLoop(np.arange(6) * 5_000_000, ())
        run(where, loop, [(request(b"good"),), (request(b"bad"),), (request(b"good"),)])
    assert loop.records().status.tolist() == [200, 0, 200, 200, 0, 200]


def test_a_closed_loop_sends_when_answered() -> None:
    """Each of four connections has one request in flight until the time is over; all are answered."""
    with server(lambda peer, data: (time.sleep(0.01), peer.sendall(OK))[1]) as where:
        loop: ClosedLoop[Connection] = ClosedLoop(400_000_000, 4)
        run(where, loop, [(request(b"x"),)])
    records = loop.records()
    assert (records.status == 200).all()
    assert 4 <= len(records.due_ns) <= 164
    assert (records.done_ns - records.due_ns).min() >= 10_000_000


def test_no_server_is_unanswered_not_endless() -> None:
    """Where nothing listens the load ends, and nothing was answered."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    loop: OpenLoop[Connection] = OpenLoop(np.zeros(2, np.int64), ())
    pump = Pump(Server(f"http://127.0.0.1:{port}"), [(OK,)], connections=2)
    now = time.perf_counter_ns()
    pump.run(loop, now, now + 250_000_000)
    assert loop.records().status.tolist() == [-1, -1]


def test_replies_without_a_length_are_refused() -> None:
    """Where a reply ends must be known: chunked replies end the load with a sentence."""
    assert content_length(b"HTTP/1.1 200 OK\r\ncontent-LENGTH:  12\r\nx: y") == 12
    with pytest.raises(ConfigInvalid, match="no Content-Length"):
        content_length(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked")
    with pytest.raises(ConfigInvalid, match="http://HOST:PORT"):
        Server("https://127.0.0.1:1")


def test_connections_are_ready_before_the_start() -> None:
    """Those asked for are made before the first request is due; a single request needs no further one."""
    seen: set[int] = set()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        loop: OpenLoop[Connection] = OpenLoop(np.zeros(1, np.int64), ())
        where = Server(f"http://127.0.0.1:{listener.getsockname()[1]}")
        pump = Pump(where, [(request(b"x"),)], connections=8, ready=3)
        now = time.perf_counter_ns()
        pump.run(loop, now + 300_000_000, now + 1_500_000_000)
        listener.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                peer, address = listener.accept()
                seen.add(address[1])
                peer.close()
    assert len(seen) == 3
    records = loop.records()
    assert records.sent_ns[0] >= 0
    assert records.status.tolist() == [-1]
