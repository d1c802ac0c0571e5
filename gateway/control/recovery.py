"""Recovery of control state: the snapshot, then every control event that is later.

A predecessor may have been killed between logging a change and writing its snapshot. So: wait until its
ring is drained, read control's own sources from the snapshot's last event on, apply. The result is what it
would have written.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from gateway.audit.event import Control
from gateway.audit.frame import expand
from gateway.audit.identity import EventId, parse_event_id, source_of
from gateway.audit.spool import epochs, read_epoch
from gateway.control import snapshot
from gateway.control.state import State, applied

log = logging.getLogger("tidegate.control")

WAIT_S = 10.0
INDICES = range(4)
"""Control processes that ever lived side by side (one, but for a hand-over)."""


def sources_of(gateway_id: str) -> tuple[int, ...]:
    """Control's own sources, in order of index."""
    return tuple(source_of(gateway_id, "control", index) for index in INDICES)


def wait_drained(ring_dir: Path, sources: tuple[int, ...], own_ring: str) -> bool:
    """Wait until the recorder is done with the rings of predecessors; False when that takes over 10 s.

    It removes a ring once its owner is dead and all of it can be read. An empty ring is not enough: its marks move
    just before the spool's.
    """
    prefixes = tuple(f"{source:016x}-" for source in sources)
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        left = [
            path.name
            for path in ring_dir.iterdir()
            # Those that are set aside or half made have longer names.
            if path.name.startswith(prefixes) and len(path.name) == len(own_ring) and path.name != own_ring
        ]
        if not left:
            return True
        time.sleep(0.01)
    return False


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
    sources = sources_of(gateway_id)
    for event in later_events(spool, sources, last):
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
