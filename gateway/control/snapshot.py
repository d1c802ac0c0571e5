"""The snapshot: control state as one immutable, checksummed file per generation.

`<state_dir>/control/snapshot` holds three lines: a head with the digests of the other two, the part
that workers read (`Serving`), and the part that only control reads (`Ledger`); zeros may follow. It is replaced by
rename, after its control event is on disk, and then the generation word in shared memory is bumped.

Recovery: a starting control waits until its predecessor's ring is drained, then applies every control
event of its own sources that is later than `last_event`. So a kill at any step leaves the old state
(event not logged) or the new (event logged), and the log agrees.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from pathlib import Path
from typing import TypeVar

import msgspec

from gateway.control.idempotency import Done
from gateway.errors import SnapshotCorrupt, StateFormatNewer
from gateway.routing import Route

FORMAT = 1
T = TypeVar("T")
HISTORY_REVISIONS = 100
"""Revisions of a route kept for rollback and history; older ones are in the log."""


SPARES = (".spare", ".spare2")
"""Files beside the snapshot for a disk without room: one is written while the other's content is in effect."""
SPARE_STEP_BYTES = 64 * 1024
NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT))


class DesiredVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A version that every worker holds loaded, and its slot in the fleet's shared memory."""

    model: str
    version: str
    slot: int
    load_event: str | None = None
    """The last `load` of an operator: a worker in which the version failed tries again when it changes."""


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """What workers need."""

    gateway_id: str
    generation: int
    routes: dict[str, Route] = {}
    versions: tuple[DesiredVersion, ...] = ()

    @property
    def sampled_shadows(self) -> int:
        """Shadows that see requests, over all routes."""
        return sum(v.role == "shadow" and v.sample_bp > 0 for r in self.routes.values() for v in r.variants)


class OpenBreaker(msgspec.Struct, frozen=True, kw_only=True):
    """A breaker that control saw open in a worker. The worker's own event has the counts."""

    model: str
    version: str
    revision: int
    worker: int
    at_ns: int


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """What only control needs.

    `last_event` is the full key of the last control event applied, as text; `unlogged` are changes
    that took effect while nothing could be logged, to be logged first thing.
    """

    last_event: str | None = None
    unlogged: tuple[dict[str, object], ...] = ()
    history: dict[str, tuple[Route, ...]] = {}
    next_slot: int = 0
    unloaded: tuple[tuple[str, str], ...] = ()
    """(model, version) pairs that an operator unloaded: not loaded again by themselves."""
    loaded: tuple[tuple[str, str], ...] = ()
    """Pairs that an operator loaded beside those that the route asks for."""
    done: dict[str, Done] = {}
    """Requests with an idempotency key, by principal and key, oldest first."""
    leases_over: dict[str, int] = {}
    """By model, the end (epoch ns) of the lease whose end was logged last."""
    breakers: tuple[OpenBreaker, ...] = ()
    """The newest that were seen; they stand in the log by the workers' events, which control does not read."""


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    serving_sha256: str
    ledger_sha256: str


def encode(serving: Serving, ledger: Ledger) -> bytes:
    """The file's bytes."""
    first, second = msgspec.json.encode(serving), msgspec.json.encode(ledger)
    head = _Head(
        format=FORMAT,
        serving_sha256=hashlib.sha256(first).hexdigest(),
        ledger_sha256=hashlib.sha256(second).hexdigest(),
    )
    return b"\n".join((msgspec.json.encode(head), first, second, b""))


def decode_serving(content: bytes) -> Serving:
    """Only the workers' part; the ledger is not even parsed.

    Raises:
        SnapshotCorrupt, StateFormatNewer: see `decode`.
    """
    head, first, _ = _lines(content)
    return _part(first, head.serving_sha256, Serving)


def decode(content: bytes) -> tuple[Serving, Ledger]:
    """Both parts.

    Raises:
        SnapshotCorrupt: a digest does not match or a part cannot be read.
        StateFormatNewer: written by a newer Tidegate.
    """
    head, first, second = _lines(content)
    return _part(first, head.serving_sha256, Serving), _part(second, head.ledger_sha256, Ledger)


def write(path: Path, content: bytes) -> None:
    """Replace the snapshot: temporary file, fsync, rename, fsync of the directory.

    On a full disk it is written into a spare: two files lie beside it for that, and take turns as long as it lasts.

    Raises:
        OSError: it cannot be written there either; the snapshot stays as it was.
    """
    temporary = _beside(path, ".new")
    try:
        _fill(temporary, content, os.O_CREAT | os.O_TRUNC)
    except OSError as exc:
        if exc.errno not in NO_ROOM:
            raise
        # What it has of the content is wanted elsewhere.
        temporary.unlink(missing_ok=True)
        _write_in_need(path, content)
        return
    temporary.rename(path)
    _sync_directory(path)
    for suffix in SPARES:
        _keep_spare(_beside(path, suffix), len(content))


def _write_in_need(path: Path, content: bytes) -> None:
    """Into blocks that are there already: no file grows, and none gives back what it has."""
    spare = next((s for s in (_beside(path, suffix) for suffix in SPARES) if _size(s) > len(content)), None)
    if spare is None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    size_bytes = _size(spare)
    _fill(spare, content.ljust(size_bytes, b"\0"), 0)
    former = _beside(path, ".former")
    former.unlink(missing_ok=True)
    if _size(path) >= size_bytes:
        former.hardlink_to(path)
    spare.rename(path)
    with contextlib.suppress(FileNotFoundError):
        former.rename(spare)
    _sync_directory(path)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _keep_spare(spare: Path, size_bytes: int) -> None:
    """A spare of twice the size, in whole steps, so that it is seldom made anew; none where there is no room."""
    if _size(spare) > size_bytes * 3 // 2:
        return
    wanted = (size_bytes * 2 // SPARE_STEP_BYTES + 1) * SPARE_STEP_BYTES
    with contextlib.suppress(OSError):
        fd = os.open(spare, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, wanted)
        finally:
            os.close(fd)


def _fill(path: Path, content: bytes, flags: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _sync_directory(path: Path) -> None:
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _lines(content: bytes) -> tuple[_Head, bytes, bytes]:
    parts = content.split(b"\n")
    if len(parts) != 4:
        msg = f"control snapshot has {len(parts)} lines, expected 4"
        raise SnapshotCorrupt(msg)
    try:
        head = msgspec.json.decode(parts[0], type=_Head)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        msg = f"control snapshot's head cannot be read: {exc}"
        raise SnapshotCorrupt(msg) from exc
    if head.format > FORMAT:
        msg = f"control state has format {head.format}, this Tidegate knows {FORMAT}: use a newer one"
        raise StateFormatNewer(msg)
    return head, parts[1], parts[2]


def _part(content: bytes, sha256: str, kind: type[T]) -> T:
    if hashlib.sha256(content).hexdigest() != sha256:
        msg = f"control snapshot: the {kind.__name__.lower()} part does not match its digest"
        raise SnapshotCorrupt(msg)
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        msg = f"control snapshot: the {kind.__name__.lower()} part cannot be read: {exc}"
        raise SnapshotCorrupt(msg) from exc
