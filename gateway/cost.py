"""Cost: what a run of so many rows takes, learnt from the runs themselves, per version. Pure.

runs (infer) -> **cost** -> how many rows a batch may have, whether it runs on the loop, whom admission refuses.

A cell for each power of two keeps the mean size and the mean processor time of its runs; between cells the
cost is on the line through them, beyond the largest on the line through the last two. Processor time of the
running thread is what is learnt, since a lane's wall time also counts the loop's work on the same core; how
much longer runs take by the clock is one ratio beside it, and promises to clients are made with it.
"""

from __future__ import annotations

_CELLS = 18
_WEIGHT_RUNS = 24
"""A run's weight in a mean is one in so many, once so many were seen."""
_TRUSTED_RUNS = 4
"""Fewer runs say nothing yet about a cell's rate."""
_LOOK_EVERY = 16
"""Learnt runs between two looks at the batch size, once cells are trusted."""
_EXPLORE_EVERY = 512
"""Learnt runs after which the cell beyond the batch size is tried again: what made it dear may be over."""
_OWN_NS = 100_000.0
"""What a run costs beside the session: cut, encode, record. It speaks for company where runs are cheap."""
_WORSE = 1.05
"""A cell whose cost per row is within so many times the best one's is as good."""
_RUN_NS = 250_000_000.0
"""A batch takes no longer than this where it has a choice: a quarter of the usual deadline, for all in it wait for all
of it, and a promise that rests on few long runs is a bad one."""
_CLIP = 2.0
"""A run counts as at most so many times its mean: a page fault is no news, a slower model is within some runs."""
_WALL_RUNS = (8, 64)
"""Over about so many runs time by the clock is compared with what was fitted, over the fewer the longer they are ..."""
_WALL_NS = 500_000_000.0
"""... so that it is over about this time: when the machine gets slower, what was promised already has a second ..."""
_WALL_CLIP = 20.0
"""... and a run counts as at most so many times its fit, fewer times where it is one of few: a process that was stopped
is not slow."""
_STOPPED = 1.25
"""A batch that was stopped at its deadline counts as so many times longer than it was let to run."""


