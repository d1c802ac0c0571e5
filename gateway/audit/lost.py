"""Lost: what a starting recorder says of epochs whose ring is gone (power loss, deleted container).

recovery (cut) -> **lost** -> recorder, which logs the events and then closes the epochs.
"""

from __future__ import annotations

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
        OSError: the disk refused.
    """
    over: list[Lost] = []
    for epoch in epochs(spool, storage):
        if epoch.key in ringed or closed(epoch, storage) is not None:
            continue
        tail = cut(epoch, None, storage)
        mark = SyncedMark(epoch.path / "synced", storage)
        next_seq = mark.next_seq if tail.next_seq is None else tail.next_seq
        mark.store(next_seq)
        mark.close()
        position = Chain.resume(epoch, storage, next_seq).position
        if closes(epoch, tail.payload):
            over.append(Lost(epoch, next_seq, "closed", position, []))
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
        log.warning("ring_lost", extra={"epoch": epoch.key, "from_seq": next_seq})
        end = close_event(epoch, next_seq, "host_loss")
        over.append(Lost(epoch, next_seq, "host_loss", position, [gap, end]))
    return over


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
