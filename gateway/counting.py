"""Counting: what becomes of requests, into the words of shared memory that /metrics and statistics read.

core -> version -> **counting** -> fleet. One update per run: sums are brought up to date for all requests of a run
together, from the columns that its record was made of; histograms with each `publish`, for all runs since. Sums are
kept in a list, which costs a third of what shared memory does, and added on there by `publish` with each tick of the
worker (20 ms); only words of the
worker's own index are written, by its loop thread alone.
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import add

from gateway import errors
from gateway import fleet as words_of
from gateway.batching import CUT_REASONS, Batch, Inference
from gateway.fleet import (
    LATENCY_BOUNDS_NS,
    ROWS_BOUNDS,
    RUN0,
    STAGE0,
    STAGE_BOUNDS_NS,
    STAGE_BUCKETS,
    STAGE_NS0,
    VARIANT0,
    VARIANT_LATENCY0,
    VARIANT_NAME_WORDS,
    VARIANT_WORDS,
    VARIANTS_MAX,
)
from gateway.stages import TIMED_STAGES

ERROR_CODES: tuple[str, ...] = tuple(
    dict.fromkeys(
        error.code
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.GatewayError)
    )
)[: words_of.ERROR_CODES_MAX - 1]
"""The closed set of codes that answered errors are counted by, in the order of their words."""

_CUT_WORDS = {cut: words_of.CUT0 + index for index, cut in enumerate(CUT_REASONS[: words_of.CUTS_MAX - 1])}
_DROPPED_WORDS = {"deadline_exceeded": words_of.EXPIRED, "cancelled": words_of.CANCELLED}
_LAST_CUT = words_of.CUT0 + words_of.CUTS_MAX - 1
_LAST_CELL = VARIANT0 + (VARIANTS_MAX - 1) * VARIANT_WORDS
_DECODE, _INFER, _ENCODE = (
    TIMED_STAGES.index("decode"),
    TIMED_STAGES.index("infer"),
    TIMED_STAGES.index("encode"),
)
_NAME_BYTES = (VARIANT_NAME_WORDS - 1) * 8


SPREAD_MAX = 4096
"""So many values of a stage wait for their histogram at most."""
_NOTHING = [0] * words_of.SLOT_WORDS
_unpublished: list[Counting] = []


def publish() -> None:
    """Add what was counted since the last call to shared memory. Loop thread; costs 15 us a version that ran since, and
    some nanoseconds a request that it answered."""
    for counting in _unpublished:
        counting.store()
    _unpublished.clear()


class Counting:
    """The counters of one version in one worker.

    Args:
        words: the version's slot (u64); a successor's counters go on where they stand.

    Threading: the loop thread alone.
    """

    def __init__(self, words: memoryview) -> None:
        self._words = words
        self._counts = [0] * words_of.SLOT_WORDS
        self._stored = True
        self._admitted = 0
        self._took: dict[tuple[str, bool], list[int]] = {}
        """Latencies by variant and outcome, and values by stage, not yet spread over their buckets."""
        self._columns: list[list[int]] = [[] for _ in TIMED_STAGES]
        self._cells = {name: cell for cell, name in variant_cells(words) if cell != _LAST_CELL}

    def leave(self) -> None:
        """Count nowhere from now on: the slot is another version's. What is still under way ends unseen."""
        self._words = memoryview(bytearray(words_of.SLOT_WORDS * 8)).cast("Q")

    def store(self) -> None:
        """Make the counts visible to other processes; see `publish`. Adds: a version that is loaded again while the
        former one still runs counts beside it."""
        self._stored = True
        self._spread_all()
        words, counts = self._words, self._counts
        for start, end in words_of.COUNTED:
            words[start:end] = array("Q", map(add, words[start:end], counts[start:end]))
        counts[:] = _NOTHING

    def _spread_all(self) -> None:
        """What runs left since the last time, into histograms: many values at once cost less each."""
        w = self._counts
        for stage, values in enumerate(self._columns):
            if values:
                w[STAGE_NS0 + stage] += max(sum(values), 0)
                self._spread(STAGE0 + stage * STAGE_BUCKETS, STAGE_BOUNDS_NS, values)
                values.clear()
        for (name, failed), took_ns in self._took.items():
            self._variant(name, took_ns, failed=failed)
        self._took.clear()

    def _counted(self) -> list[int]:
        if self._stored:
            self._stored = False
            _unpublished.append(self)
        return self._counts

    def admitted(self, count: int, queued_rows: int) -> None:
        """So many requests this version admitted, so many rows wait. Added on, as `recorded` is: a version that is
        loaded again shares its words with the former one, which ends what it has."""
        self._words[words_of.ADMITTED] += count - self._admitted
        self._admitted = count
        self._words[words_of.QUEUED] = queued_rows

    def waiting_since(self, oldest_ns: int) -> None:
        """When the request that waits longest came (`perf_counter_ns`); 0 when none waits. About once a second."""
        self._words[words_of.OLDEST_NS] = oldest_ns

    def predicted(self, slowdown: float, limit_rows: int, limit_ns: int) -> None:
        """What was learnt of the cost of runs: the clock over the prediction, the largest run and its time."""
        self._words[words_of.SLOWDOWN_PM] = int(slowdown * 1000)
        self._words[words_of.LIMIT_ROWS] = limit_rows
        self._words[words_of.LIMIT_NS] = limit_ns

    def hanging(self, count: int) -> None:
        """So many runs did not heed their end and go on."""
        self._words[words_of.HUNG] = count

    def recorded(self, count: int) -> None:
        """So many more requests are in the log now (or stand in a gap)."""
        self._words[words_of.RECORDED] += count

    def dropped(self, code: str) -> None:
        """A request without a run in the log, by the code of its event."""
        self._counted()[_DROPPED_WORDS.get(code, words_of.FAILED)] += 1
        self.recorded(1)

    def handed_over(self, inferences: Sequence[Inference], now_ns: int) -> None:
        """Requests that this version failed, and another is to answer: they failed here and are recorded there."""
        w = self._counted()
        took_ns = [now_ns - i.received_ns for i in inferences]
        w[words_of.FAILED] += len(inferences)
        w[words_of.FAILED_NS] += max(sum(took_ns), 0)
        for inference, one_ns in zip(inferences, took_ns, strict=True):
            self._took.setdefault((inference.assignment.assigned, True), []).append(one_ns)
        self._words[words_of.RETRIED] += len(inferences)
        self.recorded(len(inferences))

    def forced(self) -> None:
        """A request named a variant that this version serves."""
        self._words[words_of.FORCED] += 1

    def standing(self, *, stopped: bool, broken_at: int) -> None:
        """What the route says of it in this worker: whether its model is stopped, and the revision in which a breaker
        is open; 0: none is."""
        self._words[words_of.STOPPED] = int(stopped)
        self._words[words_of.BREAKER_REVISION] = broken_at

    def spoiled(self) -> None:
        """The primary answered what this version could not: a count of its breaker."""
        self._words[words_of.BREAKER_COUNTS] += 1

    def variant(self, name: str) -> tuple[int, int]:
        """Requests served as a variant so far: those that were answered, and those that failed."""
        cell = self._cells.get(name)
        found = []
        for failed, word in ((False, words_of.VARIANT_DONE), (True, words_of.VARIANT_FAILED)):
            known = 0 if cell is None else self._words[cell + word] + self._counts[cell + word]
            found.append(known + len(self._took.get((name, failed), ())))
        return found[0], found[1]

    def flagged(self, kinds: set[str], rejected: bool) -> None:
        """A request whose inputs were out of profile in these ways; refused for it, or not."""
        first = words_of.REJECTED0 if rejected else words_of.FLAGGED0
        for kind in kinds:
            self._counted()[first + words_of.FLAG_KINDS.index(kind)] += 1

    def run(self, batch: Batch, now_ns: int, queued_rows: int, *, failed: bool) -> None:
        """One run that was recorded; its requests were answered, or failed, at `now_ns`."""
        w = self._counted()
        n, rows = len(batch.inferences), batch.rows
        took_ns = [now_ns - i.received_ns for i in batch.inferences]
        if failed:
            w[words_of.FAILED] += n
            w[words_of.FAILED_NS] += max(sum(took_ns), 0)
        else:
            w[words_of.DONE] += n
            w[words_of.DONE_ROWS] += rows
        w[words_of.ROWS] += rows
        self._words[words_of.QUEUED] = queued_rows
        self._words[words_of.LAST_INFERENCE_MS] = time.time_ns() // 1_000_000
        w[_CUT_WORDS.get(batch.cut, _LAST_CUT)] += 1
        infer_ns, encode_ns = batch.ended_ns - batch.started_ns, max(now_ns - batch.ended_ns, 0)
        decode_ns = self._stages(batch, n, infer_ns, encode_ns)
        at = RUN0 + bisect_left(ROWS_BOUNDS, rows) * words_of.RUN_WORDS
        w[at] += 1
        w[at + 1] += decode_ns
        w[at + 2] += infer_ns
        w[at + 3] += encode_ns
        if batch.same_route:
            assignment = batch.inferences[0].assignment
            key = (assignment.served or assignment.reason, failed)
            known = self._took.get(key)
            if known is None:
                self._took[key] = took_ns
            else:
                known += took_ns
        else:
            for inference, one_ns in zip(batch.inferences, took_ns, strict=True):
                assignment = inference.assignment
                key = (assignment.served or assignment.reason, failed)
                self._took.setdefault(key, []).append(one_ns)
        if len(self._columns[_DECODE]) > SPREAD_MAX:
            self._spread_all()

    def _stages(self, batch: Batch, n: int, infer_ns: int, encode_ns: int) -> int:
        """Time by stage, of all requests; returns the decode time."""
        w = self._counts
        decode_ns = 0
        for columns in batch.columns:
            count = len(columns[_DECODE])
            decode_ns += sum(columns[_DECODE])
            for stage, column in enumerate(columns):
                if len(column) == count:
                    self._columns[stage] += column
                else:
                    # One value for all.
                    w[STAGE_NS0 + stage] += count * column[0]
                    w[STAGE0 + stage * STAGE_BUCKETS + bisect_left(STAGE_BOUNDS_NS, column[0])] += count
        for stage, one_ns in ((_INFER, infer_ns), (_ENCODE, encode_ns)):
            w[STAGE_NS0 + stage] += n * one_ns
            w[STAGE0 + stage * STAGE_BUCKETS + bisect_left(STAGE_BOUNDS_NS, one_ns)] += n
        return max(decode_ns, 0)

    def _variant(self, name: str, took_ns: list[int], *, failed: bool) -> None:
        cell = self._cells.get(name) or self._cell(name)
        w = self._counts
        w[cell + (words_of.VARIANT_FAILED if failed else words_of.VARIANT_DONE)] += len(took_ns)
        w[cell + words_of.VARIANT_NS] += max(sum(took_ns), 0)
        self._spread(cell + VARIANT_LATENCY0, LATENCY_BOUNDS_NS, took_ns)

    def _spread(self, first: int, bounds: tuple[int, ...], values: list[int]) -> None:
        """Count values in the histogram whose counts begin at `first`. Cost: by the buckets hit, not by value."""
        w, n = self._counts, len(values)
        values = sorted(values)
        start = 0
        while start < n:
            bucket = bisect_left(bounds, values[start])
            end = n if bucket == len(bounds) else bisect_right(values, bounds[bucket], start)
            w[first + bucket] += end - start
            start = end

    def _cell(self, name: str) -> int:
        """A variant's first word; made where it has none and one is free, else the last, which is for the rest."""
        w, raw = self._words, name.encode()[:_NAME_BYTES]
        for cell in range(VARIANT0, _LAST_CELL, VARIANT_WORDS):
            if not w[cell]:
                for index in range(0, len(raw), 8):
                    part = raw[index : index + 8].ljust(8, b"\0")
                    w[cell + 1 + index // 8] = int.from_bytes(part, "little")
                w[cell] = len(raw)
                break
        else:
            cell = _LAST_CELL
        self._cells[name] = cell
        return cell


def variant_cells(words: memoryview) -> list[tuple[int, str]]:
    """First word and name of each cell in use; the last cell's name is `other`."""
    found = []
    for cell in range(VARIANT0, _LAST_CELL, VARIANT_WORDS):
        size = min(words[cell], _NAME_BYTES)
        if size:
            raw = b"".join(word.to_bytes(8, "little") for word in words[cell + 1 : cell + VARIANT_NAME_WORDS])
            found.append((cell, raw[:size].decode(errors="replace")))
    if words[_LAST_CELL + words_of.VARIANT_DONE] or words[_LAST_CELL + words_of.VARIANT_FAILED]:
        found.append((_LAST_CELL, "other"))
    return found
