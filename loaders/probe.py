"""The batchability probe: may requests of different callers share a run?

Only when dimension 0 varies on every input and output, and running shows f(batch)[i] = f(row i): alone, in
company, at any position, and beside a row of NaN. A model that mixes rows (a mean over the batch, say)
fails here and is run one request at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from loaders.datatypes import NUMPY
from loaders.signature import Signature, TensorSpec

ROWS = 4
TOLERANCE = 1e-5
Run = Callable[[dict[str, Any]], Sequence[Any]]


def has_batch_dimension(signature: Signature) -> bool:
    """Whether dimension 0 varies everywhere."""
    return all(spec.shape and spec.shape[0] == -1 for spec in (*signature.inputs, *signature.outputs))


def rows_are_independent(signature: Signature, run: Run) -> bool:
    """Run the probe; any failure of the model on it means no. Cost: about ten runs of 1 to 5 rows."""
    rng = np.random.default_rng(20_240_229)
    rows = {spec.name: _random(spec, rng) for spec in signature.inputs}
    try:
        together = run(rows)
        if any(len(out) != ROWS for out in together):
            return False
        for i in range(ROWS):
            alone = run({name: a[i : i + 1] for name, a in rows.items()})
            if not _all_equal([out[i : i + 1] for out in together], alone):
                return False
        order = np.array([2, 0, 3, 1])
        turned = run({name: np.ascontiguousarray(a[order]) for name, a in rows.items()})
        if not _all_equal([out[order] for out in together], turned):
            return False
        return _beside_nan(signature, run, rows, together)
    except Exception:  # noqa: BLE001  a model that cannot run these rows is served one by one
        return False


def _beside_nan(signature: Signature, run: Run, rows: dict[str, Any], together: Sequence[Any]) -> bool:
    poisoned = {}
    for spec in signature.inputs:
        extra = rows[spec.name][:1].copy()
        if extra.dtype.kind == "f":
            extra[...] = np.nan
        poisoned[spec.name] = np.concatenate([extra, rows[spec.name]])
    beside = run(poisoned)
    return _all_equal(together, [out[1:] for out in beside])


def _random(spec: TensorSpec, rng: np.random.Generator) -> Any:
    shape = (ROWS, *(dim if dim != -1 else 2 for dim in spec.shape[1:]))
    dtype = NUMPY[spec.datatype]
    if spec.datatype == "BYTES":
        values = np.empty(shape, dtype=object)
        values.ravel()[:] = [f"word{n}" for n in rng.integers(0, 99, values.size)]
        return values
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.integers(0, 8, shape).astype(dtype)


def _all_equal(left: Sequence[Any], right: Sequence[Any]) -> bool:
    for a, b in zip(left, right, strict=True):
        if a.shape != b.shape:
            return False
        if a.dtype.kind == "f":
            if not np.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
                return False
        elif not np.array_equal(a, b):
            return False
    return True
