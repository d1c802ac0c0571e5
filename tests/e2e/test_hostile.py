"""What a client may send that is meant to hurt: others are answered, the worker goes on."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from bench.serving import Gateway
from tests.e2e.onnx_models import write_linear


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory):
    directory: Path = tmp_path_factory.mktemp("hostile")
    write_linear(directory / "models")
    made = Gateway(directory / "models", directory / "state").start()
    yield made
    assert made.stop() == 0, made.said()


def connect(gateway: Gateway) -> socket.socket:
    parts = urlsplit(gateway.data_url)
    sock = socket.create_connection((parts.hostname, parts.port), timeout=10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def post(body: bytes, model: str = "linear", headers: str = "") -> bytes:
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def row(**extra: object) -> bytes:
    tensor = {"name": "X", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    return json.dumps({"inputs": [tensor], **extra}).encode()


def reply(sock: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        assert more, data
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += sock.recv(65536)
    return head.split(b"\r\n")[0] + b" " + body


def others_are_answered(gateway: Gateway, attack) -> None:
    """Twenty clients ask at the same moment as the attack, and all get their answers."""
    socks = [connect(gateway) for _ in range(20)]
    for sock in socks:
        sock.sendall(post(row()))
        assert b"200" in reply(sock)
    attacker = threading.Thread(target=attack)
    attacker.start()
    for _ in range(5):
        for sock in socks:
            sock.sendall(post(row()))
        for sock in socks:
            assert b"200" in reply(sock)
    attacker.join(10)
    for sock in socks:
        sock.close()


@pytest.mark.parametrize("value", [2**70, -(2**63) - 1])
def test_integers_beyond_64_bits_hurt_nobody(gateway: Gateway, value: int) -> None:
    """A parameter that the log cannot hold is refused by name; batch mates are answered."""

    def attack() -> None:
        for _ in range(10):
            with connect(gateway) as sock:
                sock.sendall(post(row(parameters={"a": value})))
                answer = reply(sock)
                assert b"400" in answer
                assert b"'a'" in answer

    others_are_answered(gateway, attack)


def test_a_long_pipeline_of_refusals_hurts_nobody(gateway: Gateway) -> None:
    """Three hundred pipelined refusals behind one valid request are answered in order."""

    def attack() -> None:
        with connect(gateway) as sock:
            sock.sendall(post(row()) + post(b"{}", model="nope") * 300)
            data, deadline = b"", time.monotonic() + 10
            while data.count(b"HTTP/1.1 404") < 300 and time.monotonic() < deadline:
                data += sock.recv(65536)
            assert data.startswith(b"HTTP/1.1 200")
            assert data.count(b"HTTP/1.1 404") == 300

    others_are_answered(gateway, attack)


def test_a_client_that_never_reads_holds_little_memory(gateway: Gateway) -> None:
    """Answers that nobody reads stop the reading of requests, so memory stays bounded."""
    (pid,) = (int(p) for p in gateway.pids("worker"))
    page = os.sysconf("SC_PAGE_SIZE")

    def rss() -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page

    before = rss()
    body = json.dumps({"inputs": [{"name": "Z" * 200_000, "datatype": "FP32", "shape": [1], "data": [1]}]})
    with connect(gateway) as sock:
        sock.settimeout(0.5)
        sent = 0
        try:
            while sent < 200 * 2**20:
                sent += sock.send(post(body.encode()))
        except TimeoutError:
            pass
        assert rss() - before < 64 * 2**20
    others_are_answered(gateway, lambda: None)


def test_invalid_utf8_is_a_clean_refusal(gateway: Gateway) -> None:
    """Bytes that are no UTF-8 get a 400 in our one error shape, and the connection lives on."""
    with connect(gateway) as sock:
        sock.sendall(post(b'{"id":"\xff","inputs":[]}'))
        answer = reply(sock)
        assert b"400" in answer
        assert b'"code":"invalid_request"' in answer
        sock.sendall(post(row()))
        assert b"200" in reply(sock)


def test_chunked_bodies_are_not_taken_for_heads(gateway: Gateway) -> None:
    """A hundred kilobytes in chunks are a body, not a head over its limit."""
    body = row() + b" " * 100_000
    with connect(gateway) as sock:
        sock.sendall(
            b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for i in range(0, len(body), 8192):
            part = body[i : i + 8192]
            sock.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            time.sleep(0.002)
        sock.sendall(b"0\r\n\r\n")
        assert b"200" in reply(sock)


def test_a_head_split_over_two_buffers_is_never_kept(gateway: Gateway) -> None:
    """What looks like a message but began in an earlier buffer must not answer for another address."""
    with connect(gateway) as sock:
        second = post(row(), model="other").replace(b"Host: x\r\n", b"")
        sock.sendall(b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: x\r\nX-Junk: ")
        time.sleep(0.1)
        sock.sendall(second)
        assert b"200" in reply(sock)
        sock.sendall(second)
        assert b"400" in reply(sock)


def test_rows_without_elements_are_bounded(gateway: Gateway) -> None:
    """A shape cannot name more rows than a request may have."""
    tensor = {"name": "X", "datatype": "FP32", "shape": [2**40, 4], "data": []}
    with connect(gateway) as sock:
        sock.sendall(post(json.dumps({"inputs": [tensor]}).encode()))
        assert b"400" in reply(sock)
