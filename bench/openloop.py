"""The open loop: which request goes out when, and how long each took from when it was due. Pure; time is given.

arrivals fix the due times -> **openloop** hands requests to free connections -> bench.pump moves the bytes. A request
that finds no free connection waits in order and goes on being counted: its latency runs from its due time. Without that
a stalled server would be asked less while it stalls, and the stall would be seen once instead of by everyone who came
meanwhile (coordinated omission).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

C = TypeVar("C")
UNANSWERED = -1
SOCKET_ERROR = 0
EXPIRED = 1
"""A 503 that says that it was taken in, and not answered before its deadline."""


class Records:
    """What happened to each request: times in nanoseconds from the start of the load, and its status.

    Attributes:
        due_ns: when it was to be sent.
        handed_ns: when the generator came to it; later than due by what the generator lagged.
        sent_ns: when a connection took it; later than handed by the wait for a free connection.
        done_ns: when its reply was whole.
        status: of the reply; 1: a 503 of a request that expired; 0: the connection broke; -1: no answer by the end.
    """

    def __init__(self, due_ns: NDArray[np.int64]) -> None:
        count = len(due_ns)
        self.due_ns = due_ns
        self.handed_ns = np.full(count, -1, np.int64)
        self.sent_ns = np.full(count, -1, np.int64)
        self.done_ns = np.full(count, -1, np.int64)
        self.status = np.full(count, UNANSWERED, np.int16)


class _Outcomes(Generic[C]):
    """What both kinds of load are told of: answers by number, and which connections are free."""

    _free: list[C]
    _done: list[int]
    _status: list[int]
    answered: int

    def answer(self, number: int, status: int, now_ns: int) -> None:
        """A reply is whole (or its connection broke: status 0)."""
        self._done[number] = now_ns
        self._status[number] = status
        self.answered += 1

    def release(self, connection: C) -> None:
        """A connection is free (again)."""
        self._free.append(connection)

    def forget(self, connection: C) -> None:
        """A free connection is none any more."""
        if connection in self._free:
            self._free.remove(connection)


class OpenLoop(_Outcomes[C]):
    """Hands due requests to free connections, first come first served.

    Args:
        due_ns: ascending, from the start of the load.
        connections: those that are free at the start.

    Cost: some hundred nanoseconds a request.
    Threading: one thread.
    """

    def __init__(self, due_ns: NDArray[np.int64], connections: Iterable[C]) -> None:
        self._due_ns: list[int] = due_ns.tolist()
        self._free: list[C] = list(connections)
        self._waiting: deque[int] = deque()
        count = len(self._due_ns)
        self._at = 0
        self.answered = 0
        self._handed = [-1] * count
        self._sent = [-1] * count
        self._done = [-1] * count
        self._status = [UNANSWERED] * count

    @property
    def next_due_ns(self) -> int | None:
        """When the next request is due; None: all are out or waiting."""
        return self._due_ns[self._at] if self._at < len(self._due_ns) else None

    @property
    def is_over(self) -> bool:
        """Every request has its outcome."""
        return self.answered == len(self._due_ns)

    @property
    def waiting(self) -> int:
        """Requests that are due and have no connection."""
        return len(self._waiting)

    @property
    def passed(self) -> float:
        """Share of the requests that were due so far."""
        return self._at / len(self._due_ns) if self._due_ns else 1.0

    def advance(self, now_ns: int) -> list[tuple[C, int]]:
        """What is to be sent now: connections, each with the number of its request."""
        at, due = self._at, self._due_ns
        while at < len(due) and due[at] <= now_ns:
            self._handed[at] = now_ns
            self._waiting.append(at)
            at += 1
        self._at = at
        out = []
        while self._waiting and self._free:
            number = self._waiting.popleft()
            self._sent[number] = now_ns
            out.append((self._free.pop(), number))
        return out

    def records(self) -> Records:
        """All outcomes so far."""
        records = Records(np.array(self._due_ns, np.int64))
        pairs: list[tuple[str, list[Any]]] = [
            ("handed_ns", self._handed), ("sent_ns", self._sent), ("done_ns", self._done),
        ]  # fmt: skip
        for name, values in pairs:
            setattr(records, name, np.array(values, np.int64))
        records.status = np.array(self._status, np.int16)
        return records


class ClosedLoop(_Outcomes[C]):
    """The other kind of load, with the same face: a connection sends its next request when it has its answer.

    A request is due when it is sent, so that latencies hold nothing of what a slow server kept from being asked.

    Args:
        end_ns: from the start; nothing is sent later.
        connections: how many the pump shall make.
    """

    def __init__(self, end_ns: int, connections: int) -> None:
        self._end_ns = end_ns
        self._free: list[C] = []
        self.waiting = connections
        self.answered = 0
        self.passed = 0.0
        self._sent: list[int] = []
        self._done: list[int] = []
        self._status: list[int] = []

    @property
    def next_due_ns(self) -> int | None:
        """The end: whatever is free sends at once, and until then only replies are waited for."""
        return None if self.waiting == 0 else self._end_ns

    @property
    def is_over(self) -> bool:
        """The time is over and every request has its outcome."""
        return self.waiting == 0 and self.answered == len(self._sent)

    def advance(self, now_ns: int) -> list[tuple[C, int]]:
        """What is to be sent now."""
        if now_ns < 0:
            return []
        self.passed = min(now_ns / self._end_ns, 1.0)
        if now_ns >= self._end_ns:
            self.waiting = 0
            return []
        out = []
        for connection in self._free:
            out.append((connection, len(self._sent)))
            self._sent.append(now_ns)
            self._done.append(-1)
            self._status.append(UNANSWERED)
        self._free.clear()
        return out

    def records(self) -> Records:
        """All outcomes so far."""
        records = Records(np.array(self._sent, np.int64))
        records.handed_ns = records.sent_ns = records.due_ns
        records.done_ns = np.array(self._done, np.int64)
        records.status = np.array(self._status, np.int16)
        return records
