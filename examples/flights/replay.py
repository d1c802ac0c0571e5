"""Replays flights against a gateway: a request per flight, its label once it would have landed.

data -> **replay** -> wire -> gateway. The replayed clock runs `speed` times as fast as the wall's, or as fast as the
gateway answers. At most once: a flight whose request may have been taken is never sent again but counted as unknown.
Everything runs on the loop that calls `Replay.run`; nothing here blocks it.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import urlsplit

import msgspec
import orjson

from examples.flights.data import FEATURES, Flights
from examples.flights.wire import Connection, Lost, Reply

LABELS_MAX = 1000
"""Labels of one request; the gateway takes no more."""
LABEL_EVERY_S = 0.1
LABEL_TRIES = 6
"""Of a batch of labels that the gateway refused; its last wait is 3.2 s."""
LOOK_S = 0.05
"""At most so long a flight's turn is slept for, so that pause and stop are felt."""
REFUSED_PAUSE_S = 0.05
"""What a connection waits after a refusal, so that a gateway that refuses is not stormed."""


class Unreachable(Exception):
    """Nobody listened at the address for as long as was waited."""


class Plan(NamedTuple):
    """How to replay."""

    url: str
    model: str = "flights"
    speed: float | None = None
    """Replayed seconds a second; None: as fast as answers come."""
    connections: int = 8
    event_time: bool = True
    """Whether requests and labels carry the replayed time (for `sidecar.clock = "event"`)."""
    labels: bool = True
    headers: tuple[tuple[str, str], ...] = ()
    """Further header fields: authorization, x-routing-key."""
    connect_for_s: float = 10.0
    """How long connecting is tried again while it is refused."""
    timeout_s: float = 30.0


class Answered(NamedTuple):
    """A flight that was answered: its place in the flights replayed, id of the prediction, body of the reply."""

    index: int
    prediction_id: str
    body: bytes


class Counters(msgspec.Struct):
    """What became of it: sent = answered + all failed + unknown, once nothing is in flight."""

    sent: int = 0
    answered: int = 0
    failed: dict[int, int] = {}
    """Replies other than 200, by status."""
    unknown: int = 0
    """Written, and no reply: taken or not."""
    labels_sent: int = 0
    """Labels that were accepted."""
    labels_failed: dict[int, int] = {}
    """Labels refused for good, by status; 0: nobody listened."""
    labels_unknown: int = 0
    reconnects: int = 0

    def summary(self) -> dict[str, object]:
        """All counters by name, statuses as text."""
        made: dict[str, object] = msgspec.to_builtins(self, str_keys=True)
        return made


