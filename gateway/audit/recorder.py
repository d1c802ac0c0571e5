"""The recorder: drains every process's ring to the spool. `python -P -m gateway.audit.recorder`

append (in each process) -> ring -> **drain** -> spool -> forwarder, feeds. The one process that meets the disk, so
that no other has to. Standard library and msgspec only. It is a source itself and logs what the dead cannot:
the numbers they drew without a record, and the end of their epochs.

Per ring the order is: write, fdatasync, `synced` in the ring, the epoch's `synced` file. So a kill at any
point leaves frames that are written again from the ring, and never a mark ahead of the disk.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

from gateway import config as configuration
from gateway import logs, process
from gateway.audit.event import EpochClose, Event, Gap
from gateway.audit.frame import Events, decode_payload
from gateway.audit.recovery import Tail, cut
from gateway.audit.retention import Retention
from gateway.audit.ring import Ring
from gateway.audit.source import SMALL_RING_BYTES, claim_source
from gateway.audit.spool import (
    Disk,
    EpochPath,
    SegmentWriter,
    Storage,
    SyncedMark,
    closed,
    epoch_path,
    epochs,
    write_closed,
)
from gateway.audit.writer import Writer
from gateway.errors import FrameCorrupt, RingUnusable

log = logging.getLogger("tidegate.recorder")

IDLE_S = 0.004
READ_BYTES = 4 * 1024 * 1024
RETRY_S = (0.05, 2.0)
"""After a failed write: first and longest wait."""
RETENTION_S = 10.0
STOP_S = 5.0


class Drain:
    """One ring being drained, and its epoch on disk."""

    def __init__(self, path: Path, spool: Path, segment_bytes: int, storage: Storage) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self.ring = Ring.attach(memoryview(mmap.mmap(self.fd, 0)))
        except (RingUnusable, ValueError):
            os.close(self.fd)
            raise
        facts = self.ring.facts
        self.source, self.epoch_number = facts.source, facts.epoch
        self.epoch: EpochPath = epoch_path(spool, facts.source, facts.epoch)
        self._segment_bytes = segment_bytes
        self._storage = storage
        self.next_seq = 0
        self._closes = False
        self.last_payload: bytes | None = None
        self.retiring_at: int | None = None
        self.epoch.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.mark = SyncedMark(self.epoch.path / "synced")
        self.recover()

    def recover(self) -> None:
        """Cut what is not known to be on disk; start a new segment."""
        frames, _, _ = self.ring.read(self.ring.synced, 1)
        tail: Tail = cut(self.epoch, frames[0].first_seq if frames else None)
        self.next_seq, self._closes, self.last_payload = tail.next_seq, tail.closes, None
        self.writer = SegmentWriter(self.epoch, self._segment_bytes, self._storage)
        self.mark.store(tail.next_seq)

    def step(self) -> int:
        """Move what is there to disk; returns the bytes moved.

        Raises:
            OSError: the disk refused; call `recover` before the next step.
            FrameCorrupt: the ring holds bytes below `committed` that are no frame.
        """
        position = self.ring.synced
        if position == self.ring.committed:
            return 0
        frames, data, position = self.ring.read(position, READ_BYTES)
        if frames:
            self.writer.write(frames[0].first_seq, data)
            self.writer.sync()
            self.next_seq = frames[-1].next_seq
            self.last_payload = frames[-1].payload
        self.ring.set_synced(position)
        self.mark.store(self.next_seq)
        return len(data)

    @property
    def empty(self) -> bool:
        """Nothing waits in the ring."""
        return self.ring.synced == self.ring.committed

    @property
    def closes(self) -> bool:
        """The last frame on disk is the owner's own epoch_close."""
        if self.last_payload is None:
            return self._closes
        content = decode_payload(self.last_payload)
        return isinstance(content, Events) and isinstance(content.events[-1], EpochClose)

    def owner_lives(self) -> bool:
        """Whether the owner holds its lock."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        return False

    def close(self, *, unlink: bool) -> None:
        """Let go; `unlink` removes the ring file."""
        self.writer.abandon()
        self.mark.close()
        self.ring.release()
        os.close(self.fd)
        if unlink:
            self.path.unlink(missing_ok=True)


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
    """

    def __init__(
        self, places: Places, gateway_id: str, segment_bytes: int, storage: Storage | None = None
    ) -> None:
        self._places = places
        self._segment_bytes = segment_bytes
        self._storage = storage or Disk()
        self._drains: dict[str, Drain] = {}
        self._bad: set[str] = set()
        self._failing = False
        self._retry_at = 0.0
        self._retry_s = RETRY_S[0]
        source = claim_source(places.state_dir, gateway_id, "recorder", places.ring_dir, SMALL_RING_BYTES)
        self._own = Writer(source, gateway_id)
        self._own_name = source.ring_path.name
        self._discover()
        self._close_lost()

    def step(self) -> int:
        """One pass over all rings; returns the bytes moved to disk."""
        if self._failing and time.monotonic() < self._retry_at:
            return 0
        self._discover()
        moved = 0
        blocked: set[int] = set()
        now_ns = time.monotonic_ns()
        for drain in sorted(self._drains.values(), key=lambda d: (d.source, d.epoch_number)):
            if drain.source in blocked:
                continue
            drain.ring.beat(now_ns)
            try:
                moved += drain.step()
            except OSError as exc:
                self._failed(drain, exc)
                return moved
            except FrameCorrupt as exc:
                self._quarantine(drain, exc)
                continue
            if not drain.empty:
                blocked.add(drain.source)
            elif drain.path.name != self._own_name and drain.retiring_at is None:
                if drain.owner_lives():
                    blocked.add(drain.source)
                elif drain.empty:
                    self._begin_retirement(drain)
                else:
                    blocked.add(drain.source)
        if self._failing:
            self._failing, self._retry_s = False, RETRY_S[0]
            for drain in self._drains.values():
                drain.ring.set_unavailable(False)
            log.info("records_written_again")
        self._retire()
        self._own.heartbeat()
        return moved

    @property
    def quiet(self) -> bool:
        """Only our own ring is left, and it is empty."""
        return all(d.path.name == self._own_name and d.empty for d in self._drains.values())

    def close(self) -> None:
        """End our own epoch and put it on disk."""
        self._own.close()
        while not self._drains[self._own_name].empty:
            self.step()
        own = self._drains.pop(self._own_name)
        write_closed(own.epoch, own.next_seq, "closed")
        own.close(unlink=True)

    def _discover(self) -> None:
        for path in self._places.ring_dir.iterdir():
            name = path.name
            if name in self._drains or name in self._bad or len(name) != 25 or name[16] != "-":
                continue
            try:
                drain = Drain(path, self._places.spool, self._segment_bytes, self._storage)
            except (RingUnusable, ValueError) as exc:
                self._bad.add(name)
                log.error("ring_unusable", extra={"ring": name, "why": str(exc)})  # noqa: TRY400
                continue
            if closed(drain.epoch) is not None:
                drain.close(unlink=True)
                continue
            drain.ring.set_unavailable(self._failing)
            self._drains[name] = drain

    def _close_lost(self) -> None:
        """Epochs whose ring is gone (power loss, deleted container): an open gap, and their end."""
        ringed = {(d.source, d.epoch_number) for d in self._drains.values()}
        for epoch in epochs(self._places.spool):
            if (epoch.source, epoch.epoch) in ringed or closed(epoch) is not None:
                continue
            tail = cut(epoch, None)
            mark = SyncedMark(epoch.path / "synced")
            mark.store(tail.next_seq)
            mark.close()
            if not tail.closes:
                gap = Gap(
                    source=f"{epoch.source:016x}",
                    epoch=epoch.epoch,
                    from_seq=tail.next_seq,
                    to_seq=None,
                    cause="host_loss",
                    at_ns=time.time_ns(),
                    last_synced_ns=tail.mtime_ns,
                )
                self._log([gap, _close_event(epoch.source, epoch.epoch, tail.next_seq, "host_loss")])
                log.warning("ring_lost", extra={"epoch": epoch.key, "from_seq": tail.next_seq})
            write_closed(epoch, tail.next_seq, "closed" if tail.closes else "host_loss")

    def _begin_retirement(self, drain: Drain) -> None:
        assigned = drain.ring.assigned
        if drain.closes and assigned == drain.next_seq:
            drain.retiring_at = 0
            return
        events: list[Event] = []
        if assigned > drain.next_seq:
            events.extend(_tail_gaps(drain, assigned))
        events.append(_close_event(drain.source, drain.epoch_number, assigned, "owner_died"))
        self._log(events)
        drain.retiring_at = self._own.ring.committed
        log.warning(
            "owner_died",
            extra={"ring": drain.path.name, "events": assigned, "lost": assigned - drain.next_seq},
        )

    def _retire(self) -> None:
        done = [
            d
            for d in self._drains.values()
            if d.retiring_at is not None and self._own.ring.synced >= d.retiring_at
        ]
        for drain in done:
            cause = "closed" if drain.retiring_at == 0 else "owner_died"
            try:
                write_closed(drain.epoch, drain.ring.assigned, cause)
            except OSError as exc:
                self._failed(drain, exc)
                return
            del self._drains[drain.path.name]
            drain.close(unlink=True)

    def _log(self, events: list[Event]) -> None:
        while self._own.append_events(events) is None:
            # Our own ring is full: it is ours to drain.
            self._drains[self._own_name].step()

    def _failed(self, drain: Drain, exc: OSError) -> None:
        """The disk refused: tell the workers, cut, and try again in a new segment, later."""
        if not self._failing:
            log.error(  # noqa: TRY400
                "records_cannot_be_written", extra={"why": exc.strerror, "epoch": drain.epoch.key}
            )
        self._failing = True
        for other in self._drains.values():
            other.ring.set_unavailable(True)
        drain.writer.abandon()
        try:
            drain.recover()
        except OSError:
            log.warning("segment_not_cut", extra={"epoch": drain.epoch.key})
        self._retry_at = time.monotonic() + self._retry_s
        self._retry_s = min(self._retry_s * 2, RETRY_S[1])

    def _quarantine(self, drain: Drain, exc: FrameCorrupt) -> None:
        """Bytes below `committed` are no frame: the rest of this ring cannot be told apart."""
        log.error("ring_corrupt", extra={"ring": drain.path.name, "why": str(exc)})  # noqa: TRY400
        gap = Gap(
            source=f"{drain.source:016x}",
            epoch=drain.epoch_number,
            from_seq=drain.next_seq,
            to_seq=None,
            cause="corrupt",
            at_ns=time.time_ns(),
        )
        self._log([gap])
        self._bad.add(drain.path.name)
        del self._drains[drain.path.name]
        drain.path.rename(drain.path.with_suffix(".bad"))
        drain.close(unlink=False)


