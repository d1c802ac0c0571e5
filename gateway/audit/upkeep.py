"""Upkeep: what the recorder does beside draining: retention, the reserve, alarms, its status.

run -> drain (`recorder`), then **upkeep** after each pass. Everything here comes second to draining: it looks at the
disk about once a second, and what fails is told and tried again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from gateway.audit.event import Event, Gap
from gateway.audit.retention import Retention, Trim, segment_bytes
from gateway.audit.room import Reserve, Room
from gateway.audit.scrub import Scrub
from gateway.audit.standing import Alarms, Drained, Rate, Unsynced, hours_left, write_status
from gateway.settings import Config

log = logging.getLogger("tidegate.recorder")

LOOK_S = 1.0
RETENTION_S = 10.0
SOON_S = 0.25
"""Between two passes of retention while there is too much."""
UNSYNCED_S = 0.02
TRIMS_KEPT = 1000
"""Trims that could not be told yet; more are joined into what verify sees anyway: an epoch's first number."""


class Recording(Protocol):
    """The recorder, as far as it is seen from here."""

    failing: str
    """Why records cannot be written at present, or nothing."""
    failing_since_s: float
    gaps: int

    def rings(self) -> Sequence[tuple[str, Drained]]:
        """All rings by name."""
        ...

    def tell(self, events: Sequence[Event]) -> bool:
        """Log events of the recorder's own; False when they find no room now."""
        ...

    def look_after(self) -> bool:
        """Find out about directories that somebody removed; whether there were any."""
        ...


