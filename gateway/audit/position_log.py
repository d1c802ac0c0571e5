"""Positions: what the recorder says, in its own epoch, of every epoch's running hash.

chain (in each drain) -> **positions** -> the recorder's own ring -> spool -> topic. A heartbeat that carries
{"<source>-<epoch>": [next seq, value in hex]}: about each minute what has moved, and at an epoch's end. Once it is in
the topic, or in the hands of an auditor, who changes a record below it on this host's disk is found out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Protocol

from gateway.audit.chain import Position
from gateway.audit.event import Heartbeat

EVERY_NS = 60_000_000_000
EPOCHS_MAX = 1000
"""In one event: a frame takes an eighth of a ring at most."""


class Moving(Protocol):
    """What has a position: a `Drain`."""

    @property
    def key(self) -> str:
        """Of its epoch, as in positions."""
        ...

    @property
    def position(self) -> Position | None:
        """Its epoch's, None before it is known."""
        ...


class PositionLog:
    """Makes the events; one a recorder."""

    def __init__(self) -> None:
        self._told: dict[str, Position] = {}
        self._next_ns = time.monotonic_ns() + EVERY_NS

    def due(self, moving: Iterable[Moving], now_ns: int) -> list[Heartbeat]:
        """What moved since it was told last, once a minute is over; at other times nothing."""
        if now_ns < self._next_ns:
            return []
        self._next_ns = now_ns + EVERY_NS
        return self.now((one.key, one.position) for one in moving)

    def now(self, positions: Iterable[tuple[str, Position | None]]) -> list[Heartbeat]:
        """What of these was not told yet."""
        moved = {
            key: position
            for key, position in positions
            if position is not None and position.next_seq and self._told.get(key) != position
        }
        self._told |= moved
        listed = list(moved.items())
        return [
            Heartbeat(
                at_ns=time.time_ns(),
                positions={
                    key: (at.next_seq, at.value.hex()) for key, at in listed[first : first + EPOCHS_MAX]
                },
            )
            for first in range(0, len(listed), EPOCHS_MAX)
        ]

    def forget(self, key: str) -> None:
        """An epoch is over."""
        self._told.pop(key, None)
