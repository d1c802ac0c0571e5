"""A loaded version as the request path sees it: session, codec, queue, cost, counters in shared memory.

serving makes one for each session that is ready; core queues, runs, answers and counts through it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import msgspec

from gateway.audit.event import ModelFacts
from gateway.audit.frame import encoder
from gateway.batching import Batch, Inference, VersionQueue
from gateway.cost import CostModel
from gateway.counting import Counting
from gateway.errors import GatewayError
from gateway.settings import Batch as BatchConfig
from gateway.tensors import named_bytes, row_bytes
from gateway.validation import compile_checks
from loaders.session import Session

JSON_REPLY_VALUES = 1_048_576
"""Of all outputs of a request together; more would keep the loop writing for half a second and longer."""
FREE_NS = 100_000_000
"""Work waiting for the loop that takes less than this is taken in without a look at deadlines ..."""
FREE_LEFT_NS = 125_000_000
"""... by requests that have more time left than this."""
DEMOTED_RUNS = 64
"""Runs on lanes after the first that was too long for the loop; twice as many after each further one."""


class Version:
    """One loaded version as the request path sees it: session, codec, queue, cost, counters."""

    redactor: Any = None
    """What of its inputs is recorded; None: all."""
    least_level: str | None = None
    """What its replies wait for at least; None: what the gateway's do."""
    fails = False
    """Nothing of it leaves unlogged, also where the gateway's policy is to degrade."""
    audited = False
    """One of these."""
    captures_full = False
    """Its requests are recorded whole however large they are, as far as a frame takes them."""
    retries: Any = None
    """Of a canary's: the `retrying.Retries` of what it fails."""
    not_finite = 0
    """Requests whose record says so."""
    retried = retried_bad = 0
    """Requests that a canary failed and that ran here; those of them that failed here, too."""
    awaited = 0
    """Retries that wait for it, or run."""
    looks = False
    """One of these: its outputs are looked at as soon as they are there."""

    def __init__(
        self, session: Session, codec: Any, encoder_: Any, batch: BatchConfig, words: memoryview
    ) -> None:
        self.model = session.model
        self.version = session.version
        self.session = session
        self.signature = session.signature
        self.batchable = session.batchable
        self.codec = codec
        self.encoder = encoder_
        most = min(batch.max_rows, session.max_batch_rows or batch.max_rows)
        self.max_rows = most if session.batchable else 1
        """Of a run, as configured; what is learnt of its cost may hold it below."""
        delay_us = session.queue_delay_us
        self.queue_delay_us = int(batch.linger_ms * 1000) if delay_us is None else delay_us
        """How long a request may wait for company."""
        self.linger_ns = self.queue_delay_us * 1000
        self.due_ns = 0
        """Where it lingers: when what waits has waited long enough."""
        self.queue = VersionQueue(batchable=session.batchable)
        self.inline_ns = batch.inline_us * 1000 if session.inline_allowed else 0
        self.cost = CostModel(session.warm_cost_ns, self.max_rows)
        self.inputs = len(session.signature.inputs)
        self.run_options = session.new_run_options()
        """Of its runs on the loop, used again and again."""
        self.hung = 0
        """Runs that did not heed their end and go on."""
        self.ran_ns = 0
        """When its last run ended."""
        self._lane_runs = self._runs = 0
        self._demotions = 0
        self._queue_max_rows = batch.queue_max_rows
        values = sum(prod(max(dim, 1) for dim in spec.shape[1:]) for spec in session.signature.outputs)
        self.json_rows = max(JSON_REPLY_VALUES // max(values, 1), 1)
        """Of one request whose reply is JSON, at most."""
        self.on_lane = not self.runs_inline()
        self.free_rows = self._free_rows()
        """So many rows may wait without a look at deadlines; below 0 on a lane."""
        self.facts = ModelFacts(
            name=session.model,
            version=session.version,
            tree_sha256=session.bundle.tree_sha256,
            config_sha256=session.bundle.config_sha256,
            reference_sha256=session.bundle.reference_sha256,
            runtime=session.runtime,
        )
        self.model_raw = msgspec.Raw(encoder.encode(self.facts))
        self.named_bytes = named_bytes(session.signature)
        self.row_bytes = row_bytes(session.signature, batchable=session.batchable)
        self.admitted = 0
        self.counting = Counting(words)
        self.checks = compile_checks(
            session.profile,
            session.bundle.settings,
            session.signature,
            f"version {session.version}",
            self.counting.flagged,
        )
        self.status_of: Callable[[GatewayError], int] = lambda exc: 500

    def watched(self, retries: Any) -> None:
        """It is a canary: what it fails goes to the primary (`retrying.Retries`)."""
        self.retries = retries
        self.looks = True

    def unwatched(self) -> None:
        """It is none, or not any longer."""
        self.retries = None
        self.looks = self.awaited > 0

    @property
    def is_broken(self) -> bool:
        """Whether a breaker of a variant that it serves is open."""
        return self.retries is not None and any(each.is_open for each in self.retries.breakers.values())

    def runs_inline(self) -> bool:
        """Whether what waits now is cheap enough for the loop."""
        if not self.inline_ns or self._lane_runs:
            return False
        cost = self.cost
        if cost.limit_ns <= self.inline_ns:
            return True
        rows = self.queue.rows
        return cost.estimate_ns(min(rows, cost.limit_rows) if rows else 1) <= self.inline_ns

    def demote(self) -> None:
        """A run on the loop was too long for it: the next ones go on lanes, whatever the fit says."""
        self._lane_runs = min(DEMOTED_RUNS << self._demotions, 1 << 16)
        self._demotions += 1
        self.free_rows = -1

    def times(self) -> bool:
        """Whether the next run on the loop is timed and learnt: of cheap ones that are well known every fourth, since
        that costs as they do."""
        return not (self._runs + 1) & 3 or not self.cost.settled or self.on_lane

    def learn(self, batch: Batch) -> None:
        """Take a run's cost in, where it was timed; after one that was not and took long by the clock the next is."""
        self._runs += 1
        if not batch.timed:
            if batch.ended_ns - batch.started_ns > 2 * self.inline_ns:
                self._runs |= 3
            return
        self.cost.learn(batch.rows, batch.cpu_ns, batch.ended_ns - batch.started_ns)
        if self._lane_runs:
            self._lane_runs -= 1
        self.free_rows = self._free_rows()

    def stopped(self, batch: Batch) -> None:
        """A run was ended at its deadline."""
        self.cost.stopped(batch.rows, batch.cpu_ns, batch.ended_ns - batch.started_ns)
        self.free_rows = self._free_rows()

    def _free_rows(self) -> int:
        if self.on_lane or self._lane_runs:
            return -1
        cost = self.cost
        return min(FREE_NS // max(cost.limit_ns, 1) * cost.limit_rows, self._queue_max_rows, self.json_rows)

    def publish_admitted(self) -> None:
        """Make the number of admissions visible before the run, so that a successor can tell what
        a kill aborted."""
        self.counting.admitted(self.admitted, self.queue.rows)

    def recorded(self, count: int) -> None:
        """So many admitted requests are in the log now (or stand in a gap)."""
        self.counting.recorded(count)

    def count(self, batch: Batch, now_ns: int, *, failed: bool) -> None:
        """One update of the metrics per run, once it is recorded."""
        self.counting.run(batch, now_ns, self.queue.rows, failed=failed)

    def count_dropped(self, code: str) -> None:
        """A request without a run in the log, by the code of its event."""
        self.counting.dropped(code)

    def json_body(
        self,
        inference: Inference,
        id_json: bytes,
        literals: list[bytes],
        texts: list[list[bytes]],
        row0: int,
    ) -> bytes:
        """A request's JSON reply from the run's row texts and `encoder.literals`."""
        rows = inference.rows
        wanted = inference.wanted
        if rows == 1 and len(literals) == 3 and self.batchable:
            text = texts[0 if wanted is None else wanted[0]][row0]
            return b"".join((literals[0], id_json, literals[1], text, literals[2]))
        parts = [literals[0], id_json]
        at = 1
        for i in range(len(texts)) if wanted is None else wanted:
            parts.append(literals[at])
            at += 1
            column = texts[i]
            if rows == 1 and self.batchable:
                parts.append(column[row0])
            elif self.batchable and rows:
                parts.append(b",".join(column[row0 : row0 + rows]))
            else:
                parts.append(column[0])
        parts.append(literals[at])
        return b"".join(parts)
