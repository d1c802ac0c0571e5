"""Limits of the data listener: the same behind both doors."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import pytest

from bench.serving import Gateway
from tests.e2e.test_hostile import connect, post, reply, row
from tests.e2e.wire import Wire


class _Refusal:
    """Reads an answer: its status and code; head and text of the last one are kept."""

    head = text = ""

    def __call__(self, sock: socket.socket) -> tuple[int, str]:
        data = b""
        while b"\r\n\r\n" not in data:
            more = sock.recv(65536)
            assert more, data
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        self.head = head.decode().lower()
        length = int(self.head.partition("content-length: ")[2].split("\r\n")[0])
        while len(body) < length:
            body += sock.recv(65536)
        content = json.loads(body)
        self.text = content["error"]
        return int(head.split(b" ")[1]), content["code"]


refusal = _Refusal()


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
    ("head", "status", "code", "says"),
    [
        (b"GET /v2/health/live HTTP/1.1\r\n\r\n", 400, "invalid_request", "found 0 Host"),
        (b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "invalid_request", "found 2 Host"),
        (b"GET /" + b"u" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "url_too_long", "8192"),
        (b"GET /v2 HTTP/1.1\r\nHost: a\r\n" + b"X-A: b\r\n" * 120 + b"\r\n", 431, "head_too_large", "100"),
        (b"GET /v2 HTTP/1.1\r\nHost: a\r\nX-A: " + b"c" * 40_000 + b"\r\n\r\n", 431, "head_too_large", "32768"),
        (b"GET /v2 HTTP/1.1\r\nHost: a\r\nX-A:" + b" " * 90_000 + b"\r\n\r\n", 431, "head_too_large", "32768"),
        (b"POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: 70000000\r\n\r\n", 413, "body_too_large", "67108864"),
        (
            b"POST /v2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            400,
            "invalid_request",
            "'gzip, chunked'; expected chunked",
        ),
        (b"GET /v2 HTTP/1.1\nHost: a\n\n", 400, "invalid_request", "malformed"),
    ],
)  # fmt: skip
def test_heads_beyond_the_limits_are_refused(
    strict: Gateway, head: bytes, status: int, code: str, says: str
) -> None:
    """Each limit on a head: its status, what was found or expected, one error shape, then closed."""
    with connect(strict) as sock:
        sock.sendall(head)
        assert refusal(sock) == (status, code)
        assert says in refusal.text
        assert closes(sock, 4)


def test_a_head_that_does_not_come_is_answered_and_closed(strict: Gateway) -> None:
    """Half a head gets 408 at the header timeout."""
    with connect(strict) as sock:
        sock.sendall(b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: a\r\n")
        assert refusal(sock) == (408, "request_timeout")
        assert closes(sock, 5)


@pytest.mark.parametrize("headers", ["", "X-A: b\r\nExpect: 100-continue\r\n"])
def test_a_body_that_does_not_come_is_answered_and_closed(strict: Gateway, headers: str) -> None:
    """Half a body gets 408 at the body timeout, in place of its answer."""
    with connect(strict) as sock:
        sock.sendall(post(row(), headers=headers)[:-5])
        if headers:
            assert sock.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert refusal(sock) == (408, "request_timeout")
        assert closes(sock, 5)


def test_a_refusal_waits_for_the_answer_before_it(strict: Gateway) -> None:
    """What cannot be read behind a request that is answered gets its refusal second, never in its place."""
    with Wire(strict.data_url) as wire:
        wire.send(post(row()) + b"GET / HTTP/1.1\r\nbroken\r\n\r\n" + post(row()))
        assert wire.reply().status == 200
        assert wire.reply().status == 400
        with pytest.raises(ConnectionError):
            wire.reply()


def test_a_chunked_body_over_the_limit_is_answered_while_it_comes(strict: Gateway) -> None:
    """A chunked body without end gets 413 and is not read for ever."""
    with connect(strict) as sock:
        sock.sendall(
            b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"100000\r\n" + b" " * 2**20 + b"\r\n"
        with pytest.raises(ConnectionError):
            for _ in range(200):
                sock.sendall(chunk)


def test_an_early_413_reaches_a_client_that_sends_its_body_first(strict: Gateway) -> None:
    """The answer is not lost to a reset: what the client still sends is read for a moment."""
    with connect(strict) as sock:
        sock.sendall(b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 70000000\r\n\r\n")
        for _ in range(16):
            sock.sendall(b" " * 2**20)
        assert refusal(sock) == (413, "body_too_large")
        assert "connection: close" in refusal.head
        assert closes(sock, 5)


def test_json_of_too_many_values_is_refused(strict: Gateway) -> None:
    """Values are counted before they are read; binary tensors have no such limit."""
    tensor = b'{"name":"X","datatype":"FP32","shape":[75000,4],"data":[' + b"1," * 299_999 + b"1]}"
    with connect(strict) as sock:
        sock.sendall(post(b'{"inputs":[' + tensor + b"]}"))
        assert refusal(sock) == (413, "body_too_large")
        assert "binary" in refusal.text
        assert closes(sock, 4)


def test_a_client_that_does_not_read_is_cut_off(strict: Gateway) -> None:
    """Answers that are not taken end the connection at the write timeout."""
    with connect(strict) as sock:
        sock.settimeout(0.2)
        deadline = time.monotonic() + 30
        with pytest.raises(ConnectionError):
            while time.monotonic() < deadline:
                with contextlib.suppress(TimeoutError):
                    sock.send(post(row(id="i" * 4000)) * 10)


def test_an_upgrade_is_not_had_and_ends_the_connection(strict: Gateway) -> None:
    """A request for another protocol is answered in HTTP/1.1, and nothing behind it is read."""
    with connect(strict) as sock:
        sock.sendall(
            b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n" * 2
        )
        assert b" 200 " in reply(sock)
        assert closes(sock, 4)


def test_trailers_say_nothing_about_the_request(strict: Gateway) -> None:
    """Fields behind a chunked body are no header fields."""
    body = row()
    with connect(strict) as sock:
        sock.sendall(
            b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"%x;a=b\r\n%b\r\n0\r\nHost: b\r\nInference-Header-Content-Length: 3\r\n\r\n"
            % (len(body), body)
        )
        assert b" 200 " in reply(sock)


def test_a_body_that_keeps_coming_may_take_longer(strict: Gateway) -> None:
    """What counts is the rate: a large body that takes longer than the timeout is answered."""
    body = row() + b" " * 400_000
    message = post(body)
    with connect(strict) as sock:
        for i in range(0, len(message), 70_000):
            sock.sendall(message[i : i + 70_000])
            time.sleep(0.3)
        assert b"200" in reply(sock)


def is_answered(sock: socket.socket) -> bool:
    """Whether a request gets its answer; not so where there is no room for its connection."""
    try:
        sock.sendall(post(row()))
        return b" 200 " in reply(sock)
    except ConnectionError:
        return False


def test_one_connection_too_many_is_told_so(strict: Gateway) -> None:
    """The cap answers 503 and closes; those that are there go on, and room that is made is used."""
    with contextlib.ExitStack() as stack:
        socks, deadline = [], time.monotonic() + 30
        # One after the other: the worker may not have seen yet that the connections of other tests are gone.
        while len(socks) < 8:
            socks.append(stack.enter_context(connect(strict)))
            if not is_answered(socks[-1]):
                assert len(socks) == 1 and time.monotonic() < deadline
                socks.pop()
        with connect(strict) as extra:
            assert b"overloaded" in reply(extra)
            assert closes(extra, 5)
        socks.pop().close()
        deadline = time.monotonic() + 15
        while True:
            with connect(strict) as again:
                if is_answered(again):
                    break
            assert time.monotonic() < deadline
        for sock in socks:
            assert is_answered(sock)
