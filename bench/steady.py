"""Steady: clients that ask one thing after the other over kept connections, and never ask again what failed.

What a restart costs its clients shows here: they send POSTs, which nobody may send twice; they think between two
requests (not at all, or up to half of the lame-duck time), so that connections are idle, just used or in use when a
worker goes; and each outcome is entered. A client whose connection was idle for longer than a lame-duck time could not
be told: what fails there is counted apart (`idle_resets`).

steady -> HTTP/1.1 -> gateway, or a proxy before it. Nothing here knows the gateway but its replies' headers.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import msgspec
import uvloop

SHOWN_MAX = 100
"""Failures that are told one by one."""
AGAIN_S = 0.02
"""After a failure the client waits at least so long before its next request."""
CONNECT_S = 5.0
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *([0-9]+)")
_CLOSES = re.compile(rb"(?i)\r\nconnection: *close")
_IDENTITY = re.compile(rb"(?i)\r\nx-prediction-id: *([^\r]+)")
_CODE = re.compile(rb'"code"\s*:\s*"([a-z0-9_]{1,64})"')


class SteadyPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks what, and for how long."""

    path: str
    """Where it is POSTed to."""
    body: bytes
    """JSON."""
    requests: int
    """The clients end when so many were sent, all together."""
    thinks_s: tuple[float, ...] = (0.0, 0.01, 0.2)
    """Think times; `clients` of each."""
    clients: int = 4
    lame_duck_s: float = 5.0
    """A failure on a connection that was idle for so long is an idle reset."""
    timeout_s: float = 35.0
    """A request that is not answered within this time has failed."""
    keeps_ids: bool = False
    """Keep the prediction ids of all answers, 25 bytes each."""
    headers: tuple[tuple[str, str], ...] = ()


class Failure(msgspec.Struct, frozen=True):
    """One request that got no answer of 2xx."""

    at_s: float
    """Since the start."""
    kind: str
    think_s: float
    idle_s: float
    """How long its connection had been idle before; 0: it was new."""
    last_id: str = ""
    """Prediction id of the connection's last answer, which says whose connection it was."""


class SteadyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the requests; `sent` = answered + failed + idle_resets."""

    seconds: float
    sent: int
    answered: int
    failed: int
    failures_by_kind: dict[str, int]
    """refused, connect_timeout: no connection. reset, closed: the connection went without an answer. cut: in the middle
    of one. timeout. no_length: an answer whose end cannot be known. Else status and code: `503 overloaded`."""
    idle_resets: int
    """Failures of kind reset or closed on connections that were idle for `lame_duck_s` or longer."""
    told: int
    """Connections that ended with an answer that said so."""
    closed_idle: int
    """Connections that the other side closed while nothing was asked."""
    connections: int
    """Made, all together."""
    slowest_ms: float
    first_failures: tuple[Failure, ...]
    identities: tuple[str, ...] = ()


class Steady:
    """The clients of one plan, on a thread of their own.

    Args:
        url: http://HOST:PORT.

    Threading: `start`, `await_sent`, `stop` and `join` from any thread.
    """

    def __init__(self, url: str, plan: SteadyPlan) -> None:
        parts = urlsplit(url)
        self.address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.plan = plan
        self.request = _request(plan)
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self.sent = self.answered = self.idle_resets = self.told = self.closed_idle = self.connections = 0
        self.failures: Counter[str] = Counter()
        self.first_failures: list[Failure] = []
        self.identities: list[str] = []
        self.slowest_s = 0.0
        self._began_s = self._ended_s = 0.0
        self._stopping = False
        self._working = 0
        self._over = asyncio.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="steady", daemon=True)

    def start(self) -> Steady:
        """Begin to ask."""
        self._thread.start()
        return self

    @property
    def elapsed_s(self) -> float:
        """Since its first request; failures are told in this time."""
        return time.monotonic() - self._began_s if self._began_s else 0.0

    def await_sent(self, count: int, timeout_s: float) -> None:
        """Wait until so many requests were sent.

        Raises:
            TimeoutError: they were not, within `timeout_s`.
        """
        deadline_s = time.monotonic() + timeout_s
        while self.sent < count:
            if time.monotonic() > deadline_s or not self._thread.is_alive():
                msg = f"{self.sent} requests were sent, expected {count}; failed: {dict(self.failures)}"
                raise TimeoutError(msg)
            time.sleep(0.01)

    def stop(self) -> None:
        """Send no more; what was sent is waited for."""
        self._stopping = True

    def join(self, timeout_s: float | None = None) -> SteadyReport:
        """The report, once the last answer is there.

        Raises:
            TimeoutError: it is not, within `timeout_s`.
        """
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            msg = f"{self.sent} of {self.plan.requests} requests were sent after {timeout_s} s"
            raise TimeoutError(msg)
        if self._error is not None:
            raise self._error
        return SteadyReport(
            seconds=self._ended_s - self._began_s,
            sent=self.sent,
            answered=self.answered,
            failed=self.failures.total(),
            failures_by_kind=dict(self.failures),
            idle_resets=self.idle_resets,
            told=self.told,
            closed_idle=self.closed_idle,
            connections=self.connections,
            slowest_ms=self.slowest_s * 1000,
            first_failures=tuple(self.first_failures),
            identities=tuple(self.identities),
        )

    def take(self) -> bool:
        """A client's next request may go; False: it is done."""
        if self._stopping or self.sent >= self.plan.requests:
            self._working -= 1
            if not self._working:
                self._over.set()
            return False
        self.sent += 1
        return True

    def fail(self, kind: str, think_s: float, idle_s: float, last_id: str) -> None:
        """Enter a request that got no answer of 2xx."""
        if kind in ("reset", "closed") and idle_s >= self.plan.lame_duck_s:
            self.idle_resets += 1
            return
        self.failures[kind] += 1
        if len(self.first_failures) < SHOWN_MAX:
            at_s = time.monotonic() - self._began_s
            self.first_failures.append(Failure(round(at_s, 3), kind, think_s, round(idle_s, 3), last_id))

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
                runner.run(self._run())
        except BaseException as exc:  # noqa: BLE001  told by join
            self._error = exc

    async def _run(self) -> None:
        self._began_s = time.monotonic()
        clients = [_Client(self, think_s) for think_s in self.plan.thinks_s for _ in range(self.plan.clients)]
        self._working = len(clients)
        for client in clients:
            client.ask()
        await self._over.wait()
        self._ended_s = time.monotonic()


