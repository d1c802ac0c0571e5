"""Breaker: when one worker takes a canary's traffic away by itself, needing nobody. Pure: no clock, no I/O.

retrying -> **breaker** -> entry. One for each variant of a route, in each worker. What counts is a request that the
canary could not answer and the primary then did: so it is not the request that is bad. It opens at three counts within
ten seconds, of three units that were drawn, when that is over twenty times as often as the primary's own requests go
bad; and stays so until the route's next revision.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

WINDOW_NS = 10_000_000_000
COUNTS_MIN = 3
UNITS_MIN = 3
RATIO = 20
COUNTS_KEPT = 4096
"""Of the latest; enough for any rate that could still open it."""


class Volume(NamedTuple):
    """Running totals of one worker."""

    requests: int
    """Drawn for the canary and run on it."""
    primary: int
    """Of the primary's own."""
    primary_bad: int
    """Those of them that failed, or had an output that was not finite."""


class Breaker:
    """One variant's.

    Args:
        revision: of the route that it belongs to.
        now_ns: any clock that never goes back; the same for all calls.
        volume: totals as they stand.

    Attributes:
        is_open: nothing more is to be served by the variant.
        counts, units: within the window, as it opened or was last counted.
        window: requests within the window, as it was last counted.

    Threading: the loop thread alone. Cost: microseconds a count, no matter how many requests pass.
    """

    def __init__(self, revision: int, now_ns: int, volume: Volume) -> None:
        self.revision = revision
        self.is_open = False
        self.counts = self.units = 0
        self.window = Volume(0, 0, 0)
        self._hits: deque[tuple[int, int]] = deque(maxlen=COUNTS_KEPT)
        self._read: deque[tuple[int, Volume]] = deque([(now_ns, volume)])

    def read(self, now_ns: int, volume: Volume) -> None:
        """Totals as they stand; about once a second."""
        self._read.append((now_ns, volume))
        while len(self._read) > 1 and self._read[1][0] <= now_ns - WINDOW_NS:
            self._read.popleft()

    def count(self, now_ns: int, unit: int, volume: Volume) -> bool:
        """A request that the variant could not answer and the primary did; whether that opens it.

        Args:
            unit: that was drawn for it: a sticky caller who repeats itself is one.
            volume: totals as they stand, this request among them.
        """
        if self.is_open:
            return False
        hits = self._hits
        hits.append((now_ns, unit))
        while hits[0][0] <= now_ns - WINDOW_NS:
            hits.popleft()
        self.read(now_ns, volume)
        first = self._read[0][1]
        self.window = window = Volume(*(now - then for now, then in zip(volume, first, strict=True)))
        self.counts, self.units = len(hits), len({unit for _, unit in hits})
        enough = self.counts >= COUNTS_MIN and self.units >= UNITS_MIN
        # Multiplied out: neither rate need be defined.
        often = self.counts * window.primary > RATIO * window.primary_bad * window.requests
        self.is_open = enough and (often or not window.primary_bad)
        return self.is_open
