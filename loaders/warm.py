"""Runs before a version is ready: bounded in time, first to see whether it works, then to warm it up.

session -> **warm**. Model code of strangers runs here: a loop without end is ended, and is not run again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from loaders.datatypes import NUMPY
from loaders.golden import Golden
from loaders.model_config import Warmup
from loaders.signature import Signature, TensorSpec

RUN_LIMIT_S = 2.0
"""A run of the probe, of the golden rows or of the warm-up is ended after so long."""
_LOOKS = 8
"""So often a run that got no processor time is given as long again."""
ROWS = (1, 32)
_WARMUP_RUNS_MAX = 100


class Runs:
    """Runs while loading: each is ended after `RUN_LIMIT_S`, and after one that was ended there is none any more.

    Args:
        run: (feeds, names, options) to outputs, as a session's.
        new_options: options of one run, with `terminate`.
    """

    def __init__(self, run: Callable[..., list[Any]], new_options: Callable[[], Any]) -> None:
        self._run = run
        self._new_options = new_options
        self.endless = False

    def run(self, feeds: dict[str, Any]) -> list[Any]:
        """Run, within the limit.

        Raises:
            TimeoutError: it did not end by itself.
        """
        with self._limit() as options:
            return self._run(feeds, None, options)

    def fastest_ns(self, feeds: dict[str, Any], times: int = 3) -> int:
        """The fastest of so many runs, after one that does not count; all within one limit.

        Raises:
            TimeoutError: they did not end by themselves.
        """
        took = []
        with self._limit() as options:
            for _ in range(times + 1):
                # Processor time: the loading thread shares its processor with whatever is served meanwhile.
                started = time.thread_time_ns()
                self._run(feeds, None, options)
                took.append(time.thread_time_ns() - started)
        return min(took[1:])

    @contextlib.contextmanager
    def _limit(self) -> Iterator[Any]:
        msg = f"its run did not end within {RUN_LIMIT_S:g} s"
        if self.endless:
            raise TimeoutError(msg)
        options = self._new_options()
        over, started_s = threading.Event(), time.process_time()

        def watch() -> None:
            # On a busy host the run may just not have had its turn: processor time counts, within bounds.
            for _ in range(_LOOKS):
                if over.wait(RUN_LIMIT_S):
                    return
                if time.process_time() - started_s > RUN_LIMIT_S / 2:
                    break
            self.endless = True
            options.terminate = True

        threading.Thread(target=watch, name="run-limit", daemon=True).start()
        try:
            yield options
        except Exception as exc:
            if self.endless:
                raise TimeoutError(msg) from exc
            raise
        finally:
            over.set()


def warm(
    runs: Runs,
    signature: Signature,
    lines: Sequence[Golden],
    warmups: Sequence[Warmup],
    rows_max: int | None,
) -> dict[int, int]:
    """The settings' warm-up requests, then runs of one row and of 32, of the first golden line or of zeros.

    Args:
        rows_max: rows that a run may have; None: as many as one likes.

    Returns:
        Rows to nanoseconds, the fastest of three: the first guess of cost. Empty where the model cannot run such rows.
    """
    cost: dict[int, int] = {}
    try:
        for warmup in warmups:
            feeds = _warmup_feeds(signature, warmup)
            for _ in range(min(warmup.runs, _WARMUP_RUNS_MAX)):
                runs.run(feeds)
        for rows in ROWS:
            if rows_max is not None and rows > rows_max:
                continue
            feeds = _feeds(signature, lines, rows, whole=rows_max == 1)
            cost[rows] = runs.fastest_ns(feeds)
    except TimeoutError:
        cost[1] = int(RUN_LIMIT_S * 1e9)
    except Exception:  # noqa: BLE001  zeros need not be a valid input; cost is learnt from traffic
        return cost
    return cost


def _feeds(signature: Signature, lines: Sequence[Golden], rows: int, *, whole: bool) -> dict[str, Any]:
    if lines and whole:
        return lines[0].feeds
    if lines:
        return {name: np.repeat(a[:1], rows, axis=0) for name, a in lines[0].feeds.items()}
    return {spec.name: _zeros(spec, rows) for spec in signature.inputs}


def _warmup_feeds(signature: Signature, warmup: Warmup) -> dict[str, Any]:
    given = {one.name: one for one in warmup.inputs}
    rng = np.random.default_rng(0)
    feeds = {}
    for spec in signature.inputs:
        zeros = _zeros(spec, warmup.batch_size)
        one = given.get(spec.name)
        if one is not None:
            dims = tuple(dim if dim > 0 else 1 for dim in one.dims)
            shape = (warmup.batch_size, *dims) if len(dims) == len(spec.shape) - 1 else dims
            if len(shape) == len(spec.shape):
                zeros = np.resize(zeros, shape)
            if one.random and zeros.dtype.kind == "f":
                zeros = rng.standard_normal(zeros.shape).astype(zeros.dtype)
        feeds[spec.name] = zeros
    return feeds


def _zeros(spec: TensorSpec, rows: int) -> Any:
    shape = tuple(dim if dim != -1 else (rows if i == 0 else 1) for i, dim in enumerate(spec.shape))
    if spec.datatype == "BYTES":
        return np.full(shape, "", dtype=object)
    return np.zeros(shape, NUMPY[spec.datatype])
