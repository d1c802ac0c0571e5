"""The client's ledger: every 2xx that reached a client, whatever happened to the server meanwhile.

`LedgerClient` sends distinct requests over keep-alive connections, one in flight each, reconnects
when it must, and writes down what came back. A request without a reply is unknown: it may be in the
log or not. `tests/e2e/foreign.py` compares the ledger with the topic.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
import threading
import time
from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

SAMPLE_EVERY = 200
RECONNECT_EVERY = 400
REPLY_TIMEOUT_S = 15.0
_PACK = {"FP32": "f", "FP64": "d", "INT64": "q", "INT32": "i", "BOOL": "?"}


@dataclass(frozen=True)
class Sampled:
    """SHA-256 of the tensor bytes of one request, as sent and as answered."""

    sent: str
    answered: str


def parted(identity: str) -> tuple[str, int]:
    """A record's epoch (source and epoch, as text) and its number in it."""
    stream, _, number = identity.rpartition("-")
    return stream, int(number, 16)


class Answers:
    """Prediction ids and the requests that they answer: eight bytes a number drawn, so that a million take 8 MB."""

    def __init__(self) -> None:
        self.streams: dict[str, array[int]] = {}
        """By epoch: at each number the request's, and one; 0 where none is known."""
        self._count = 0

    def put(self, identity: str, number: int) -> bool:
        """Write one down; False when the id was given before."""
        stream, seq = parted(identity)
        column = self.streams.setdefault(stream, array("Q"))
        if seq >= len(column):
            column.frombytes(bytes(8 * (seq + 1 - len(column))))
        if column[seq]:
            return False
        column[seq] = number + 1
        self._count += 1
        return True

    def of(self, stream: str, seq: int) -> int | None:
        """The request that a number answered, None where none is known."""
        column = self.streams.get(stream)
        return column[seq] - 1 if column is not None and seq < len(column) and column[seq] else None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        """(epoch, number in it, request) of each."""
        for stream, column in self.streams.items():
            for seq, number in enumerate(column):
                if number:
                    yield stream, seq, number - 1


@dataclass
class Ledger:
    """What the client knows."""

    answered: Answers = field(default_factory=Answers)
    """Of every 2xx whose reply says that its record was kept."""
    unlogged: Answers = field(default_factory=Answers)
    """Of every 2xx whose reply says that it was not: `x-tidegate-audit: none`."""
    sampled: dict[str, Sampled] = field(default_factory=dict)
    refused: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    """Replies that were not 2xx, by status."""
    unknown: int = 0
    """Requests whose connection ended before the reply."""
    wrong: list[str] = field(default_factory=list)
    """Replies that belong to another request, or ids given twice."""


@dataclass(frozen=True)
class Plan:
    """What to send: `requests` rows of `width` FP32 values to `model`'s input."""

    data_url: str
    model: str
    input_name: str
    width: int
    requests: int
    connections: int = 24

    def row(self, number: int) -> list[float]:
        """Values that no other request has, all of them exact in FP32."""
        return [(number & 0xFFFF) / 256, (number >> 16) / 8, *_tail(number % TAILS, self.width)]

    def request(self, number: int) -> bytes:
        """The whole HTTP request. Cost: 3 us; a million of them must not be what the proof waits for."""
        body = (
            f'{{"id":"q-{number}","inputs":[{{"name":"{self.input_name}","datatype":"FP32",'
            f'"shape":[1,{self.width}],"data":[{(number & 0xFFFF) / 256},{(number >> 16) / 8}'
            f"{_tail_text(number % TAILS, self.width)}]}}]}}"
        )
        return (
            f"POST /v2/models/{self.model}/infer HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            f"x-request-timeout-ms: 10000\r\ncontent-length: {len(body)}\r\n\r\n{body}"
        ).encode()


TAILS = 64


@lru_cache(TAILS)
def _tail(which: int, width: int) -> tuple[float, ...]:
    return tuple((which * k % 8191) / 1024 for k in range(3, width + 1))


@lru_cache(TAILS)
def _tail_text(which: int, width: int) -> str:
    return "".join(f",{value}" for value in _tail(which, width))


def _hash_outputs(outputs: list[dict[str, Any]]) -> str:
    digest = hashlib.sha256()
    for output in outputs:
        data = output["data"]
        digest.update(struct.pack(f"<{len(data)}{_PACK[output['datatype']]}", *data))
    return digest.hexdigest()


