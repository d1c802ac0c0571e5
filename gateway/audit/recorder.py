"""The recorder: drains every process's ring to the spool. `python -P -m gateway.audit.recorder`

append (in each process) -> ring -> **drain** -> spool -> forwarder, feeds. The one process that meets the disk, so
that no other has to. Standard library and msgspec only. It is a source itself and logs what the dead cannot:
the numbers they drew without a record, and the end of their epochs. Every such event is on disk before the
epoch's `closed` file says that all is told; a kill in between tells it twice, which readers allow.
"""

from __future__ import annotations

import contextlib
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
from gateway.audit.chain import Chain
from gateway.audit.drain import Drain, Retirement, Target
from gateway.audit.event import EpochClose, Event, Gap
from gateway.audit.positions import PositionLog
from gateway.audit.recovery import closes, cut
from gateway.audit.retention import Retention
from gateway.audit.salvage import salvage
from gateway.audit.source import SMALL_RING_BYTES, claim_source
from gateway.audit.spool import EpochPath, SyncedMark, closed, epoch_path, epochs, synced_seq, write_closed
from gateway.audit.storage import DISK, Storage
from gateway.audit.writer import Writer
from gateway.errors import FrameCorrupt, RingUnusable

log = logging.getLogger("tidegate.recorder")