class CostModel:
    """The cost of one version's runs.

    Args:
        warm_ns: rows to the time of a warm run, a first guess.
        max_rows: what the configuration allows a batch.

    Attributes:
        limit_rows: rows of a batch at most: the smallest cell whose cost per row is as good as the best one's, or
            the next one while nothing is known beyond it.
        whole_rows: rows of a batch where no more wait: a rest of a few would cost a run of its own.
        limit_ns: what a run of `limit_rows` takes by the clock.
        settled: the last run that was learnt was of a size well known.
        slowdown: time by the clock over the fit, hiccups and neighbours included.

    Threading: the loop thread alone. Cost: under a microsecond to ask, about one to learn.
    """

    def __init__(self, warm_ns: dict[int, int], max_rows: int) -> None:
        self._max_rows = max_rows
        self._rows = [0.0] * _CELLS
        self._cpu_ns = [0.0] * _CELLS
        self._runs = [0] * _CELLS
        self._warm = [False] * _CELLS
        self._rows[0], self._cpu_ns[0] = 1.0, 1_000_000.0
        for rows, took_ns in warm_ns.items():
            cell = _cell(rows)
            self._rows[cell], self._cpu_ns[cell] = float(rows), float(max(took_ns, 1))
            self._runs[cell], self._warm[cell] = 1, True
        self._learnt = 0
        self._wall_ns = self._fitted_ns = 0.0
        self.slowdown = 1.0
        self.settled = False
        self.limit_rows = self.whole_rows = 1
        self.limit_ns = 0
        self._look()

    def estimate_ns(self, rows: int) -> float:
        """The processor time of a run of so many rows."""
        cell = _cell(rows)
        sizes, costs = self._rows, self._cpu_ns
        low = cell
        while low and (not sizes[low] or sizes[low] > rows):
            low -= 1
        high = low + 1
        while high < _CELLS and not sizes[high]:
            high += 1
        if high == _CELLS:
            # Beyond all that was seen: the line through the last two, or in proportion.
            high, low = low, low - 1
            while low >= 0 and not sizes[low]:
                low -= 1
            if low < 0 or sizes[high] <= sizes[low]:
                return costs[high] * max(rows / sizes[high], 1.0)
            slope = max((costs[high] - costs[low]) / (sizes[high] - sizes[low]), 0.0)
            return costs[high] + slope * max(rows - sizes[high], 0.0)
        if rows <= sizes[low] or sizes[high] <= sizes[low]:
            return costs[low]
        share = (rows - sizes[low]) / (sizes[high] - sizes[low])
        return costs[low] + share * (costs[high] - costs[low])

    def wall_ns(self, rows: int) -> int:
        """What a run of so many rows takes by the clock."""
        return int(self.estimate_ns(rows) * self.slowdown)

    def work_ns(self, rows: int) -> int:
        """What so many waiting rows take by the clock, cut into batches.

        Where they are more than one, the last counts as full: by the time it runs others will have joined it.
        """
        limit = self.limit_rows
        if rows <= limit:
            return int(self.estimate_ns(rows) * self.slowdown)
        return -(-rows // limit) * self.limit_ns

    def rows_within(self, wall_ns: float) -> int:
        """The most rows, up to `limit_rows`, whose run ends within a time; 0 when not even one does."""
        if self.limit_ns <= wall_ns:
            return self.limit_rows
        low, high = 0, self.limit_rows
        while high - low > 1:
            middle = (low + high) // 2
            if self.wall_ns(middle) <= wall_ns:
                low = middle
            else:
                high = middle
        return low

    def learn(self, rows: int, cpu_ns: int, wall_ns: int) -> None:
        """Take one run in.

        Args:
            cpu_ns: processor time of the thread that ran it.
            wall_ns: the same by the clock.
        """
        fitted_ns = self.estimate_ns(rows)
        few, many = _WALL_RUNS
        over = min(max(_WALL_NS / max(wall_ns, 1), few), many)
        clip = max(_WALL_CLIP * over / many, _CLIP)
        self._wall_ns += min(wall_ns, clip * fitted_ns) - self._wall_ns / over
        self._fitted_ns += fitted_ns - self._fitted_ns / over
        self.slowdown = max(self._wall_ns / self._fitted_ns, 1.0)
        cell = _cell(rows)
        runs = self._runs[cell]
        self._runs[cell] = runs + 1
        mean = self._cpu_ns[cell]
        if not runs:
            self._rows[cell], self._cpu_ns[cell] = float(rows or 1), float(max(cpu_ns, 1))
        else:
            weight = 1 / (runs + 1 if runs < _WEIGHT_RUNS else _WEIGHT_RUNS)
            took = min(cpu_ns, _CLIP * mean) if runs >= _TRUSTED_RUNS else cpu_ns
            self._cpu_ns[cell] = mean + (took - mean) * weight
            self._rows[cell] += (rows - self._rows[cell]) * weight
        self.settled = runs >= _WEIGHT_RUNS
        self._learnt += 1
        if runs <= _TRUSTED_RUNS or self._learnt % _LOOK_EVERY == 0 or self._learnt % _EXPLORE_EVERY < 5:
            self._look()

    def stopped(self, rows: int, cpu_ns: int, wall_ns: int) -> None:
        """Take in a run that was ended at its deadline: it would have taken longer, nobody knows how long.

        Runs that are a little too slow for their deadlines never end by themselves. Were nothing learnt of them,
        just as much would be promised to the next ones, and none would ever be answered. What took far too long is
        no slow run but a loop that one request asked for, and says nothing of others.
        """
        fitted_ns = self.estimate_ns(rows)
        if wall_ns > _WALL_CLIP * fitted_ns:
            return
        longer_ns = max(cpu_ns, fitted_ns)
        cell = _cell(rows)
        self.learn(rows, int(longer_ns), wall_ns)
        if rows > 1:
            # At once, since runs of this size are to become fewer; one row alone cannot be cut.
            self._rows[cell], self._cpu_ns[cell] = float(rows), longer_ns * _STOPPED
            self._runs[cell] = max(self._runs[cell], _TRUSTED_RUNS)
        self._look()

    def _look(self) -> None:
        """Choose the batch size by what is known now: beyond it a row is hardly cheaper, and all wait longer."""
        known = [cell for cell in range(_CELLS) if self._known(cell)]
        rates = [(self._cpu_ns[cell] + _OWN_NS) / self._rows[cell] for cell in known] or [1.0]
        enough = min(rates) * _WORSE
        best = next((cell for cell, rate in zip(known, rates, strict=True) if rate <= enough), 0)
        if best == (known or [0])[-1]:
            # The largest that is known is the best: the next may be better still.
            best += 1
        elif self._learnt % _EXPLORE_EVERY < _TRUSTED_RUNS and self._learnt >= _EXPLORE_EVERY:
            if self._learnt % _EXPLORE_EVERY == 0:
                self._runs[best + 1], self._warm[best + 1] = 0, False
            best += 1
        self.limit_rows = min((2 << best) - 1, self._max_rows)
        self.limit_ns = int(self.estimate_ns(self.limit_rows) * self.slowdown)
        if self.limit_ns > _RUN_NS and self.limit_rows > 1:
            self.limit_rows = max(self.rows_within(_RUN_NS), 1)
            self.limit_ns = int(self.estimate_ns(self.limit_rows) * self.slowdown)
        self.whole_rows = min(self.limit_rows + self.limit_rows // 4, self._max_rows)

    def _known(self, cell: int) -> bool:
        return self._runs[cell] >= _TRUSTED_RUNS or self._warm[cell]


def _cell(rows: int) -> int:
    return min(rows.bit_length() - 1, _CELLS - 1) if rows else 0