class Replay:
    """One run over some flights.

    Args:
        flights: in order of event time.
        on_answer: called for each flight answered, on the loop; must be quick.
        ledger: a file that gets the id of each prediction answered, one a line, at most 0.1 s late.

    Threading: one event loop.
    """

    def __init__(
        self,
        flights: Flights,
        plan: Plan,
        *,
        on_answer: Callable[[Answered], None] | None = None,
        ledger: Path | None = None,
    ) -> None:
        self.flights = flights
        self.plan = plan
        self.counters = Counters()
        self._on_answer = on_answer
        self._ledger_path = ledger
        self._ledger: IO[str] | None = None
        # Plain lists: reading a NumPy scalar costs more than sending it.
        self._event_ns: list[int] = flights.event_ns.tolist()
        self._label_ns: list[int] = flights.label_ns.tolist()
        self._labels: list[int] = flights.labels.tolist()
        self._next = 0
        self._waiting: list[tuple[int, str, int]] = []
        self._stopped = self._finished = False
        self._go = asyncio.Event()
        self._go.set()
        self._turn = asyncio.Lock()
        self._anchor_s = self._paused_s = 0.0
        fields = "".join(f"{name}: {value}\r\n" for name, value in plan.headers)
        self._head = (
            f"host: {urlsplit(plan.url).netloc}\r\ncontent-type: application/json\r\n{fields}content-length: "
        )

    # --- what the outside may do while it runs ---------------------------------------------

    @property
    def taken(self) -> int:
        """Flights whose turn has come."""
        return self._next

    @property
    def clock_ns(self) -> int:
        """The replayed time. It never passes a flight whose turn has not come."""
        if self._next >= len(self._event_ns):
            return self._event_ns[-1] if self._event_ns else 0
        if self.plan.speed is None:
            return self._event_ns[max(0, self._next - 1)]
        now_s = time.monotonic() if self._go.is_set() else self._paused_s
        ran_ns = int((now_s - self._anchor_s) * self.plan.speed * 1e9)
        return min(self._event_ns[0] + ran_ns, self._event_ns[self._next])

    def pause(self) -> None:
        """Hold the replayed clock; what is in flight is answered."""
        if self._go.is_set():
            self._go.clear()
            self._paused_s = time.monotonic()

    def proceed(self) -> None:
        """Let a paused clock run on from where it was held."""
        if not self._go.is_set():
            self._anchor_s += time.monotonic() - self._paused_s
            self._go.set()

    def stop(self) -> None:
        """End `run` once what is in flight is answered; labels that are not due are left."""
        self._stopped = True
        self._go.set()

    # --- the run ---------------------------------------------------------------------------

    async def run(self) -> Counters:
        """Replay all flights and their labels; at the end the labels still to come are sent at once.

        Raises:
            Unreachable: connecting was refused for too long; the counters hold what was done.
        """
        self._anchor_s = time.monotonic()
        if self._ledger_path is not None:
            self._ledger = self._ledger_path.open("a")
        senders = [asyncio.create_task(self._sender()) for _ in range(self.plan.connections)]
        labeller = asyncio.create_task(self._labeller())
        try:
            sending = asyncio.gather(*senders)
            # The labeller ends after the senders, or by failing.
            await asyncio.wait({sending, labeller}, return_when=asyncio.FIRST_COMPLETED)
            if labeller.done():
                labeller.result()
            await sending
            self._finished = True
            await labeller
        finally:
            for task in (*senders, labeller):
                task.cancel()
            await asyncio.gather(*senders, labeller, return_exceptions=True)
            if self._ledger is not None:
                self._ledger.close()
        return self.counters

    async def _sender(self) -> None:
        """One connection, one flight after the other."""
        connection: Connection | None = None
        path = f"/v2/models/{self.plan.model}/infer"
        try:
            while (index := await self._take()) is not None:
                connection = await self._connected(connection)
                self.counters.sent += 1
                try:
                    reply = await connection.exchange(
                        self._post(path, self._body(index)), self.plan.timeout_s
                    )
                except Lost:
                    self.counters.unknown += 1
                    continue
                except asyncio.CancelledError:
                    self.counters.unknown += 1
                    raise
                if reply.status == 200:
                    self._answered(index, reply)
                    continue
                failed = self.counters.failed
                failed[reply.status] = failed.get(reply.status, 0) + 1
                if reply.status in {429, 503}:
                    await asyncio.sleep(REFUSED_PAUSE_S)
        finally:
            if connection is not None:
                connection.close()

    async def _take(self) -> int | None:
        """The next flight once its turn has come; None at the end."""
        if self.plan.speed is None:
            await self._go.wait()
            return self._taken()
        # One at a time: the others need not wake for a flight that is not theirs.
        async with self._turn:
            while True:
                await self._go.wait()
                if self._stopped or self._next >= len(self._event_ns):
                    return None
                due_s = (self._event_ns[self._next] - self._event_ns[0]) / 1e9 / self.plan.speed
                wait_s = self._anchor_s + due_s - time.monotonic()
                if wait_s <= 0:
                    return self._taken()
                await asyncio.sleep(min(wait_s, LOOK_S))

    def _taken(self) -> int | None:
        if self._stopped or self._next >= len(self._event_ns):
            return None
        self._next += 1
        return self._next - 1

    async def _connected(self, connection: Connection | None) -> Connection:
        """A connection that may be written to; a refused one is tried again for `connect_for_s`."""
        if connection is not None and connection.usable:
            return connection
        if connection is not None:
            connection.close()
            self.counters.reconnects += 1
        until_s = time.monotonic() + self.plan.connect_for_s
        wait_s = 0.02
        while True:
            try:
                return await Connection.open(self.plan.url)
            except OSError as exc:
                if time.monotonic() >= until_s or self._stopped:
                    msg = (
                        f"nobody answers at {self.plan.url} ({exc.strerror or exc}): is the gateway running?"
                    )
                    raise Unreachable(msg) from exc
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, 0.5)

    def _post(self, path: str, body: bytes) -> bytes:
        return f"POST {path} HTTP/1.1\r\n{self._head}{len(body)}\r\n\r\n".encode() + body

    def _body(self, index: int) -> bytes:
        # orjson writes float32 at its shortest, and NaN as null.
        row = orjson.dumps(self.flights.rows[index], option=orjson.OPT_SERIALIZE_NUMPY)
        stamp = b',"parameters":{"event_time_ns":%d}' % self._event_ns[index] if self.plan.event_time else b""
        return b'{"id":"flight-%d"%b,"inputs":[{"name":"X","datatype":"FP32","shape":[1,%d],"data":%b}]}' % (
            index,
            stamp,
            len(FEATURES),
            row,
        )

    def _answered(self, index: int, reply: Reply) -> None:
        self.counters.answered += 1
        if self._ledger is not None:
            self._ledger.write(reply.prediction_id + "\n")
        if self.plan.labels and self._labels[index] >= 0 and reply.prediction_id:
            heapq.heappush(self._waiting, (self._label_ns[index], reply.prediction_id, self._labels[index]))
        if self._on_answer is not None:
            self._on_answer(Answered(index, reply.prediction_id, reply.body))

    # --- labels ----------------------------------------------------------------------------

    async def _labeller(self) -> None:
        """Every tenth of a second: what is due by the replayed clock, in requests of up to 1,000."""
        connection: Connection | None = None
        try:
            while True:
                last = self._finished
                while due := self._due(everything=self._finished and not self._stopped):
                    connection = await self._send_labels(connection, due)
                if self._ledger is not None:
                    self._ledger.flush()
                if last:
                    return
                await asyncio.sleep(LABEL_EVERY_S)
        finally:
            if connection is not None:
                connection.close()

    def _due(self, *, everything: bool) -> list[dict[str, object]]:
        out: list[dict[str, object]] = []
        clock_ns = self.clock_ns
        while self._waiting and len(out) < LABELS_MAX and (everything or self._waiting[0][0] <= clock_ns):
            at_ns, prediction_id, value = heapq.heappop(self._waiting)
            stamp = {"at_ns": at_ns} if self.plan.event_time else {}
            out.append({"id": prediction_id, "row": 0, "value": value, **stamp})
        return out

    async def _send_labels(
        self, connection: Connection | None, labels: list[dict[str, object]]
    ) -> Connection:
        """A refusal (429, 503) took nothing and is tried again a few times; a lost reply is not."""
        request = self._post(f"/v2/models/{self.plan.model}/feedback", orjson.dumps({"labels": labels}))
        for attempt in range(LABEL_TRIES):
            try:
                connection = await self._connected(connection)
            except Unreachable:
                self._labels_failed(0, labels)
                raise
            try:
                reply = await connection.exchange(request, self.plan.timeout_s)
            except Lost:
                self.counters.labels_unknown += len(labels)
                return connection
            if reply.status == 202:
                self.counters.labels_sent += len(labels)
                return connection
            if reply.status not in {429, 503} or self._stopped:
                break
            if attempt + 1 < LABEL_TRIES:
                await asyncio.sleep(LABEL_EVERY_S * 2**attempt)
        self._labels_failed(reply.status, labels)
        return connection

    def _labels_failed(self, status: int, labels: list[dict[str, object]]) -> None:
        failed = self.counters.labels_failed
        failed[status] = failed.get(status, 0) + len(labels)
