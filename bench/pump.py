"""Pump: moves the bytes of an open loop over plain sockets, and tells the time.

openloop says what is due -> **pump** sends it, reads replies, says when they were whole. One thread, epoll, HTTP/1.1
with Content-Length and kept connections; no event loop in between, since what the generator costs per request bounds
what it can offer. When something is due within two milliseconds it does not sleep (epoll's clock is as coarse as that):
a processor of its own is what an honest generator needs.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import heapq
import resource
import select
import socket
import time
from collections.abc import Callable, Container, Sequence
from typing import Any
from urllib.parse import urlsplit

from bench.openloop import SOCKET_ERROR, OpenLoop
from gateway.errors import ConfigInvalid

_now = time.perf_counter_ns
_SLEEP_ABOVE_NS = 2_000_000
_MADE_AT_ONCE = 16
_RETRY_NS = 100_000_000
_READ_BYTES = 1 << 18
_IN = select.EPOLLIN | select.EPOLLRDHUP
_PASSED_EVERY_NS = 200_000_000

Keep = Callable[[int, int, bytes, bytes], None]
"""Called with number, status, head and body of each reply that is kept."""


class Connection:
    """One kept connection: at most one request in flight."""

    __slots__ = ("buffer", "needed", "number", "rest", "socket", "usable")

    def __init__(self) -> None:
        self.socket: socket.socket | None = None
        self.usable = False
        self.number = -1
        self.rest: list[memoryview] = []
        """What of the request the kernel did not take yet."""
        self.buffer = b""
        self.needed = 0
        """Bytes of the whole reply, once its head is known."""


class Server:
    """Where requests go.

    Raises:
        ConfigInvalid: the URL is not http://HOST:PORT.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            msg = f"--url {url}: expected http://HOST:PORT"
            raise ConfigInvalid(msg)
        found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
        self.family: int = found[0][0]
        self.address: Any = found[0][4]


