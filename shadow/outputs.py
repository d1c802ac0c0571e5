"""What a logged answer says: score, class and whether it is finite, a row each. Pure.

log -> **outputs** -> compare, labels, watch. Tensors stand in the log as the model gave them; what they mean stands
in the version's bundle.toml. The same reading serves the version that answered, its shadow and the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.audit.event import Tensor
from loaders.bundle import BundleSettings, Decision, OutputSettings
from loaders.datatypes import NUMPY

NO_CLASS = -1
"""The class of a row whose score is not finite: it decides nothing."""
_ONE_COLUMN = Decision(column=0, threshold=0.5)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_Table = NDArray[Any]
"""[rows, columns]"""


class Judged(NamedTuple):
    """Answers to `rows` rows.

    `scores` (float64): the probability of the decision's column, or the top class's score, or the value; NaN where
    it is not finite or the outputs hold none. `classes` (int64): None for a regression and for generic outputs
    without a label or a decision; NO_CLASS where the score that decides is not finite. `finite` (bool): every float
    output of the row is finite.
    """

    scores: Floats
    classes: Ints | None
    finite: NDArray[np.bool_]


class OutputReader:
    """Reads the outputs of one version.

    An output with a `decision` gives score and class. Without one a probability or score of several columns gives
    the largest as score and its column as class (a lone probability decides at 0.5), a value its first element as
    score. An output of kind label gives the class, unless a decision does. For what bundle.toml leaves open the
    last column of the first float output is the score and, where it names no output at all, the first integer
    output the class.

    Args:
        settings: of the version that answered; `BundleSettings()` where nothing is known.

    Threading: no state. Cost: about 15 us a call, whatever the rows; rows are in C order, so that the data of
    requests with equal tails can be joined to spread it.
    """

    def __init__(self, settings: BundleSettings) -> None:
        self._named = settings.outputs

    def judge(self, outputs: Sequence[Tensor], rows: int) -> Judged:
        """Score, class and finiteness of each row.

        Raises:
            ValueError: an output is by hash only, does not divide into `rows`, or is named in bundle.toml and not
                there; names it.
        """
        tables = {tensor.name: _table(tensor, rows) for tensor in outputs if tensor.datatype != "BYTES"}
        present = {tensor.name for tensor in outputs}
        for name in self._named:
            if name not in present:
                msg = f"output {name!r} of bundle.toml is not in the record; it has {', '.join(sorted(present))}"
                raise ValueError(msg)
        finite = np.ones(rows, dtype=np.bool_)
        floats = [table for table in tables.values() if table.dtype.kind == "f"]
        for table in floats:
            finite &= np.isfinite(table).all(axis=1)
        scores, classes = self._judge_named(tables)
        if scores is None:
            scores = _column(floats[0], -1) if floats else np.full(rows, np.nan)
        if classes is None and not self._named:
            integers = (table for table in tables.values() if table.dtype.kind in "iub")
            classes = next((_labels(table) for table in integers), None)
        return Judged(np.where(np.isfinite(scores), scores, np.nan), classes, finite)

    def _judge_named(self, tables: dict[str, _Table]) -> tuple[Floats | None, Ints | None]:
        scores: Floats | None = None
        classes: Ints | None = None
        for table, named in self._of_kind(tables, "probability", "score"):
            if named.decision is not None:
                return _decide(table, named.decision)
        for table, named in self._of_kind(tables, "probability", "score", "value"):
            if named.kind != "value" and table.shape[1] > 1:
                scores, classes = _top(table)
            elif named.kind == "probability":
                scores, classes = _decide(table, _ONE_COLUMN)
            else:
                scores = _column(table, 0)
            break
        for table, _ in self._of_kind(tables, "label"):
            classes = _labels(table)
        return scores, classes

    def _of_kind(self, tables: dict[str, _Table], *kinds: str) -> Iterator[tuple[_Table, OutputSettings]]:
        """What bundle.toml names, in the order of `kinds`."""
        for kind in kinds:
            for name, named in self._named.items():
                if named.kind == kind and name in tables:
                    yield tables[name], named


def _table(tensor: Tensor, rows: int) -> _Table:
    if tensor.data is None:
        msg = f"output {tensor.name!r} is in the record by hash only (audit.capture_max_bytes)"
        raise ValueError(msg)
    datatype = NUMPY.get(tensor.datatype)
    if datatype is None:
        msg = f"output {tensor.name!r} is of the unknown datatype {tensor.datatype!r}"
        raise ValueError(msg)
    flat = np.frombuffer(tensor.data, datatype)
    if not rows or not len(flat) or len(flat) % rows:
        msg = f"output {tensor.name!r} has {len(flat)} elements, which are not {rows} rows"
        raise ValueError(msg)
    return flat.reshape(rows, -1)


def _column(table: _Table, index: int) -> Floats:
    return table[:, index].astype(np.float64)


def _labels(table: _Table) -> Ints:
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(table[:, 0]), table[:, 0], NO_CLASS).astype(np.int64)


def _top(table: _Table) -> tuple[Floats, Ints]:
    """The largest column of each row: its value and its number."""
    scores = table.max(axis=1).astype(np.float64)
    classes = np.where(np.isfinite(scores), table.argmax(axis=1), NO_CLASS)
    return scores, classes.astype(np.int64)


def _decide(table: _Table, decision: Decision) -> tuple[Floats, Ints]:
    """The decision's column against its threshold; below it the best of the others (one column: 1 or 0)."""
    columns = table.shape[1]
    if decision.column >= columns:
        msg = f"the decision's column {decision.column} is not there: the output has {columns}"
        raise ValueError(msg)
    scores = _column(table, decision.column)
    if columns == 1:
        yes, no = np.int64(1), np.zeros(len(table), dtype=np.int64)
    else:
        others = table.astype(np.float64)
        others[:, decision.column] = -np.inf
        yes, no = np.int64(decision.column), others.argmax(axis=1)
    classes = np.where(scores >= decision.threshold, yes, no)
    return scores, np.where(np.isfinite(scores), classes, NO_CLASS).astype(np.int64)
