"""Frames: what a process appends at once, on the ring and in the segments, byte for byte.

    length u32 | CRC-32 of the rest u32 | first_seq u64 | count u32 | msgpack        (little-endian)

`length` counts what follows the CRC (12 + the msgpack). In rings and segments each frame starts at a
multiple of 8 and is padded with zeros to the next. The msgpack is a map whose key `frame` is

* "run": one batch of one version. What the run fixes stands once; every other field of `Prediction`
  is a *column*: a list with one value a request, or with a single value where all agree.
* "events": a list of whole events.

`expand` turns a frame into events and is the only reader of that layout.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from gateway import __version__
from gateway.audit.event import (
    SCHEMA,
    BatchFacts,
    Event,
    ModelFacts,
    Prediction,
    RouteFacts,
    Tensor,
)
from gateway.audit.identity import id_prefix
from gateway.audit.kinds import KINDS
from gateway.errors import FrameCorrupt, FrameNewer
from gateway.stages import TIMED_STAGES

HEADER = struct.Struct("<IIQI")
HEADER_BYTES = HEADER.size
"""length, crc, first_seq, count."""
PREFIX_BYTES = 8
"""length and crc: the part that `length` does not count."""
_REST = struct.Struct("<QI")
ALIGN = 8
REQUEST_LEAST_BYTES = 8
"""Of a run, for each request: none is without its time of receipt. What says less would fill a reader's memory."""


class Caller(msgspec.Struct, frozen=True):
    """What the connection and the address fix; one pre-encoded map shared by many requests."""

    endpoint: str
    protocol: str
    principal: str | None


class RunTensor(msgspec.Struct):
    """A named tensor of a whole run: the rows of all requests together, in order.

    `tail` is the shape of one row (batched) or the whole shape (`batched` False, one request).
    `data` holds the bytes of the requests captured in full, concatenated; `sha256` is a column of
    digests (hex, None where captured in full), empty when all are in full.
    """

    name: str
    """As in the model."""
    datatype: str
    """OIP's name."""
    tail: tuple[int, ...]
    """The shape of one row; the whole one where it is not batched."""
    data: bytes
    """Of the requests captured in full, one behind the other."""
    batched: bool = True
    """The first dimension is rows."""
    sha256: Sequence[str | None] = ()
    """Column of digests, null where captured in full; empty: all are."""


class Run(msgspec.Struct, tag_field="frame", tag="run", omit_defaults=True):
    """A batch: what the run fixes stands once, all else by columns.

    `model`, `route` and `caller` are written from bytes encoded once (`msgspec.Raw`).
    """

    model: msgspec.Raw
    """ModelFacts, the same for all."""
    batch_id: int
    """Counts the runs of one process."""
    cut: str
    """Why it was cut when it was."""
    infer_ns: int
    """That the run took."""
    rows: list[int]
    received_ns: list[int]
    done_ns: list[int]
    route: list[msgspec.Raw]
    """RouteFacts without the unit."""
    unit_hash: list[int | None]
    """Of each request, as a number."""
    caller: list[msgspec.Raw]
    """Endpoint, protocol, principal."""
    stages: list[list[int]]
    """Columns of admit, decode, route, queue, encode in ns (infer stands above)."""
    inputs: list[RunTensor]
    """Of all requests together."""
    outputs: list[RunTensor]
    """The same."""
    schema: int = SCHEMA
    kind: Sequence[str] = ("done",)
    request_id: Sequence[str | None] = (None,)
    traceparent: Sequence[str | None] = (None,)
    status: Sequence[int] = (200,)
    code: Sequence[str | None] = (None,)
    degraded: Sequence[tuple[str, ...]] = ((),)
    capture: Sequence[str] = ("full",)
    audit: Sequence[str] = ("spool",)
    parameters: Sequence[dict[str, Any] | None] = (None,)
    first_try: Sequence[dict[str, Any] | None] = (None,)
    redacted: Sequence[list[dict[str, Any]] | None] = (None,)
    flags: Sequence[tuple[str, ...]] = ((),)
    batch_rows: int = 0
    """Rows of the whole run where it was split over frames; 0: those of this frame."""
    batch_row0: int = 0
    """Rows of the run that stand in earlier frames."""


class Events(msgspec.Struct, tag_field="frame", tag="events"):
    """Whole events, numbered in order; their own `id` is empty until `expand`."""

    events: list[Event]


STAGE_COLUMNS = tuple(stage for stage in TIMED_STAGES if stage != "infer")

encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Run | Events)


class RunHead(msgspec.Struct, tag_field="frame", tag="run"):
    """What a look at a run takes out of it; the rest is only known to be whole msgpack."""

    schema: int = SCHEMA


