"""Batching: which waiting requests make the next run. Pure but for the deques.

Work-conserving: what waits when a lane frees (or at the end of a turn, for cheap runs) is one batch;
an idle lane runs one row at once. Rows count, not requests. A queue is ordered by deadline; expired and
abandoned requests are dropped when a batch is cut, so they cost no run.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Hashable
from typing import Any

import msgspec

from gateway.errors import DeadlineExceeded, GatewayError, InferenceFailed

CUT_REASONS = ("turn", "lane_free", "max_rows", "single", "idle")
"""Why a batch was cut when it was: the run's `cut` in the log and in the metrics."""


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
    admitted_ns: int = 0
    decoded_ns: int = 0
    routed_ns: int = 0
    deadline_ns: int = 0
    id_json: bytes | None = None
    request_id: str | None = None
    parameters: dict[str, Any] | None = None
    wanted: tuple[int, ...] | None = None
    """Outputs asked for, in that order; None is all of the model's."""
    form: Any = None
    """How the reply looks: None is the common JSON; else an object of `gateway.api.forms`' kind, whose
    `body(encoder, inference, id_json, outputs, row0)` gives body and header fields."""
    priority: int = 0
    """1 is the highest; 0 is what nobody asked for."""
    flags: tuple[str, ...] = ()
    """What validation found odd about its inputs."""
    key: Any = None
    rows: int = 1
    log_bytes: int = 0
    """What its id and parameters take in the log."""
    unit: int | None = None
    assignment: Any = None
    """The routing.Assignment, from route on."""
    inputs: list[bytes] = []
    shapes: list[tuple[int, ...]] = []


def _deadline(inference: Inference) -> int:
    return inference.deadline_ns


class Batch:
    """Requests of one version that run together; `rows` in all, `cut` says why it was cut now."""

    __slots__ = (
        "columns",
        "cpu_ns",
        "cut",
        "ended_ns",
        "error",
        "inferences",
        "joined",
        "outputs",
        "rows",
        "run_options",
        "same_route",
        "started_ns",
    )

    def __init__(self, inferences: list[Inference], rows: int, cut: str) -> None:
        self.inferences = inferences
        self.rows = rows
        self.cut = cut
        self.outputs: list[Any] = []
        self.joined: list[bytes] = []
        self.error: Exception | None = None
        self.run_options: Any = None
        self.started_ns = 0
        self.cpu_ns = 0
        self.ended_ns = 0
        self.columns: list[list[list[int]]] = []
        """Of each of its frames the stages that differ by request: admit, decode, route, queue (recording)."""
        self.same_route = False
        """Known to have one assignment for all its requests (recording)."""

    @property
    def terminated(self) -> bool:
        """Stopped on its lane at the last of its deadlines."""
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


class CostModel:
    """What a run of so many rows costs, learnt online: a moving mean per power of two.

    Cost: one list access to ask, one to learn.
    """

    def __init__(self, warm_ns: dict[int, int]) -> None:
        self._mean_ns: list[float] = [0.0] * 20
        self._mean_ns[0] = 1_000_000.0
        for rows, took_ns in warm_ns.items():
            self._mean_ns[rows.bit_length() - 1] = float(max(took_ns, 1))

    def estimate_ns(self, rows: int) -> float:
        """The expected time of a run; scaled up from the nearest smaller size that was seen."""
        size = rows.bit_length() - 1 if rows else 0
        for smaller in range(min(size, 19), -1, -1):
            mean = self._mean_ns[smaller]
            if mean:
                # Between sizes cost grows at most in proportion to the rows.
                return mean if smaller == size else mean * (rows / (1 << smaller))
        return self._mean_ns[0]

    def learn(self, rows: int, took_ns: int) -> None:
        """Take one run into the mean (weight 1/16); `took_ns` is CPU time of the running thread, since
        a lane's wall time also counts the loop's work on the same core."""
        size = min(rows.bit_length() - 1 if rows else 0, 19)
        mean = self._mean_ns[size]
        self._mean_ns[size] = took_ns if not mean else mean + (took_ns - mean) / 16


class VersionQueue:
    """Requests waiting for one version, by batch key, ordered by deadline.

    Args:
        max_rows: rows of one batch at most (a larger single request goes alone).
        batchable: False makes every request a batch of its own.
    """

    def __init__(self, max_rows: int, *, batchable: bool) -> None:
        self._max_rows = max_rows
        self._batchable = batchable
        self._by_key: dict[Hashable, list[Inference]] = {}
        self.rows = 0

    def put(self, inference: Inference) -> None:
        """Queue a request behind those with an earlier deadline."""
        waiting = self._by_key.get(inference.key)
        if waiting is None:
            waiting = self._by_key[inference.key] = []
        self.rows += inference.rows
        if waiting and waiting[-1].deadline_ns > inference.deadline_ns:
            insort(waiting, inference, key=_deadline)
        else:
            waiting.append(inference)

    def cut(self, now_ns: int, reason: str, drop: Callable[[Inference, bool], None]) -> Batch | None:
        """The next batch, or None when nothing waits.

        Args:
            drop: called for each request that is gone (expired False) or expired (True).
        """
        while self._by_key:
            key = next(iter(self._by_key))
            waiting = self._by_key[key]
            taken: list[Inference] = []
            rows = used = 0
            limit = self._max_rows if self._batchable else 1
            for inference in waiting:
                if inference.sink.disconnected or inference.deadline_ns <= now_ns:
                    used += 1
                    self.rows -= inference.rows
                    drop(inference, not inference.sink.disconnected)
                    continue
                if taken and (rows + inference.rows > limit or not self._batchable):
                    reason = "max_rows"
                    break
                used += 1
                taken.append(inference)
                rows += inference.rows
            if used == len(waiting):
                del self._by_key[key]
            else:
                del waiting[:used]
                # Another key's turn comes next.
                self._by_key[key] = self._by_key.pop(key)
            if taken:
                self.rows -= rows
                return Batch(taken, rows, reason if self._batchable else "single")
        return None

    def oldest_ns(self) -> int:
        """When the request that waits longest came; 0 when none waits. Cost: all that wait."""
        waiting = (inference.received_ns for some in self._by_key.values() for inference in some)
        return min(waiting, default=0)

    def __bool__(self) -> bool:
        return bool(self._by_key)
