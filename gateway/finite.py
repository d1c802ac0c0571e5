"""Finite: which requests of a run have an output that is NaN or infinite, and whether it has all their rows. Pure.

runs (infer) -> **finite** -> retrying, recording.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np

from gateway.batching import Inference


def check_rows(outputs: Sequence[Any], rows: int) -> None:
    """Whether each row of a run has one in every output: nobody could say else whose they are.

    Raises:
        ValueError: an output has more, or fewer.
    """
    for array in outputs:
        if array.shape[:1] != (rows,):
            msg = f"an output has shape {array.shape}; expected {rows} rows, as the inputs have"
            raise ValueError(msg)


def not_finite(outputs: Sequence[Any], part: Sequence[Inference], *, batched: bool) -> set[int]:
    """Places in `part` of the requests whose outputs are not all finite.

    Args:
        outputs: arrays of `part` and nothing else.
        batched: their first dimension is rows, those of one request beside each other.

    Cost: one pass over outputs of floats, without a copy.
    """
    bad: set[int] = set()
    for array in outputs:
        if array.dtype.kind == "f" and not _all_finite(array):
            if not batched:
                bad.add(0)
                continue
            fine = np.isfinite(array).reshape(len(array), -1).all(axis=1)
            row = 0
            for index, inference in enumerate(part):
                if not fine[row : row + inference.rows].all():
                    bad.add(index)
                row += inference.rows
    return bad


def _all_finite(array: Any) -> bool:
    """Whether an array of floats has neither NaN nor infinities. Cost: one pass; two where squares overflow."""
    # What is not finite stays so in the sum of squares.
    return isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())
