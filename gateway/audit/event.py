"""The events, as they stand in the topic and as `audit get` shows them: one definition.

Those that predictions are made of are not looked at by the garbage collector (`gc=False`: nothing in them leads back
to them): a consumer that holds thousands pays half as much for each.

Every event is a map with `type`, `kind`, `schema` and `id`; the classes below are those maps. msgpack
holds tensors and digests as raw bytes; the `json` profile holds tensors as base64. Evolution is
additive: a reader ignores what it does not know, a writer never changes or reuses a name. A breaking
change would be a new topic.

`gateway/audit/frame.py` derives the columns of a run frame from `Prediction`; golden vectors in
tests/contracts hold both still.
"""

from __future__ import annotations

from typing import Any

import msgspec

SCHEMA = 1

KINDS: dict[str, tuple[str, ...]] = {
    "prediction": ("done", "refused", "failed", "cancelled", "aborted"),
    "shadow": ("done", "failed", "skipped"),
    "feedback": ("label", "kpi", "erratum"),
    "control": (
        "route", "shift", "promote", "rollback", "rearm", "freeze", "thaw",
        "stop", "resume", "lease", "breaker", "load", "unload", "routes",
    ),
    "model": ("loaded", "failed", "unloaded"),
    "verdict": ("tick", "alarm", "decision", "gate"),
    "gap": ("gap",),
    "heartbeat": ("heartbeat",),
    "epoch_open": ("epoch_open",),
    "epoch_close": ("epoch_close",),
}  # fmt: skip
"""Types and their kinds."""


class Tensor(msgspec.Struct, frozen=True, gc=False):
    """One named tensor as scored: C order, little-endian; BYTES as u32 length + bytes per element.

    `data` is None where the event holds it by hash only; `sha256` (hex) is then set.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | None = None
    sha256: str | None = None


class RouteFacts(msgspec.Struct, frozen=True, gc=False):
    """How the request got to its version: the table used, variants, effective weight, reason."""

    revision: int
    generation: int
    assigned: str | None
    served: str | None
    weight_bp: int | None
    reason: str
    """weight | key | pinned | forced | retry | fallback

    key: drawn by a routing key, so that the client may have chosen the arm; served by another variant than assigned
    where that one was not ready.
    """
    unit_hash: str | None = None
    """16 hex digits: the random unit, or the keyed hash of the routing key."""


class ModelFacts(msgspec.Struct, frozen=True, gc=False):
    """Which version answered, by name and by digest (hex), and on what runtime."""

    name: str
    version: str | None
    tree_sha256: str | None = None
    config_sha256: str | None = None
    reference_sha256: str | None = None
    runtime: str | None = None


class BatchFacts(msgspec.Struct, frozen=True, gc=False):
    """The run that the request was part of; `cut` says why the run started when it did."""

    id: int
    rows: int
    row0: int
    cut: str
    """idle | turn | lane_free | max_rows | single"""


class Prediction(msgspec.Struct, tag_field="type", tag="prediction", gc=False):
    """One inference request: answered, refused, failed, cancelled or (summed) aborted."""

    kind: str
    schema: int = SCHEMA
    id: str = ""
    received_ns: int = 0
    done_ns: int = 0
    request_id: str | None = None
    traceparent: str | None = None
    endpoint: str | None = None
    protocol: str | None = None
    """oip-json | oip-binary"""
    principal: str | None = None
    rows: int = 0
    route: RouteFacts | None = None
    """Of a refused one: only where the version that was drawn refused what the primary's signature takes."""
    model: ModelFacts | None = None
    batch: BatchFacts | None = None
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    stage_ns: dict[str, int] = {}
    status: int = 200
    code: str | None = None
    degraded: tuple[str, ...] = ()
    """nonfinite: an output was NaN or infinite; audit: the level asked was not reached."""
    capture: str = "full"
    """full | hash"""
    audit: str = "spool"
    """The level asked."""
    parameters: dict[str, Any] | None = None
    first_try: dict[str, Any] | None = None
    redacted: list[dict[str, Any]] | None = None
    count: int = 1
    """Requests that this event stands for; above 1 only for aborted and summed refusals."""
    flags: tuple[str, ...] = ()
    """Inputs that the version's reference never held: range:F | missing:F | unknown_category:F | more:N."""


class Shadow(msgspec.Struct, tag_field="type", tag="shadow"):
    """A shadow's answer to a logged request; consumers dedupe on (derived_from, version, run)."""

    kind: str
    derived_from: str
    version: str
    run: str
    schema: int = SCHEMA
    id: str = ""
    at_ns: int = 0
    outputs: list[Tensor] = []
    code: str | None = None
    """failed: as a prediction's; skipped: hash | redacted | signature | bundle_changed | not_loaded."""
    reason: str | None = None
    """What the code means here, for people."""
    tree_sha256: str | None = None
    """Of the shadow's files, where it ran."""


