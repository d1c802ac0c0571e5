"""The recorder: drains every process's ring to the spool. `python -P -m gateway.audit.recorder`

append (in each process) -> ring -> **drain** -> spool -> forwarder, feeds. The one process that meets the disk, so
that no other has to. Standard library and msgspec only. It is a source itself and logs what the dead cannot:
the numbers they drew without a record, and the end of their epochs. Every such event is on disk before the
epoch's `closed` file says that all is told; a kill in between tells it twice, which readers allow.

Where the disk refuses, `unavailable` in the rings tells their owners, and it is tried again until it goes on; where
only room is short (`room`), workers' and mirrors' rings wait and the others go on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gateway import config as configuration
from gateway import logs, process
from gateway.audit.drain import Drain, Retirement, Target
from gateway.audit.event import Event, Gap
from gateway.audit.identity import source_of
from gateway.audit.lost import close_event, end_of_own, lost_epochs
from gateway.audit.position_log import PositionLog
from gateway.audit.ring import Ring
from gateway.audit.rings import Rings
from gateway.audit.room import AT_LIMIT, Room
from gateway.audit.source import SMALL_RING_BYTES, claim_source
from gateway.audit.spool import write_closed
from gateway.audit.storage import DISK, Storage
from gateway.audit.upkeep import Upkeep
from gateway.audit.writer import Writer
from gateway.errors import FrameCorrupt

log = logging.getLogger("tidegate.recorder")

IDLE_S = 0.004
"""Between passes when nothing came."""
PACE_S = 0.004
PACE_BYTES = 1024 * 1024
"""A pass that moved less than this waits, so that syncs carry more: at most 4 ms from append to disk's turn."""
LOOK_NS = 20_000_000
"""Between two looks whether the owners of rings live, and two signs of life to them."""
LOCK_POLL_S = 0.02
RETRY_S = (0.05, 2.0)
"""After a failed write: first and longest wait."""
FIRST_ROLES = ("control", "sidecar", "recorder")
"""Whose records are written with what room is left: what decides on traffic, and what tells of losses."""
STOP_S = 5.0
"""After SIGTERM: as long as owners live."""
OWN_STOP_S = 2.0
"""For our own last events."""


class Places(NamedTuple):
    """Where things lie."""

    state_dir: Path
    ring_dir: Path

    @property
    def spool(self) -> Path:
        """The spool's directory."""
        return self.state_dir / "spool"


