"""What a run leaves in the log: its columnar frame, built once per run.

core (encode) -> **recording** -> append. The columns are those of `gateway.audit.frame.Run`. A request whose
tensors exceed `audit.capture_max_bytes` is recorded by hash unless somebody asks for more (`gateway.capture`), one that
alone exceeds a frame always; a run that exceeds a frame is split over several. What a frame takes is reckoned before it
is made, never too low: what the ring cannot take would leave its requests without a record.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any, NamedTuple

import msgspec

from gateway import capture, tensors
from gateway.audit.event import ModelFacts, Prediction, RouteFacts
from gateway.audit.frame import Run, RunTensor, encoder
from gateway.batching import Batch, Inference
from gateway.errors import GatewayError, Overloaded
from gateway.finite import not_finite
from gateway.head import LEVELS, raised
from gateway.routing import Assignment
from gateway.sizing import (
    DIGEST_BYTES,
    EVENT_BYTES,
    FRAME_BYTES,
    held_bytes,
    out_bytes,
    room_of,
    tensor_bytes,
)

_ONE_ROW = [1]
_NONE = (None,)
RETRIED = ("retry", "key")
"""Reasons under which a request may have been tried before."""
_route_raw: dict[int, tuple[Assignment, msgspec.Raw]] = {}


def wall_ns(perf_ns: int) -> int:
    """The wall-clock time of a `perf_counter_ns` reading."""
    return time.time_ns() - time.perf_counter_ns() + perf_ns


def route_raw(assignment: Assignment) -> msgspec.Raw:
    """The encoded `RouteFacts` of an assignment; encoded once per compiled table."""
    kept = _route_raw.get(id(assignment))
    if kept is not None and kept[0] is assignment:
        return kept[1]
    if len(_route_raw) >= 4096:
        _route_raw.clear()
    raw = msgspec.Raw(encoder.encode(_route_facts(assignment, None)))
    _route_raw[id(assignment)] = (assignment, raw)
    return raw


def _route_facts(assignment: Assignment, unit: int | None) -> RouteFacts:
    return RouteFacts(
        revision=assignment.revision,
        generation=assignment.generation,
        assigned=assignment.assigned,
        served=assignment.served,
        weight_bp=assignment.weight_bp,
        reason=assignment.reason,
        unit_hash=None if unit is None else f"{unit:016x}",
    )


def prepare(version: Any, batch: Batch, limits: tuple[int, int]) -> None:
    """What is costly of recording: redaction, and digests of inputs that will be recorded by hash. For the lane's
    thread; of the two, hashing releases the GIL.

    Args:
        limits: as `RunFacts.frames`.
    """
    redactor = version.redactor
    if redactor is not None:
        batch.redactions = [redactor.made(inference) for inference in batch.inferences]
    for index, inference in enumerate(batch.inferences):
        inputs = inference.inputs if redactor is None else batch.redactions[index].inputs
        size = sum(map(len, inputs))
        if size > limits[1] and (
            not capture.wanted(version, inference)
            or size + out_bytes(batch, inference) + EVENT_BYTES > room_of(version, limits[0])
        ):
            inference.digests = [hashlib.sha256(data).hexdigest() for data in inputs]


class Recorded(NamedTuple):
    """A frame's payload, the requests it holds, and the highest level that one of them asked for."""

    payload: bytes
    part: list[Inference]
    level: str


