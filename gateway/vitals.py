"""Vitals: what a worker says of itself once a second, into its own words of shared memory.

worker -> **vitals** -> fleet -> /metrics. Counters go on where the worker's predecessor left them; what is counted in
passing elsewhere (refusals, connections, errors by code) is only read here, so that no request pays for it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from typing import Protocol

from gateway import fleet as words_of
from gateway.counting import ERROR_CODES

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_LAST_CODE = words_of.ERROR_CODE0 + words_of.ERROR_CODES_MAX - 1
_CODE_WORDS = {code: words_of.ERROR_CODE0 + index for index, code in enumerate(ERROR_CODES)}
_COUNTERS = (
    words_of.REFUSED,
    words_of.GAPS,
    words_of.TURNS,
    words_of.CONNECTIONS_REFUSED,
    words_of.CONNECTIONS_EVICTED,
    words_of.LAME,
    words_of.CPU_NS,
    *range(words_of.TIMED_OUT0, words_of.TIMED_OUT0 + len(words_of.TIMEOUTS)),
    *range(words_of.ERROR_CODE0, words_of.ERROR_CODE0 + words_of.ERROR_CODES_MAX),
)


class Crowd(Protocol):
    """What is counted of connections; see `gateway.api.crowd`."""

    turned_away: int
    made_room: int
    lame_closed: int
    cut_off: dict[str, int]


class Vitals:
    """One worker's facts.

    Args:
        words: the worker's own words (u64).

    Threading: the loop thread alone. Cost: about 60 us a second.
    """

    def __init__(self, words: memoryview) -> None:
        self._words = words
        self._before = {word: words[word] for word in _COUNTERS}
        self._beat_s = 0.0
        self._gap_s = 0.0

    def beat(self, now_s: float, period_s: float) -> None:
        """The loop came round, as it should every `period_s`."""
        if self._beat_s:
            self._gap_s = max(self._gap_s, now_s - self._beat_s - period_s)
        self._beat_s = now_s

    def count(self, word: int, count: int) -> None:
        """Set a counter to what this process counted, on top of what its predecessors did."""
        self._words[word] = self._before[word] + count

    def process(self) -> None:
        """Memory, CPU time, and the longest turn since the last call."""
        self._words[words_of.LOOP_GAP_NS] = int(self._gap_s * 1e9)
        self._gap_s = 0.0
        self.count(words_of.CPU_NS, time.process_time_ns())
        with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/self/statm", "rb") as file:  # noqa: PTH123
            self._words[words_of.RSS_BYTES] = int(file.read().split()[1]) * _PAGE_BYTES

    def errors(self, answered: Mapping[str, int], more: Mapping[str, int]) -> None:
        """Errors answered, by code, and more of the same from elsewhere; those without a word count together."""
        others = 0
        for code in answered.keys() | more.keys():
            count = answered.get(code, 0) + more.get(code, 0)
            if code in _CODE_WORDS:
                self.count(_CODE_WORDS[code], count)
            else:
                others += count
        self.count(_LAST_CODE, others)

    def connections(self, open_now: int, crowd: Crowd | None) -> None:
        """Connections open, and what became of those that are not."""
        self._words[words_of.CONNECTIONS] = open_now
        if crowd is not None:
            self.count(words_of.CONNECTIONS_REFUSED, crowd.turned_away)
            self.count(words_of.CONNECTIONS_EVICTED, crowd.made_room)
            self.count(words_of.LAME, crowd.lame_closed)
            for index, code in enumerate(words_of.TIMEOUTS):
                self.count(words_of.TIMED_OUT0 + index, crowd.cut_off.get(code, 0))