class Recorder:
    """Drains all rings of one gateway. One thread; `step` is one pass.

    Args:
        storage: the disk; tests give one that fails.
        room: who may write; None: all.

    Attributes:
        failing: why records cannot be written at present; empty while they can.
        gaps: gap events logged here.

    Raises:
        OSError: the disk refuses already what recovery has to tell.
    """

    def __init__(
        self,
        places: Places,
        gateway_id: str,
        segment_bytes: int,
        storage: Storage = DISK,
        room: Room | None = None,
    ) -> None:
        self._places = places
        self._storage = storage
        self._room = room or Room(places.state_dir)
        self._first = {source_of(gateway_id, role, index) for role in FIRST_ROLES for index in range(4)}
        self.gaps = 0
        self.failing = ""
        self.failing_since_s = 0.0
        self._target = Target(places.spool, segment_bytes, storage)
        self._drains: dict[str, Drain] = {}
        self._rings = Rings(places.ring_dir, self._target)
        self.look_ns = 0
        """Between two looks at the owners; 0: with each pass."""
        self._looked_ns = 0
        self._looks = True
        self._retry_at = 0.0
        self._retry_s = RETRY_S[0]
        self._lost_told: set[str] = set()
        source = claim_source(
            places.state_dir, gateway_id, "recorder", places.ring_dir, SMALL_RING_BYTES, storage
        )
        self._own = Writer(source, gateway_id)
        self._own_name = source.ring_path.name
        self._positions = PositionLog()
        self._discover()

    def step(self) -> int:
        """One pass over all rings; returns the bytes moved to disk."""
        failure: OSError | None = None
        try:
            self._discover()
        except OSError as exc:
            # In the way of new rings alone; tried again with each pass.
            failure = exc
        now_ns = time.monotonic_ns()
        self._looks = now_ns - self._looked_ns >= self.look_ns
        if self._looks:
            self._looked_ns = now_ns
            for drain in self._drains.values():
                drain.ring.beat(now_ns)
        if self.failing and time.monotonic() < self._retry_at:
            return 0
        moved = 0
        blocked: set[int] = set()
        for drain in self._in_order():
            if drain.source in blocked:
                continue
            over = False
            try:
                if not self._waits(drain):
                    moved += self._advance(drain, now_ns)
                    over = drain.retirement is not None
            except OSError as exc:
                if not self._room.refused(exc, can_wait=drain.source not in self._first):
                    failure = exc
            # An older recorder's epoch is told in our own, so it cannot hold that one up once empty.
            if not over or drain.source != self._own.source.source:
                blocked.add(drain.source)
        try:
            self._retire()
            if failure is None and (positions := self._positions.due(self._drains.values(), now_ns)):
                self._log(positions)
        except OSError as exc:
            if not self._room.refused(exc, can_wait=False):
                failure = exc
        self._judge(failure)
        self._own.heartbeat()
        return moved

    @property
    def quiet(self) -> bool:
        """Only our own ring is left, and it is empty."""
        return all(name == self._own_name and d.empty for name, d in self._drains.items())

    def close(self) -> None:
        """End our own epoch and put it on disk; what the disk refuses waits in the ring."""
        own = self._drains[self._own_name]
        with contextlib.suppress(OSError):
            self._log(self._positions.now((d.key, d.position) for d in self._in_order()))
        self._own.close()
        deadline = time.monotonic() + OWN_STOP_S
        while True:
            try:
                while not own.empty:
                    own.step()
                write_closed(own.epoch, own.next_seq, "closed", self._storage)
                break
            except OSError as exc:
                if time.monotonic() > deadline:
                    log.error("own_end_not_written", extra={"why": exc.strerror})  # noqa: TRY400
                    return
                time.sleep(RETRY_S[0])
        del self._drains[self._own_name]
        own.close(unlink=True)

    def rings(self) -> list[tuple[str, Ring]]:
        """All rings by name."""
        return [(name, drain.ring) for name, drain in self._drains.items()]

    def tell(self, events: Sequence[Event]) -> bool:
        """Log events of our own; False when they find no room now."""
        if self._own.append_events(events) is None:
            return False
        self.gaps += sum(isinstance(event, Gap) for event in events)
        return True

    def look_after(self) -> bool:
        """Begin epochs anew whose directory somebody removed, and tell by a gap what was in it; whether there were
        any."""
        found = False
        for drain in self._drains.values():
            try:
                if not drain.is_removed():
                    continue
                next_seq = drain.begin_anew()
            except OSError as exc:
                self._judge(exc)
                return found
            found = True
            log.error("spool_removed", extra={"epoch": drain.epoch.key, "numbers_lost": next_seq})
            if next_seq:
                self._log([drain.gap(0, next_seq - 1, "corrupt", time.time_ns())])
        return found

    def _waits(self, drain: Drain) -> bool:
        """Whether a ring's records are to stay where they are. At the spool's limit those of the dead do not: they are
        at most the ring."""
        waits = self._room.waits
        if not waits or drain.source in self._first:
            return False
        return waits != AT_LIMIT or drain.owner_lives()

    def _in_order(self) -> list[Drain]:
        return sorted(self._drains.values(), key=lambda d: (d.source, d.epoch.epoch))

    def _discover(self) -> None:
        for drain in self._rings.new(self._drains.keys()):
            self._drains[drain.path.name] = drain
            self._tell_owner(drain)
        if self._rings.ringless and time.monotonic() >= self._retry_at:
            self._close_lost()

    def _advance(self, drain: Drain, now_ns: int) -> int:
        """Drain one ring; begin its retirement when it is empty and its owner gone."""
        if drain.retirement is not None:
            return 0
        try:
            moved = drain.step()
        except FrameCorrupt as exc:
            if drain.corrupt(now_ns):
                self._quarantine(drain, exc)
            return 0
        if drain.lost is not None:
            first, last = drain.lost
            self._log([drain.gap(first, last, "corrupt", time.time_ns())])
            log.error("records_lost", extra={"epoch": drain.epoch.key, "from_seq": first, "to_seq": last})
            drain.lost = None
        if moved or not self._looks or drain.path.name == self._own_name or drain.owner_lives():
            return moved
        if drain.empty:
            # Empty after the lock was seen free: nothing can be appended any more.
            self._begin_retirement(drain)
        return moved

    def _begin_retirement(self, drain: Drain) -> None:
        assigned = drain.ring.assigned
        events: list[Event] = [*self._positions.now([(drain.key, drain.position)])]
        if drain.owner_closed:
            drain.retirement = Retirement(self._log(events), "closed", assigned)
            return
        events += drain.tail_gaps(time.time_ns())
        events.append(close_event(drain.epoch, assigned, "owner_died"))
        drain.retirement = Retirement(self._log(events), "owner_died", assigned)
        log.warning(
            "owner_died",
            extra={"ring": drain.path.name, "events": assigned, "lost": assigned - drain.next_seq},
        )

    def _quarantine(self, drain: Drain, exc: FrameCorrupt) -> None:
        """Bytes below `committed` are no frame: what follows in this ring cannot be told apart."""
        drain.ring.set_unavailable(True)
        drain.settle()
        events: list[Event] = [*self._positions.now([(drain.key, drain.position)])]
        position = self._log([*events, drain.gap(drain.next_seq, None, "corrupt", time.time_ns())])
        drain.retirement = Retirement(position, "corrupt", drain.next_seq)
        log.error("ring_corrupt", extra={"ring": drain.path.name, "why": str(exc)})  # noqa: TRY400

    def _retire(self) -> None:
        for name, drain in list(self._drains.items()):
            over = drain.retirement
            if over is None or self._own.ring.synced < over.position:
                continue
            write_closed(drain.epoch, over.next_seq, over.cause, self._storage)
            del self._drains[name]
            self._positions.forget(drain.key)
            if over.cause == "corrupt":
                self._storage.rename(drain.path, drain.path.with_suffix(".bad"))
            drain.close(unlink=over.cause != "corrupt")

    def _close_lost(self) -> None:
        """Epochs whose ring is gone: an open gap, and their end."""
        spool, storage = self._places.spool, self._storage
        self._log(self._positions.now(end_of_own(spool, self._own.source, storage)))
        over = lost_epochs(spool, {drain.key for drain in self._drains.values()}, storage)
        for lost in over:
            if lost.epoch.key not in self._lost_told:
                self._log([*self._positions.now([(lost.epoch.key, lost.position)]), *lost.events])
                self._lost_told.add(lost.epoch.key)
        own = self._drains[self._own_name]
        while over and not own.empty:
            own.step()
        for lost in over:
            write_closed(lost.epoch, lost.next_seq, lost.cause, storage)
        self._rings.ringless = False

    def _log(self, events: Sequence[Event]) -> int:
        """Append to our own ring, if there is anything; returns the position behind it."""
        while events and not self.tell(events):
            # Our own ring is full: it is ours to drain.
            self._drains[self._own_name].step()
        return self._own.ring.committed

    def _judge(self, failure: OSError | None) -> None:
        """Tell the owners when the disk begins to refuse, and when it takes records again."""
        if failure is None:
            if self.failing:
                after_s = round(time.monotonic() - self.failing_since_s, 1)
                log.info("records_written_again", extra={"after_s": after_s, "was": self.failing})
                self.failing, self._retry_s = "", RETRY_S[0]
        else:
            why = failure.strerror or str(failure)
            if self.failing != why:
                code = errno.errorcode.get(failure.errno or 0, "")
                log.error("records_cannot_be_written", extra={"why": why, "errno": code, **_ADVICE})
            if not self.failing:
                self.failing_since_s = time.monotonic()
            self.failing = why
            self._retry_at = time.monotonic() + self._retry_s
            self._retry_s = min(self._retry_s * 2, RETRY_S[1])
        for drain in self._drains.values():
            self._tell_owner(drain)

    def _tell_owner(self, drain: Drain) -> None:
        waits = bool(self._room.waits) and drain.source not in self._first
        unavailable = bool(self.failing) or waits or drain.retirement is not None
        if drain.ring.unavailable != unavailable:
            drain.ring.set_unavailable(unavailable)