class RunFacts:
    """What all frames of one run share.

    Args:
        version: the serving Version (its encoded model facts and signature).
        timed_ns: what admission and routing took for the request that was timed. They take under a microsecond, less
            than two clock readings a request: one is timed for all, decode counts from receipt, queue from decode.
    """

    def __init__(
        self,
        version: Any,
        batch: Batch,
        batch_id: int,
        error: GatewayError | None,
        done_perf_ns: int,
        timed_ns: tuple[int, int] = (0, 0),
    ) -> None:
        self.version = version
        self.batch = batch
        self.batch_id = batch_id
        self.error = error
        self.done_perf_ns = done_perf_ns
        self.timed_ns = timed_ns
        self.offset_ns = time.time_ns() - time.perf_counter_ns()
        self.outputs = batch.outputs if error is None else []
        if version.redactor is not None:
            # Here, where every record of inputs begins, whatever became of the run.
            self._redact(batch.redactions or list(map(version.redactor.made, batch.inferences)))

    def _redact(self, redactions: list[Any]) -> None:
        batch = self.batch
        for inference, made in zip(batch.inferences, redactions, strict=True):
            inference.inputs, inference.redacted = made.inputs, made.said
            inference.log_bytes += made.log_bytes
        batch.joined = [b"".join([i.inputs[k] for i in batch.inferences]) for k in range(self.version.inputs)]

    def frames(self, limits: tuple[int, int]) -> list[Recorded]:
        """The run's frames in order.

        Args:
            limits: (bytes of a frame, bytes of a request captured in full).
        """
        outputs, batch, version = self.outputs, self.batch, self.version
        batch.columns = []
        everything = batch.inferences
        log_bytes = [i.log_bytes for i in everything]
        room = limits[0] - FRAME_BYTES - version.named_bytes
        row_bytes, rows = version.row_bytes, batch.rows
        if row_bytes is not None and rows * row_bytes == held_bytes(batch.joined, outputs):
            # The rows alone fix the size of all tensors.
            largest = row_bytes
            if rows != len(everything):
                largest *= max([i.rows for i in everything])
            if largest <= limits[1]:
                total = rows * row_bytes + sum(log_bytes) + EVENT_BYTES * len(everything)
                if total <= room:
                    return [self.payload(everything, None, batch.joined, outputs, 0)]
        captured = tensor_bytes(batch, outputs)
        besides = [more + EVENT_BYTES for more in log_bytes]
        if max(captured) <= limits[1] and sum(captured) + sum(besides) <= room:
            return [self.payload(everything, None, batch.joined, outputs, 0)]
        digests = DIGEST_BYTES * (len(version.signature.inputs) + len(outputs))
        hashed = [
            size + more > room or (size > limits[1] and not capture.wanted(version, inference))
            for size, more, inference in zip(captured, besides, everything, strict=True)
        ]
        sizes = [
            more + digests + (0 if big else size)
            for big, size, more in zip(hashed, captured, besides, strict=True)
        ]
        frames = []
        start = row0 = 0
        while start < len(everything):
            end, taken = start + 1, sizes[start]
            while end < len(everything) and taken + sizes[end] <= room:
                taken += sizes[end]
                end += 1
            part, over = everything[start:end], hashed[start:end]
            rows = sum(i.rows for i in part)
            joined = (
                [b"".join(i.inputs[k] for i in part) for k in range(len(batch.joined))]
                if True not in over
                else []
            )
            cut = [a[row0 : row0 + rows] for a in outputs] if version.batchable else outputs
            frames.append(self.payload(part, over if True in over else None, joined, cut, row0))
            start, row0 = end, row0 + rows
        return frames

    def payload(
        self,
        part: list[Inference],
        over: list[bool] | None,
        joined: list[bytes],
        outputs: list[Any],
        row0: int,
    ) -> Recorded:
        """One frame's msgpack; `over` says which requests go by hash, None for none."""
        batch, offset_ns, started = self.batch, self.offset_ns, self.batch.started_ns
        routes = _same([i.assignment for i in part])
        levels = _same([i.audit_level for i in part])
        columns = [
            [self.timed_ns[0]],
            [i.decoded_ns - i.received_ns for i in part],
            [self.timed_ns[1]],
            [started - i.decoded_ns for i in part],
        ]
        batch.columns.append(columns)
        batch.same_route = len(routes) == 1 and len(part) == len(batch.inferences)
        run = Run(
            model=self.version.model_raw,
            batch_id=self.batch_id,
            cut=batch.cut,
            infer_ns=batch.ended_ns - started,
            rows=_ONE_ROW if batch.rows == len(batch.inferences) else [i.rows for i in part],
            received_ns=[i.received_ns + offset_ns for i in part],
            done_ns=[self.done_perf_ns + offset_ns],
            route=[route_raw(assignment) for assignment in routes],
            unit_hash=[i.unit for i in part],
            caller=_same([i.caller for i in part]),
            stages=[*columns, [self.done_perf_ns - batch.ended_ns]],
            inputs=[],
            outputs=[],
            audit=levels,
        )
        if len(part) != len(batch.inferences):
            run.batch_rows, run.batch_row0 = batch.rows, row0
        if sum([i.log_bytes for i in part]):
            run.request_id = [i.request_id for i in part]
            run.parameters = _absent([i.parameters or None for i in part])
        run.traceparent = _absent([i.traceparent for i in part])
        if len(routes) > 1 or routes[0].reason in RETRIED:
            run.first_try = _absent([i.first_try and i.first_try.told for i in part])
        if self.version.checks is not None:
            run.flags = [i.flags for i in part]
        if self.version.redactor is not None:
            run.redacted = [i.redacted for i in part]
        self._outcome(run, part, outputs)
        if over is not None:
            run.capture = ["hash" if big else "full" for big in over]
            self._tensors_hashed(run, part, over, outputs)
            for inference, big in zip(part, over, strict=True):
                if big:
                    capture.told(self.version, inference)
        else:
            self._tensors_full(run, part, joined, outputs)
        level = levels[0] if len(levels) == 1 else max(levels, key=LEVELS.index)
        return Recorded(encoder.encode(run), part, level)

    def _outcome(self, run: Run, part: list[Inference], outputs: list[Any]) -> None:
        if self.error is not None:
            run.kind = ["failed"]
            run.code = [self.error.code]
            run.status = [self.version.status_of(self.error)]
        elif True in (gone := [i.sink.disconnected for i in part]):
            run.kind = ["cancelled" if left else "done" for left in gone]
        bad = self.batch.bad
        if bad is None or len(part) != len(self.batch.inferences):
            bad = not_finite(outputs, part, batched=self.version.batchable)
        if bad:
            self.version.not_finite += len(bad)
            run.degraded = [("nonfinite",) if i in bad else () for i in range(len(part))]

    def _tensors_full(self, run: Run, part: list[Inference], joined: list[bytes], outputs: list[Any]) -> None:
        batched = self.version.batchable
        for spec, shape, data in zip(self.version.signature.inputs, part[0].shapes, joined, strict=False):
            tail = shape[1:] if batched else shape
            run.inputs.append(RunTensor(spec.name, spec.datatype, tail, data, batched))
        for spec, array in zip(self.version.signature.outputs, outputs, strict=False):
            tail = array.shape[1:] if batched else array.shape
            data = tensors.to_bytes(array)
            run.outputs.append(RunTensor(spec.name, spec.datatype, tail, data, batched))

    def _tensors_hashed(self, run: Run, part: list[Inference], over: list[bool], outputs: list[Any]) -> None:
        batched = self.version.batchable
        for k, spec in enumerate(self.version.signature.inputs):
            shape = part[0].shapes[k]
            pieces = [i.inputs[k] for i in part]
            tensor = RunTensor(spec.name, spec.datatype, shape[1:] if batched else shape, b"", batched)
            _fill(tensor, pieces, over, [i.digests[k] if i.digests else None for i in part])
            run.inputs.append(tensor)
        for spec, array in zip(self.version.signature.outputs, outputs, strict=False):
            if batched:
                pieces, row = [], 0
                for inference in part:
                    pieces.append(tensors.to_bytes(array[row : row + inference.rows]))
                    row += inference.rows
            else:
                pieces = [tensors.to_bytes(array)]
            tail = array.shape[1:] if batched else array.shape
            tensor = RunTensor(spec.name, spec.datatype, tail, b"", batched)
            _fill(tensor, pieces, over, [None] * len(part))
            run.outputs.append(tensor)