_head_decoder = msgspec.msgpack.Decoder(RunHead | Events)
model_of = msgspec.msgpack.Decoder(ModelFacts).decode
route_of = msgspec.msgpack.Decoder(RouteFacts).decode
caller_of = msgspec.msgpack.Decoder(Caller).decode
"""From what a run holds encoded."""


class Frame(NamedTuple):
    """One frame read back: its numbers and its msgpack."""

    first_seq: int
    count: int  # type: ignore[assignment]
    payload: bytes

    @property
    def next_seq(self) -> int:
        """The first number after this frame."""
        return self.first_seq + self.count


def padded(size_bytes: int) -> int:
    """Round up to the alignment of frames."""
    return (size_bytes + ALIGN - 1) & -ALIGN


def seal(first_seq: int, count: int, payload: bytes) -> bytes:
    """The bytes of one frame, padded."""
    rest = _REST.pack(first_seq, count) + payload
    body = len(rest).to_bytes(4, "little") + zlib.crc32(rest).to_bytes(4, "little") + rest
    return body.ljust(padded(len(body)), b"\0")


def open_frame(buffer: memoryview | bytes, offset: int, limit: int) -> tuple[Frame, int]:
    """Read the frame at `offset`; returns it and the offset of the next.

    Raises:
        FrameCorrupt: when there is no whole, valid frame before `limit`.
    """
    if offset + HEADER_BYTES > limit:
        msg = f"frame at byte {offset}: only {limit - offset} bytes left"
        raise FrameCorrupt(msg)
    length, crc, first_seq, count = HEADER.unpack_from(buffer, offset)
    end = offset + PREFIX_BYTES + length
    if length < _REST.size or end > limit:
        msg = f"frame at byte {offset}: length {length} runs past byte {limit}"
        raise FrameCorrupt(msg)
    rest = memoryview(buffer)[offset + PREFIX_BYTES : end]
    if zlib.crc32(rest) != crc:
        msg = f"frame at byte {offset}: CRC does not match"
        raise FrameCorrupt(msg)
    return Frame(first_seq, count, bytes(rest[_REST.size :])), offset + padded(PREFIX_BYTES + length)


def scan(buffer: memoryview | bytes, offset: int, limit: int) -> Iterator[tuple[int, Frame]]:
    """Frames from `offset` on with their offsets, up to `limit` or the first that is not whole."""
    while offset < limit:
        try:
            frame, following = open_frame(buffer, offset, limit)
        except FrameCorrupt:
            return
        yield offset, frame
        offset = following


def decode_payload(payload: bytes) -> Run | Events:
    """The frame's content.

    Raises:
        FrameNewer: it is of a kind or holds a type that only a later version knows.
        FrameCorrupt: when the msgpack is not a frame of ours.
    """
    return _decoded(_decoder, payload)  # type: ignore[return-value]


def look_at(payload: bytes) -> RunHead | Events:
    """As `decode_payload`, of a run the head alone: a tenth of the time."""
    return _decoded(_head_decoder, payload)  # type: ignore[return-value]


def _decoded(decoder: msgspec.msgpack.Decoder[Any], payload: bytes) -> object:
    try:
        return decoder.decode(payload)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as exc:
        newer = _newer_in(payload)
        if newer is not None:
            msg = f"{newer} is of a later version than {__version__}: read it with that"
            raise FrameNewer(msg) from exc
        msg = f"frame content cannot be read: {exc}"
        raise FrameCorrupt(msg) from exc


def _newer_in(payload: bytes) -> str | None:
    """What in a frame's content a later version wrote, in words; None where it is nothing of ours."""
    try:
        content = msgspec.msgpack.decode(payload)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    kind = content.get("frame") if isinstance(content, dict) else None
    if not isinstance(kind, str):
        return None
    if kind not in {"run", "events"}:
        return f"frame kind {kind!r}"
    events = content.get("events") or ()
    listed = [event for event in (events if isinstance(events, list) else ()) if isinstance(event, dict)]
    types = [event.get("type") for event in listed if event.get("type") not in KINDS]
    if types:
        return f"event type {types[0]!r}"
    schemas = [content.get("schema"), *(event.get("schema") for event in listed)]
    later = [schema for schema in schemas if isinstance(schema, int) and schema > SCHEMA]
    return f"schema {later[0]}" if later else None


def expand(source: int, epoch: int, frame: Frame) -> list[Event]:
    """All events of a frame, ids set. Cost: about 5 us an event.

    Raises:
        FrameCorrupt: as `decode_payload`, or its parts do not add up.
    """
    return expand_content(source, epoch, frame, decode_payload(frame.payload))