class Upkeep:
    """One spool's.

    Args:
        spool: its directory, in the state directory.

    Attributes:
        room: who may write; the recorder asks it.
        segment_bytes: where segments roll.

    Threading: one thread. Cost of a pass in which nothing is due: two comparisons.
    """

    def __init__(self, spool: Path, config: Config) -> None:
        self._directory = spool.parent / "recorder"
        self.retention = Retention(spool, config)
        self.segment_bytes = segment_bytes(config, self.retention.max_bytes)
        self._trims: list[Trim] = []
        self._refused = ""
        self._trimmed = self._trimmed_bytes = 0
        # Before anything is written: a full disk may be full of what is over.
        self._trim()
        now_s = time.monotonic()
        reserve = Reserve(spool.parent)
        self.room = Room(spool.parent, reserve)
        self._alarms = Alarms(forwarded=self.retention.held, reserve_bytes=reserve.size_bytes)
        self._rate = Rate(self._rate_before(), now_s)
        self._unsynced = Unsynced()
        self._scrub = Scrub(spool)
        self._unsynced_s = 0.0
        self._trimmed_s = now_s
        self._look_s = now_s
        self._set_limit()
        log.info(
            "spool", extra={key: value for key, value in self._figures(now_s).items() if key in _AT_START}
        )

    def after_pass(self, recorder: Recording, moved_bytes: int) -> None:
        """What is due now. Raises nothing that the disk does."""
        now_s = time.monotonic()
        if moved_bytes:
            self.retention.wrote(moved_bytes)
            self._rate.wrote(moved_bytes)
        if now_s - self._unsynced_s >= UNSYNCED_S:
            self._unsynced_s = now_s
            self._unsynced.note(recorder.rings(), time.monotonic_ns())
        over = self.retention.is_over and now_s >= self._trimmed_s + SOON_S
        if over or now_s >= self._trimmed_s + RETENTION_S:
            self._trimmed_s = now_s
            self._trim()
        self._set_limit()
        if now_s >= self._look_s:
            self._look_s = now_s + LOOK_S
            self.room.look()
            if recorder.look_after():
                # What the spool takes is other than was summed up.
                self._trim()
            self._tell_trims(recorder)
            status = self._status(recorder, now_s)
            self._alarms.look(status)
            write_status(self._directory, status)
        if not moved_bytes:
            self._scrub.step(recorder.tell)

    def _trim(self) -> None:
        try:
            trims = self.retention.apply(told=not self._trims)
        except OSError as exc:
            if exc.strerror != self._refused:
                self._refused = exc.strerror or ""
                log.warning("retention_failed", extra={"file": exc.filename, "why": exc.strerror})
            return
        self._refused = ""
        self._trimmed += sum(trim.segments for trim in trims)
        self._trimmed_bytes += sum(trim.size_bytes for trim in trims)
        self._trims = [*self._trims, *trims][-TRIMS_KEPT:]

    def _set_limit(self) -> None:
        before, self.room.at_limit = self.room.at_limit, self.retention.at_limit
        if before == self.room.at_limit:
            return
        facts = {"bytes": self.retention.total_bytes, "max_bytes": self.retention.max_bytes}
        if before:
            log.info("spool_below_limit", extra=facts)
            return
        log.error(
            "spool_at_limit",
            extra={
                **facts,
                "unsent_bytes": self.retention.held_bytes,
                "meanwhile": "control's and the sidecar's records are written; workers' wait, then"
                " audit.on_unavailable decides",
                "do": "see why Kafka takes nothing (tidegate audit status), or raise audit.max_bytes and start again",
            },
        )

    def _tell_trims(self, recorder: Recording) -> None:
        """One gap an epoch and range: numbers that left this spool, which a topic still has."""
        at_ns = time.time_ns()
        while self._trims:
            trim = self._trims[0]
            gap = Gap(
                source=f"{trim.epoch.source:016x}",
                epoch=trim.epoch.epoch,
                from_seq=trim.from_seq,
                to_seq=trim.to_seq,
                cause="retention",
                at_ns=at_ns,
            )
            if not recorder.tell([gap]):
                return
            del self._trims[0]

    def _rate_before(self) -> float:
        """What the files say of earlier lives: 0 where they say nothing."""
        oldest_s = self.retention.oldest_s
        span_s = 0.0 if oldest_s is None else time.time() - oldest_s
        return self.retention.total_bytes / span_s * 3600 if span_s > 60 else 0.0

    def _figures(self, now_s: float) -> dict[str, Any]:
        retention = self.retention
        # What the limit is about: with a forwarder what may not go, else all.
        used = retention.held_bytes if retention.held else retention.total_bytes
        per_h = round(self._rate.per_h(now_s))
        oldest_s = retention.oldest_s
        return {
            "spool_bytes": retention.total_bytes,
            "held_bytes": retention.held_bytes,
            "max_bytes": retention.max_bytes,
            "fill": round(used / retention.max_bytes, 4),
            "bytes_per_h": per_h,
            "hours_left": hours_left(used, retention.max_bytes, per_h),
            "oldest_age_s": 0.0 if oldest_s is None else round(max(time.time() - oldest_s, 0.0), 1),
            "free_bytes": self.room.free_bytes,
            "reserve_bytes": self.room.reserve_bytes,
            "reserve_size_bytes": self.room.reserve_size_bytes,
        }

    def _status(self, recorder: Recording, now_s: float) -> dict[str, Any]:
        unsynced_bytes, unsynced_ms = self._unsynced.take()
        return {
            **self._figures(now_s),
            "unsynced_bytes": unsynced_bytes,
            "unsynced_ms": unsynced_ms,
            "failing": int(bool(recorder.failing)),
            "failing_why": recorder.failing,
            "failing_s": round(now_s - recorder.failing_since_s, 1) if recorder.failing else 0.0,
            "waiting": int(bool(self.room.waits)),
            "waiting_why": self.room.waits,
            "trimmed_segments": self._trimmed,
            "trimmed_bytes": self._trimmed_bytes,
            "gaps": recorder.gaps,
        }


_AT_START = frozenset(
    ("spool_bytes", "max_bytes", "bytes_per_h", "hours_left", "free_bytes", "reserve_bytes")
)
