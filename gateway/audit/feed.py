"""A feed: the log as consumers read it, the same over the spool and over Kafka.

Guarantees of every feed (held by tests/contracts/test_feeds.py):

* events of one (source, epoch) come in order of seq, each once: what a high-water mark per (source,
  epoch) has seen is dropped, so a resend in the topic is not seen twice;
* a hole is reported (`Delivery.holes`) when a later event of the epoch arrives without the numbers
  between; a `gap` event that covers it may arrive before or after;
* what retention took before it was read is reported too: as holes, and of a topic as `Delivery.skipped`;
* what cannot be read is counted (`unreadable`), named once in the log, and the rest goes on
  (`gateway.audit.legible`);
* `positions` after a `read` resume exactly behind what was returned;
* a feed that begins at a time (`since_ns`) leaves nothing out that is at or after it; some that is before may come,
  and what came before is no hole.

Positions are a map {"<source hex>-<epoch hex>": next seq}, plain data that a consumer stores together
with its state.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from gateway.audit.event import Event

log = logging.getLogger("tidegate.feed")

Positions = dict[str, int]
RETENTION = "retention"
"""Cause of holes and gaps: older than what is kept here."""
UNREADABLE = "unreadable"


class Hole(NamedTuple):
    """Numbers from_seq..to_seq (both included) of an epoch that the feed did not find."""

    source: int
    epoch: int
    from_seq: int
    to_seq: int
    cause: str | None = None
    """retention: no longer kept here | unreadable: there, and not for this version | corrupt: there, and damaged |
    None: a gap event may say."""


class Skipped(NamedTuple):
    """Offsets from_offset..to_offset (both included) of a partition that the brokers had no more when they were asked
    for. What stood there is not known; later events show holes of their epochs."""

    partition: int
    from_offset: int
    to_offset: int


class Delivery(NamedTuple):
    """What one `read` returned."""

    events: list[Event]
    holes: list[Hole]
    skipped: Sequence[Skipped] = ()


class Feed(Protocol):
    """See the module's head. Not thread-safe; one consumer."""

    def read(self, max_events: int, wait_ms: int) -> Delivery:
        """Up to about `max_events` events; waits `wait_ms` at most when there are none."""
        ...

    @property
    def positions(self) -> Positions:
        """Where this feed stands: behind everything returned so far."""
        ...

    def ends(self) -> Positions:
        """Positions behind what is there now, where that is more than was returned: who wants no more reads up to
        them."""
        ...

    @property
    def unreadable(self) -> int:
        """Records that this feed came by and could not read."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


class HighWater:
    """Drops what was seen and reports holes; one mark per (source, epoch). Pure.

    Args:
        positions: the marks to begin with.
        since_ns: epochs that began before then and have no mark begin with their first event seen, without a hole.
        is_part: the marks are not all there were: as before, of any epoch.
    """

    def __init__(
        self, positions: Positions | None = None, since_ns: int | None = None, *, is_part: bool = False
    ) -> None:
        self.positions: Positions = dict(positions or {})
        self._since_s = None if since_ns is None else since_ns // 1_000_000_000
        self._is_part = is_part

    def admit(self, source: int, epoch: int, seq: int) -> tuple[bool, Hole | None]:
        """Whether the event is new, and the hole before it if there is one."""
        return self.admit_id(f"{source:016x}-{epoch:08x}", seq)

    def admit_id(self, key: str, seq: int) -> tuple[bool, Hole | None]:
        """The same by the epoch's key."""
        expected = self.positions.get(key)
        if expected is None:
            expected = seq if self.begins_anywhere(int(key[17:], 16)) else 0
        if seq < expected:
            return False, None
        self.positions[key] = seq + 1
        if seq > expected:
            return True, Hole(int(key[:16], 16), int(key[17:], 16), expected, seq - 1)
        return True, None

    def begins_anywhere(self, epoch: int) -> bool:
        """Whether an epoch without a mark may begin in its middle. An epoch's number is the second it began in."""
        return self._is_part or (self._since_s is not None and epoch < self._since_s)


class Unreadable:
    """Counts what a feed could not read, and names each kind of it once in the log."""

    def __init__(self) -> None:
        self.count = 0
        self._told: set[str] = set()

    def note(self, what: str, where: str, count: int = 1) -> None:
        """One more.

        Args:
            what: the kind, one of few.
            where: the first of it.
        """
        self.count += count
        if what not in self._told and len(self._told) < 100:
            self._told.add(what)
            todo = "is this Tidegate older than the gateway that wrote it?"
            log.warning("records_unreadable", extra={"what": what, "first": where, "todo": todo})
