"""A loaded version as the request path sees it: session, codec, queue, cost, counters in shared memory.

serving makes one for each session that is ready; core queues, runs, answers and counts through it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from gateway import fleet as fleet_words
from gateway.audit.event import ModelFacts, Prediction
from gateway.audit.frame import encoder
from gateway.batching import Batch, CostModel, Inference, VersionQueue
from gateway.config import Batch as BatchConfig
from gateway.counting import Counting
from gateway.errors import GatewayError
from gateway.recording import dropped_event, frame_bytes
from gateway.validation import compile_checks
from loaders.session import Session


class Version:
    """One loaded version as the request path sees it: session, codec, queue, cost, counters."""

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
        self.max_rows = batch.max_rows if session.batchable else 1
        self.queue_delay_us = int(batch.linger_ms * 1000)
        """How long a request may wait for company."""
        self.queue = VersionQueue(batch.max_rows, batchable=session.batchable)
        self.inline_ns = batch.inline_us * 1000 if session.inline_allowed else 0
        self.cost = CostModel(session.warm_cost_ns)
        self.facts = ModelFacts(
            name=session.model,
            version=session.version,
            tree_sha256=session.bundle.tree_sha256,
            config_sha256=session.bundle.config_sha256,
            reference_sha256=session.bundle.reference_sha256,
            runtime=session.runtime,
        )
        self.model_raw = msgspec.Raw(encoder.encode(self.facts))
        self.frame_bytes = frame_bytes(session.signature)
        self.admitted = words[fleet_words.ADMITTED]
        self.counting = Counting(words)
        self.checks = compile_checks(
            session.profile,
            session.bundle.settings,
            session.signature,
            f"version {session.version}",
            self.counting.flagged,
        )
        self.status_of: Callable[[GatewayError], int] = lambda exc: 500

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

    def dropped_event(self, inference: Inference, code: str, status: int) -> Prediction:
        """Its event."""
        return dropped_event(inference, self.facts, code, status)

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
