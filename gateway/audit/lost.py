"""Lost: what a starting recorder says of epochs whose ring is gone (power loss, deleted container).

recovery (cut) -> **lost** -> recorder, which logs the events and then closes the epochs.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from gateway.audit.chain import Chain, Position
from gateway.audit.event import EpochClose, Event, Gap
from gateway.audit.recovery import closes, cut
from gateway.audit.source import Source
from gateway.audit.spool import EpochPath, SyncedMark, closed, epoch_path, epochs, synced_seq
from gateway.audit.storage import DISK, Storage

log = logging.getLogger("tidegate.recorder")


class Lost(NamedTuple):
    """One epoch that is over because nothing can be written to it any more."""

    epoch: EpochPath
    next_seq: int
    cause: str
    position: Position
    """What its frames hash to."""
    events: list[Event]
    """To be logged before it is closed: an open gap, and its end."""


def lost_epochs(spool: Path, ringed: Collection[str], storage: Storage = DISK) -> list[Lost]:
    """Every open epoch without a ring; its segments are cut and its mark is set.

    Args:
        ringed: keys of the epochs that have one.

    Raises:
        OSError: the disk refused. An epoch whose bytes cannot be read (EIO) is told and left out, and open.
    """
    over: list[Lost] = []
    for epoch in epochs(spool, storage):
        if epoch.key in ringed or closed(epoch, storage) is not None:
            continue
        try:
            over.append(_lost(epoch, storage))
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise
            log.error(
                "epoch_unreadable",
                extra={
                    "epoch": epoch.key,
                    "why": exc.strerror,
                    "meanwhile": "it is left as it is; all others are recorded",
                    "do": "see to the disk of the state directory; the next start tries again",
                },
            )
    return over


def _lost(epoch: EpochPath, storage: Storage) -> Lost:
    tail = cut(epoch, None, storage)
    mark = SyncedMark(epoch.path / "synced", storage)
    next_seq = mark.next_seq if tail.next_seq is None else tail.next_seq
    mark.store(next_seq)
    mark.close()
    position = Chain.resume(epoch, storage, next_seq).position
    if closes(epoch, tail.payload):
        return Lost(epoch, next_seq, "closed", position, [])
    gap = Gap(
        source=f"{epoch.source:016x}",
        epoch=epoch.epoch,
        from_seq=next_seq,
        to_seq=None,
        cause="host_loss",
        at_ns=time.time_ns(),
        last_synced_ns=tail.mtime_ns or None,
    )
    log.warning("ring_lost", extra={"epoch": epoch.key, "from_seq": next_seq})
    return Lost(epoch, next_seq, "host_loss", position, [gap, close_event(epoch, next_seq, "host_loss")])


def close_event(epoch: EpochPath, events: int, cause: str) -> EpochClose:
    """The end of an epoch, told by the recorder for an owner that cannot."""
    return EpochClose(
        source=f"{epoch.source:016x}",
        epoch=epoch.epoch,
        events=events,
        cause=cause,
        at_ns=time.time_ns(),
    )


def end_of_own(spool: Path, own: Source, storage: Storage = DISK) -> list[tuple[str, Position]]:
    """What the last frames of a recorder hash to that ended by itself: nobody else says that.

    Args:
        own: the source of the recorder that follows it.

    Raises:
        OSError: a segment cannot be read.
    """
    if own.prev_epoch is None:
        return []
    last = epoch_path(spool, own.source, own.prev_epoch)
    if closed(last, storage) is None:
        return []
    return [(last.key, Chain.resume(last, storage, synced_seq(last, storage)).position)]
