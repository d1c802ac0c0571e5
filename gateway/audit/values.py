"""Values: from a run's columns straight to its events as they stand in the topic, without making the events.

frame -> **values** -> envelope. Runs of one version differ in numbers, times and their tensors' bytes, and so do their
records. What a run has in common with others, its shape, is encoded once and kept; of each run only the rest is
encoded and put between, one join a value. The law, held by a property test: the same bytes as `encode_event` of
`expand`'s events. What is unusual (tensors by hash or of strings, columns that do not fit) is left to those.

Cost: about 20 us a run and 1.5 us an event; made as events they take ten times as much.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, count
from math import prod
from operator import itemgetter
from typing import Any, NamedTuple

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

_encode = msgspec.msgpack.Encoder().encode
_FIELDS = Prediction.__struct_fields__
_KEPT = 512
"""Shapes that are kept, and distinct models, routes and callers."""
_KEPT_COUNT_MAX = 256
"""Shapes of more requests are made anew each time."""
_COUNT_MAX = 65_536
_ALIKE = ("kind", "status", "code", "degraded", "audit")
"""Columns that are of the shape: of few values, and nearly always one for the whole run."""
_OWN = ("received_ns", "done_ns", "request_id", "traceparent", "parameters", "first_try", "redacted", "flags")
"""Columns of which each run has its own."""
_DATA_AT = 2 * Tensor.__struct_fields__.index("data") + 3
"""Where a tensor's bytes stand among the parts of its map: behind their length."""
_BINARY = ((1 << 8, b"\xc4", 1), (1 << 16, b"\xc5", 2), (1 << 32, b"\xc6", 4))


class Slot(NamedTuple):
    """A place for a run's own column, by number."""

    number: int
    single: bool
    """The column has one value, for all."""


Part = bytes | list[bytes] | Slot
"""Of all values the same, or one for each, or a run's own."""
Sizes = int | list[int]
"""Bytes of each request, or of any where all have as many."""


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
    if not isinstance(run, Run):
        return None
    own = _own(run)
    shape = _shape_of(run, own, frame.count)
    if shape is None:
        return None
    prefix = id_prefix(source, epoch).encode()
    ids = [b"%b%016x" % (prefix, seq) for seq in range(frame.first_seq, frame.next_seq)]
    units = [b"\xc0" if unit is None else b"\xb0%016x" % unit for unit in run.unit_hash]
    columns: list[bytes | list[bytes]] = [ids, units if len(units) > 1 else units[0]]
    columns += [list(map(_encode, of)) if len(of) > 1 else _encode(of[0]).replace(b"%", b"%%") for of in own]
    columns += [
        _cut(tensor.data, sizes) for tensor, sizes in zip(run.inputs + run.outputs, shape.sizes, strict=True)
    ]
    return Values(ids, shape.filled(columns), run)


def _own(run: Run) -> list[Sequence[Any]]:
    """What is encoded of each run."""
    return [
        (run.batch_id,), (run.infer_ns,), *run.stages, run.received_ns, run.done_ns, run.request_id,
        run.traceparent, run.parameters, run.first_try, run.redacted, run.flags,
    ]  # fmt: skip


def _cut(data: bytes, sizes: Sizes) -> list[bytes]:
    """Each request's bytes of a tensor."""
    if isinstance(sizes, int):
        return [data[at : at + sizes] for at in range(0, len(data), sizes)]
    return [data[end - size : end] for end, size in zip(accumulate(sizes), sizes, strict=True)]


class _Shape:
    """What runs have in common: a format with places for columns, in which are places for what all values share.

    Args:
        parts: of the values, in order.
        sizes: of each tensor, inputs first.
        columns: that each run brings.
    """

    __slots__ = ("_each", "_fixed", "_format", "_shared", "sizes")

    def __init__(self, parts: list[Part], sizes: list[Sizes], columns: int) -> None:
        self.sizes = sizes
        self._fixed = [part for part in parts if isinstance(part, list)]
        fixed = count(columns)
        text: list[bytes] = []
        shared: list[int] = []
        each: list[int] = []
        for part in parts:
            if isinstance(part, bytes):
                text.append(part.replace(b"%", b"%%%%"))
            elif isinstance(part, Slot) and part.single:
                text.append(b"%b")
                shared.append(part.number)
            else:
                text.append(b"%%b")
                each.append(part.number if isinstance(part, Slot) else next(fixed))
        self._format = b"".join(text)
        # Asked for twice at least, as one alone would not come as a tuple.
        self._shared, self._each = itemgetter(*shared), itemgetter(*each, each[0])

    def filled(self, columns: list[bytes | list[bytes]]) -> list[bytes]:
        """Each event's value, by a run's columns; what is single is escaped for the second filling."""
        columns += self._fixed
        value = self._format % self._shared(columns)
        *each, _ = self._each(columns)
        return list(map(value.__mod__, zip(*each, strict=True)))


_shapes: dict[tuple[Any, ...], _Shape | None] = {}


def _shape_of(run: Run, own: list[Sequence[Any]], requests: int) -> _Shape | None:
    """A run's shape; None where its events have to be made."""
    rows = run.rows
    if not rows or requests > _KEPT_COUNT_MAX or rows.count(rows[0]) != len(rows):
        return _shape(run, own, requests)
    key = (
        requests, run.schema, run.cut, run.batch_rows, run.batch_row0, rows[0], len(rows), bytes(run.model),
        tuple(map(bytes, run.route)), tuple(map(bytes, run.caller)), len(run.unit_hash), tuple(run.capture),
        tuple([tuple(getattr(run, name)) for name in _ALIKE]), tuple(map(len, own)),
        tuple([(t.name, t.datatype, t.tail, t.batched, len(t.data), any(t.sha256)) for t in run.inputs]),
        tuple([(t.name, t.datatype, t.tail, t.batched, len(t.data), any(t.sha256)) for t in run.outputs]),
    )  # fmt: skip
    if key not in _shapes:
        if len(_shapes) >= _KEPT:
            del _shapes[next(iter(_shapes))]
        _shapes[key] = _shape(run, own, requests)
    return _shapes[key]


