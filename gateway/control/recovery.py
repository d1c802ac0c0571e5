"""Recovery of control state: the snapshot, then every control event that is later.

A predecessor may have been killed between logging a change and writing its snapshot. So: wait until its
ring is drained, read control's own sources from the snapshot's last event on, apply. The result is what it
would have written.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from gateway.audit.drained import sources_of
from gateway.audit.event import Control
from gateway.audit.frame import expand
from gateway.audit.identity import EventId, parse_event_id
from gateway.audit.spool import epochs, read_epoch
from gateway.control import snapshot
from gateway.control.state import State, applied

log = logging.getLogger("tidegate.control")


def recover(path: Path, spool: Path, gateway_id: str) -> State:
    """The state as of the last control event on disk.

    Raises:
        SnapshotCorrupt, StateFormatNewer: the snapshot cannot be used.
    """
    try:
        serving, ledger = snapshot.decode(path.read_bytes())
    except FileNotFoundError:
        serving, ledger = snapshot.Serving(gateway_id=gateway_id, generation=0), snapshot.Ledger()
    state = State(serving, ledger)
    last = parse_event_id(ledger.last_event) if ledger.last_event else None
    sources = sources_of(gateway_id, "control")
    return caught_up(state, later_events(spool, sources, last))


def caught_up(state: State, events: Iterable[Control]) -> State:
    """The state after the events that its snapshot does not have yet, in the order they were made."""
    for event in events:
        state = applied(state, event)
        log.info("change_recovered", extra={"kind": event.kind, "model": event.model})
    return state


def later_events(spool: Path, sources: tuple[int, ...], last: EventId | None) -> list[Control]:
    """Control events behind `last`, in the order they were made: control's epochs do not overlap."""
    found: list[Control] = []
    for epoch in sorted((e for e in epochs(spool) if e.source in sources), key=lambda e: e.epoch):
        if last is not None and epoch.epoch < last.epoch:
            continue
        behind = -1
        if last is not None and (epoch.source, epoch.epoch) == (last.source, last.epoch):
            behind = last.seq
        for frame in read_epoch(epoch, behind + 1):
            for event in expand(epoch.source, epoch.epoch, frame):
                if isinstance(event, Control) and parse_event_id(event.id).seq > behind:
                    found.append(event)
    return found
