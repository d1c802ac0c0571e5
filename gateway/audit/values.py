"""Values: from a run's columns straight to its events as they stand in the topic, without making the events.

frame -> **values** -> envelope. A run of one version says most things once, and so do its records but for a few
bytes: what is the same in all of them is encoded once, what differs is put between, each value is one join. The law,
held by a property test: the same bytes as `encode_event` of `expand`'s events. What is unusual (tensors by hash or of
strings, columns that do not fit) is left to those.

Cost: about 3 us an event; made as events they take ten times as much.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, groupby, repeat
from math import prod
from typing import Any

import msgspec

from gateway.audit.event import BatchFacts, Prediction, Tensor
from gateway.audit.frame import (
    ITEM_BYTES,
    STAGE_COLUMNS,
    Frame,
    Run,
    RunTensor,
    caller_of,
    decode_payload,
    model_of,
    route_of,
)
from gateway.audit.identity import id_prefix
from gateway.stages import TIMED_STAGES

Part = bytes | Sequence[bytes]
"""Of all values the same, or one for each."""

_encode = msgspec.msgpack.Encoder().encode
_FIELDS = Prediction.__struct_fields__
_KEPT = 256
"""Distinct models, routes and callers that are kept encoded."""
_COUNT_MAX = 65_536
_PLAIN = (
    "request_id", "traceparent", "status", "code", "degraded", "audit", "parameters", "first_try", "redacted",
    "flags", "kind", "received_ns", "done_ns",
)  # fmt: skip
"""Fields that are columns of the same name."""
_DATA_AT = 2 * Tensor.__struct_fields__.index("data") + 3
"""Where a tensor's bytes stand among the parts of its map: behind their length."""
_BINARY = ((1 << 8, b"\xc4", 1), (1 << 16, b"\xc5", 2), (1 << 32, b"\xc6", 4))


class Values:
    """A frame's values and what records carry beside them.

    Attributes:
        ids: of the events, in order; also their records' keys.
        values: their msgpack.
        done_ns, traceparents: columns, of one value where all are alike.
    """

    __slots__ = ("done_ns", "ids", "traceparents", "values")

    def __init__(self, ids: list[bytes], values: list[bytes], run: Run) -> None:
        self.ids = ids
        self.values = values
        self.done_ns = run.done_ns
        self.traceparents = run.traceparent


def values_of(source: int, epoch: int, frame: Frame) -> Values | None:
    """The values of a run frame; None where its events have to be made.

    Raises:
        FrameCorrupt: the payload cannot be read.
    """
    run = decode_payload(frame.payload)
    count = frame.count
    if not isinstance(run, Run) or not _is_plain(run, count):
        return None
    rows: Sequence[int] = run.rows if len(run.rows) == count else run.rows * count
    inputs, outputs = _tensors(run.inputs, rows), _tensors(run.outputs, rows)
    if inputs is None or outputs is None:
        return None
    prefix = id_prefix(source, epoch).encode()
    ids = [b"%b%016x" % (prefix, seq) for seq in range(frame.first_seq, frame.first_seq + count)]
    known: dict[str, list[Part]] = {name: [_column(getattr(run, name))] for name in _PLAIN}
    known |= {
        "schema": [_encode(run.schema)],
        "id": [b"\xd9\x2a", ids],
        "rows": [_column(run.rows)],
        "route": _routes(run),
        "model": [_model(bytes(run.model))],
        "batch": _batch(run, rows),
        "inputs": inputs,
        "outputs": outputs,
        "stage_ns": _stages(run),
        "capture": [_FULL],
        "count": [b"\x01"],
        **_callers(run),
    }
    parts: list[Part] = [_HEAD]
    for name, named in _NAMED:
        parts.append(named)
        parts += known[name]
    return Values(ids, _joined(parts, count), run)


def _is_plain(run: Run, count: int) -> bool:
    columns: list[Sequence[Any]] = [getattr(run, name) for name in _PLAIN]
    columns += [run.rows, run.route, run.unit_hash, run.caller, *run.stages]
    return (
        0 < count <= _COUNT_MAX
        and all(len(column) in {1, count} for column in columns)
        and len(run.stages) == len(STAGE_COLUMNS)
        and all(capture == "full" for capture in run.capture)
    )


def _column(values: Sequence[Any]) -> Part:
    """A column's values, encoded."""
    return _encode(values[0]) if len(values) == 1 else list(map(_encode, values))


def _alike(values: Sequence[bytes]) -> Part:
    return values[0] if len(values) == 1 else values


@lru_cache(_KEPT)
def _model(raw: bytes) -> bytes:
    return _encode(model_of(raw))