def _shape(run: Run, own: list[Sequence[Any]], requests: int) -> _Shape | None:
    if not _is_plain(run, requests):
        return None
    rows = run.rows if len(run.rows) == requests else run.rows * requests
    sizes = [size for tensor in (*run.inputs, *run.outputs) if (size := _sizes(tensor, rows)) is not None]
    if len(sizes) < len(run.inputs) + len(run.outputs):
        return None
    numbers = count(2)
    slots = {"id": Slot(0, single=False), "unit_hash": Slot(1, len(run.unit_hash) == 1)}
    names = ("batch_id", "infer", *STAGE_COLUMNS, *_OWN)
    slots |= {name: Slot(next(numbers), len(column) == 1) for name, column in zip(names, own, strict=True)}
    of_tensors = (iter(sizes), (Slot(number, single=False) for number in numbers))
    known: dict[str, list[Part]] = {name: [_column(getattr(run, name))] for name in _ALIKE}
    known |= {name: [slots[name]] for name in _OWN}
    known |= {
        "schema": [_encode(run.schema)],
        "id": [b"\xd9\x2a", slots["id"]],
        "rows": [_column(run.rows)],
        "route": [_alike([_route(bytes(raw)) for raw in run.route]), slots["unit_hash"]],
        "model": [_model(bytes(run.model))],
        "batch": _batch(run, rows, slots["batch_id"]),
        "inputs": _tensors(run.inputs, rows, *of_tensors),
        "outputs": _tensors(run.outputs, rows, *of_tensors),
        "stage_ns": _map(TIMED_STAGES, slots),
        "capture": [_FULL],
        "count": [b"\x01"],
        **_callers(run),
    }
    parts: list[Part] = [_HEAD]
    for name, named in _NAMED:
        parts += (named, *known[name])
    return _Shape(parts, sizes, next(numbers))


def _is_plain(run: Run, requests: int) -> bool:
    columns = [getattr(run, name) for name in (*_ALIKE, *_OWN)]
    columns += [run.rows, run.route, run.unit_hash, run.caller, *run.stages]
    return (
        0 < requests <= _COUNT_MAX
        and all(len(column) in {1, requests} for column in columns)
        and len(run.stages) == len(STAGE_COLUMNS)
        and all(capture == "full" for capture in run.capture)
    )


def _column(values: Sequence[Any]) -> Part:
    """A column's values, encoded."""
    return _encode(values[0]) if len(values) == 1 else list(map(_encode, values))


def _alike(values: list[bytes]) -> Part:
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


def _batch(run: Run, rows: Sequence[int], batch_id: Part) -> list[Part]:
    firsts = list(accumulate(rows[:-1], initial=run.batch_row0))
    known: dict[str, Part] = {
        "id": batch_id,
        "rows": _encode(run.batch_rows or sum(rows)),
        "row0": _column(firsts),
        "cut": _encode(run.cut),
    }
    return _map(BatchFacts.__struct_fields__, known)


def _map(names: Sequence[str], known: Mapping[str, Part]) -> list[Part]:
    parts: list[Part] = [_map_of(len(names))]
    for name in names:
        parts += (_name(name), known[name])
    return parts


@lru_cache(_KEPT)
def _name(name: str) -> bytes:
    return _encode(name)


def _sizes(tensor: RunTensor, rows: Sequence[int]) -> Sizes | None:
    """The bytes of each request; None where it is of strings, by hash, or has not the bytes that its rows take."""
    width = ITEM_BYTES.get(tensor.datatype)
    if width is None or any(tensor.sha256):
        return None
    width *= prod(tensor.tail)
    sizes = [width * n for n in rows] if tensor.batched else [width] * len(rows)
    if sum(sizes) != len(tensor.data):
        return None
    return sizes[0] if sizes[0] and sizes.count(sizes[0]) == len(sizes) else sizes


def _tensors(
    tensors: list[RunTensor], rows: Sequence[int], sizes: Iterator[Sizes], slots: Iterator[Slot]
) -> list[Part]:
    """The array of a request's tensors."""
    parts: list[Part] = [_array_of(len(tensors))]
    alike = rows[:1] if rows.count(rows[0]) == len(rows) else rows
    for tensor in tensors:
        size = next(sizes)
        shapes = [(n, *tensor.tail) for n in alike] if tensor.batched else [tensor.tail]
        known: dict[str, Part] = {
            "name": _name(tensor.name),
            "datatype": _name(tensor.datatype),
            "shape": _column(shapes),
            "data": _binary_of(size) if isinstance(size, int) else list(map(_binary_of, size)),
            "sha256": b"\xc0",
        }
        made = _map(Tensor.__struct_fields__, known)
        made.insert(_DATA_AT, next(slots))
        parts += made
    return parts


@lru_cache(_KEPT)
def _binary_of(size: int) -> bytes:
    return next(mark + size.to_bytes(width, "big") for most, mark, width in _BINARY if size < most)


def _map_of(size: int) -> bytes:
    return bytes([0x80 | size]) if size < 16 else b"\xde" + size.to_bytes(2, "big")


def _array_of(size: int) -> bytes:
    return bytes([0x90 | size]) if size < 16 else b"\xdc" + size.to_bytes(2, "big")


_HEAD = _map_of(len(_FIELDS) + 1) + _encode("type") + _encode("prediction")
_NAMED = [(name, _encode(name)) for name in _FIELDS]
_FULL = _encode("full")
