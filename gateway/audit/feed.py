"""A feed: the log as consumers read it, the same over the spool and over Kafka.

Guarantees of every feed (held by tests/contracts/test_feeds.py):

* events of one (source, epoch) come in order of seq, each once: what a high-water mark per (source,
  epoch) has seen is dropped, so a resend in the topic is not seen twice;
* a hole is reported (`Delivery.holes`) when a later event of the epoch arrives without the numbers
  between; a `gap` event that covers it may arrive before or after;
* `positions` after a `read` resume exactly behind what was returned.

Positions are a map {"<source hex>-<epoch hex>": next seq}, plain data that a consumer stores together
with its state.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from gateway.audit.event import Event

Positions = dict[str, int]


class Hole(NamedTuple):
    """Numbers from_seq..to_seq (both included) of an epoch that the feed did not find."""

    source: int
    epoch: int
    from_seq: int
    to_seq: int


class Delivery(NamedTuple):
    """What one `read` returned."""

    events: list[Event]
    holes: list[Hole]


class Feed(Protocol):
    """See the module's head. Not thread-safe; one consumer."""

    def read(self, max_events: int, wait_ms: int) -> Delivery:
        """Up to about `max_events` events; waits `wait_ms` at most when there are none."""
        ...

    @property
    def positions(self) -> Positions:
        """Where this feed stands: behind everything returned so far."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


class HighWater:
    """Drops what was seen and reports holes; one mark per (source, epoch). Pure."""

    def __init__(self, positions: Positions | None = None) -> None:
        self.positions: Positions = dict(positions or {})

    def admit(self, source: int, epoch: int, seq: int) -> tuple[bool, Hole | None]:
        """Whether the event is new, and the hole before it if there is one."""
        key = f"{source:016x}-{epoch:08x}"
        expected = self.positions.get(key, 0)
        if seq < expected:
            return False, None
        self.positions[key] = seq + 1
        if seq > expected:
            return True, Hole(source, epoch, expected, seq - 1)
        return True, None
