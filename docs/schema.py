"""docs/events.md: every event of the log, from the structs that write it. Called by docs/generate.py.

Meanings are the docstrings that stand under the fields in `gateway/audit/event.py` and `frame.py`; examples are
structs, encoded as the topic's `json` profile has them.
"""

from __future__ import annotations

import ast
import inspect as python
import json
import re
from typing import Any

import msgspec
from msgspec import inspect

from gateway.audit import event as events
from gateway.audit import frame as frames
from gateway.audit.event import (
    BatchFacts,
    Control,
    EpochClose,
    EpochOpen,
    Event,
    Feedback,
    Gap,
    Heartbeat,
    Model,
    ModelFacts,
    Prediction,
    RouteFacts,
    Shadow,
    Tensor,
    Verdict,
    encode_event,
)
from gateway.audit.frame import Run, RunTensor
from gateway.audit.identity import source_of
from gateway.audit.kinds import KINDS
from gateway.stages import TIMED_STAGES

_HEAD = f"""# Events: what stands in the log

Made from `gateway/audit/event.py`, `kinds.py` and `frame.py` by `make docs`. The schema is {events.SCHEMA}.

What `tidegate audit get` shows, what a topic's records hold and what an export writes are the same events. A reader
passes over fields, kinds and types that it does not know; a writer may add some, and never changes or uses again a name
that was once there. A change that breaks this would be a new topic. Bytes that were written once are read, and written,
the same for ever: `tests/contracts/test_golden.py`.

## A record of the topic

| part | what it is |
|---|---|
| key | the event's `id` as text: 16 hex digits source, 8 epoch, 16 number, with `-` between |
| value | the event as a map: msgpack, tensors as raw bytes; or JSON (it begins with a brace), tensors as base64 |
| time | the event's own in ms: `done_ns`, else `at_ns`; the present where that lies ahead (create time) |
| partition | one for all records of an epoch, so their order is the order of their numbers |

Headers are those of CloudEvents 1.0 in binary mode:

| header | value |
|---|---|
| `ce_specversion` | `1.0` |
| `ce_id` | as the key |
| `ce_type` | `tidegate.` and the type: `tidegate.prediction` |
| `ce_source` | `/tidegate/` gateway id `/` source |
| `content-type` | `application/msgpack` or `application/json` |
| `ce_traceparent` | the client's trace, where it sent one |

A record may come twice (a broker took it and its acknowledgement was lost). Keep one high-water mark per source and
epoch and pass over what is not above it; numbers that are left out then stand in a `gap`.

`source` names one process of one gateway: the first 8 bytes of SHA-256 of "gateway id/role/index". `epoch` is one life
of it: the Unix time in seconds of its start, or one more than its last. Numbers of an epoch begin at 0 with
`epoch_open`, and an `epoch_close` says how many there were.

## Types and kinds

| `type` | `kind` | what it says |
|---|---|---|
"""

_FRAMES = """## Frames: rings and segments

In rings and in the files of the spool events stand in frames, byte for byte the same in both:

```
length u32 | CRC-32 of the rest u32 | first number u64 | count u32 | msgpack        little-endian, padded to 8
```

`length` counts what follows the CRC. The msgpack is `{"frame": "events", "events": [...]}`, whole events in order; or
`{"frame": "run", ...}`, a batch of one version by columns. A column is a list with one value a request, or with one
value where all agree; fields that have their default are left out. `gateway/audit/frame.py` makes events of it.
"""

_ID = f"{source_of('9c2f6a10d4e8b735', 'worker', 0):016x}-6655d2a0-"
_SHA = "5f1d3cbd5b7c1f4f9f2f8f5e0b1c3b8a7d6e5f4a3b2c1d0e9f8a7b6c5d4e3f2a"
_NS = 1_788_000_000_123_456_789
_ROUTE = {
    "model": "flights",
    "revision": 7,
    "variants": [{"name": "primary", "version": "3", "role": "primary"}],
}

