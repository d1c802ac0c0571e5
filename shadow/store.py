"""The sidecar's database: state, label join and position, committed as one. One file, one writer.

Rollback journal and full sync: a commit is a tick, so its cost does not matter, and after power loss the file holds
some tick that was committed whole. Losing the file loses nothing that the log has: an empty one is filled again from
the ticks that stand there. So one that cannot be read is set aside and no reason to stop.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path

import msgspec

from gateway.audit.feed import Positions
from shadow.act import Pending
from shadow.labels import LabelJoin
from shadow.state import WatchState

log = logging.getLogger("tidegate.sidecar")

FORMAT = 2
_BROKEN = frozenset((sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))
"""What SQLite says of files that hold no database, a damaged one, or other tables than ours."""


class Saved(msgspec.Struct):
    """What a commit holds beside the label join."""

    format: int = FORMAT
    state: WatchState = msgspec.field(default_factory=WatchState)
    cut: Positions = {}
    """Where the last tick ended, by epoch key."""
    feed: Positions = {}
    """Where the feed goes on: `cut`, and for Kafka its offsets."""
    pending: list[Pending] = []
    """Decisions that are not in effect yet."""


class Store:
    """Opens the database, or makes it.

    Args:
        path: None keeps all in memory (a replay).

    Raises:
        sqlite3.Error: the file is no database or cannot be written.
        msgspec.ValidationError: it is of another format.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._db = sqlite3.connect(":memory:" if path is None else path, isolation_level="DEFERRED")
        try:
            self.saved = self._read()
            self.join = LabelJoin(self._db)
        except BaseException:
            self._db.close()
            raise

    def commit(self) -> None:
        """Make `saved` and what the join took since the last commit durable, together."""
        content = msgspec.msgpack.encode(self.saved)
        self._db.execute("INSERT OR REPLACE INTO saved VALUES (1, ?)", (content,))
        self._db.commit()

    def close(self) -> None:
        """Drop what was not committed."""
        self._db.close()

    def _read(self) -> Saved:
        self._db.execute("PRAGMA journal_mode = DELETE")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("CREATE TABLE IF NOT EXISTS saved (one INTEGER PRIMARY KEY, content BLOB NOT NULL)")
        row = self._db.execute("SELECT content FROM saved WHERE one = 1").fetchone()
        saved = Saved() if row is None else msgspec.msgpack.decode(row[0], type=Saved)
        if saved.format != FORMAT:
            msg = f"the sidecar's state is of format {saved.format}, this version reads {FORMAT}"
            raise msgspec.ValidationError(msg)
        return saved


def open_store(path: Path) -> Store:
    """The database, or an empty one in the place of a file that holds something else.

    Raises:
        sqlite3.Error: it cannot be opened or written, which is no fault of what it holds.
    """
    try:
        return Store(path)
    except (sqlite3.Error, msgspec.MsgspecError) as exc:
        if not set_aside(path, exc):
            raise
        return Store(path)


def set_aside(path: Path, exc: Exception) -> bool:
    """Rename a database that cannot be read and say so; the last such is kept.

    Returns:
        False where it is no fault of what the file holds (a full disk): nothing was done.
    """
    if isinstance(exc, sqlite3.Error) and _primary(exc) not in _BROKEN:
        return False
    aside = path.with_name(f"{path.name}.broken-{int(time.time())}")
    for older in path.parent.glob(f"{path.name}.broken-*"):
        older.unlink()
    path.rename(aside)
    # What the file left half done must not be rolled back into the next one.
    path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
    facts = {"why": str(exc), "set_aside": aside.name, "todo": "nothing: it is made again from the log"}
    log.warning("state_unreadable", extra=facts)
    return True


def _primary(exc: sqlite3.Error) -> int:
    code = getattr(exc, "sqlite_errorcode", None)
    return 0 if code is None else code & 0xFF
