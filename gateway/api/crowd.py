"""All connections of a worker's data listener: how many there may be, who makes room, what was cut off and why.

Apart from the admission of requests: an idle connection costs memory and a descriptor, and takes no request's place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import msgspec

LOOK_AGAIN_S = 0.25
"""Connections are looked through for idle ones once in so long at most: a flood must not make us look all the time."""
IDLE_MIN_S = 1.0
"""A connection that was used within this time makes no room."""


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


class Crowd:
    """One worker's connections.

    Args:
        limits: what each may take.
        connections_max: how many there may be.

    Threading: the loop thread alone.
    """

    def __init__(self, limits: Limits, connections_max: int) -> None:
        self.limits = limits
        self.connections_max = connections_max
        self.held_bytes = 0
        """Bodies that are not whole yet, or not answered."""
        self.turned_away = 0
        """Connections that found no room."""
        self.made_room = 0
        """Idle connections closed for others."""
        self.cut_off: dict[str, int] = {}
        """Connections closed before their request was whole or their answer taken, by the error's code."""
        self._looked_s = -LOOK_AGAIN_S
        self._unfed: deque[Any] = deque()
        self._idle: list[Any] = []

    def cut(self, code: str) -> None:
        """Count a connection that was cut off."""
        self.cut_off[code] = self.cut_off.get(code, 0) + 1

    def feed_soon(self, connection: Any) -> None:
        """Let a connection go on with a long buffer: one of them a turn of the loop, whoever is first."""
        self._unfed.append(connection)
        if len(self._unfed) == 1:
            connection.loop.call_soon(self._feed)

    def _feed(self) -> None:
        try:
            self._unfed[0].feed_on()
        finally:
            self._unfed.popleft()
            if self._unfed:
                self._unfed[0].loop.call_soon(self._feed)

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
