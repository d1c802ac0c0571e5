"""Witnesses: values of the running hash that someone kept, to hold the spool's frames against.

The recorder's own records in the spool and in the topic (`position_log.py`), the forwarder's positions file, and a file
that an auditor kept (`tidegate audit positions --json`). The further from this host's disk, the more they prove.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gateway.audit.event import EpochOpen, Event, Gap, Heartbeat
from gateway.audit.frame import Events, Frame, decode_payload, expand
from gateway.audit.identity import ROLES, source_of
from gateway.audit.spool import EpochPath, epochs, read_epoch
from gateway.errors import FrameCorrupt, WitnessUnusable

_KEY = re.compile(r"[0-9a-f]{16}-[0-9a-f]{8}", re.ASCII)
_VALUE = re.compile(r"[0-9a-f]{64}", re.ASCII)
SOURCES_MAX = 1024
"""Of a role of one gateway (`gateway/audit/source.py`)."""
_RECORDERS = range(8)
"""Recorders of one gateway, by index: one lives at a time."""
_RUN = b"\xa5frame\xa3run"
_POSITIONS = b"\xa9positions"


class Known(NamedTuple):
    """That the hash of an epoch's frames below `next_seq` is `value`, as `by` says."""

    next_seq: int
    value: bytes
    by: str


Witnesses = dict[str, list[Known]]
"""By epoch key, each in order of number."""


def merged(*several: Witnesses) -> Witnesses:
    """All of them; what two say alike stands twice."""
    out: Witnesses = {}
    for one in several:
        for key, listed in one.items():
            out.setdefault(key, []).extend(listed)
    for listed in out.values():
        listed.sort()
    return out


def in_spool(spool: Path) -> Witnesses:
    """What the recorder's own epochs in the spool say. Reads those whole, of others a frame."""
    out: Witnesses = {}
    for epoch in recorders(spool):
        for frame in readable(epoch):
            if _POSITIONS not in frame.payload:
                continue
            try:
                events = expand(epoch.source, epoch.epoch, frame)
            except FrameCorrupt:
                continue
            _take(out, events, "the recorder's record")
    return merged(out)


def in_events(events: Iterable[Event]) -> Witnesses:
    """What heartbeats say that were read from the topic."""
    out: Witnesses = {}
    _take(out, events, "the topic's record")
    return merged(out)


def of_spool(spool: Path, known: Witnesses) -> Witnesses:
    """What of it is about this gateway: several share a topic. By the sources that lie here, and by the gateway's id.

    Cost: 10 ms.
    """
    gateway_id = _gateway_id(spool)
    sources = {epoch.source for epoch in epochs(spool)}
    if gateway_id:
        sources |= {source_of(gateway_id, role, index) for role in ROLES for index in range(SOURCES_MAX)}
    return {
        key: listed for key, listed in known.items() if _KEY.fullmatch(key) and int(key[:16], 16) in sources
    }


def trims_in(spool: Path, events: Iterable[Event]) -> list[Gap]:
    """What this gateway's recorder told of retention, of events that were read from the topic."""
    ours = _recorder_sources(spool)
    gaps = (event for event in events if isinstance(event, Gap) and event.cause == "retention")
    return [gap for gap in gaps if int(gap.id[:16], 16) in ours]


def in_forwarder(path: Path) -> Witnesses:
    """What the forwarder's positions file says, as far as it names values; nothing where there is none."""
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    found: dict[str, Any] = {}
    for key, entry in entries.items() if isinstance(entries, dict) else ():
        if isinstance(entry, dict) and isinstance(entry.get("chain"), list):
            found[key] = entry["chain"]
    try:
        return _parsed(found, "the forwarder's positions")
    except (ValueError, TypeError):
        return {}


def in_file(path: Path) -> Witnesses:
    """A file that an auditor kept.

    Raises:
        OSError: it cannot be read.
        WitnessUnusable: it is not what `tidegate audit positions --json` prints.
    """
    try:
        content = json.loads(path.read_bytes())
        return _parsed(content["positions"], path.name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        why = f"no {exc} in it" if isinstance(exc, KeyError) else str(exc)
        msg = f"{path}: {why}; expected what `tidegate audit positions --json` prints"
        raise WitnessUnusable(msg) from exc


def _parsed(found: Any, by: str) -> Witnesses:
    out: Witnesses = {}
    for key, value in found.items():
        next_seq, digits = value
        if not _KEY.fullmatch(key) or not isinstance(next_seq, int) or not _VALUE.fullmatch(str(digits)):
            msg = f"not a position: {key!r}: {value!r}"
            raise ValueError(msg)
        out[key] = [Known(next_seq, bytes.fromhex(digits), by)]
    return out


def _take(out: Witnesses, events: Iterable[Event], by: str) -> None:
    for event in events:
        if isinstance(event, Heartbeat) and isinstance(event.positions, dict):
            for key, (next_seq, digits) in event.positions.items():
                if _VALUE.fullmatch(digits):
                    known = Known(next_seq, bytes.fromhex(digits), f"{by} {event.id}")
                    out.setdefault(key, []).append(known)


def recorders(spool: Path) -> Iterator[EpochPath]:
    """The recorder's epochs. By the gateway's id where it lies beside the spool and names one; else those that may be:
    what a worker writes is no witness, and no excuse for others."""
    ours = _recorder_sources(spool)
    listed = epochs(spool)
    if any(epoch.source in ours for epoch in listed):
        yield from (epoch for epoch in listed if epoch.source in ours)
        return
    yield from (epoch for epoch in listed if _may_record(next(readable(epoch), None)))


def readable(epoch: EpochPath, from_seq: int = 0) -> Iterator[Frame]:
    """Frames of an epoch from a number on, to where the disk does not give them (EIO): its own check finds that."""
    try:
        yield from read_epoch(epoch, from_seq)
    except OSError as exc:
        if exc.errno != errno.EIO:
            raise


def _gateway_id(spool: Path) -> str:
    try:
        return (spool.parent / "gateway_id").read_text().strip()
    except (OSError, ValueError):
        return ""


def _recorder_sources(spool: Path) -> set[int]:
    gateway_id = _gateway_id(spool)
    return {source_of(gateway_id, "recorder", index) for index in _RECORDERS} if gateway_id else set()


def _may_record(frame: Frame | None) -> bool:
    """By an epoch's oldest frame: its first says the role, and a recorder never writes runs."""
    if frame is None or _RUN in frame.payload[:16]:
        return False
    try:
        content = decode_payload(frame.payload)
    except FrameCorrupt:
        return False
    first = content.events[0] if isinstance(content, Events) and content.events else None
    return first.role == "recorder" if isinstance(first, EpochOpen) else True