class Feedback(msgspec.Struct, tag_field="type", tag="feedback"):
    """A label, KPI or correction for (prediction id, row)."""

    kind: str
    schema: int = SCHEMA
    id: str = ""
    at_ns: int = 0
    model: str = ""
    labels: list[dict[str, Any]] = []
    principal: str | None = None


class Control(msgspec.Struct, tag_field="type", tag="control"):
    """A change of control state, logged before it takes effect.

    `after` is the whole state that the change leaves (a route document for route changes), so that
    replay needs no older event; `before` is what it replaced.
    """

    kind: str
    schema: int = SCHEMA
    id: str = ""
    at_ns: int = 0
    gateway_id: str = ""
    model: str | None = None
    revision: int | None = None
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    by: str = ""
    reason: str = ""


class Model(msgspec.Struct, tag_field="type", tag="model"):
    """A version was loaded, failed to load, or was unloaded in one process."""

    kind: str
    schema: int = SCHEMA
    id: str = ""
    at_ns: int = 0
    model: ModelFacts | None = None
    reason: str | None = None
    load_ms: int | None = None


class Verdict(msgspec.Struct, tag_field="type", tag="verdict"):
    """What the sidecar saw, concluded or did."""

    kind: str
    schema: int = SCHEMA
    id: str = ""
    at_ns: int = 0
    model: str | None = None
    body: dict[str, Any] = {}


class Gap(msgspec.Struct, tag_field="type", tag="gap"):
    """Numbers from_seq..to_seq (both included) of (source, epoch) were drawn and have no event.

    `to_seq` is None for an open gap: everything from from_seq on may be missing (`host_loss`).
    `source` is 16 hex digits.
    """

    source: str
    epoch: int
    from_seq: int
    to_seq: int | None
    cause: str
    """ring_full | owner_died | corrupt | host_loss | oversized | retention (had records, which left the spool that the
    event's source writes; who has read them, or reads a topic, misses nothing)"""
    kind: str = "gap"
    schema: int = SCHEMA
    id: str = ""
    at_ns: int = 0
    last_synced_ns: int | None = None


class Heartbeat(msgspec.Struct, tag_field="type", tag="heartbeat"):
    """An idle source lives.

    `positions`, in the recorder's own only: {"<source hex>-<epoch hex>": [next seq, running hash in hex]} of epochs
    that moved (`gateway/audit/chain.py`); not there otherwise.
    """

    kind: str = "heartbeat"
    schema: int = SCHEMA
    id: str = ""
    at_ns: int = 0
    positions: dict[str, tuple[int, str]] | msgspec.UnsetType = msgspec.UNSET


class EpochOpen(msgspec.Struct, tag_field="type", tag="epoch_open"):
    """The first event (seq 0) of an epoch."""

    gateway_id: str
    role: str
    index: int
    prev_epoch: int | None
    """None when this source never wrote before."""
    kind: str = "epoch_open"
    schema: int = SCHEMA
    id: str = ""
    at_ns: int = 0
    pid: int = 0
    version: str = ""


class EpochClose(msgspec.Struct, tag_field="type", tag="epoch_close"):
    """The end of an epoch: by the owner as its last event, or by the recorder for a dead owner.

    `source`/`epoch` name the epoch closed; `events` = numbers drawn in it, this event included when
    the owner writes it itself.
    """

    source: str
    epoch: int
    events: int
    cause: str
    """closed | owner_died | host_loss"""
    kind: str = "epoch_close"
    schema: int = SCHEMA
    id: str = ""
    at_ns: int = 0


Event = Prediction | Shadow | Feedback | Control | Model | Verdict | Gap | Heartbeat | EpochOpen | EpochClose

_msgpack_encoder = msgspec.msgpack.Encoder()
_json_encoder = msgspec.json.Encoder()
_msgpack_decoder = msgspec.msgpack.Decoder(Event)
_json_decoder = msgspec.json.Decoder(Event)


def time_of(event: Event) -> int:
    """When it happened, epoch ns."""
    at_ns: int = getattr(event, "done_ns", 0) or getattr(event, "at_ns", 0)
    return at_ns


def encode_event(event: Event, encoding: str = "msgpack") -> bytes:
    """One event as a topic record's value; `encoding` is "msgpack" or "json"."""
    return (_json_encoder if encoding == "json" else _msgpack_encoder).encode(event)


def decode_event(value: bytes) -> Event:
    """Read a record's value in either encoding (JSON objects begin with "{", msgpack maps do not).

    Raises:
        msgspec.DecodeError, msgspec.ValidationError: when it is neither.
    """
    return (_json_decoder if value[:1] == b"{" else _msgpack_decoder).decode(value)