class _Connection(asyncio.Protocol):
    """One keep-alive connection: one request in flight, the next as soon as the reply is whole."""

    def __init__(self, client: LedgerClient) -> None:
        self.client = client
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.number = -1
        self.sent_s = 0.0
        self._left = RECONNECT_EVERY
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._send()

    def _send(self) -> None:
        self.number = self.client.next_number() if self._left else -1
        self._left -= 1
        if self.number < 0:
            self.transport.close()  # type: ignore[attr-defined]
            return
        self.sent_s = time.monotonic()
        self.transport.write(self.client.plan.request(self.number))  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self._buffer[:head_end].decode("latin-1").split("\r\n")
        fields = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:])}
        end = head_end + 4 + int(fields["content-length"])
        if len(self._buffer) < end:
            return
        content, self._buffer = self._buffer[head_end + 4 : end], self._buffer[end:]
        number, self.number = self.number, -1
        self.client.note(number, int(head[0].split(" ", 2)[1]), fields, content)
        if fields.get("connection", "").lower() != "close":
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.number >= 0:
            self.client.ledger.unknown += 1
        if not self.closed.done():
            self.closed.set_result(None)


class LedgerClient:
    """Sends a plan from a thread of its own, whatever happens to the server meanwhile."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.url: str | None = plan.data_url
        """Where to connect; None: nowhere at present. A gateway that was started anew has another."""
        self.ledger = Ledger()
        self.sent = 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def start(self) -> LedgerClient:
        """Begin to send."""
        self._thread.start()
        return self

    def next_number(self) -> int:
        """The next request's number, or -1 when all are sent."""
        if self.sent >= self.plan.requests:
            return -1
        self.sent += 1
        return self.sent - 1

    def note(self, number: int, status: int, fields: dict[str, str], content: bytes) -> None:
        """Write a reply down."""
        if status != 200:
            self.ledger.refused[status] += 1
            return
        identity = fields["x-prediction-id"]
        kept = self.ledger.unlogged if fields["x-tidegate-audit"] == "none" else self.ledger.answered
        if not kept.put(identity, number):
            self.ledger.wrong.append(f"id {identity} was given twice")
        if not content.endswith(b"}") or f'"id":"q-{number}"'.encode() not in content:
            self.ledger.wrong.append(f"q-{number} got {content[:120]!r}")
        if number % SAMPLE_EVERY == 0 and kept is self.ledger.answered:
            row = self.plan.row(number)
            self.ledger.sampled[identity] = Sampled(
                hashlib.sha256(struct.pack(f"<{len(row)}f", *row)).hexdigest(),
                _hash_outputs(json.loads(content)["outputs"]),
            )

    def await_sent(self, count: int, timeout_s: float) -> None:
        """Wait until `count` requests went out.

        Raises:
            TimeoutError: with what is known so far.
        """
        deadline = time.monotonic() + timeout_s
        while self.sent < min(count, self.plan.requests):
            if time.monotonic() > deadline or not self._thread.is_alive():
                msg = f"{self.sent} of {count} requests sent in {timeout_s:g} s: {self._facts()}"
                raise TimeoutError(msg)
            time.sleep(0.01)

    def join(self, timeout_s: float) -> Ledger:
        """Wait for the end; returns the ledger."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            msg = f"the client did not end within {timeout_s:g} s: {self._facts()}"
            raise TimeoutError(msg)
        return self.ledger

    def _facts(self) -> str:
        ledger = self.ledger
        return (
            f"{len(ledger.answered)} answered, {len(ledger.unlogged)} answered unlogged,"
            f" {dict(ledger.refused)} refused, {ledger.unknown} unknown"
        )

    async def _run(self) -> None:
        await asyncio.gather(*(self._keep_connected() for _ in range(self.plan.connections)))

    async def _keep_connected(self) -> None:
        loop = asyncio.get_running_loop()
        while self.sent < self.plan.requests:
            if self.url is None:
                await asyncio.sleep(0.02)
                continue
            parts = urlsplit(self.url)
            try:
                transport, connection = await loop.create_connection(
                    lambda: _Connection(self), parts.hostname, parts.port
                )
            except OSError:
                await asyncio.sleep(0.02)
                continue
            while not connection.closed.done():
                await asyncio.wait([connection.closed], timeout=1.0)
                late = time.monotonic() - connection.sent_s > REPLY_TIMEOUT_S
                if connection.number >= 0 and late:
                    transport.abort()
