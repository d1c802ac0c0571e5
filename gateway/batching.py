"""Batching: which waiting requests make the next run. Pure but for the queues.

Work-conserving: what waits when a lane frees (or at the end of a turn, for cheap runs) is one batch;
an idle lane runs one row at once. Rows count, not requests. A queue is ordered by deadline, which a priority
draws nearer; expired and abandoned requests are dropped when a batch is cut, so they cost no run.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Hashable
from heapq import heappop, heappush
from typing import Any

import msgspec

from gateway.errors import DeadlineExceeded, GatewayError, InferenceFailed

CUT_REASONS = ("turn", "lane_free", "max_rows", "single", "idle", "deadline", "linger", "alone")
"""Why a batch was cut when it was: the turn was over (`turn`: it runs on the loop, `idle`: on a lane that had nothing
to do), a lane became free, it had all the rows it may have, its version does not batch, with more rows its first
deadline would have passed, it had waited `batch.linger_ms`, or it is one request of a batch that failed (`alone`).
The run's `cut` in the log and in the metrics; indices are stable: new reasons go to the end."""


def order_ns(received_ns: int, deadline_ns: int, priority: int) -> int:
    """The place of a request in its queue: its deadline, or earlier with a priority.

    Priority 1 (the highest) puts it where a deadline of a quarter of its time would, 2 of a half, 3 of three quarters;
    0 (the default) and others change nothing. So it passes those that came before it only while they have time left,
    and no flood of priorities can hold a request back to its deadline: nobody starves.
    """
    if 1 <= priority <= 3:
        return received_ns + (deadline_ns - received_ns) * priority // 4
    return deadline_ns


class Inference(msgspec.Struct, eq=False, gc=False):
    """One request in flight, from admission to its reply.

    `sink` is the door's object that takes the reply: `reply(status, fields, body)`; the door sets its
    `disconnected` when the client left. `inputs` are in the model's order, in binary form. Times are
    `perf_counter_ns`. A struct, since C makes those in a quarter of the time.
    """

    sink: Any
    received_ns: int
    caller: Any = None
    traceparent: str | None = None
    audit_level: str = "spool"
    decoded_ns: int = 0
    deadline_ns: int = 0
    order_ns: int = 0
    """Its place in the queue, see `order_ns`."""
    id_json: bytes | None = None
    request_id: str | None = None
    parameters: dict[str, Any] | None = None
    wanted: tuple[int, ...] | None = None
    """Outputs asked for, in that order; None: all."""
    form: Any = None
    """How the reply looks: None is the common JSON; else an object of `gateway.api.forms`' kind, whose
    `body(encoder, inference, id_json, outputs, row0)` gives body and header fields."""
    key: Any = None
    rows: int = 1
    priority: int = 0
    """1 is the highest, 0 the default."""
    flags: tuple[str, ...] = ()
    """What validation found worth a mark in the event."""
    log_bytes: int = 0
    """What its id and parameters take in the log."""
    unit: int | None = None
    assignment: Any = None
    """The routing.Assignment, from route on."""
    inputs: Any = ()
    shapes: Any = ()
    redacted: Any = None
    """What stood in cells that are not recorded, as far as the rules allow."""
    held: Any = None
    """What it has of its principal's and its model's share (`gateway.fairness`), until its end."""
    digests: Any = ()
    """SHA-256 of each input, where the lane made them: of megabytes that is not for the loop."""
    first_try: Any = None
    """The `retrying.FirstTry` of a request that goes once more, to the primary."""


def _place(inference: Inference) -> int:
    return inference.order_ns


class Batch:
    """Requests of one version that run together; `rows` in all, `cut` says why it was cut now."""

    __slots__ = (
        "bad",
        "columns",
        "cpu_ns",
        "cut",
        "ended_ns",
        "error",
        "given_up",
        "inferences",
        "joined",
        "outputs",
        "redactions",
        "rows",
        "run_options",
        "same_route",
        "started_ns",
        "timed",
        "told",
        "watched",
    )

    def __init__(self, inferences: list[Inference], rows: int, cut: str) -> None:
        self.inferences = inferences
        self.rows = rows
        self.cut = cut
        self.outputs: list[Any] = []
        self.joined: list[bytes] = []
        self.redactions: Any = None
        """Of each request what is recorded of its inputs, where the lane made it."""
        self.error: Exception | None = None
        self.told = False
        """Its requests were answered without it: it went on beyond its end."""
        self.given_up = False
        """It hung, and its lane was replaced."""
        self.run_options: Any = None
        self.watched: Any = None
        """The watchdog's entry of a run on a lane; None on the loop."""
        self.started_ns = 0
        self.cpu_ns = 0
        self.timed = True
        """`cpu_ns` is measured: reading that clock is a system call."""
        self.ended_ns = 0
        self.bad: set[int] | None = None
        """Places of requests whose outputs are not finite; None: nobody looked yet."""
        self.columns: list[list[list[int]]] = []
        """Of each of its frames the stages admit, decode, route, queue by request, or one for all (recording)."""
        self.same_route = False
        """Known to have one assignment for all its requests (recording)."""

    @property
    def terminated(self) -> bool:
        """Stopped at the last of its deadlines."""
        return self.run_options is not None and bool(self.run_options.terminate)

    def failure(self, model: str, version: str) -> GatewayError | None:
        """What to tell the clients of a run that failed; None when it did not."""
        exc = self.error
        if exc is None or isinstance(exc, GatewayError):
            return exc
        if self.terminated:
            return DeadlineExceeded(f"model '{model}' did not answer before the deadline")
        text = str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__
        return InferenceFailed(f"model '{model}' version {version} failed: {text}")


