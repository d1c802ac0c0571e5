"""The sidecar's database: state, label join and position, committed as one. One file, one writer.

Rollback journal and full sync: a commit is a tick, so its cost does not matter, and after power loss the file holds
some tick that was committed whole. Losing the file loses nothing that the log has: an empty one is filled again from
the ticks that stand there.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec

from gateway.audit.feed import Positions
from shadow.act import Pending
from shadow.labels import LabelJoin
from shadow.state import WatchState

FORMAT = 1


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
        msgspec.ValidationError: it is of a later format.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._db = sqlite3.connect(":memory:" if path is None else path, isolation_level="DEFERRED")
        self._db.execute("PRAGMA journal_mode = DELETE")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("CREATE TABLE IF NOT EXISTS saved (one INTEGER PRIMARY KEY, content BLOB NOT NULL)")
        self.join = LabelJoin(self._db)
        row = self._db.execute("SELECT content FROM saved WHERE one = 1").fetchone()
        self.saved = Saved() if row is None else msgspec.msgpack.decode(row[0], type=Saved)
        if self.saved.format > FORMAT:
            msg = f"the sidecar's state is of format {self.saved.format}, this version reads up to {FORMAT}"
            raise msgspec.ValidationError(msg)

    def commit(self) -> None:
        """Make `saved` and what the join took since the last commit durable, together."""
        content = msgspec.msgpack.encode(self.saved)
        self._db.execute("INSERT OR REPLACE INTO saved VALUES (1, ?)", (content,))
        self._db.commit()

    def close(self) -> None:
        """Drop what was not committed."""
        self._db.close()
