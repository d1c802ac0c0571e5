"""The label join: predictions wait for their labels until the label's horizon has passed. Between log and watch.

Labels come late, out of order, twice, or never. A prediction is judged once, when its horizon (`labels.maturity_s` of
its bundle) has passed on the watch's clock, whether its label has come or not, and in prediction order: judging labels
as they arrive would favour what is labelled fast (docs/statistics.md). The first label of a row counts; what differs
later is an erratum, counted and never judged again.

The join lives in the sidecar's database, or in one in memory for a replay: same code, same answers. All calls of a
tick stand in one transaction that the caller commits together with its positions.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WAIT_NS = 86_400 * 1_000_000_000
"""A label whose prediction has not been read is kept so long on the watch's clock."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS served (
  id TEXT PRIMARY KEY, due_ns INTEGER NOT NULL, at_ns INTEGER NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL,
  revision INTEGER NOT NULL, assigned TEXT, weight_bp INTEGER, unit TEXT NOT NULL, is_class INTEGER NOT NULL,
  predicted BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS served_due ON served (due_ns);
CREATE TABLE IF NOT EXISTS labels (
  id TEXT NOT NULL, row INTEGER NOT NULL, value REAL NOT NULL, PRIMARY KEY (id, row)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS early (
  id TEXT NOT NULL, row INTEGER NOT NULL, value REAL NOT NULL, seen_ns INTEGER NOT NULL, PRIMARY KEY (id, row)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS early_seen ON early (seen_ns);
"""
_TIME_MAX_NS = (1 << 63) - 1


class Served(NamedTuple):
    """An answered prediction that labels may come for.

    `assigned` and `weight_bp` are None for what is outside of experiments (a pinned version). `unit` is what was drawn
    for. `predicted` is float64 [rows]: classes as numbers (`is_class`) or values.
    """

    id: str
    due_ns: int
    at_ns: int
    model: str
    version: str
    revision: int
    assigned: str | None
    weight_bp: int | None
    unit: str
    is_class: bool
    predicted: NDArray[np.float64]


class Label(NamedTuple):
    """One label as it stands in a feedback event; `order` is (at_ns, event id, place in the event)."""

    order: tuple[int, str, int]
    id: str
    row: int
    value: float
    model: str = ""


class Matured(NamedTuple):
    """A prediction whose horizon has passed. `labels` is float64 [rows], NaN where none came."""

    served: Served
    labels: NDArray[np.float64]


class LabelJoin:
    """Predictions and labels that wait for each other.

    Args:
        db: an open database; tables are made. The caller commits.

    Threading: one thread. Cost: about 15 us a prediction, 10 a label, 20 when it is due. Memory and disk: one row
    a prediction until its horizon.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        db.executescript(_SCHEMA)

    def begin(self) -> None:
        """What follows may be rolled back, until `end`."""
        if not self._db.in_transaction:
            self._db.execute("BEGIN")
        self._db.execute("SAVEPOINT tick")

    def roll_back(self) -> None:
        """As if nothing had been called since `begin`."""
        self._db.execute("ROLLBACK TO tick")

    def end(self) -> None:
        """What was done since `begin` stays, for the caller to commit."""
        self._db.execute("RELEASE tick")

    def serve(self, records: Sequence[Served]) -> Counter[str]:
        """Take answered predictions, one that is there already is left as it is; counts what became of labels that
        came before them: kept, wrong_row, wrong_type."""
        self._db.executemany(
            "INSERT OR IGNORE INTO served VALUES (?,?,?,?,?,?,?,?,?,?,?)",
            (
                (
                    record.id,
                    min(record.due_ns, _TIME_MAX_NS),
                    *record[2:9],
                    int(record.is_class),
                    np.ascontiguousarray(record.predicted).tobytes(),
                )
                for record in records
            ),
        )
        outcomes: Counter[str] = Counter()
        if self._db.execute("SELECT 1 FROM early LIMIT 1").fetchone() is None:
            return outcomes
        for record in records:
            early = self._db.execute("SELECT row, value FROM early WHERE id = ?", (record.id,)).fetchall()
            for row, value in early:
                label = Label((0, "", 0), record.id, row, value)
                outcomes[self._keep(label, len(record.predicted), record.is_class)] += 1
            if early:
                self._db.execute("DELETE FROM early WHERE id = ?", (record.id,))
        return outcomes

    def label(self, labels: Iterable[Label], now_ns: int, fate: Callable[[str], str | None]) -> Counter[str]:
        """Take labels, those of earlier order first; counts what became of them.

        Args:
            now_ns: the watch's clock.
            fate: what a label is whose prediction does not wait (`Runner.fate`), None while that may still come.

        Returns:
            kept, duplicate, erratum, wrong_row (beyond its prediction's rows), wrong_type (no class), late (its
            prediction was judged without it, or gave nothing to judge), unknown. Nothing yet where the prediction has
            not been read: `serve` or `expire` count it.
        """
        outcomes: Counter[str] = Counter()
        for label in sorted(labels, key=lambda each: each.order):
            outcome = self._label(label, now_ns, fate)
            if outcome is not None:
                outcomes[outcome] += 1
        return outcomes

    def mature(self, clock_ns: int) -> list[Matured]:
        """Predictions whose horizon the clock has passed, in prediction order; each comes once."""
        due = self._db.execute(
            "SELECT s.*, l.row, l.value FROM served s LEFT JOIN labels l ON l.id = s.id"
            " WHERE s.due_ns <= ? ORDER BY s.at_ns, s.id, l.row",
            (clock_ns,),
        ).fetchall()
        if not due:
            return []
        self.forget_due(clock_ns)
        found: list[Matured] = []
        for row in due:
            if not found or found[-1].served.id != row[0]:
                served = Served._make((*row[:9], bool(row[9]), np.frombuffer(row[10], dtype=np.float64)))
                found.append(Matured(served, np.full(len(served.predicted), np.nan)))
            if row[11] is not None:
                found[-1].labels[row[11]] = row[12]
        return found

    def forget_due(self, clock_ns: int) -> None:
        """Let go of predictions whose horizon the clock has passed, and of their labels."""
        self._db.execute(
            "DELETE FROM labels WHERE id IN (SELECT id FROM served WHERE due_ns <= ?)", (clock_ns,)
        )
        self._db.execute("DELETE FROM served WHERE due_ns <= ?", (clock_ns,))

    def expire(self, clock_ns: int) -> int:
        """Let go of labels whose prediction never came; returns how many (outcome `unknown`)."""
        return self._db.execute("DELETE FROM early WHERE seen_ns < ?", (clock_ns - WAIT_NS,)).rowcount

    @property
    def waiting(self) -> int:
        """Predictions whose horizon has not passed."""
        return int(self._db.execute("SELECT count(*) FROM served").fetchone()[0])

    def _label(self, label: Label, now_ns: int, fate: Callable[[str], str | None]) -> str | None:
        served = self._db.execute(
            "SELECT length(predicted), is_class FROM served WHERE id = ?", (label.id,)
        ).fetchone()
        if served is not None:
            return self._keep(label, served[0] // 8, served[1])
        outcome = fate(label.id)
        if outcome is not None:
            return outcome
        made = self._db.execute(
            "INSERT OR IGNORE INTO early VALUES (?,?,?,?)", (label.id, label.row, label.value, now_ns)
        )
        return None if made.rowcount else self._again(label, "early")

    def _keep(self, label: Label, rows: int, is_class: bool) -> str:
        if label.row >= rows:
            return "wrong_row"
        if is_class and not label.value.is_integer():
            return "wrong_type"
        made = self._db.execute("INSERT OR IGNORE INTO labels VALUES (?,?,?)", label[1:4])
        return "kept" if made.rowcount else self._again(label, "labels")

    def _again(self, label: Label, table: str) -> str:
        held = self._db.execute(
            f"SELECT value FROM {table} WHERE id = ? AND row = ?",  # noqa: S608
            (label.id, label.row),
        ).fetchone()
        return "duplicate" if held[0] == label.value else "erratum"
