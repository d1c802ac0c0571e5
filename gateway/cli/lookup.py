"""One record by its id, for `tidegate audit get` and `replay`; and where there is none, why.

Ids come from clients, tickets and other gateways: each way in which one can lead nowhere has an answer of its own.
"""

from __future__ import annotations

import time
from pathlib import Path

import click

from gateway.audit.event import SCHEMA, Event, Gap
from gateway.audit.frame import Frame, expand
from gateway.audit.identity import ROLES, EventId, parse_event_id, source_of
from gateway.audit.locate import Sought, frame_of
from gateway.audit.spool import EpochPath, closed, epoch_path, read_epoch, segments, synced_seq
from gateway.audit.witnesses import recorders
from gateway.cli.failures import NO, Stop
from gateway.cli.places import Place
from gateway.cli.progress import reading
from gateway.cli.screen import moment
from gateway.errors import FrameCorrupt, FrameNewer

POLL_S = 0.01
SHOWN_AFTER_S = 1.0
INDICES = range(1024)


def found_in(place: Place, prediction_id: str, wait_ms: int) -> Event:
    """The event of an id.

    Args:
        wait_ms: how long one that is on its way to the disk is waited for.

    Raises:
        Stop: it is no id (2), or there is no record (1): the message says why, as far as the log knows.
    """
    try:
        wanted = parse_event_id(prediction_id)
    except ValueError as exc:
        raise Stop(str(exc)) from exc
    event = _in_topic(place, wanted) if place.kafka else _in_spool(place.spool, wanted, wait_ms)
    if event.schema > SCHEMA:
        note = f"tidegate: {wanted} is of schema {event.schema}; this version knows {SCHEMA} and leaves out the rest"
        click.echo(note, err=True)
    return event


def _in_spool(spool: Path, wanted: EventId, wait_ms: int) -> Event:
    epoch = epoch_path(spool, wanted.source, wanted.epoch)
    deadline = time.monotonic() + wait_ms / 1000
    while wanted.seq >= synced_seq(epoch) and closed(epoch) is None and time.monotonic() < deadline:
        time.sleep(POLL_S)
    sought = Sought()
    frame = frame_of(epoch, wanted.seq, sought)
    if frame is None or frame.first_seq > wanted.seq:
        raise Stop(_why_not(spool, epoch, wanted, frame, sought), NO)
    try:
        return expand(wanted.source, wanted.epoch, frame)[wanted.seq - frame.first_seq]
    except FrameNewer as exc:
        msg = f"{wanted}: {exc}"
        raise Stop(msg, NO) from exc


def _why_not(spool: Path, epoch: EpochPath, wanted: EventId, after: Frame | None, sought: Sought) -> str:
    """Why there is no record. `after`: the first frame behind the number."""
    named = f"no record {wanted} here"
    if not epoch.path.parent.is_dir():
        return f"{named}: {_foreign(spool, wanted)}"
    listed = segments(epoch)
    if not epoch.path.is_dir() or (listed and wanted.seq < listed[0][0]):
        return f"{named}: {_trimmed(spool, epoch, wanted)}"
    synced, over = synced_seq(epoch), closed(epoch)
    gap = _gap_of(spool, epoch, wanted, after)
    if gap is not None:
        return f"{named}: {_of_gap(gap)}"
    if wanted.seq >= synced:
        if over is not None:
            return f"{named}: its epoch ended before number {synced} ({over.get('cause')}); that number was never drawn"
        return f"{named}: its epoch is at number {synced}; that number was not drawn, or is not on disk yet"
    if sought.damage is not None:
        path, damage = sought.damage
        return f"{named}: it stood in {path}, which is damaged at byte {damage.offset} ({damage.found})"
    return f"{named}, and no gap says why: the log has lost it; see tidegate audit verify"


def _foreign(spool: Path, wanted: EventId) -> str:
    gateway_id = _gateway_id(spool)
    if gateway_id is None:
        return "another gateway's: no such source ever wrote to this log"
    for role in ROLES:
        for index in INDICES:
            if source_of(gateway_id, role, index) == wanted.source:
                return f"it is of this gateway's {role} {index}, which never wrote to this log"
    return f"another gateway's: {wanted.source:016x} is no source of gateway {gateway_id}"


def _gateway_id(spool: Path) -> str | None:
    try:
        return (spool.parent / "gateway_id").read_text().strip() or None
    except OSError:
        return None


def _trimmed(spool: Path, epoch: EpochPath, wanted: EventId) -> str:
    last = _last_epoch(epoch.path.parent)
    if last is not None and wanted.epoch > last:
        return f"its source has no epoch {wanted.epoch:08x}; the last one is {last:08x}"
    gap = _gap_of(spool, epoch, wanted, None)
    if gap is not None:
        return _of_gap(gap)
    if not epoch.path.is_dir():
        return "retention took all of its epoch, or there never was one; a topic may have it (--kafka)"
    return f"retention took its epoch up to number {segments(epoch)[0][0] - 1}; a topic may have it (--kafka)"


def _last_epoch(source: Path) -> int | None:
    try:
        return int((source / "epoch").read_text())
    except (OSError, ValueError):
        return None


def _of_gap(gap: Gap) -> str:
    last = "" if gap.to_seq is None else f" to {gap.to_seq}"
    told = f"(told {moment(gap.at_ns)} by {gap.id})"
    if gap.cause == "retention":
        return f"retention took numbers {gap.from_seq}{last} {told}; a topic may have it (--kafka)"
    onward = " on" if gap.to_seq is None else ""
    return f"numbers {gap.from_seq}{last}{onward} have no records, cause {gap.cause} {told}"


def _gap_of(spool: Path, epoch: EpochPath, wanted: EventId, after: Frame | None) -> Gap | None:
    """The gap that covers a number: what its owner logged next, or what a recorder did."""
    gaps = [] if after is None else _gaps_in(epoch, after)
    with reading(lambda: None, "gaps", SHOWN_AFTER_S) as advance:
        for own in recorders(spool):
            for frame in read_epoch(own, 0):
                advance(len(frame.payload))
                if b"\xa3gap" in frame.payload:
                    gaps += _gaps_in(own, frame)
    for gap in gaps:
        about = gap.source == f"{wanted.source:016x}" and gap.epoch == wanted.epoch
        if about and gap.from_seq <= wanted.seq and (gap.to_seq is None or wanted.seq <= gap.to_seq):
            return gap
    return None


def _gaps_in(epoch: EpochPath, frame: Frame) -> list[Gap]:
    try:
        return [e for e in expand(epoch.source, epoch.epoch, frame) if isinstance(e, Gap)]
    except FrameCorrupt:
        return []


def _in_topic(place: Place, wanted: EventId) -> Event:
    look = place.look()
    try:
        with reading(look.records, "records", SHOWN_AFTER_S) as advance:
            found = look.find(wanted, advance)
    finally:
        look.close()
    if found is None:
        msg = f"no record {wanted} in topic {place.topic}: another gateway's, never drawn, or not sent yet"
        raise Stop(msg, NO)
    if isinstance(found, Gap) and found.id != str(wanted):
        msg = f"no record {wanted} in topic {place.topic}: {_of_gap(found)}"
        raise Stop(msg, NO)
    return found