class Pump:
    """Runs one open loop against one server.

    Args:
        requests: request number i of the loop sends `requests[i % len(requests)]`.
        connections: at most so many; a new one is made only when none is free.
        ready: so many are made before the start, as clients that were there before have them.
        keep: which replies' bytes are handed to `kept`; replies other than 2xx always are.
    """

    def __init__(
        self,
        server: Server,
        requests: Sequence[tuple[bytes, ...]],
        *,
        connections: int,
        ready: int = 0,
        kept: Keep | None = None,
        keep: Container[int] = frozenset(),
    ) -> None:
        self._server = server
        self._requests = requests
        self._connections_max = connections
        self._ready = ready
        self._kept = kept
        self._keep = keep
        self._epoll = select.epoll()
        self._by_fd: dict[int, Connection] = {}
        self._retry: list[tuple[int, int, Connection]] = []
        self._made = self._connecting = 0
        self._loop: OpenLoop[Connection]
        self._start_ns = 0
        _allow_files(connections + 64)
        # Now, since it may take longer than the first requests are away.
        gc.collect()

    def run(
        self,
        loop: OpenLoop[Connection],
        start_ns: int,
        end_ns: int,
        passed: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Send and receive until all is answered, or until `end_ns` (both of `perf_counter_ns`)."""
        self._loop, self._start_ns = loop, start_ns
        collected = gc.isenabled()
        gc.disable()
        try:
            self._pump(end_ns, passed)
        finally:
            for connection in list(self._by_fd.values()):
                self._close(connection)
            self._epoll.close()
            if collected:
                gc.enable()

    def _pump(self, end_ns: int, passed: Callable[[float], None]) -> None:
        loop, start_ns, poll, by_fd = self._loop, self._start_ns, self._epoll.poll, self._by_fd
        tell_ns = 0
        while not loop.is_over:
            now_ns = _now()
            if now_ns >= end_ns:
                return
            if self._retry and self._retry[0][0] <= now_ns:
                self._connect(heapq.heappop(self._retry)[2])
            for connection, number in loop.advance(now_ns - start_ns):
                self._send(connection, number)
            wanted = loop.waiting - self._connecting if now_ns >= start_ns else self._ready - self._made
            for _ in range(min(wanted, self._connections_max - self._made, _MADE_AT_ONCE)):
                self._connect(Connection())
                self._made += 1
            if now_ns >= tell_ns:
                passed(loop.passed)
                tell_ns = now_ns + _PASSED_EVERY_NS
            for fd, events in poll(self._timeout_s(now_ns, end_ns)):
                connection = by_fd.get(fd)  # type: ignore[assignment]
                if connection is None:
                    continue
                if events & select.EPOLLOUT:
                    self._writable(connection)
                if events & ~select.EPOLLOUT and connection.socket is not None:
                    self._readable(connection)

    def _timeout_s(self, now_ns: int, end_ns: int) -> float:
        due_ns = self._loop.next_due_ns
        wake_ns = end_ns if due_ns is None else due_ns + self._start_ns
        if self._retry:
            wake_ns = min(wake_ns, self._retry[0][0])
        if wake_ns - now_ns > _SLEEP_ABOVE_NS:
            # epoll may come a millisecond late.
            return min((wake_ns - now_ns - _SLEEP_ABOVE_NS) / 1e9 + 0.0005, 0.2)
        return 0.0 if due_ns is not None else 0.001

    def _connect(self, connection: Connection) -> None:
        made = socket.socket(self._server.family, socket.SOCK_STREAM)
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        status = made.connect_ex(self._server.address)
        connection.socket = made
        if status not in (0, errno.EINPROGRESS):
            made.close()
            connection.socket = None
            heapq.heappush(self._retry, (_now() + _RETRY_NS, id(connection), connection))
            return
        self._connecting += 1
        connection.usable = False
        self._by_fd[made.fileno()] = connection
        self._epoll.register(made.fileno(), _IN | select.EPOLLOUT)

    def _send(self, connection: Connection, number: int) -> None:
        connection.number = number
        parts = self._requests[number % len(self._requests)]
        if len(parts) == 1:
            whole = parts[0]
            try:
                sent = connection.socket.send(whole)  # type: ignore[union-attr]
            except BlockingIOError:
                sent = 0
            except OSError:
                self._broken(connection)
                return
            if sent == len(whole):
                return
            connection.rest = [memoryview(whole)[sent:]]
        else:
            connection.rest = [memoryview(part) for part in parts]
        self._epoll.modify(connection.socket.fileno(), _IN | select.EPOLLOUT)  # type: ignore[union-attr]
        self._writable(connection)

    def _writable(self, connection: Connection) -> None:
        made = connection.socket
        if made is None:
            return
        if not connection.usable:
            self._connecting -= 1
            if made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._broken(connection)
                return
            connection.usable = True
            self._epoll.modify(made.fileno(), _IN)
            self._loop.release(connection)
            return
        try:
            while connection.rest:
                sent = made.send(connection.rest[0])
                if sent < len(connection.rest[0]):
                    connection.rest[0] = connection.rest[0][sent:]
                    return
                connection.rest.pop(0)
        except BlockingIOError:
            return
        except OSError:
            self._broken(connection)
            return
        self._epoll.modify(made.fileno(), _IN)

    def _readable(self, connection: Connection) -> None:
        try:
            data = connection.socket.recv(_READ_BYTES)  # type: ignore[union-attr]
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._broken(connection)
            return
        if connection.buffer:
            data = connection.buffer + data
        if not connection.needed:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                connection.buffer = data
                return
            connection.needed = end + 4 + content_length(data[:end])
        if len(data) < connection.needed:
            connection.buffer = data
            return
        self._whole(connection, data)

    def _whole(self, connection: Connection, data: bytes) -> None:
        """A reply is here."""
        now_ns = _now()
        number, status = connection.number, int(data[9:12])
        if number < 0:
            self._broken(connection)
            return
        self._loop.answer(number, status, now_ns - self._start_ns)
        if self._kept is not None and (not 200 <= status < 300 or number in self._keep):
            head, _, body = data.partition(b"\r\n\r\n")
            self._kept(number, status, head, body)
        connection.number, connection.needed, connection.buffer = -1, 0, b""
        if b"connection: close" in data[:512].lower():
            self._broken(connection)
            return
        self._loop.release(connection)

    def _broken(self, connection: Connection) -> None:
        """The connection is over: its request failed; another connection is made in its place."""
        if connection.number >= 0:
            self._loop.answer(connection.number, SOCKET_ERROR, _now() - self._start_ns)
        elif connection.usable:
            self._loop.forget(connection)
        self._close(connection)
        heapq.heappush(self._retry, (_now() + _RETRY_NS, id(connection), connection))

    def _close(self, connection: Connection) -> None:
        made = connection.socket
        if made is None:
            return
        self._by_fd.pop(made.fileno(), None)
        with contextlib.suppress(OSError):
            self._epoll.unregister(made.fileno())
        made.close()
        connection.socket, connection.usable = None, False
        connection.number, connection.needed, connection.buffer, connection.rest = -1, 0, b"", []


def content_length(head: bytes) -> int:
    """Bytes of a reply's body.

    Raises:
        ConfigInvalid: the reply does not say: chunked replies are not read here.
    """
    lower = head.lower()
    at = lower.find(b"\r\ncontent-length:")
    if at < 0:
        if lower[9:12] in (b"204", b"304"):
            return 0
        msg = "the server's reply has no Content-Length: only replies of a stated length are timed"
        raise ConfigInvalid(msg)
    end = lower.find(b"\r", at + 17)
    return int(lower[at + 17 : end if end > 0 else len(lower)])


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count * 2), hard))