def _tail_gaps(drain: Drain, assigned: int) -> list[Event]:
    pending = drain.ring.pending_gap
    full = pending is not None and pending[0] <= drain.next_seq
    return [
        Gap(
            source=f"{drain.source:016x}",
            epoch=drain.epoch_number,
            from_seq=drain.next_seq,
            to_seq=assigned - 1,
            cause="ring_full" if full else "owner_died",
            at_ns=time.time_ns(),
        )
    ]


def _close_event(source: int, epoch: int, events: int, cause: str) -> EpochClose:
    return EpochClose(source=f"{source:016x}", epoch=epoch, events=events, cause=cause, at_ns=time.time_ns())


def run(context: process.Context) -> None:
    """Drain until SIGTERM, then until nothing is left to drain."""
    config = configuration.decode(context.config)
    places = Places(context.state_path, Path(context.ring_dir))
    lock = os.open(places.state_dir / "recorder.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    recorder = Recorder(places, context.gateway_id, config.audit.segment_bytes)
    retention = Retention(places.spool, config)
    stop: list[float] = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(time.monotonic() + STOP_S))
    log.info("draining", extra={"spool": "ready"})
    next_retention = 0.0
    while not (stop and (recorder.quiet or time.monotonic() > stop[0])):
        if not recorder.step():
            time.sleep(IDLE_S)
        now = time.monotonic()
        if now >= next_retention:
            next_retention = now + RETENTION_S
            retention.apply()
    recorder.close()


def main() -> None:
    """Entry of the process."""
    context = process.enter()
    logs.setup("recorder")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run(context)


if __name__ == "__main__":
    main()