class _Client:
    """One client; at most one connection and one request at a time."""

    def __init__(self, steady: Steady, think_s: float) -> None:
        self.steady = steady
        self.think_s = think_s
        self._line: _Line | None = None
        self._last_id = ""
        self._connecting: asyncio.Task[None] | None = None

    def ask(self) -> None:
        """The next request, on the kept connection or on a new one."""
        if not self.steady.take():
            if self._line is not None:
                self._line.leave()
        elif self._line is not None:
            self._line.send()
        else:
            self._connecting = self.steady.loop.create_task(self._connect())

    async def _connect(self) -> None:
        steady = self.steady
        making = steady.loop.create_connection(lambda: _Line(self), *steady.address)
        try:
            _, line = await asyncio.wait_for(making, CONNECT_S)
        except OSError as exc:
            late = isinstance(exc, TimeoutError)
            self.failed("connect_timeout" if late else "refused", 0.0, used=False)
            return
        steady.connections += 1
        self._line = line
        line.send()

    def answered(self, head: bytes, body: bytes, took_s: float, idle_s: float) -> None:
        """A whole reply is here."""
        steady = self.steady
        if found := _IDENTITY.search(head):
            self._last_id = found[1].decode()
        steady.slowest_s = max(steady.slowest_s, took_s)
        if _CLOSES.search(head):
            steady.told += 1
            self.drop()
        status = head[9:12]
        if not status.startswith(b"2"):
            code = _CODE.search(body)
            self.failed(f"{status.decode()} {code[1].decode() if code else ''}".strip(), idle_s, used=True)
            return
        steady.answered += 1
        if steady.plan.keeps_ids and self._last_id:
            steady.identities.append(self._last_id)
        self._think(self.think_s)

    def failed(self, kind: str, idle_s: float, *, used: bool) -> None:
        """The request got no answer of 2xx, on a connection that was used before or not."""
        self.steady.fail(kind, self.think_s, idle_s, self._last_id if used else "")
        self._think(max(self.think_s, AGAIN_S))

    def drop(self) -> None:
        """The connection is not used again."""
        line, self._line = self._line, None
        if line is not None:
            line.leave()

    def owns(self, line: _Line) -> bool:
        """Whether its next request would go there."""
        return self._line is line

    def _think(self, seconds: float) -> None:
        if seconds:
            self.steady.loop.call_later(seconds, self.ask)
        else:
            self.steady.loop.call_soon(self.ask)


class _Line(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, client: _Client) -> None:
        self._client = client
        self._loop = client.steady.loop
        self._transport: Any = None
        self._buffer = b""
        self._asking = self._lost = False
        self._sent_s = self._free_s = 0.0
        self._idle_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """It is there."""
        self._transport = transport

    def send(self) -> None:
        """Send a request."""
        self._sent_s = time.monotonic()
        self._idle_s = self._sent_s - self._free_s if self._free_s else 0.0
        self._asking, self._buffer = True, b""
        self._timer = self._loop.call_later(self._client.steady.plan.timeout_s, self._late)
        if self._lost:
            # As soon as it was made.
            self._loop.call_soon(self._end, "closed")
        else:
            self._transport.write(self._client.steady.request)

    def leave(self) -> None:
        """Close it."""
        self._asking = False
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Part of a reply."""
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found or not self._asking:
            return
        length = _LENGTH.search(head)
        if length is None:
            self._end("no_length")
        elif len(body) >= int(length[1]):
            self._settle()
            self._free_s = time.monotonic()
            self._client.answered(head, body, self._free_s - self._sent_s, self._idle_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone; not by us where something was asked."""
        self._lost = True
        if self._asking:
            self._end("cut" if self._buffer else "closed" if exc is None else "reset")
        elif self._client.owns(self):
            self._client.steady.closed_idle += 1
            self._client.drop()

    def _late(self) -> None:
        self._end("timeout")

    def _end(self, kind: str) -> None:
        self._settle()
        self._client.drop()
        self._client.failed(kind, self._idle_s, used=self._free_s > 0)

    def _settle(self) -> None:
        self._asking = False
        if self._timer is not None:
            self._timer.cancel()


def run(url: str, plan: SteadyPlan) -> SteadyReport:
    """Ask until `plan.requests` were sent and answered. Threading: blocks; `Steady` goes on beside its caller."""
    return Steady(url, plan).start().join()


def _request(plan: SteadyPlan) -> bytes:
    fields = {"host": "127.0.0.1", "content-type": "application/json", **dict(plan.headers)}
    fields["content-length"] = str(len(plan.body))
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {plan.path} HTTP/1.1\r\n{head}\r\n".encode() + plan.body