def expand_content(source: int, epoch: int, frame: Frame, content: Run | Events) -> list[Event]:
    """`expand` of a frame that was decoded."""
    prefix = id_prefix(source, epoch)
    if isinstance(content, Events):
        if len(content.events) != frame.count:
            msg = f"frame {prefix}{frame.first_seq:016x} says {frame.count} events, has {len(content.events)}"
            raise FrameCorrupt(msg)
        for index, event in enumerate(content.events):
            event.id = f"{prefix}{frame.first_seq + index:016x}"
        return content.events
    return _expand_run(prefix, frame, content)


def _expand_run(prefix: str, frame: Frame, run: Run) -> list[Event]:
    count = frame.count
    if count * REQUEST_LEAST_BYTES > len(frame.payload):
        msg = f"frame {prefix}{frame.first_seq:016x} says {count} requests in {len(frame.payload)} bytes"
        raise FrameCorrupt(msg)
    model = model_of(run.model)
    routes = _column([route_of(raw) for raw in run.route], count)
    callers = _column([caller_of(raw) for raw in run.caller], count)
    rows = _column(run.rows, count)
    capture = _column(run.capture, count)
    inputs = _split(run.inputs, rows, capture)
    outputs = _split(run.outputs, rows, capture)
    stages = [_column(column, count) for column in run.stages]
    names = ("received_ns", "done_ns", "request_id", "traceparent", "unit_hash", "kind", "status",
             "code", "degraded", "audit", "parameters", "first_try", "redacted", "flags")  # fmt: skip
    columns = {name: _column(getattr(run, name), count) for name in names}
    total_rows = run.batch_rows or sum(rows)
    events: list[Event] = []
    row0 = run.batch_row0
    for i in range(count):
        of = {name: column[i] for name, column in columns.items()}
        unit = of.pop("unit_hash")
        timed = {name: column[i] for name, column in zip(STAGE_COLUMNS, stages, strict=True)}
        timed["infer"] = run.infer_ns
        caller = callers[i]
        events.append(
            Prediction(
                id=f"{prefix}{frame.first_seq + i:016x}",
                schema=run.schema,
                endpoint=caller.endpoint,
                protocol=caller.protocol,
                principal=caller.principal,
                rows=rows[i],
                route=msgspec.structs.replace(routes[i], unit_hash=None if unit is None else f"{unit:016x}"),
                model=model,
                batch=BatchFacts(run.batch_id, total_rows, row0, run.cut),
                inputs=inputs[i],
                outputs=outputs[i],
                stage_ns={name: timed[name] for name in TIMED_STAGES},
                capture=capture[i],
                **of,
            )
        )
        row0 += rows[i]
    return events


def _column(values: Sequence[Any], count: int) -> Sequence[Any]:
    if len(values) == count:
        return values
    if len(values) == 1:
        return [values[0]] * count
    msg = f"a column of {len(values)} values in a frame of {count} events"
    raise FrameCorrupt(msg)


def _split(tensors: list[RunTensor], rows: Sequence[int], capture: Sequence[str]) -> list[list[Tensor]]:
    """Each request's own part of every tensor."""
    parts: list[list[Tensor]] = [[] for _ in rows]
    for tensor in tensors:
        digests = _column(tensor.sha256 or (None,), len(rows))
        view = memoryview(tensor.data)
        offset = 0
        per_row = 1
        for dim in tensor.tail:
            per_row *= dim
        width = ITEM_BYTES.get(tensor.datatype)
        for i, n in enumerate(rows):
            shape = (n, *tensor.tail) if tensor.batched else tensor.tail
            elements = per_row * n if tensor.batched else per_row
            if capture[i] != "full":
                parts[i].append(Tensor(tensor.name, tensor.datatype, shape, None, digests[i]))
                continue
            end = offset + elements * width if width else _bytes_end(view, offset, elements)
            data = bytes(view[offset:end])
            parts[i].append(Tensor(tensor.name, tensor.datatype, shape, data))
            offset = end
        if offset != len(view):
            msg = f"tensor {tensor.name!r} of a frame has {len(view)} bytes, its rows take {offset}"
            raise FrameCorrupt(msg)
    return parts


ITEM_BYTES = {
    "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2,
    "INT32": 4, "INT64": 8, "FP16": 2, "FP32": 4, "FP64": 8,
}  # fmt: skip
"""Bytes an element of each datatype; BYTES is not here, it has a length of its own."""


def _bytes_end(view: memoryview, offset: int, elements: int) -> int:
    for _ in range(elements):
        if offset >= len(view):
            msg = f"{elements} texts are said to stand in {len(view)} bytes"
            raise FrameCorrupt(msg)
        offset += 4 + int.from_bytes(view[offset : offset + 4], "little")
    return offset
