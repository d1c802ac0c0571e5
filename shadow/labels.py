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

WAIT_NS = 600 * 1_000_000_000
"""A label whose prediction has not been read is kept so long on the watch's clock: sources are read side by side."""
EARLY_MAX = 100_000
"""So many such labels are kept; further ones are of nothing that is known."""
SERVED_MAX = 5_000_000
"""So many predictions wait; further ones are not joined with labels."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS served (
  id TEXT PRIMARY KEY, due_ns INTEGER NOT NULL, at_ns INTEGER NOT NULL, received_ns INTEGER NOT NULL,
  model TEXT NOT NULL, version TEXT NOT NULL, revision INTEGER NOT NULL, assigned TEXT, weight_bp INTEGER,
  unit TEXT NOT NULL, is_class INTEGER NOT NULL, predicted BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS served_due ON served (due_ns);
CREATE TABLE IF NOT EXISTS labels (
  id TEXT NOT NULL, row INTEGER NOT NULL, value REAL NOT NULL, PRIMARY KEY (id, row)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unserved (
  number INTEGER PRIMARY KEY, id TEXT NOT NULL, row INTEGER NOT NULL, value REAL NOT NULL, model TEXT NOT NULL,
  at_ns INTEGER NOT NULL, seen_ns INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS unserved_id ON unserved (id, number);
CREATE INDEX IF NOT EXISTS unserved_seen ON unserved (seen_ns);
"""
_TIME_MAX_NS = (1 << 63) - 1


class Served(NamedTuple):
    """An answered prediction that labels may come for. `received_ns` is the gateway's own time, `at_ns` the clock's.

    `assigned` and `weight_bp` are None for what is outside of experiments (a pinned version). `unit` is what was drawn
    for. `predicted` is float64 [rows]: classes as numbers (`is_class`) or values.
    """

    id: str
    due_ns: int
    at_ns: int
    received_ns: int
    model: str
    version: str
    revision: int
    assigned: str | None
    weight_bp: int | None
    unit: str
    is_class: bool
    predicted: NDArray[np.float64]


class Label(NamedTuple):
    """One label as it stands in a feedback event; `order` is (event id, place in the event).

    `at_ns` is when the gateway received it, `model` the one whose feedback it came as. When its truth came to be is the
    client's word and decides nothing.
    """

    order: tuple[str, int]
    id: str
    row: int
    value: float
    model: str
    at_ns: int


class Matured(NamedTuple):
    """A prediction whose horizon has passed. `labels` is float64 [rows], NaN where none came."""

    served: Served
    labels: NDArray[np.float64]