_ADVICE = {
    "meanwhile": "records wait in the rings, then audit.on_unavailable decides",
    "do": "see to the disk of the state directory; it is tried again every 2 s and nothing needs a restart",
}


def run(context: process.Context) -> None:
    """Drain until SIGTERM, then, after one more pass at least, until nothing is left to drain."""
    config = configuration.decode(context.config)
    places = Places(context.state_path, Path(context.ring_dir))
    stop: list[float] = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(time.monotonic() + STOP_S))
    if not _locked(places.state_dir / "recorder.lock", stop):
        return
    upkeep = Upkeep(places.spool, config)
    try:
        recorder = Recorder(places, context.gateway_id, upkeep.segment_bytes, room=upkeep.room)
    except OSError as exc:
        # The next life finds the room of the reserve.
        upkeep.room.refused(exc, can_wait=False)
        raise
    recorder.look_ns = LOOK_NS
    log.info("draining", extra={"spool": "ready"})
    ends = False
    while not (ends and (recorder.quiet or time.monotonic() > stop[0])):
        ends, moved = bool(stop), recorder.step()
        upkeep.after_pass(recorder, moved)
        if moved < PACE_BYTES:
            time.sleep(PACE_S if moved else IDLE_S)
    recorder.close()


def _locked(path: Path, stop: Sequence[float]) -> bool:
    """Take the recorder's lock for life; False when told to stop while another has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while not stop:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_POLL_S)
            continue
        return True
    return False


def main() -> None:
    """Entry of the process."""
    context = process.enter()
    process.patient()
    logs.setup("recorder")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run(context)


if __name__ == "__main__":
    main()