def _fill(tensor: RunTensor, pieces: list[bytes], over: list[bool], known: list[str | None]) -> None:
    tensor.data = b"".join(p for p, big in zip(pieces, over, strict=True) if not big)
    tensor.sha256 = [
        (digest or hashlib.sha256(piece).hexdigest()) if big else None
        for piece, big, digest in zip(pieces, over, known, strict=True)
    ]


def _same(values: list[Any]) -> list[Any]:
    """A column: one value where all are the same."""
    # count compares identity first, in C.
    return values[:1] if values.count(values[0]) == len(values) else values


def _absent(values: list[Any]) -> Any:
    """A column that most runs have nothing for: one None then."""
    return _NONE if values.count(None) == len(values) else values


class Wish(NamedTuple):
    """What a request that was refused had asked for: its level so far, and what was read of it (None: nothing)."""

    level: str
    inference: Inference | None = None


def refused_event(
    head: Any, answer: tuple[str, int], entry: Any, received_ns: int, asked: Wish
) -> Prediction:
    """The event of a request that was refused.

    Past routing the event has the route: on whom the draw fell must not depend on what became of the request. And it
    has the version where that refused, by its own signature, what the primary's takes; a full queue says nothing about
    a version.

    Args:
        answer: code and status.
        entry: the model's, None where the model is not known.
    """
    code, status = answer
    level, inference = asked
    model: ModelFacts | None = None
    routed: Inference | None = None
    if inference is not None and inference.assignment is not None:
        routed = inference
    if routed is not None and code != Overloaded.code:
        version = routed.assignment.version
        found = None if entry is None else entry.versions.get(version)
        if found is None:
            model = ModelFacts(name=head.model, version=version)
        else:
            model, level = found.facts, raised(level, found.least_level)
    elif entry is not None:
        # Only versions that exist: a client that counts through others must not make events without end.
        known = head.version if head.version in entry.states else None
        model = ModelFacts(name=head.model, version=known)
    return Prediction(
        kind="refused",
        received_ns=wall_ns(received_ns),
        done_ns=time.time_ns(),
        request_id=None if routed is None else routed.request_id,
        traceparent=head.traceparent,
        endpoint=head.endpoint if entry is not None else None,
        route=None if routed is None else _route_facts(routed.assignment, routed.unit),
        model=model,
        status=status,
        code=code,
        audit=level,
        parameters=None if routed is None else routed.parameters,
        flags=() if routed is None else routed.flags,
    )


def dropped_event(inference: Inference, model: ModelFacts, code: str, status: int) -> Prediction:
    """The event of a request that was admitted and never ran (client gone, deadline over)."""
    return Prediction(
        kind="cancelled" if code == "cancelled" else "failed",
        received_ns=wall_ns(inference.received_ns),
        done_ns=time.time_ns(),
        request_id=inference.request_id,
        traceparent=inference.traceparent,
        rows=inference.rows,
        route=_route_facts(inference.assignment, inference.unit),
        model=model,
        status=status,
        code=code,
        audit=inference.audit_level,
        flags=inference.flags,
    )
