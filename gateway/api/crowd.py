"""All connections of a worker's data listener: how many there may be, who makes room, what was cut off and why.

Apart from the admission of requests: an idle connection costs memory and a descriptor, and takes no request's place.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

from gateway.errors import Overloaded, RateLimited

LOOK_AGAIN_S = 0.25
"""Connections are looked through for idle ones once in so long at most: a flood must not make us look all the time."""
IDLE_MIN_S = 1.0
"""A connection that was used within this time makes no room."""
TURN_MAX_NS = 10_000_000
"""So long one turn of the loop may parse what came, all connections together; the rest waits for the next."""


class Limits(msgspec.Struct, frozen=True):
    """What one connection may take; the data listener's settings."""

    body_max_bytes: int = 67_108_864
    bodies_max_bytes: int = 268_435_456
    json_max_bytes: int = 4_194_304
    json_max_values: int = 262_144
    header_s: float = 5.0
    body_s: float = 10.0
    write_s: float = 10.0
    idle_s: float = 75.0


class Counted(Protocol):
    """Bodies by account; see `gateway.fairness.Bodies`."""

    def take(self, name: str, size: int, own_bytes: int) -> bool:
        """Count so many more; False: too many."""

    def give_back(self, name: str, size: int) -> None:
        """They are answered or given up."""

    def most_bytes(self, name: str) -> int:
        """What an account may have."""


class Crowd:
    """One worker's connections.

    Args:
        limits: what each may take.
        connections_max: how many there may be.
        clock_ns: processor time of the loop's thread.

    Threading: the loop thread alone.
    """

    def __init__(
        self, limits: Limits, connections_max: int, clock_ns: Callable[[], int] = time.thread_time_ns
    ) -> None:
        self.limits = limits
        self.connections_max = connections_max
        self.held_bytes = 0
        """Bodies that are not whole yet, or not answered."""
        self.bodies: Counted | None = None
        """The same by account, where somebody is limited in bytes."""
        self.turned_away = 0
        """Connections that found no room."""
        self.made_room = 0
        """Idle connections closed for others."""
        self.lame = False
        """The worker stops: a connection's next answer is its last."""
        self.lame_closed = 0
        """Connections that asked nothing in the lame-duck time, and were closed without being told."""
        self.cut_off: dict[str, int] = {}
        """Connections closed before their request was whole or their answer taken, by the error's code."""
        self._looked_s = -LOOK_AGAIN_S
        self._unfed: deque[Any] = deque()
        self._idle: list[Any] = []
        self._clock_ns = clock_ns
        self._turn_ends_ns = 0
        """When the turn is spent; 0: nothing was parsed in it yet."""

    def hold(self, size: int, account: str, own_bytes: int) -> None:
        """Count bytes of a body that are kept.

        Args:
            account: whose they are.
            own_bytes: what the same connection holds already.

        Raises:
            Overloaded: all bodies of this worker together are too large.
            RateLimited: those of this account are.
        """
        most = self.limits.bodies_max_bytes
        if self.held_bytes + size > most:
            msg = f"bodies of {self.held_bytes} bytes are being received, at most {most} are held; try again"
            raise Overloaded(msg)
        if self.bodies is not None and not self.bodies.take(account, size, own_bytes):
            most = self.bodies.most_bytes(account)
            msg = f"your bodies in flight may have {most} bytes together; wait for answers first"
            raise RateLimited(msg)
        self.held_bytes += size

    def let_go(self, size: int, account: str) -> None:
        """Bytes of an account's bodies are answered or given up."""
        self.held_bytes -= size
        if self.bodies is not None and size:
            self.bodies.give_back(account, size)

    def cut(self, code: str) -> None:
        """Count a connection that was cut off."""
        self.cut_off[code] = self.cut_off.get(code, 0) + 1

    def is_spent(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether this turn of the loop parsed for so long that the rest of what came is for the next.

        Hundreds of sockets may be ready at once, and all of them are read before anything else has its turn.
        """
        now_ns = self._clock_ns()
        if not self._turn_ends_ns:
            self._turn_ends_ns = now_ns + TURN_MAX_NS
            loop.call_soon(self._end_turn)
        return now_ns >= self._turn_ends_ns

    def spend(self, more_ns: int) -> None:
        """Count work of this turn that is still to come."""
        if self._turn_ends_ns:
            self._turn_ends_ns -= more_ns

    def _end_turn(self) -> None:
        self._turn_ends_ns = 0

    def feed_soon(self, connection: Any) -> None:
        """Let a connection go on with its buffer in a turn to come, whoever is first."""
        self._unfed.append(connection)
        if len(self._unfed) == 1:
            connection.loop.call_soon(self._feed)

    def _feed(self) -> None:
        """Those that wait, each once: one, and more while the turn is not spent."""
        unfed = self._unfed
        loop = unfed[0].loop
        self.is_spent(loop)
        try:
            for _ in range(len(unfed)):
                try:
                    unfed[0].feed_on()
                finally:
                    unfed.popleft()
                if self.is_spent(loop):
                    break
        finally:
            if unfed:
                loop.call_soon(self._feed)

    def make_room(self, connections: Iterable[Any], now_s: float) -> bool:
        """Close the connection that has been idle longest; False: none has been for long enough.

        Cost: looks through all connections four times a second at most, O(1) between.
        """
        while True:
            while self._idle:
                idlest = self._idle.pop()
                if idlest.idle_since(now_s) <= now_s - IDLE_MIN_S:
                    self.made_room += 1
                    idlest.leave_now()
                    return True
            if now_s - self._looked_s < LOOK_AGAIN_S:
                return False
            self._looked_s = now_s
            found = [(since, c) for c in connections if (since := c.idle_since(now_s)) <= now_s - IDLE_MIN_S]
            # The idlest last; an eighth, since what is idle now may be used before its turn.
            found.sort(key=lambda pair: -pair[0])
            self._idle = [c for _, c in found[-max(self.connections_max // 8, 1) :]]
            if not self._idle:
                return False
