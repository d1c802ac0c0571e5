"""Arrivals: when the requests of an open-loop load are due. Pure; seeded.

The times are fixed before the load begins and know nothing of the server: that is what makes the loop open. A slow
answer delays no later request, and a request that could not be sent in time is counted from when it was due.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Law = Literal["poisson", "constant"]
LAWS: tuple[Law, ...] = ("poisson", "constant")


def schedule(law: Law, per_second: float, seconds: float, *, seed: int = 1) -> NDArray[np.int64]:
    """Due times in nanoseconds from the start, ascending, all below `seconds`.

    Args:
        law: "poisson": independent users, gaps are exponential; "constant": equal gaps, the first one at a random
            part of a gap, so that several generators do not send in step.

    Raises:
        ValueError: rate or time are not above zero.
    """
    if not per_second > 0 or not seconds > 0:
        msg = f"rate {per_second:g} per second over {seconds:g} s: expected both above 0"
        raise ValueError(msg)
    rng = np.random.default_rng(seed)
    gap_ns = 1e9 / per_second
    end_ns = seconds * 1e9
    if law == "constant":
        times = np.arange(rng.random() * gap_ns, end_ns, gap_ns)
    else:
        # Gaps in pieces of the expected count, until the end is passed.
        piece = int(per_second * seconds * 1.1) + 16
        times = np.cumsum(rng.exponential(gap_ns, piece))
        while times[-1] < end_ns:
            times = np.concatenate((times, times[-1] + np.cumsum(rng.exponential(gap_ns, piece))))
        times = times[times < end_ns]
    return times.astype(np.int64)
