"""Backlog: how far behind the topic is, and why nothing is sent, in `forwarder/status.json`.

forwarder -> **backlog** -> `/metrics`, `tidegate audit status`. Written about once a second; never a reason to fail.
"""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gateway.audit.envelope import made_ms
from gateway.audit.frame import expand
from gateway.audit.sent import Positions
from gateway.audit.spool import EpochPath, EpochReader, segments, synced_seq

STATUS_S = 1.0


class Standing:
    """Counts since the start, and what waits now.

    Attributes:
        why: why nothing is sent, None while records go or none wait.
    """

    def __init__(self, directory: Path, positions: Positions, readers: dict[str, EpochReader]) -> None:
        self._directory = directory
        self._positions = positions
        self._readers = readers
        self._oldest: dict[str, tuple[int, int]] = {}
        """The first number of an epoch that is not sent, and its time in ms."""
        self._written_s = 0.0
        self.forwarded = self.batches = self.sent_bytes = self.retries = 0
        self._why: str | None = None
        self._since_ns = 0

    @property
    def why(self) -> str | None:
        """Why nothing is sent; None while records go or none wait."""
        return self._why

    def stopped(self, why: str) -> None:
        """Nothing is sent from now on, or still."""
        if self._why is None:
            self._since_ns = time.time_ns()
        self._why = why

    def sent(self, records: int, size_bytes: int) -> None:
        """A batch was acknowledged."""
        self._why = None
        self.forwarded += records
        self.batches += 1
        self.sent_bytes += size_bytes

    def next_is(self, key: str, seq: int, at_ms: int) -> None:
        """The first event of an epoch that is not sent, and when it was made."""
        self._oldest[key] = (seq, at_ms)

    def forget(self, key: str) -> None:
        """An epoch is gone from the spool."""
        self._oldest.pop(key, None)

    def write(self, open_epochs: Iterable[EpochPath], quarantined: int, *, now: bool = False) -> None:
        """Write the file, once a second or now."""
        now_s = time.monotonic()
        if now_s - self._written_s < STATUS_S and not now:
            return
        self._written_s = now_s
        with contextlib.suppress(OSError):
            # Retention may take away what is being looked at.
            facts = {
                "at_ns": time.time_ns(),
                "why": self._why,
                "stalled_ms": 0 if self._why is None else (time.time_ns() - self._since_ns) // 1_000_000,
                "forwarded_events": self.forwarded,
                "batches": self.batches,
                "sent_bytes": self.sent_bytes,
                "retries": self.retries,
                "quarantined": quarantined,
                **self._lag(open_epochs),
            }
            temporary = self._directory / "status.new"
            temporary.write_text(json.dumps(facts))
            temporary.rename(self._directory / "status.json")

    def _lag(self, open_epochs: Iterable[EpochPath]) -> dict[str, Any]:
        lag_events = lag_bytes = 0
        oldest_ms = now_ms = time.time_ns() // 1_000_000
        for epoch in open_epochs:
            at = self._positions.entries.get(epoch.key, {}).get("next_seq", 0)
            synced = synced_seq(epoch)
            if at >= synced:
                continue
            lag_events += synced - at
            oldest_ms = min(oldest_ms, self._oldest_ms(epoch, at))
            found = segments(epoch)
            ends = [first_seq for first_seq, _ in found[1:]] + [synced]
            for (first_seq, path), end_seq in zip(found, ends, strict=True):
                if end_seq > at:
                    share = (end_seq - max(at, first_seq)) / max(end_seq - first_seq, 1)
                    lag_bytes += int(path.stat().st_size * min(share, 1.0))
        return {"lag_events": lag_events, "lag_bytes": lag_bytes, "oldest_age_ms": max(now_ms - oldest_ms, 0)}

    def _oldest_ms(self, epoch: EpochPath, at: int) -> int:
        """When the first event that is not sent was made."""
        seq, at_ms = self._oldest.get(epoch.key, (-1, 0))
        if seq == at:
            return at_ms
        at_ms = time.time_ns() // 1_000_000
        # A copy: looking ahead must not move the reader's place.
        reader = copy.copy(self._readers.get(epoch.key) or EpochReader(epoch))
        with contextlib.suppress(Exception):  # what cannot be read has no time
            at_ms = made_ms(expand(epoch.source, epoch.epoch, next(reader.frames(at)))[0])
        self._oldest[epoch.key] = (at, at_ms)
        return at_ms