EXAMPLES: tuple[Event, ...] = (
    Prediction(
        kind="done",
        id=f"{_ID}{4711:016x}",
        received_ns=_NS,
        done_ns=_NS + 1_400_000,
        request_id="booking-81",
        endpoint="/v2/models/flights/infer",
        protocol="oip-json",
        principal="anonymous",
        rows=1,
        route=RouteFacts(7, 12, "canary", "canary", 500, "weight", "c4e1f09a7b35d268"),
        model=ModelFacts(
            "flights", "4", _SHA, _SHA[::-1], None, "onnxruntime 1.23.0 cpu x1 x86_64+avx+fma+avx2"
        ),
        batch=BatchFacts(93, 2, 1, "turn"),
        inputs=[Tensor("X", "FP32", (1, 2), bytes.fromhex("0000884100008040"))],
        outputs=[Tensor("probabilities", "FP32", (1, 2), bytes.fromhex("0000303f0000a03e"))],
        stage_ns={name: 1000 * (k + 1) for k, name in enumerate(TIMED_STAGES)},
    ),
    Shadow(
        kind="done",
        derived_from=f"{_ID}{4711:016x}",
        version="5",
        run="live",
        id=f"{_ID[:-9]}6655d2b1-{19:016x}",
        at_ns=_NS + 400_000_000,
        outputs=[Tensor("probabilities", "FP32", (1, 2), bytes.fromhex("0000403f0000803e"))],
        tree_sha256=_SHA,
    ),
    Feedback(
        kind="label",
        id=f"{_ID}{5120:016x}",
        at_ns=_NS,
        model="flights",
        labels=[{"id": f"{_ID}{4711:016x}", "row": 0, "value": True, "at_ns": _NS}],
        principal="anonymous",
    ),
    Control(
        kind="shift",
        id=f"{_ID}{9:016x}",
        at_ns=_NS,
        gateway_id="9c2f6a10d4e8b735",
        model="flights",
        revision=7,
        after=_ROUTE,
        by="admin",
        reason="labels look fine",
    ),
    Model(kind="loaded", id=f"{_ID}{1:016x}", at_ns=_NS, model=ModelFacts("flights", "4", _SHA), load_ms=38),
    Verdict(kind="tick", id=f"{_ID}{77:016x}", at_ns=_NS, body={"tick": 412, "complete": True}),
    Gap(f"{_ID[:16]}", 0x6655D2A0, 4800, 4823, "owner_died", id=f"{_ID}{12:016x}", at_ns=_NS),
    Heartbeat(id=f"{_ID}{4900:016x}", at_ns=_NS),
    EpochOpen(
        "9c2f6a10d4e8b735", "worker", 0, None, id=f"{_ID}{0:016x}", at_ns=_NS, pid=4101, version="0.1.0"
    ),
    EpochClose(f"{_ID[:16]}", 0x6655D2A0, 5200, "closed", id=f"{_ID}{5199:016x}", at_ns=_NS),
)
"""One of each type."""
PARTS = (Tensor, RouteFacts, ModelFacts, BatchFacts)
_SINCE = re.compile(r"Since schema (\d+)[.:]?\s*")


def meanings(module: Any) -> dict[str, dict[str, str]]:
    """By class and field of a module, the docstring that stands under the field, on one line."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(python.getsource(module)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        found[node.name] = of = {}
        for field, behind in zip(node.body, [*node.body[1:], None], strict=True):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            said = ""
            if isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant):
                said = "; ".join(" ".join(part.split()) for part in str(behind.value.value).split("\n\n"))
            of[field.target.id] = said
    return found


def type_text(kind: inspect.Type) -> str:
    """What a field holds, in words."""
    match kind:
        case inspect.UnionType():
            options = [t for t in kind.types if not isinstance(t, inspect.CustomType)]
            return " or ".join(map(type_text, options))
        case inspect.NoneType():
            return "null"
        case inspect.StrType():
            return "text"
        case inspect.IntType():
            return "integer"
        case inspect.BytesType():
            return "bytes"
        case inspect.StructType() if kind.cls in PARTS:
            return f"[{kind.cls.__name__}](#{kind.cls.__name__.lower()})"
        case inspect.StructType():
            return f"`{kind.cls.__name__}`"
        case inspect.ListType() | inspect.VarTupleType() | inspect.CollectionType():
            return f"list of {type_text(kind.item_type)}"
        case inspect.TupleType():
            return f"list of {', '.join(map(type_text, kind.item_types))}"
        case inspect.DictType() if isinstance(kind.value_type, inspect.AnyType):
            return "map"
        case inspect.DictType():
            return f"map of {type_text(kind.value_type)}"
        case inspect.RawType():
            return "map"
        case inspect.BoolType():
            return "true or false"
        case _:
            return "anything"


def fields_of(struct: type[msgspec.Struct], module: Any) -> list[tuple[str, str, str, int]]:
    """Name, type, meaning and first schema of every field, `type` left out."""
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    said = meanings(module)[struct.__name__]
    out = []
    for field in info.fields:
        text = said.get(field.encode_name, "")
        if struct is Run and not text and field.encode_name in Prediction.__struct_fields__:
            text = "Column of the [prediction](#prediction)'s field."
        since = _SINCE.match(text)
        meaning = _SINCE.sub("", text, count=1) if since else text
        out.append((field.encode_name, type_text(field.type), meaning, int(since[1]) if since else 1))
    return out


def _table(struct: type[msgspec.Struct], module: Any) -> list[str]:
    rows = ["| field | type | what it is | since |", "|---|---|---|---|"]
    for name, kind, meaning, since in fields_of(struct, module):
        rows.append(f"| `{name}` | {kind} | {meaning.replace(' | ', ' · ')} | {since} |")
    return [*rows, ""]


def shown(event: Event) -> str:
    """An event as JSON for people: lists of plain values on one line."""
    text = json.dumps(json.loads(encode_event(event, "json")), indent=1)
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)


def _says(struct: type[msgspec.Struct]) -> str:
    # The class's first paragraph; what comes behind it is for who changes the code.
    return " ".join((struct.__doc__ or "").partition("\n\n")[0].split())


def events_page() -> str:
    """docs/events.md."""
    out = [_HEAD.rstrip()]
    for name, kinds in KINDS.items():
        out += [
            f"| [{name}](#{name}) | `{kind}` | {text or '(not written yet)'} |"
            for kind, text in kinds.items()
        ]
    out.append("")
    for example in EXAMPLES:
        struct = type(example)
        out += [f"## {struct.__struct_config__.tag}", "", _says(struct), "", *_table(struct, events)]  # type: ignore[list-item]
        out += ["```json", shown(example), "```", ""]
    for part in PARTS:
        out += [f"### {part.__name__}", "", _says(part), "", *_table(part, events)]
    out += [_FRAMES]
    for columns in (Run, RunTensor):
        out += [f"### {columns.__name__}", "", _says(columns), "", *_table(columns, frames)]
    return "\n".join(out)