class LabelJoin:
    """Predictions and labels that wait for each other.

    Args:
        db: an open database; tables are made. The caller commits.

    Threading: one thread. Cost: about 15 us a prediction, 10 a label, 20 when it is due. Memory and disk: one row
    a prediction until its horizon, up to SERVED_MAX.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        db.executescript(_SCHEMA)
        self._served = self._unserved = 0
        self._recount()

    def _recount(self) -> None:
        (self._served,) = self._db.execute("SELECT count(*) FROM served").fetchone()
        (self._unserved,) = self._db.execute("SELECT count(*) FROM unserved").fetchone()

    def begin(self) -> None:
        """What follows may be rolled back, until `end`."""
        if not self._db.in_transaction:
            self._db.execute("BEGIN")
        self._db.execute("SAVEPOINT tick")

    def roll_back(self) -> None:
        """As if nothing had been called since `begin`."""
        self._db.execute("ROLLBACK TO tick")
        self._recount()

    def end(self) -> None:
        """What was done since `begin` stays, for the caller to commit."""
        self._db.execute("RELEASE tick")

    def serve(self, records: Sequence[Served]) -> Counter[str]:
        """Take answered predictions, one that is there already is left as it is; counts what became of labels that
        were read before them, as `label` does, and predictions for which there is no room: not_joined."""
        room = SERVED_MAX - self._served
        outcomes: Counter[str] = Counter()
        if len(records) > room:
            outcomes["not_joined"] = len(records) - max(room, 0)
            records = sorted(records, key=lambda each: each.id)[: max(room, 0)]
        made = self._db.executemany(
            "INSERT OR IGNORE INTO served VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                (
                    record.id,
                    min(record.due_ns, _TIME_MAX_NS),
                    *record[2:10],
                    int(record.is_class),
                    np.ascontiguousarray(record.predicted).tobytes(),
                )
                for record in records
            ),
        )
        self._served += max(made.rowcount, 0)
        for record in records if self._unserved else ():
            waiting = self._db.execute(
                "SELECT id, row, value, model, at_ns FROM unserved WHERE id = ? ORDER BY number", (record.id,)
            ).fetchall()
            for row in waiting:
                of = (len(record.predicted), record.is_class, record.model, record.received_ns)
                outcomes[self._keep(Label(("", 0), *row), *of)] += 1
            if waiting:
                self._db.execute("DELETE FROM unserved WHERE id = ?", (record.id,))
                self._unserved -= len(waiting)
        return outcomes

    def label(self, labels: Iterable[Label], now_ns: int, fate: Callable[[str], str | None]) -> Counter[str]:
        """Take labels, those of earlier order first; counts what became of them.

        Args:
            now_ns: the watch's clock.
            fate: what a label is whose prediction does not wait (`Runner.fate`), None while that may still come.

        Returns:
            kept, duplicate, erratum, wrong_row (beyond its prediction's rows), wrong_type (no class), wrong_model
            (feedback of another model), early (received before its prediction was: a guess), late (its prediction was
            judged without it, or gave nothing to judge), unknown. Nothing yet where the prediction has not been read:
            `serve` or `expire` count it.
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
                served = Served._make((*row[:10], bool(row[10]), np.frombuffer(row[11], dtype=np.float64)))
                found.append(Matured(served, np.full(len(served.predicted), np.nan)))
            if row[12] is not None:
                found[-1].labels[row[12]] = row[13]
        return found

    def forget_due(self, clock_ns: int) -> None:
        """Let go of predictions whose horizon the clock has passed, and of their labels."""
        self._db.execute(
            "DELETE FROM labels WHERE id IN (SELECT id FROM served WHERE due_ns <= ?)", (clock_ns,)
        )
        gone = self._db.execute("DELETE FROM served WHERE due_ns <= ?", (clock_ns,))
        self._served -= gone.rowcount

    def expire(self, clock_ns: int) -> int:
        """Let go of labels whose prediction never came; returns how many (outcome `unknown`)."""
        gone = self._db.execute("DELETE FROM unserved WHERE seen_ns < ?", (clock_ns - WAIT_NS,)).rowcount
        self._unserved -= gone
        return gone

    @property
    def waiting(self) -> int:
        """Predictions whose horizon has not passed."""
        return self._served

    def _label(self, label: Label, now_ns: int, fate: Callable[[str], str | None]) -> str | None:
        served = self._db.execute(
            "SELECT length(predicted) / 8, is_class, model, received_ns FROM served WHERE id = ?", (label.id,)
        ).fetchone()
        if served is not None:
            return self._keep(label, *served)
        outcome = fate(label.id)
        if outcome is not None:
            return outcome
        if self._unserved >= EARLY_MAX:
            return "unknown"
        self._unserved += 1
        self._db.execute(
            "INSERT INTO unserved (id, row, value, model, at_ns, seen_ns) VALUES (?,?,?,?,?,?)",
            (*label[1:], now_ns),
        )
        return None

    def _keep(self, label: Label, rows: int, is_class: bool, model: str, received_ns: int) -> str:
        if label.model != model:
            return "wrong_model"
        if label.at_ns < received_ns:
            return "early"
        if label.row >= rows:
            return "wrong_row"
        if is_class and not label.value.is_integer():
            return "wrong_type"
        made = self._db.execute("INSERT OR IGNORE INTO labels VALUES (?,?,?)", label[1:4])
        if made.rowcount:
            return "kept"
        held = self._db.execute(
            "SELECT value FROM labels WHERE id = ? AND row = ?", (label.id, label.row)
        ).fetchone()
        return "duplicate" if held[0] == label.value else "erratum"
