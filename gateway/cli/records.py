"""How an event of the log is shown to a person."""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from gateway.audit.event import Control, Event, Gap, Model, Prediction, Tensor, time_of
from gateway.audit.frame import ITEM_BYTES
from gateway.cli.screen import moment, say, table

_CODES = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b",
    "INT16": "h", "INT32": "i", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
_SHOWN = 16


def type_of(event: Event) -> str:
    """The event's type, as in its record."""
    return str(event.__struct_config__.tag)


def model_of(event: Event) -> str | None:
    """The model that it is about, None for events about none."""
    model: Any = getattr(event, "model", None)
    return model if isinstance(model, str) or model is None else str(model.name)


def version_of(event: Event) -> str | None:
    """The version that it is about, None for events about none."""
    found: Any = getattr(event, "version", None) or getattr(getattr(event, "model", None), "version", None)
    return None if found is None else str(found)


def line(event: Event) -> str:
    """One line: time, id, type, model, and what matters of its type."""
    parts = [moment(time_of(event)), event.id, f"{type_of(event)}.{event.kind}"]
    return "  ".join([*parts, *(part for part in (model_of(event), _gist(event)) if part)])


def show(event: Event) -> None:
    """The whole event as tables."""
    rows: list[tuple[str, Any]] = [("id", event.id), ("type", f"{type_of(event)} {event.kind}")]
    rows.append(("at", moment(time_of(event))))
    if isinstance(event, Prediction):
        rows += _prediction(event)
    else:
        rows += [
            (name, str(value))
            for name in event.__struct_fields__
            if name not in {"id", "kind", "schema", "at_ns"}
            and (value := getattr(event, name)) not in (None, "", [], {}, msgspec.UNSET)
        ]
    table(("field", "value"), rows)
    if isinstance(event, Prediction):
        tensors = [("input", t) for t in event.inputs] + [("output", t) for t in event.outputs]
        table(
            ("tensor", "name", "datatype", "shape", "values"),
            [(side, t.name, t.datatype, str(list(t.shape)), values(t)) for side, t in tensors],
        )
        timed = {name: ns for name, ns in event.stage_ns.items() if ns}
        if timed:
            say("  " + "  ".join(f"{name} {ns / 1000:.1f} us" for name, ns in timed.items()))


def values(tensor: Tensor) -> str:
    """The first values of a tensor, or its digest where the record holds no more."""
    if tensor.data is None:
        return f"sha256 {tensor.sha256}"
    code, width = _CODES.get(tensor.datatype), ITEM_BYTES.get(tensor.datatype)
    if code is None or width is None:
        return _texts(tensor.data)
    count = len(tensor.data) // width
    shown = struct.unpack_from(f"<{min(count, _SHOWN)}{code}", tensor.data)
    text = " ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in shown)
    return text + (f" … {count} values" if count > _SHOWN else "")


def _texts(data: bytes) -> str:
    shown: list[str] = []
    offset = 0
    while offset + 4 <= len(data) and len(shown) < _SHOWN:
        end = offset + 4 + int.from_bytes(data[offset : offset + 4], "little")
        shown.append(repr(data[offset + 4 : end].decode(errors="replace")))
        offset = end
    return " ".join(shown) + (" …" if offset < len(data) else "")


def _prediction(event: Prediction) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = [
        ("status", f"{event.status}" + (f" {event.code}" if event.code else "")),
        ("request id", event.request_id),
        ("endpoint", event.endpoint),
        ("by", event.principal),
        ("rows", event.rows),
    ]
    if event.model is not None:
        rows.append(("model", f"{event.model.name} version {event.model.version}"))
        rows.append(("files sha256", event.model.tree_sha256))
        rows.append(("runtime", event.model.runtime))
    if event.route is not None:
        r = event.route
        share = "-" if r.weight_bp is None else f"{r.weight_bp / 100:g}%"
        rows.append(("route", f"revision {r.revision}, assigned {r.assigned or '-'}, served"
                     f" {r.served or '-'}, weight {share}, reason {r.reason}"))  # fmt: skip
    if event.batch is not None:
        b = event.batch
        rows.append(("batch", f"{b.id}: row {b.row0} of {b.rows}, cut {b.cut}"))
    rows.append(("audit", event.audit))
    if event.degraded:
        rows.append(("degraded", ", ".join(event.degraded)))
    for cell in event.redacted or ():
        rows.append(("redacted", f"{cell.get('input')}, {cell.get('feature')}: {cell.get('how')}"))
    if event.flags:
        rows.append(("inputs", ", ".join(event.flags)))
    return rows


def _gist(event: Event) -> str | None:
    match event:
        case Prediction():
            version = f"v{event.model.version} " if event.model and event.model.version else ""
            via = f" {event.route.served or event.route.reason}" if event.route else ""
            count = f" x{event.count}" if event.count > 1 else ""
            flags = f" [{' '.join(event.flags)}]" if event.flags else ""
            return f"{version}{event.status}{via}{f' {event.code}' if event.code else ''}{count}{flags}"
        case Control():
            at = "" if event.revision is None else f"revision {event.revision} "
            return f"{at}by {event.by}: {event.reason}"
        case Gap():
            return f"{event.source}-{event.epoch:08x} {event.from_seq}..{event.to_seq} {event.cause}"
        case Model():
            version = f"v{event.model.version}" if event.model else ""
            return f"{version} {event.reason or ''}".strip()
        case _:
            return None