class VersionQueue:
    """Requests waiting for one version, by batch key, ordered by their place.

    Args:
        batchable: False makes every request a batch of its own.

    Cost: a put is one comparison and an append when deadlines come in order, a bisection else; a cut of all that
    waits two attribute reads a request.
    """

    def __init__(self, *, batchable: bool) -> None:
        self._batchable = batchable
        self._by_key: dict[Hashable, list[Inference]] = {}
        # (place of the first, a number, key) for each key, and stale ones.
        self._heads: list[tuple[int, int, Hashable]] = []
        self._number = 0
        self.rows = 0

    def put(self, inference: Inference) -> None:
        """Queue a request behind those whose place is before or at its own."""
        key = inference.key
        waiting = self._by_key.get(key)
        self.rows += inference.rows
        if waiting is None:
            self._by_key[key] = [inference]
            self._head(inference.order_ns, key)
        elif waiting[-1].order_ns <= inference.order_ns:
            waiting.append(inference)
        else:
            insort(waiting, inference, key=_place)
            if waiting[0] is inference:
                self._head(inference.order_ns, key)

    @property
    def first_ns(self) -> int:
        """The place of the request that is next. Only while something waits."""
        self._settle()
        return self._heads[0][0]

    def rows_before(self, place_ns: int) -> int:
        """Rows that run before a request of that place would. An estimate where requests differ in rows."""
        before = 0
        for waiting in self._by_key.values():
            if waiting[-1].order_ns <= place_ns:
                before += len(waiting)
            else:
                before += bisect_right(waiting, place_ns, key=_place)
        total = sum(map(len, self._by_key.values()))
        return self.rows if before == total else self.rows * before // total

    def behind(self, place_ns: int) -> list[tuple[int, Inference]]:
        """Some of the requests that one of that place would pass, each with the rows before it: the first, the last,
        and a few between. Empty when it comes last."""
        out: list[tuple[int, Inference]] = []
        for waiting in self._by_key.values():
            if waiting[-1].order_ns <= place_ns:
                continue
            start = bisect_right(waiting, place_ns, key=_place)
            step = max((len(waiting) - start) // 8, 1)
            picked = {*range(start, len(waiting), step), len(waiting) - 1}
            out.extend((self.rows_before(waiting[i].order_ns), waiting[i]) for i in sorted(picked))
            if len(out) > 32:
                break
        return out

    def cut(
        self,
        now_ns: int,
        reason: str,
        cost: Any,
        drop: Callable[[Inference, bool], None],
    ) -> Batch | None:
        """The next batch, or None when nothing waits.

        Args:
            cost: the version's CostModel: how many rows a batch may have, and how many end in the time that the
                most urgent request has left.
            drop: called for each request that is gone (expired False) or expired (True).
        """
        while self._by_key:
            self._settle()
            key = heappop(self._heads)[2]
            waiting = self._by_key[key]
            if True in [i.sink.disconnected or i.deadline_ns <= now_ns for i in waiting]:
                kept = self._without_dropped(waiting, now_ns, drop)
                if not kept:
                    del self._by_key[key]
                    continue
                self._by_key[key] = kept
                if kept[0] is not waiting[0]:
                    # Another key's first may be the most urgent now.
                    self._head(kept[0].order_ns, key)
                    continue
                waiting = kept
            left_ns = waiting[0].deadline_ns - now_ns
            limit, full = cost.limit_rows, "max_rows"
            if limit < self.rows <= cost.whole_rows:
                limit = self.rows
            if left_ns < cost.limit_ns and self._batchable:
                within = cost.rows_within(left_ns)
                if 0 < within < limit:
                    limit, full = within, "deadline"
            batch = self._take(key, waiting, limit, (reason, full))
            self.rows -= batch.rows
            return batch
        return None

    def _take(self, key: Hashable, waiting: list[Inference], limit: int, reasons: tuple[str, str]) -> Batch:
        count = len(waiting)
        reason, full = reasons
        if not self._batchable:
            taken, rows, reason = 1, waiting[0].rows, "single"
        elif self.rows <= limit and len(self._by_key) == 1:
            # The common case: all that waits is one batch.
            taken, rows = count, self.rows
        else:
            taken, rows = 1, waiting[0].rows
            while taken < count and rows + waiting[taken].rows <= limit:
                rows += waiting[taken].rows
                taken += 1
            if taken < count:
                reason = full
        if taken == count:
            del self._by_key[key]
            return Batch(waiting, rows, reason)
        part = waiting[:taken]
        del waiting[:taken]
        self._by_key[key] = waiting
        self._head(waiting[0].order_ns, key)
        return Batch(part, rows, reason)

    def _without_dropped(
        self, waiting: list[Inference], now_ns: int, drop: Callable[[Inference, bool], None]
    ) -> list[Inference]:
        kept = []
        for inference in waiting:
            gone = inference.sink.disconnected
            if gone or inference.deadline_ns <= now_ns:
                self.rows -= inference.rows
                drop(inference, not gone)
            else:
                kept.append(inference)
        return kept

    def _head(self, place_ns: int, key: Hashable) -> None:
        self._number += 1
        heappush(self._heads, (place_ns, self._number, key))

    def _settle(self) -> None:
        """Forget heads of keys that are gone, or whose first request is another by now."""
        heads, by_key = self._heads, self._by_key
        while True:
            place_ns, _, key = heads[0]
            waiting = by_key.get(key)
            if waiting is not None and waiting[0].order_ns == place_ns:
                return
            heappop(heads)

    def oldest_ns(self) -> int:
        """When the request that waits longest came; 0 when none waits. Cost: all that wait."""
        waiting = (inference.received_ns for some in self._by_key.values() for inference in some)
        return min(waiting, default=0)

    def __bool__(self) -> bool:
        return bool(self._by_key)
