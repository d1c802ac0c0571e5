"""The label join: predictions wait for their labels until the label's horizon has passed. Between log and watch.

Labels come late, out of order, twice, or never. A prediction is judged once, when its horizon (`labels.maturity_s` of
its bundle) has passed on the watch's clock, whether its label has come or not, and in prediction order: judging labels
as they arrive would favour what is labelled fast (drift-rollback §3). The first label of a row counts; what differs
later is an erratum, counted and never judged again.

The join lives in the sidecar's database, or in one in memory for a replay: same code, same answers. All calls of a
tick stand in one transaction that the caller commits together with its positions.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WAIT_NS = 86_400 * 1_000_000_000
"""A label whose prediction has not been read is kept so long on the watch's clock."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS served (
  id TEXT PRIMARY KEY, due_ns INTEGER NOT NULL, at_ns INTEGER NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL,
  revision INTEGER NOT NULL, assigned TEXT, weight_bp INTEGER, is_class INTEGER NOT NULL, predicted BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS served_due ON served (due_ns);
CREATE TABLE IF NOT EXISTS labels (
  id TEXT NOT NULL, row INTEGER NOT NULL, value REAL NOT NULL, seen_ns INTEGER NOT NULL, PRIMARY KEY (id, row)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS labels_seen ON labels (seen_ns);
"""


class Served(NamedTuple):
    """An answered prediction that labels may come for.

    `assigned` and `weight_bp` are None for what is outside of experiments (a pinned version). `predicted` is float64
    [rows]: classes as numbers (`is_class`) or values.
    """

    id: str
    due_ns: int
    at_ns: int
    model: str
    version: str
    revision: int
    assigned: str | None
    weight_bp: int | None
    is_class: bool
    predicted: NDArray[np.float64]


class Label(NamedTuple):
    """One label as it stands in a feedback event; `order` is (at_ns, event id, place in the event)."""

    order: tuple[int, str, int]
    id: str
    row: int
    value: float


class Matured(NamedTuple):
    """A prediction whose horizon has passed. `labels` is float64 [rows], NaN where none came."""

    served: Served
    labels: NDArray[np.float64]


class LabelJoin:
    """Predictions and labels that wait for each other.

    Args:
        db: an open database; tables are made. The caller commits.

    Threading: one thread. Cost: about 5 us a prediction and a label each. Memory and disk: one row a prediction until
    its horizon.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        db.executescript(_SCHEMA)

    def serve(self, records: Iterable[Served]) -> None:
        """Take answered predictions; one that is there already is left as it is."""
        self._db.executemany(
            "INSERT OR IGNORE INTO served VALUES (?,?,?,?,?,?,?,?,?,?)",
            (
                (*record[:8], int(record.is_class), np.ascontiguousarray(record.predicted).tobytes())
                for record in records
            ),
        )

    def label(self, labels: Iterable[Label], now_ns: int, fate: Callable[[str], str | None]) -> Counter[str]:
        """Take labels, those of earlier order first; counts what became of them.

        Args:
            now_ns: the watch's clock.
            fate: what a label is whose prediction does not wait (`Runner.fate`), None while that may still come.

        Returns:
            kept (its prediction waits, or has not been read yet), duplicate, erratum, wrong_row (beyond its
            prediction's rows), late (the prediction was judged without it, or no label was declared for it), unknown.
        """
        outcomes: Counter[str] = Counter()
        for label in sorted(labels, key=lambda each: each.order):
            outcomes[self._label(label, now_ns, fate)] += 1
        return outcomes

    def mature(self, clock_ns: int) -> Iterator[Matured]:
        """Predictions whose horizon the clock has passed, in prediction order; each comes once."""
        due = self._db.execute(
            "SELECT * FROM served WHERE due_ns <= ? ORDER BY at_ns, id", (clock_ns,)
        ).fetchall()
        for row in due:
            served = Served._make((*row[:8], bool(row[8]), np.frombuffer(row[9], dtype=np.float64)))
            labels = np.full(len(served.predicted), np.nan)
            for at, value in self._db.execute("SELECT row, value FROM labels WHERE id = ?", (served.id,)):
                if at < len(labels):
                    labels[at] = value
            yield Matured(served, labels)
        ids = [(row[0],) for row in due]
        self._db.executemany("DELETE FROM labels WHERE id = ?", ids)
        self._db.executemany("DELETE FROM served WHERE id = ?", ids)

    def expire(self, clock_ns: int) -> int:
        """Let go of labels whose prediction never came; returns how many (outcome `unknown`)."""
        done = self._db.execute(
            "DELETE FROM labels WHERE seen_ns < ? AND id NOT IN (SELECT id FROM served)",
            (clock_ns - WAIT_NS,),
        )
        return done.rowcount

    @property
    def waiting(self) -> int:
        """Predictions whose horizon has not passed."""
        return int(self._db.execute("SELECT count(*) FROM served").fetchone()[0])

    def _label(self, label: Label, now_ns: int, fate: Callable[[str], str | None]) -> str:
        served = self._db.execute("SELECT length(predicted) FROM served WHERE id = ?", (label.id,)).fetchone()
        if served is None:
            outcome = fate(label.id)
            if outcome is not None:
                return outcome
        if served is not None and label.row >= served[0] // 8:
            return "wrong_row"
        held = self._db.execute(
            "SELECT value FROM labels WHERE id = ? AND row = ?", (label.id, label.row)
        ).fetchone()
        if held is not None:
            return "duplicate" if held[0] == label.value else "erratum"
        self._db.execute("INSERT INTO labels VALUES (?,?,?,?)", (label.id, label.row, label.value, now_ns))
        return "kept"
