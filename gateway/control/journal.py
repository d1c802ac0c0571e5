"""The journal: what happened to routes, as the log of this host has it: further back than the ledger, and more.

spool (control's own events) -> **journal** -> engine -> `route history`, rollback to a revision of long ago.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from gateway.audit.drained import sources_of
from gateway.audit.event import Control
from gateway.audit.frame import expand
from gateway.audit.spool import EpochPath, EpochReader, epochs
from gateway.control.snapshot import Ledger, OpenBreaker
from gateway.control.state import ROUTE_KINDS, route_document
from gateway.errors import FrameCorrupt, FrameNewer, StateConflict
from gateway.routing import Route

ENTRIES_MAX = 20_000
"""So many are held in memory, over all models; beyond, the oldest go of the model that has most: whoever may only renew
the leases of one must not make another's history forgotten."""
_NOTED = ROUTE_KINDS | {"lease", "lease_over", "refused", "load", "unload"}


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that happened to a model's route or versions."""

    kind: str
    at_ns: int
    by: str
    reason: str
    event: str
    model: str
    revision: int | None = None
    """That it made; for what made none, the one that stood."""
    is_revision: bool = False
    via: dict[str, str] | None = None
    key: str | None = None
    after: msgspec.Raw = msgspec.Raw()
    """What it left, as the event has it (msgpack)."""
    count: int = 1
    """So many of its kind in a row, of which this is the last: renewals of a lease."""

    @property
    def route(self) -> Route:
        """The document of a revision."""
        return msgspec.msgpack.decode(self.after, type=Route)


class Journal:
    """Control's own events in the spool, read on as they come.

    Threading: `read` blocks (run it on a thread), one caller at a time. Cost: the first look reads all that control has
    logged and retention has left, 5 us an event; later ones, what came since.
    """

    def __init__(self, spool: Path, gateway_id: str) -> None:
        self._spool = spool
        self._sources = sources_of(gateway_id, "control")
        self._readers: dict[str, tuple[EpochReader, int]] = {}
        """By epoch: where its reader stands."""
        self._entries: dict[str, list[Entry]] = {}
        """By model, oldest first."""

    def read(self, model: str) -> list[Entry]:
        """What is noted of a model, oldest first."""
        listed = sorted((e for e in epochs(self._spool) if e.source in self._sources), key=lambda e: e.epoch)
        for epoch in listed:
            for event in self._new(epoch):
                self._note(event)
        self._trim()
        return list(self._entries.get(model, ()))

    def _trim(self) -> None:
        while (over := sum(map(len, self._entries.values())) - ENTRIES_MAX) > 0:
            longest = max(self._entries.values(), key=len)
            del longest[: (over + 1) // 2]

    def _new(self, epoch: EpochPath) -> Iterator[Control]:
        reader, from_seq = self._readers.get(epoch.key, (EpochReader(epoch), 0))
        try:
            for frame in reader.frames(from_seq):
                from_seq = frame.next_seq
                # Nearly all are heartbeats.
                if b"control" in frame.payload:
                    yield from (e for e in expand(epoch.source, epoch.epoch, frame) if isinstance(e, Control))
        except (FrameCorrupt, FrameNewer):
            # Told by `audit verify`; what is behind it in this epoch comes with the next look.
            pass
        finally:
            self._readers[epoch.key] = (reader, from_seq)

    def _note(self, event: Control) -> None:
        if event.kind not in _NOTED or event.model is None or event.after is None:
            return
        entry = Entry(
            kind=event.kind,
            at_ns=event.at_ns,
            by=event.by,
            reason=event.reason,
            event=event.id,
            model=event.model,
            revision=event.revision,
            is_revision=event.kind in ROUTE_KINDS,
            via=event.via,
            key=event.key,
            after=msgspec.Raw(msgspec.msgpack.encode(event.after)),
        )
        entries = self._entries.setdefault(event.model, [])
        if entries and entry.kind == "lease" and _same(entries[-1], entry):
            entries[-1] = msgspec.structs.replace(entry, count=entries[-1].count + 1)
        else:
            entries.append(entry)


def _same(last: Entry, entry: Entry) -> bool:
    names = ("kind", "model", "revision", "by")
    return all(getattr(last, name) == getattr(entry, name) for name in names)


def entry_of(route: Route, kind: str | None = None) -> Entry:
    """The entry of a revision of which the ledger alone knows, which does not tell what kind of change made it."""
    c = route.changed
    return Entry(
        kind=kind or "revision",
        at_ns=c.at_ns,
        by=c.by,
        reason=c.reason,
        event=c.event or "",
        model=route.model,
        revision=route.revision,
        is_revision=True,
        after=msgspec.Raw(msgspec.msgpack.encode(route_document(route))),
    )


def merged(entries: list[Entry], ledger: Ledger, model: str) -> list[Entry]:
    """What the log has of a model, oldest first, and what the ledger alone knows: before it, behind it, and beside."""
    revisions = [e.revision or 0 for e in entries if e.is_revision]
    first, last = min(revisions, default=0), max(revisions, default=0)
    kinds = {d["revision"]: str(d["kind"]) for d in ledger.unlogged if d["model"] == model}
    kept = ledger.history.get(model, ())
    older = [entry_of(r) for r in kept if r.revision < first]
    owed = [entry_of(r, kinds.get(r.revision)) for r in kept if r.revision > last]
    return with_breakers([*older, *entries, *owed], [b for b in ledger.breakers if b.model == model])


def with_breakers(entries: list[Entry], breakers: Iterable[OpenBreaker]) -> list[Entry]:
    """The entries, and behind the revision in which it opened each breaker that control saw."""
    found = list(entries)
    for seen in breakers:
        later = (i for i, e in enumerate(found) if e.is_revision and (e.revision or 0) > seen.revision)
        entry = Entry(
            kind="breaker",
            at_ns=seen.at_ns,
            by=f"worker-{seen.worker}",
            reason=f"version {seen.version} could not answer what the primary then answered",
            event="",
            model=seen.model,
            revision=seen.revision,
            after=msgspec.Raw(msgspec.msgpack.encode({"version": seen.version, "worker": seen.worker})),
        )
        found.insert(next(later, len(found)), entry)
    return found


def page(entries: list[Entry], before: int | None, limit: int) -> list[Entry]:
    """A page of a history, newest first; it ends with a revision, whose number is the next page's `before`.

    Args:
        entries: of one model, oldest first.
        before: only what happened before this revision was made; None: from the newest on.
        limit: as many at least, if there are.
    """
    if before is not None:
        at = next(
            (i for i, e in enumerate(entries) if e.is_revision and (e.revision or 0) >= before), len(entries)
        )
        entries = entries[:at]
    found: list[Entry] = []
    for entry in reversed(entries):
        found.append(entry)
        if len(found) >= limit and entry.is_revision:
            break
    return found


def revision_in(entries: list[Entry], model: str, number: int) -> Route:
    """A revision of long ago.

    Raises:
        StateConflict: the log does not have it any more; names the oldest that it has.
    """
    for entry in reversed(entries):
        if entry.is_revision and entry.revision == number:
            return entry.route
    oldest = min((e.revision for e in entries if e.is_revision and e.revision is not None), default=None)
    has = "it has none" if oldest is None else f"the oldest that is kept is {oldest}"
    msg = f"route {model} has no revision {number} any more: {has}"
    raise StateConflict(msg)