IDLE_S = 0.004
"""Between passes when nothing came."""
PACE_S = 0.004
PACE_BYTES = 1024 * 1024
"""A pass that moved less than this waits, so that syncs carry more: at most 4 ms from append to disk's turn."""
MTIME_GRAIN_NS = 50_000_000
"""The ring directory's mtime is trusted once it is older than the clock's grain."""
LOOK_NS = 20_000_000
"""Between two looks whether the owners of rings live, and two signs of life to them."""
LOCK_POLL_S = 0.02
RETRY_S = (0.05, 2.0)
"""After a failed write: first and longest wait."""
RETENTION_S = 10.0
STOP_S = 5.0
"""After SIGTERM: as long as owners live."""
OWN_STOP_S = 2.0
"""For our own last events."""
_RING_NAME_CHARS = 25


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

    Raises:
        OSError: the disk refuses already what recovery has to tell.
    """

    def __init__(self, places: Places, gateway_id: str, segment_bytes: int, storage: Storage = DISK) -> None:
        self._places = places
        self._storage = storage
        self._target = Target(places.spool, segment_bytes, storage)
        self._drains: dict[str, Drain] = {}
        self._listed_ns = 0
        self.look_ns = 0
        """Between two looks at the owners; 0: with each pass."""
        self._looked_ns = 0
        self._looks = True
        self._failing = False
        self._retry_at = 0.0
        self._retry_s = RETRY_S[0]
        source = claim_source(
            places.state_dir, gateway_id, "recorder", places.ring_dir, SMALL_RING_BYTES, storage
        )
        self._own = Writer(source, gateway_id)
        self._own_name = source.ring_path.name
        self._positions = PositionLog()
        self._ringless = True
        """There may be epochs whose ring is gone."""
        self._discover()
        self._close_lost()

    def step(self) -> int:
        """One pass over all rings; returns the bytes moved to disk."""
        self._discover()
        if self._ringless:
            self._close_lost()
        now_ns = time.monotonic_ns()
        self._looks = now_ns - self._looked_ns >= self.look_ns
        if self._looks:
            self._looked_ns = now_ns
            for drain in self._drains.values():
                drain.ring.beat(now_ns)
        if self._failing and time.monotonic() < self._retry_at:
            return 0
        moved = 0
        failure: OSError | None = None
        blocked: set[int] = set()
        for drain in self._in_order():
            if drain.source in blocked:
                continue
            try:
                moved += self._advance(drain, now_ns)
                over = drain.retirement is not None
            except OSError as exc:
                failure, over = exc, False
            # An older recorder's epoch is told in our own, so it cannot hold that one up once empty.
            if not over or drain.source != self._own.source.source:
                blocked.add(drain.source)
        try:
            self._retire()
            if failure is None and (positions := self._positions.due(self._drains.values(), now_ns)):
                self._log(positions)
        except OSError as exc:
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

    def _in_order(self) -> list[Drain]:
        return sorted(self._drains.values(), key=lambda d: (d.source, d.epoch.epoch))

    def _discover(self) -> None:
        changed_ns = self._places.ring_dir.stat().st_mtime_ns
        if changed_ns == self._listed_ns and time.time_ns() - changed_ns > MTIME_GRAIN_NS:
            return
        self._listed_ns = changed_ns
        for path in self._places.ring_dir.iterdir():
            name = path.name
            if name in self._drains or len(name) != _RING_NAME_CHARS or name[16] != "-":
                continue
            try:
                drain = Drain(path, self._target)
            except FileNotFoundError:
                continue
            except RingUnusable as exc:
                self._storage.rename(path, path.with_suffix(".bad"))
                log.error("ring_unusable", extra={"ring": name, "why": str(exc)})  # noqa: TRY400
                self._lose_ring(name)
                continue
            if closed(drain.epoch, self._storage) is not None:
                drain.close(unlink=True)
                continue
            if not drain.believed:
                kept = salvage(drain.ring, drain.epoch, self._target.segment_bytes, self._storage)
                drain.close(unlink=True)
                log.warning("ring_of_another_boot", extra={"ring": name, **kept._asdict()})
                self._ringless = True
                continue
            drain.ring.set_unavailable(self._failing)
            self._drains[name] = drain

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
        events.append(_close_event(drain.epoch, assigned, "owner_died"))
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

    def _lose_ring(self, name: str) -> None:
        """The epoch of a ring that cannot be read is told like one whose ring is gone."""
        try:
            source, epoch = (int(part, 16) for part in name.split("-"))
        except ValueError:
            return
        self._storage.make_directory(epoch_path(self._places.spool, source, epoch).path)
        self._ringless = True

    def _close_lost(self) -> None:
        """Epochs whose ring is gone (power loss, deleted container): an open gap, and their end."""
        self._ringless = False
        ringed = {d.epoch.key for d in self._drains.values()}
        # The last frames of a recorder that ended by itself: nobody else says what they hash to.
        before = self._own.source
        if before.prev_epoch is not None:
            last = epoch_path(self._places.spool, before.source, before.prev_epoch)
            if closed(last, self._storage) is not None:
                chain = Chain.resume(last, self._storage, synced_seq(last, self._storage))
                self._log(self._positions.now([(last.key, chain.position)]))
        over: list[tuple[EpochPath, int, str]] = []
        for epoch in epochs(self._places.spool, self._storage):
            if epoch.key in ringed or closed(epoch, self._storage) is not None:
                continue
            tail = cut(epoch, None, self._storage)
            mark = SyncedMark(epoch.path / "synced", self._storage)
            next_seq = mark.next_seq if tail.next_seq is None else tail.next_seq
            mark.store(next_seq)
            mark.close()
            chain = Chain.resume(epoch, self._storage, next_seq)
            self._log(self._positions.now([(epoch.key, chain.position)]))
            if closes(epoch, tail.payload):
                over.append((epoch, next_seq, "closed"))
                continue
            gap = Gap(
                source=f"{epoch.source:016x}",
                epoch=epoch.epoch,
                from_seq=next_seq,
                to_seq=None,
                cause="host_loss",
                at_ns=time.time_ns(),
                last_synced_ns=tail.mtime_ns or None,
            )
            self._log([gap, _close_event(epoch, next_seq, "host_loss")])
            log.warning("ring_lost", extra={"epoch": epoch.key, "from_seq": next_seq})
            over.append((epoch, next_seq, "host_loss"))
        own = self._drains[self._own_name]
        while over and not own.empty:
            own.step()
        for epoch, next_seq, cause in over:
            write_closed(epoch, next_seq, cause, self._storage)

    def _log(self, events: Sequence[Event]) -> int:
        """Append to our own ring, if there is anything; returns the position behind it."""
        while events and self._own.append_events(events) is None:
            # Our own ring is full: it is ours to drain.
            self._drains[self._own_name].step()
        return self._own.ring.committed

    def _judge(self, failure: OSError | None) -> None:
        """Tell the owners when the disk begins to refuse, and when it takes records again."""
        if failure is None:
            if self._failing:
                self._failing, self._retry_s = False, RETRY_S[0]
                for drain in self._drains.values():
                    drain.ring.set_unavailable(drain.retirement is not None)
                log.info("records_written_again")
            return
        if not self._failing:
            log.error("records_cannot_be_written", extra={"why": failure.strerror})
        self._failing = True
        for drain in self._drains.values():
            drain.ring.set_unavailable(True)
        self._retry_at = time.monotonic() + self._retry_s
        self._retry_s = min(self._retry_s * 2, RETRY_S[1])


def _close_event(epoch: EpochPath, events: int, cause: str) -> EpochClose:
    return EpochClose(
        source=f"{epoch.source:016x}",
        epoch=epoch.epoch,
        events=events,
        cause=cause,
        at_ns=time.time_ns(),
    )


def run(context: process.Context) -> None:
    """Drain until SIGTERM, then until nothing is left to drain."""
    config = configuration.decode(context.config)
    places = Places(context.state_path, Path(context.ring_dir))
    stop: list[float] = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(time.monotonic() + STOP_S))
    if not _locked(places.state_dir / "recorder.lock", stop):
        return
    retention = Retention(places.spool, config)
    # Before anything is written: a full disk may be full of what is over.
    retention.apply()
    recorder = Recorder(places, context.gateway_id, config.audit.segment_bytes)
    recorder.look_ns = LOOK_NS
    log.info("draining", extra={"spool": "ready"})
    next_retention = time.monotonic() + RETENTION_S
    while not (stop and (recorder.quiet or time.monotonic() > stop[0])):
        moved = recorder.step()
        if moved < PACE_BYTES:
            time.sleep(PACE_S if moved else IDLE_S)
        now = time.monotonic()
        if now >= next_retention:
            next_retention = now + RETENTION_S
            try:
                retention.apply()
            except OSError as exc:
                log.warning("retention_failed", extra={"why": exc.strerror})
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