@lru_cache(_KEPT)
def _caller(raw: bytes) -> dict[str, bytes]:
    caller = caller_of(raw)
    return {name: _encode(getattr(caller, name)) for name in ("endpoint", "protocol", "principal")}


@lru_cache(_KEPT)
def _route(raw: bytes) -> bytes:
    # Without the last value, the unit's hash, which each request has of its own.
    return _encode(msgspec.structs.replace(route_of(raw), unit_hash=None))[:-1]


def _callers(run: Run) -> dict[str, list[Part]]:
    callers = [_caller(bytes(raw)) for raw in run.caller]
    return {name: [_alike([caller[name] for caller in callers])] for name in callers[0]}


def _routes(run: Run) -> list[Part]:
    hashes = [b"\xc0" if unit is None else b"\xb0%016x" % unit for unit in run.unit_hash]
    return [_alike([_route(bytes(raw)) for raw in run.route]), _alike(hashes)]


def _batch(run: Run, rows: Sequence[int]) -> list[Part]:
    firsts = list(accumulate(rows[:-1], initial=run.batch_row0))
    known: dict[str, Part] = {
        "id": _encode(run.batch_id),
        "rows": _encode(run.batch_rows or sum(rows)),
        "row0": _column(firsts),
        "cut": _encode(run.cut),
    }
    return _map(BatchFacts.__struct_fields__, known)


def _stages(run: Run) -> list[Part]:
    columns: dict[str, Sequence[int]] = dict(zip(STAGE_COLUMNS, run.stages, strict=True))
    columns["infer"] = [run.infer_ns]
    return _map(TIMED_STAGES, {name: _column(column) for name, column in columns.items()})


def _map(names: Sequence[str], known: Mapping[str, Part]) -> list[Part]:
    parts: list[Part] = [_map_of(len(names))]
    for name in names:
        parts += (_name(name), known[name])
    return parts


@lru_cache(_KEPT)
def _name(name: str) -> bytes:
    return _encode(name)


def _tensors(tensors: list[RunTensor], rows: Sequence[int]) -> list[Part] | None:
    """The array of a request's tensors; None where one is of strings or has not the bytes that its rows take."""
    parts: list[Part] = [_array_of(len(tensors))]
    alike = rows[:1] if list(rows).count(rows[0]) == len(rows) else rows
    for tensor in tensors:
        width = ITEM_BYTES.get(tensor.datatype)
        if width is None or any(tensor.sha256):
            return None
        width *= prod(tensor.tail)
        sizes = [width * n for n in rows] if tensor.batched else [width] * len(rows)
        if sum(sizes) != len(tensor.data):
            return None
        size_and_data = _pieces(tensor.data, sizes)
        shapes = [(n, *tensor.tail) for n in alike] if tensor.batched else [tensor.tail]
        known: dict[str, Part] = {
            "name": _name(tensor.name),
            "datatype": _name(tensor.datatype),
            "shape": _column(shapes),
            "data": size_and_data[0],
            "sha256": b"\xc0",
        }
        made = _map(Tensor.__struct_fields__, known)
        made.insert(_DATA_AT, size_and_data[1])
        parts += made
    return parts


def _pieces(data: bytes, sizes: list[int]) -> list[Part]:
    """Each request's bytes behind their length."""
    ends = list(accumulate(sizes))
    cuts = [data[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    if sizes.count(sizes[0]) == len(sizes):
        return [_binary_of(sizes[0]), cuts]
    return [[_binary_of(size) for size in sizes], cuts]


@lru_cache(_KEPT)
def _binary_of(size: int) -> bytes:
    return next(mark + size.to_bytes(width, "big") for most, mark, width in _BINARY if size < most)


def _map_of(size: int) -> bytes:
    return bytes([0x80 | size]) if size < 16 else b"\xde" + size.to_bytes(2, "big")


def _array_of(size: int) -> bytes:
    return bytes([0x90 | size]) if size < 16 else b"\xdc" + size.to_bytes(2, "big")


def _joined(parts: Iterable[Part], count: int) -> list[bytes]:
    """Each event's value: the parts that are alike are put together before."""
    columns: list[Iterable[bytes]] = []
    for kind, group in groupby(parts, type):
        if kind is bytes:
            columns.append(repeat(b"".join(group), count))  # type: ignore[arg-type]
        else:
            columns.extend(group)  # type: ignore[arg-type]
    return list(map(b"".join, zip(*columns, strict=True)))


_HEAD = _map_of(len(_FIELDS) + 1) + _encode("type") + _encode("prediction")
_NAMED = [(name, _encode(name)) for name in _FIELDS]
_FULL = _encode("full")
