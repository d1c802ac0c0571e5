"""Where the mirror goes on after a death: its place in the log, and what it had answered beyond it. Mirror stage.

    <state_dir>/mirror/positions.json      temp, fsync, rename; at most each second

The file never runs ahead of what is on disk: it is written once the answers to everything before it are synced. What
was answered later stands in the mirror's own epochs and is read from there, so that a restart doubles little.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from pathlib import Path

import msgspec

from gateway.audit.event import Control, Shadow
from gateway.audit.feed import Positions
from gateway.audit.frame import expand
from gateway.audit.spool import epochs, read_epoch, segments, synced_seq
from gateway.audit.writer import Writer
from shadow.routes import RouteBook, shadows_of

log = logging.getLogger("tidegate.mirror")

SAVE_S = 1.0
IDLE_SAVE_S = 30.0
"""While nothing was answered only other records' numbers move on."""
_GRAIN_NS = 1_000_000_000
"""File times are coarser than events'."""
Key = tuple[str, str, str]


class Place(msgspec.Struct):
    """What the mirror knows at one point of the log. Plain data."""

    feed: Positions = {}
    outputs: Positions = {}
    """Next number of the mirror's own epochs: answers to all before `feed` stand below it."""
    since_ns: int = 0
    """Predictions received earlier are not this mirror's."""
    book: RouteBook = msgspec.field(default_factory=RouteBook)
    digests: dict[str, str] = {}


def load_place(path: Path) -> Place | None:
    """What was saved last; None before the first time, or when it cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Place)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as exc:
        log.warning("positions_unreadable", extra={"why": str(exc)})
        return None


def write_place(path: Path, content: bytes) -> None:
    """Replace the file: whole, on disk, or not at all."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    temporary = path.with_suffix(".new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb", closefd=False) as file:
            file.write(content)
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.rename(path)


def shadowed_since(spool: Path, control: Collection[int]) -> int | None:
    """When the first of the present shadows appeared (epoch ns), by control's own records; None without any.

    A mirror starts a moment after the change that asks for it, and is to see what was answered in between.
    """
    since: dict[str, dict[str, int]] = {}
    found = [epoch for epoch in epochs(spool) if epoch.source in control]
    # Control's epochs do not overlap.
    for epoch in sorted(found, key=lambda each: each.epoch):
        for frame in read_epoch(epoch, 0):
            for event in expand(epoch.source, epoch.epoch, frame):
                if isinstance(event, Control):
                    for model, versions in shadows_of(event):
                        before = since.get(model, {})
                        since[model] = {version: before.get(version, event.at_ns) for version in versions}
    moments = [at_ns for versions in since.values() for at_ns in versions.values()]
    return min(moments, default=None)


def spool_since(spool: Path, since_ns: int, but: Collection[int]) -> Positions:
    """Before the first segment that was written to since then; sources in `but` are read from their start."""
    positions: Positions = {}
    for epoch in epochs(spool):
        if epoch.source in but:
            continue
        later = (
            first_seq
            for first_seq, path in segments(epoch)
            if path.stat().st_mtime_ns >= since_ns - _GRAIN_NS
        )
        positions[epoch.key] = next(later, synced_seq(epoch))
    return positions


def answered_since(spool: Path, own: Collection[int], outputs: Positions) -> set[Key]:
    """What the mirror's own epochs hold from `outputs` on: (derived_from, version, run).

    Its own records lie on this host wherever it reads predictions. Epochs begin with the clock, so those older than
    the newest that `outputs` names, and not named, ended before.
    """
    newest = max((int(key.partition("-")[2], 16) for key in outputs), default=0)
    found: set[Key] = set()
    for epoch in epochs(spool):
        if epoch.source not in own or (epoch.key not in outputs and epoch.epoch <= newest):
            continue
        from_seq = outputs.get(epoch.key, 0)
        for frame in read_epoch(epoch, from_seq):
            found.update(
                (event.derived_from, event.version, event.run)
                for seq, event in enumerate(expand(epoch.source, epoch.epoch, frame), frame.first_seq)
                if isinstance(event, Shadow) and seq >= from_seq
            )
    return found


class Saver:
    """Writes a place once what it speaks of is on disk. One thread.

    Args:
        path: positions.json.
        writer: of the answers.
        kept: positions of predecessors' epochs whose answers are not all behind the place yet.
    """

    def __init__(self, path: Path, writer: Writer, kept: Positions) -> None:
        self._path = path
        self._writer = writer
        self._own = f"{writer.source.source:016x}-{writer.source.epoch:08x}"
        self._kept = {key: at for key, at in kept.items() if key != self._own}
        self._waiting: tuple[int, bytes] | None = None
        self._saved_s = float("-inf")

    def behind_tail(self) -> None:
        """Nothing that predecessors answered lies ahead any more."""
        self._kept = {}

    def due(self, now_s: float, *, idle: bool) -> bool:
        """Whether a place is wanted; each second at most, and seldom while nothing is answered."""
        return self._waiting is None and now_s - self._saved_s >= (IDLE_SAVE_S if idle else SAVE_S)

    def offer(self, place: Place) -> None:
        """A place at which everything before it is answered; what it says is taken now, saved by `flush`."""
        place.outputs = {**self._kept, self._own: self._writer.ring.assigned}
        self._waiting = self._writer.ring.committed, msgspec.json.encode(place)

    def flush(self, now_s: float) -> bool:
        """Write what waits if the disk has all it speaks of; whether nothing waits any more."""
        if self._waiting is None:
            return True
        mark, content = self._waiting
        if not self._writer.synced(mark):
            return False
        write_place(self._path, content)
        self._waiting, self._saved_s = None, now_s
        return True

    def forget(self) -> None:
        """The next mirror begins at the end of the log."""
        self._waiting = None
        self._path.unlink(missing_ok=True)
