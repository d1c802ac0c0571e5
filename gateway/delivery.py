"""Delivery: from a run that ended to its record in the log and its replies to the clients.

runs (infer) -> **delivery**: encode -> append -> replies. All rows of a run are encoded with one call and stand in
one columnar frame (several when it is large); replies leave once their frame is appended.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any

from gateway import capture
from gateway.audit.event import Prediction
from gateway.batching import Batch, Inference
from gateway.errors import AuditTimeout, FrameTooLarge, GatewayError
from gateway.fairness import Fairness
from gateway.recording import RunFacts, dropped_event
from gateway.replies import UNRECORDED, Appended, Problem, Reply, reply_all
from gateway.version import Version

log = logging.getLogger("tidegate.worker")
_now = time.perf_counter_ns


class Delivery:
    """Records and answers what ran, and what was dropped before it could.

    Args:
        appender: the way into the ring, `gateway.append`.
        problem: turns an error into (status, fields, body); the one table of api.problems.
        prefix: what the ids of this epoch begin with.
        capture_max_bytes: a request's tensors above this are recorded by hash, unless more is asked for.

    Attributes:
        limits: bytes of a frame, and `capture_max_bytes`.
        answered: requests that were taken and are answered, or dropped.
        shares: gets back what requests held; None where nobody is limited.
        admit_ns, route_ns: what these stages took for the newest request that was timed; core stores them.

    Threading: the loop thread alone.
    """

    def __init__(self, appender: Any, problem: Problem, prefix: bytes, capture_max_bytes: int) -> None:
        self._appender = appender
        self._problem = problem
        self._prefix = prefix
        self.limits = (appender.max_frame_bytes, capture_max_bytes)
        self._batch_id = 0
        self.answered = 0
        self.shares: Fairness | None = None
        self.admit_ns = 0
        self.route_ns = 0

    def flush(self) -> None:
        """Append what was logged beside runs."""
        self._appender.flush()

    def deliver(self, version: Version, batch: Batch) -> None:
        """Encode, record, append and answer a batch that ran or failed."""
        self._batch_id += 1
        error = None if batch.error is None else batch.failure(version.model, version.version)
        now_ns = _now()
        try:
            texts = [] if error is not None else version.encoder.texts(batch)
            now_ns = _now()
            if self._appender.crowded:
                capture.decline(batch.inferences)
            facts = RunFacts(version, batch, self._batch_id, error, now_ns, (self.admit_ns, self.route_ns))
            frames = facts.frames(self.limits)
        except Exception:
            log.exception("run_not_recorded", extra={"model": version.model})
            self._unrecorded(version, batch.inferences)
            return
        row0 = 0
        for index, (payload, part, level) in enumerate(frames):
            answer = partial(self._answer, (version, batch, part), level, (row0, texts, error))
            if len(frames) > 1:
                row0 += sum([i.rows for i in part])
            try:
                self._appender.submit(payload, len(part), answer, waits=level != "none", fails=version.fails)
            except FrameTooLarge:
                log.exception("run_not_recorded", extra={"model": version.model})
                self._unrecorded(version, part)
                # They are counted as dropped; the run is counted without them.
                batch.inferences = [i for i in batch.inferences if i not in part]
                batch.rows -= sum([i.rows for i in part])
                batch.columns[index].clear()
        if batch.inferences:
            batch.columns = [columns for columns in batch.columns if columns]
            version.count(batch, now_ns, failed=error is not None)

    def drop(self, version: Version, inference: Inference, exc: GatewayError) -> None:
        """A request without a run in the log: answered if anyone waits, logged, counted."""
        self.answered += 1
        if inference.held is not None:
            self.shares.give_back(inference)  # type: ignore[union-attr]
        status = version.status_of(exc)
        if not inference.sink.disconnected:
            told, fields, body = self._problem(exc)
            inference.sink.reply(told, fields + UNRECORDED, body)
        self._appender.log(dropped_event(inference, version.facts, exc.code, status))
        version.count_dropped(exc.code)

    def _unrecorded(self, version: Version, inferences: list[Inference]) -> None:
        """A defect of ours must not strand requests: all are answered and logged, the plain way."""
        for inference in inferences:
            self.drop(version, inference, GatewayError("internal error"))

    def _answer(
        self,
        run: tuple[Version, Batch, list[Inference]],
        asked: str,
        encoded: tuple[int, list[list[bytes]], GatewayError | None],
        seq: int | None,
        level: str,
    ) -> None:
        """Build and write the replies of one appended frame; `asked` is the highest level among them."""
        version, batch, part = run
        self.answered += len(part)
        if self.shares is not None:
            for inference in part:
                self.shares.give_back(inference)
        version.recorded(len(part))
        late: list[Reply] | None = [] if asked == "fsync" and level == "spool" else None
        left: list[bool] = []
        try:
            made = Appended(version, batch, part, seq, level, *encoded)
            reply_all(made, self._prefix, self._problem, late, left)
        except Exception:
            log.exception("reply_not_made", extra={"model": version.model})
            # The one that could not be made, and those behind it; an answer that came twice would be the next one's.
            for i, inference in enumerate(part):
                if (i >= len(left) or left[i]) and not inference.sink.disconnected:
                    inference.sink.reply(*self._problem(GatewayError("internal error")))
        if late:
            fails = version.fails or self._appender.fails
            self._appender.after_sync(lambda synced: self._answer_late(late, synced, fails), fails=fails)

    def _answer_late(self, late: list[Reply], synced: bool, fails: bool) -> None:
        for inference, status, fields, body in late:
            if inference.sink.disconnected:
                continue
            if synced:
                fields = fields.replace(b"x-tidegate-audit: spool", b"x-tidegate-audit: fsync", 1)
            elif fails:
                pid = fields.partition(b"x-prediction-id: ")[2].partition(b"\r\n")[0]
                self._appender.log(
                    Prediction(
                        kind="cancelled",
                        done_ns=time.time_ns(),
                        code="audit_timeout",
                        status=503,
                        audit="fsync",
                        parameters={"corrects": pid.decode()},
                    )
                )
                exc = AuditTimeout("the record was not on disk in time; see x-prediction-id")
                status, fields, body = self._problem(exc)
                fields += b"x-tidegate-audit: spool\r\nx-prediction-id: " + pid + b"\r\n"
            inference.sink.reply(status, fields, body)
        self._appender.flush()
