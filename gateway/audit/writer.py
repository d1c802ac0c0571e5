"""The writer: how a process appends events to its own ring. Append stage; next: the recorder.

One `Writer` a process, used from one thread. `append_events` numbers whole events; `append_run` takes
the encoded payload of a batch. When the ring has no room both return None, and the caller retries (the
request path holds its replies) or calls `lose`, which draws numbers without records; the next append
that fits leads with their gap event.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from gateway import __version__
from gateway.audit.event import EpochClose, EpochOpen, Event, Gap, Heartbeat
from gateway.audit.frame import Events, encoder
from gateway.audit.identity import id_prefix
from gateway.audit.source import Source

HEARTBEAT_NS = 1_000_000_000


class Writer:
    """Appends to one source's ring.

    Args:
        source: a freshly claimed source; its epoch is opened here.
        gateway_id: stands in the epoch's first event.

    Threading: one thread. Cost: `append_run` copies and sums the payload, 1 us per KiB.
    """

    def __init__(self, source: Source, gateway_id: str) -> None:
        self.source = source
        self.ring = source.ring
        self.prefix = id_prefix(source.source, source.epoch)
        self._last_append_ns = time.monotonic_ns()
        self.append_events(
            [
                EpochOpen(
                    gateway_id=gateway_id,
                    role=source.role,
                    index=source.index,
                    prev_epoch=source.prev_epoch,
                    at_ns=time.time_ns(),
                    pid=os.getpid(),
                    version=__version__,
                )
            ]
        )

    def event_id(self, seq: int) -> str:
        """The text id of one of this epoch's numbers."""
        return f"{self.prefix}{seq:016x}"

    def append_run(self, payload: bytes, count: int) -> int | None:
        """Publish a batch; returns its first number, or None when there is no room."""
        if self.ring.pending_gap is not None and not self._log_pending():
            return None
        first_seq = self.ring.append(payload, count)
        return None if first_seq < 0 else first_seq

    def append_events(self, events: Sequence[Event]) -> int | None:
        """Publish whole events; returns the first number, or None when there is no room."""
        if self.ring.pending_gap is not None and not self._log_pending():
            return None
        return self._append(events)

    def lose(self, count: int) -> int:
        """Draw numbers that will have no record; their gap is logged with the next append."""
        return self.ring.draw_unlogged(count)

    def heartbeat(self) -> None:
        """Called about each second: says that an idle source lives."""
        if time.monotonic_ns() - self._last_append_ns >= HEARTBEAT_NS:
            self.append_events([Heartbeat(at_ns=time.time_ns())])

    def synced(self, position: int) -> bool:
        """Whether everything below a `committed` position is on disk."""
        return self.ring.synced >= position

    def close(self) -> None:
        """End the epoch; nothing may be appended afterwards."""
        facts = self.source
        if self.ring.pending_gap is not None and not self._log_pending():
            # An end without its gap would hide the loss; the recorder tells both.
            return
        self._append(
            [
                EpochClose(
                    source=f"{facts.source:016x}",
                    epoch=facts.epoch,
                    events=self.ring.assigned + 1,
                    cause="closed",
                    at_ns=time.time_ns(),
                )
            ]
        )

    def _log_pending(self) -> bool:
        pending = self.ring.pending_gap
        if pending is None:
            return True
        gap = Gap(
            source=f"{self.source.source:016x}",
            epoch=self.source.epoch,
            from_seq=pending[0],
            to_seq=pending[1],
            cause="ring_full",
            at_ns=time.time_ns(),
        )
        if self._append([gap]) is None:
            return False
        self.ring.clear_pending()
        return True

    def _append(self, events: Sequence[Event]) -> int | None:
        first_seq = self.ring.append(encoder.encode(Events(list(events))), len(events))
        if first_seq < 0:
            return None
        self._last_append_ns = time.monotonic_ns()
        return first_seq
