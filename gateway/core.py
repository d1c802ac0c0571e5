"""The core: one request from its head and body to its reply, the same behind both doors.

    receive: admit -> decode -> route -> queue        once per request, on arrival
    turn:    cut batches -> infer -> encode -> append  once per turn of the loop, for all that arrived

Work is done per turn: one callback runs the batches, encodes all rows of a run with one call, appends one
columnar frame per run, updates metrics and writes the replies. Cheap runs go inline, costly ones on a
lane. `gateway.worker` composes the parts; this file knows no HTTP beyond reply fields.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from gateway import tensors
from gateway.append import Appender
from gateway.audit.event import Prediction
from gateway.audit.frame import Caller, encoder
from gateway.batching import Batch, Inference
from gateway.config import Config
from gateway.errors import (
    AuditTimeout,
    AuditUnavailable,
    DeadlineExceeded,
    FrameTooLarge,
    GatewayError,
    ModelNotReady,
    Overloaded,
    RequestCancelled,
    UnknownModel,
)
from gateway.head import LEVELS, TIMEOUT_MAX_MS, Head
from gateway.lanes import Lanes
from gateway.recording import record_payloads, refused_event
from gateway.replies import Appended, Problem, replies
from gateway.serving import Entry, Models
from gateway.version import Version

log = logging.getLogger("tidegate.worker")
_now = time.perf_counter_ns
_bits = random.getrandbits


class Core:
    """One worker's request path.

    Args:
        problem: turns an error into (status, fields, body); the one table of api.problems.

    Threading: the loop thread alone; lanes run sessions and touch nothing else.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: Config,
        models: Models,
        appender: Appender,
        problem: Problem,
        prefix: str,
    ) -> None:
        self._loop = loop
        self.models = models
        self.appender = appender
        self._problem = problem
        self._prefix = prefix.encode()
        self._timeout_ns = config.data.request_timeout_ms * 1_000_000
        self._level: str = config.audit.level
        self._fails = appender.fails
        self._inflight_max = config.data.inflight_max
        self._queue_max_rows = config.batch.queue_max_rows
        self._limits = (appender.max_frame_bytes, config.audit.capture_max_bytes)
        self._linger_s = config.batch.linger_ms / 1000
        self.lanes = Lanes(loop, config.batch.lanes, self._lane_free)
        self._callers: dict[tuple[str, str, str | None], msgspec.Raw] = {}
        self._dirty: dict[Version, None] = {}
        self._scheduled = False
        self.inflight = 0
        self.refused = 0
        self.turns = 0
        self._batch_id = 0

    def caller(self, endpoint: str, protocol: str, principal: str | None) -> msgspec.Raw:
        """The encoded caller; one object for equal callers, at most 4,096 kept."""
        made = self._callers.get(key := (endpoint, protocol, principal))
        if made is None:
            if len(self._callers) >= 4096:
                self._callers.clear()
            made = self._callers[key] = msgspec.Raw(encoder.encode(Caller(*key)))
        return made

    # --- on arrival ------------------------------------------------------------------------

    def receive(self, head: Head, body: bytes, sink: Any, received_ns: int) -> None:
        """Take a request in; `sink.reply(status, fields, body)` answers, refusals before this returns."""
        inference = Inference(sink, received_ns, head.caller, head.traceparent, self._level)
        try:
            entry = self._admit(head, inference)
            codec = entry.codec_of(head.version)
            head.decoder(codec)(body, head.json_bytes, inference)
            inference.decoded_ns = _now()
            version = self._route(entry, head, inference)
            if version.codec is not codec:
                inference.key = inference.wanted = inference.form = None  # Another signature's.
                head.decoder(version.codec)(body, head.json_bytes, inference)
            self._queue(version, inference)
        except Exception as exc:  # noqa: BLE001  whatever it is, the request gets an answer
            self.refuse(head, exc, sink, received_ns, inference)

    async def receive_large(self, head: Head, body: bytes, sink: Any, received_ns: int) -> None:
        """The same for a body whose JSON would hold the loop up: decoded on a thread."""
        inference = Inference(sink, received_ns, head.caller, head.traceparent, self._level)
        try:
            codec = self._admit(head, inference).codec_of(head.version)
            await asyncio.to_thread(head.decoder(codec), body, head.json_bytes, inference)
            inference.decoded_ns = _now()
            version = self._route(self._entry(head), head, inference)
            if version.codec is not codec:
                inference.key = inference.wanted = inference.form = None
                await asyncio.to_thread(head.decoder(version.codec), body, head.json_bytes, inference)
            self._queue(version, inference)
        except Exception as exc:  # noqa: BLE001  whatever it is, the request gets an answer
            self.refuse(head, exc, sink, received_ns, inference)

    def _admit(self, head: Head, inference: Inference) -> Entry:
        if self.inflight >= self._inflight_max:
            msg = f"{self.inflight} requests are in flight; try again shortly"
            raise Overloaded(msg)
        asked = head.audit_level
        if asked is not None and LEVELS.index(asked) > LEVELS.index(self._level):
            inference.audit_level = asked
        if self._fails and inference.audit_level != "none" and self.appender.refuses:
            msg = "the audit log cannot be written at present; nothing is answered unlogged"
            raise AuditUnavailable(msg)
        entry = self._entry(head)
        inference.admitted_ns = _now()
        return entry

    def _entry(self, head: Head) -> Entry:
        entry = self.models.get(head.model)
        if entry is None:
            raise UnknownModel(head.model, head.version)
        return entry

    def _route(self, entry: Entry, head: Head, inference: Inference) -> Version:
        parameters = inference.parameters
        if head.version is not None:
            version = entry.version(head.version)
            inference.assignment = entry.pinned(head.version)
        else:
            table = entry.table
            if table is None:
                msg = f"model '{head.model}' has no version that is ready: {entry.why_not()}"
                raise ModelNotReady(msg)
            key = head.routing_key
            if key is None and parameters is not None:
                key = parameters.get("routing_key")
            if key is None:
                inference.unit = unit = _bits(64)
                inference.assignment = assignment = table.pick(unit)
            else:
                inference.unit = unit = table.unit_of(str(key))
                inference.assignment = assignment = table.pick_keyed(unit)
            version = entry.version(assignment.version)
        timeout_ns = self._timeout_ns if head.timeout_ms is None else head.timeout_ms * 1_000_000
        if parameters is not None:
            asked_us = parameters.get("timeout")
            if type(asked_us) is int and asked_us > 0:
                timeout_ns = min(asked_us * 1000, TIMEOUT_MAX_MS * 1_000_000)
        inference.deadline_ns = inference.received_ns + timeout_ns
        inference.routed_ns = _now()
        return version

    def _queue(self, version: Version, inference: Inference) -> None:
        if version.checks is not None:
            version.checks.check(inference)
        queue = version.queue
        if queue.rows + inference.rows > self._queue_max_rows and queue.rows:
            msg = f"{queue.rows} rows wait for model '{version.model}'; try again shortly"
            raise Overloaded(msg)
        version.admitted += 1
        self.inflight += 1
        queue.put(inference)
        self._dirty[version] = None
        if not self._scheduled:
            self._scheduled = True
            if self._linger_s:
                self._loop.call_later(self._linger_s, self.turn)
            else:
                self._loop.call_soon(self.turn)

    def refuse(
        self, head: Head, exc: Exception, sink: Any, received_ns: int, inference: Inference | None = None
    ) -> None:
        """Answer with an error at once and log the refusal with this turn; a defect of ours is `internal`."""
        if not isinstance(exc, GatewayError):
            log.error("request_not_taken", exc_info=exc)
            exc = GatewayError("internal error")
        self.refused += 1
        status, fields, body = self._problem(exc)
        sink.reply(status, fields, body)
        event = refused_event(head, exc.code, status, self.models.get(head.model), received_ns, inference)
        if exc.code == "audit_unavailable":
            return
        self.appender.refuse(event)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.turn)

    # --- once per turn ---------------------------------------------------------------------

    def turn(self) -> None:
        """Run, encode, append and answer what arrived; called once per turn of the loop."""
        self._scheduled = False
        self.turns += 1
        self.models.poll()
        if self._dirty:
            for version in list(self._dirty):
                version.publish_admitted()
                self._work(version, "turn")
        self.appender.flush()

    def _work(self, version: Version, cut: str) -> None:
        queue = version.queue
        while queue:
            now_ns = time.perf_counter_ns()
            inline = (
                version.inline_ns
                and version.cost.estimate_ns(min(queue.rows, version.max_rows)) <= version.inline_ns
            )
            if not inline and not self.lanes.idle:
                return
            batch = queue.cut(now_ns, cut, self._dropper(version))
            if batch is None:
                break
            if inline:
                self._run(version, batch)
                self._finish(version, batch)
            else:
                self._dispatch(version, batch)
        self._dirty.pop(version, None)

    def _lane_free(self) -> None:
        for version in list(self._dirty):
            self._work(version, "lane_free")
        self.appender.flush()

    def _dispatch(self, version: Version, batch: Batch) -> None:
        batch.run_options = options = version.session.new_run_options()
        left_s = (max(i.deadline_ns for i in batch.inferences) - time.perf_counter_ns()) / 1e9
        timer = self._loop.call_later(max(left_s, 0), _terminate, options)

        def done() -> None:
            timer.cancel()
            self._finish(version, batch)

        self.lanes.submit(lambda: self._run(version, batch), done)

    def _run(self, version: Version, batch: Batch) -> None:
        """Infer. On the loop (inline) or on a lane; touches only the batch."""
        try:
            feeds = {}
            for i, spec in enumerate(version.session.signature.inputs):
                parts = [inference.inputs[i] for inference in batch.inferences]
                data = parts[0] if len(parts) == 1 else b"".join(parts)
                shape = batch.inferences[0].shapes[i]
                if version.batchable:
                    shape = (batch.rows, *shape[1:])
                batch.joined.append(data)
                feeds[spec.name] = tensors.to_array(spec.datatype, data, shape, spec.name)
            cpu_ns = time.thread_time_ns()
            batch.started_ns = time.perf_counter_ns()
            batch.outputs = version.session.run(feeds, None, batch.run_options)
            batch.ended_ns = time.perf_counter_ns()
            batch.cpu_ns = time.thread_time_ns() - cpu_ns
        except Exception as exc:  # noqa: BLE001  whatever the runtime raises, the requests get an answer
            batch.ended_ns = time.perf_counter_ns()
            batch.started_ns = batch.started_ns or batch.ended_ns
            batch.error = exc

    def _finish(self, version: Version, batch: Batch) -> None:
        if batch.error is not None and len(batch.inferences) > 1 and not batch.terminated:
            # One of them is bad: each runs alone, in the place where the batch ran.
            for inference in batch.inferences:
                if batch.run_options is None:
                    alone = Batch([inference], inference.rows, "single")
                    self._run(version, alone)
                    self._finish(version, alone)
                else:
                    inference.key = object()
                    version.queue.put(inference)
                    self._dirty[version] = None
            return
        if batch.error is None:
            version.cost.learn(batch.rows, batch.cpu_ns)
        self._batch_id += 1
        error = batch.failure(version.model, version.version)
        now_ns = time.perf_counter_ns()
        try:
            texts = [] if error is not None else version.encoder.texts(batch)
            now_ns = time.perf_counter_ns()
            frames = list(record_payloads(version, batch, self._batch_id, error, now_ns, self._limits))
        except Exception:
            log.exception("run_not_recorded", extra={"model": version.model})
            self._unrecorded(version, batch.inferences)
            return
        row0 = 0
        for payload, part in frames:
            made = Appended(version, batch, part, None, "", row0, texts, error)
            waits = any(i.audit_level != "none" for i in part)
            row0 += sum(i.rows for i in part)
            try:
                self.appender.submit(payload, len(part), partial(self._answer, made), waits=waits)
            except FrameTooLarge:
                log.exception("run_not_recorded", extra={"model": version.model})
                self._unrecorded(version, part)
                batch.inferences = [i for i in batch.inferences if i not in part]
        if batch.inferences:
            version.count(batch, now_ns, failed=error is not None)

    def _unrecorded(self, version: Version, inferences: list[Inference]) -> None:
        """A defect of ours must not strand requests: all are answered and logged, the plain way."""
        for inference in inferences:
            self._drop(version, inference, GatewayError("internal error"))

    def _answer(self, made: Appended, seq: int | None, level: str) -> None:
        """Build and write the replies of one appended frame."""
        appended = made._replace(seq=seq, level=level)
        self.inflight -= len(made.part)
        made.version.recorded(len(made.part))
        late: list[tuple[Any, int, bytes, bytes]] = []
        try:
            for reply in replies(appended, self._prefix, self._problem):
                inference, status, fields, body = reply
                if inference.audit_level == "fsync" and status == 200 and level == "spool":
                    late.append(reply)
                else:
                    inference.sink.reply(status, fields, body)
        except Exception:
            log.exception("reply_not_made", extra={"model": made.version.model})
            for inference in made.part:
                inference.sink.reply(*self._problem(GatewayError("internal error")))
            return
        if late:
            self.appender.after_sync(lambda synced: self._answer_late(late, synced))

    def _answer_late(self, late: list[tuple[Any, int, bytes, bytes]], synced: bool) -> None:
        for inference, status, fields, body in late:
            if inference.sink.disconnected:
                continue
            if synced:
                fields = fields.replace(b"x-tidegate-audit: spool", b"x-tidegate-audit: fsync", 1)
            elif self.appender.fails:
                pid = fields.partition(b"x-prediction-id: ")[2].partition(b"\r\n")[0]
                self.appender.log(
                    Prediction(
                        kind="cancelled",
                        code="audit_timeout",
                        status=503,
                        parameters={"corrects": pid.decode()},
                    )
                )
                exc = AuditTimeout("the record was not on disk in time; see x-prediction-id")
                status, fields, body = self._problem(exc)
                fields += b"x-prediction-id: " + pid + b"\r\n"
            inference.sink.reply(status, fields, body)
        self.appender.flush()

    def _drop(self, version: Version, inference: Inference, exc: GatewayError) -> None:
        """A request without a run in the log: answered if anyone waits, logged, counted."""
        self.inflight -= 1
        status, fields, body = self._problem(exc)
        if not inference.sink.disconnected:
            inference.sink.reply(status, fields, body)
        self.appender.log(version.dropped_event(inference, exc.code, status))
        version.count_dropped(exc.code)

    def _dropper(self, version: Version) -> Callable[[Inference, bool], None]:
        """What a cut calls for requests that are gone or expired."""

        def drop(inference: Inference, expired: bool) -> None:
            exc: GatewayError = RequestCancelled("the client went away")
            if expired:
                exc = DeadlineExceeded(f"no answer from model '{version.model}' before the deadline")
            self._drop(version, inference, exc)

        return drop


def _terminate(options: Any) -> None:
    """Stop a run on a lane at its deadline."""
    options.terminate = True
