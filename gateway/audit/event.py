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
"""What writers write. Below, what stands under a field is its meaning in docs/events.md; "Since schema N" where a later
schema brought it."""


class Tensor(msgspec.Struct, frozen=True, gc=False):
    """One named tensor as scored: C order, little-endian; BYTES as u32 length + bytes per element.

    `data` is None where the event holds it by hash only; `sha256` (hex) is then set.
    """

    name: str
    """As in the model."""
    datatype: str
    """OIP's name: FP32, INT64, BYTES ..."""
    shape: tuple[int, ...]
    """Rows first where the model batches."""
    data: bytes | None = None
    """The bytes; null where only their digest is kept."""
    sha256: str | None = None
    """Of the bytes that `data` would have."""


class RouteFacts(msgspec.Struct, frozen=True, gc=False):
    """How the request got to its version: the table used, variants, effective weight, reason."""

    revision: int
    """Of the model's route document."""
    generation: int
    """Of the snapshot that the worker ran by."""
    assigned: str | None
    """The variant that the draw fell on; null where the version was named."""
    served: str | None
    """The variant that answered."""
    weight_bp: int | None
    """The assigned variant's share of the draw then, in 1/10,000."""
    reason: str
    """weight | key | pinned | forced | retry | fallback

    weight: drawn at random. fallback, retry: the same, and served by the primary, as the variant was not ready or its
    breaker open, or could not answer (`first_try`). key: drawn by a routing key, so that the client may have chosen the
    arm; served as with those. pinned, forced: version or variant were named.
    """
    unit_hash: str | None = None
    """16 hex digits: the random unit, or the keyed hash of the routing key."""


class ModelFacts(msgspec.Struct, frozen=True, gc=False):
    """Which version answered, by name and by digest (hex), and on what runtime."""

    name: str
    """The model."""
    version: str | None
    """The version; null where none was drawn."""
    tree_sha256: str | None = None
    """Over all files of the version."""
    config_sha256: str | None = None
    """Over bundle.toml and config.pbtxt."""
    reference_sha256: str | None = None
    """Of the reference that inputs are held against, if there is one."""
    runtime: str | None = None
    """ONNX Runtime's version, provider, threads, and what of the processor its kernels are chosen by."""


class BatchFacts(msgspec.Struct, frozen=True, gc=False):
    """The run that the request was part of; `cut` says why the run started when it did."""

    id: int
    """Counts the runs of one process."""
    rows: int
    """Of the whole run."""
    row0: int
    """The request's first row in it."""
    cut: str
    """turn | lane_free | max_rows | single | idle | deadline | linger | alone"""


class Prediction(msgspec.Struct, tag_field="type", tag="prediction", gc=False):
    """One inference request: answered, refused, failed, cancelled or (summed) aborted."""

    kind: str
    """What became of it."""
    schema: int = SCHEMA
    """The schema that the writer knew."""
    id: str = ""
    """Source, epoch and number in hex; the record's key."""
    received_ns: int = 0
    """When all of it was here, Unix ns; 0 in sums."""
    done_ns: int = 0
    """When it was encoded, refused or dropped, Unix ns; the record's time."""
    request_id: str | None = None
    """The client's own `id`."""
    traceparent: str | None = None
    """The client's trace, W3C."""
    endpoint: str | None = None
    """The address that was asked."""
    protocol: str | None = None
    """oip-json | oip-binary | v1"""
    principal: str | None = None
    """Who asked, by token; `anonymous` without."""
    rows: int = 0
    """Rows of the request."""
    route: RouteFacts | None = None
    """Of a refused one: where it was refused after the draw, by the version that was drawn or since it had no time."""
    model: ModelFacts | None = None
    """What answered; of a refused one what was asked for, as far as it exists."""
    batch: BatchFacts | None = None
    """Of requests that ran."""
    inputs: list[Tensor] = []
    """As scored, in the model's order; what redaction took out is 0 or empty."""
    outputs: list[Tensor] = []
    """All of them, whatever the client asked for."""
    stage_ns: dict[str, int] = {}
    """Time in each stage, ns."""
    status: int = 200
    """The HTTP status; 0 where nobody was answered."""
    code: str | None = None
    """The error's code; null for an answer."""
    degraded: tuple[str, ...] = ()
    """nonfinite: an output was NaN or infinite."""
    capture: str = "full"
    """full: tensors are here | hash: their digests are (`audit.capture_max_bytes`)"""
    audit: str = "spool"
    """The level asked: none | spool | fsync; of sums none"""
    parameters: dict[str, Any] | None = None
    """The request's free parameters, as sent."""
    first_try: dict[str, Any] | None = None
    """Of a request that a canary could not answer: its `version`, and `code`: an error's, or nonfinite."""
    redacted: list[dict[str, Any]] | None = None
    """By rule of bundle.toml, what stood in the cells that are not recorded."""
    count: int = 1
    """Requests that this event stands for; above 1 only for aborted and summed refusals."""
    flags: tuple[str, ...] = ()
    """Inputs that the version's reference never held: range:F | missing:F | unknown_category:F | more:N."""


class Shadow(msgspec.Struct, tag_field="type", tag="shadow"):
    """A shadow's answer to a logged request; consumers dedupe on (derived_from, version, run)."""

    kind: str
    """What became of it."""
    derived_from: str
    """The id of the prediction whose inputs it answered."""
    version: str
    """That answered."""
    run: str
    """`live`: following the log."""
    schema: int = SCHEMA
    """The schema that the writer knew."""
    id: str = ""
    """Source, epoch and number in hex; the record's key."""
    at_ns: int = 0
    """When it was made, Unix ns."""
    outputs: list[Tensor] = []
    """As a prediction's."""
    code: str | None = None
    """failed: as a prediction's; skipped: hash | redacted | signature | bundle_changed | not_loaded."""
    reason: str | None = None
    """What the code means here, for people."""
    tree_sha256: str | None = None
    """Of the shadow's files, where it ran."""


class Feedback(msgspec.Struct, tag_field="type", tag="feedback"):
    """A label, KPI or correction for (prediction id, row)."""

    kind: str
    """What it tells."""
    schema: int = SCHEMA
    """The schema that the writer knew."""
    id: str = ""
    """Source, epoch and number in hex; the record's key."""
    at_ns: int = 0
    """When it was made, Unix ns."""
    model: str = ""
    """That the predictions asked."""
    labels: list[dict[str, Any]] = []
    """Each: `id` of the prediction, `row`, `value`, `at_ns` of the truth."""
    principal: str | None = None
    """Who told it."""


class Control(msgspec.Struct, tag_field="type", tag="control"):
    """A change of control state, logged before it takes effect.

    `after` is the whole state that the change leaves (a route document for route changes), so that
    replay needs no older event; `before` is what it replaced.
    """

    kind: str
    """What changed."""
    schema: int = SCHEMA
    """The schema that the writer knew."""
    id: str = ""
    """Source, epoch and number in hex; the record's key."""
    at_ns: int = 0
    """When it was made, Unix ns."""
    gateway_id: str = ""
    """Whose state it is."""
    model: str | None = None
    """Whose route; null for what is about all."""
    revision: int | None = None
    """That the change makes."""
    before: dict[str, Any] | None = None
    """The state that it replaced; null where it is not told."""
    after: dict[str, Any] | None = None
    """The whole state that it leaves."""
    by: str = ""
    """Who, by token or process."""
    reason: str = ""
    """Why, in their words."""
    via: dict[str, str] | None = None
    """How it was asked for: address, token, digest of the request; null where no client asked."""
    key: str | None = None
    """The request's idempotency key."""


class Model(msgspec.Struct, tag_field="type", tag="model"):
    """A version was loaded, failed to load, or was unloaded in one process."""

    kind: str
    """What became of it."""
    schema: int = SCHEMA
    """The schema that the writer knew."""
    id: str = ""
    """Source, epoch and number in hex; the record's key."""
    at_ns: int = 0
    """When it was made, Unix ns."""
    model: ModelFacts | None = None
    """Which, with the digests of its files."""
    reason: str | None = None
    """Why it failed, or stays as it was."""
    load_ms: int | None = None
    """That loading took."""


class Verdict(msgspec.Struct, tag_field="type", tag="verdict"):
    """What the sidecar saw, concluded or did."""

    kind: str
    """What it is."""
    schema: int = SCHEMA
    """The schema that the writer knew."""
    id: str = ""
    """Source, epoch and number in hex; the record's key."""
    at_ns: int = 0
    """When it was made, Unix ns."""
    model: str | None = None
    """That it is about; null for a tick, which is about all."""
    body: dict[str, Any] = {}
    """By kind: see `shadow/verdicts.py`."""


class Gap(msgspec.Struct, tag_field="type", tag="gap"):
    """Numbers from_seq..to_seq (both included) of (source, epoch) were drawn and have no event.

    `to_seq` is None for an open gap: everything from from_seq on may be missing (`host_loss`).
    `source` is 16 hex digits.
    """

    source: str
    """Whose numbers, 16 hex digits."""
    epoch: int
    """In which of its epochs."""
    from_seq: int
    """First number."""
    to_seq: int | None
    """Last number; null: all from there on may be missing."""
    cause: str
    """ring_full | owner_died | corrupt | host_loss | oversized | retention (had records, which left the spool that the
    event's source writes; who has read them, or reads a topic, misses nothing)"""
    kind: str = "gap"
    """Always `gap`."""
    schema: int = SCHEMA
    """The schema that the writer knew."""
    id: str = ""
    """Source, epoch and number in hex; the record's key."""
    at_ns: int = 0
    """When it was made, Unix ns."""
    last_synced_ns: int | None = None
    """Of `host_loss`: until when the disk is known to have been written."""


class Heartbeat(msgspec.Struct, tag_field="type", tag="heartbeat"):
    """An idle source lives.

    `positions`, in the recorder's own only: {"<source hex>-<epoch hex>": [next seq, running hash in hex]} of epochs
    that moved (`gateway/audit/chain.py`); not there otherwise.
    """

    kind: str = "heartbeat"
    """Always `heartbeat`."""
    schema: int = SCHEMA
    """The schema that the writer knew."""
    id: str = ""
    """Source, epoch and number in hex; the record's key."""
    at_ns: int = 0
    """When it was made, Unix ns."""
    positions: dict[str, tuple[int, str]] | msgspec.UnsetType = msgspec.UNSET
    """In the recorder's own: next number and running hash of each epoch that moved, by source and epoch."""


class EpochOpen(msgspec.Struct, tag_field="type", tag="epoch_open"):
    """The first event (seq 0) of an epoch."""

    gateway_id: str
    """Of the gateway that the process belongs to."""
    role: str
    """What the process is: worker, control, sidecar, mirror or recorder."""
    index: int
    """Which of several."""
    prev_epoch: int | None
    """The epoch of this source before; null when it never wrote."""
    kind: str = "epoch_open"
    """Always `epoch_open`."""
    schema: int = SCHEMA
    """The schema that the writer knew."""
    id: str = ""
    """Source, epoch and number in hex; the record's key."""
    at_ns: int = 0
    """When it was made, Unix ns."""
    pid: int = 0
    """The process's."""
    version: str = ""
    """Tidegate's."""


class EpochClose(msgspec.Struct, tag_field="type", tag="epoch_close"):
    """The end of an epoch: by the owner as its last event, or by the recorder for a dead owner.

    `source`/`epoch` name the epoch closed; `events` = numbers drawn in it, this event included when
    the owner writes it itself.
    """

    source: str
    """Whose epoch is closed, 16 hex digits."""
    epoch: int
    """Which."""
    events: int
    """Numbers that were drawn in it."""
    cause: str
    """closed | owner_died | host_loss"""
    kind: str = "epoch_close"
    """Always `epoch_close`."""
    schema: int = SCHEMA
    """The schema that the writer knew."""
    id: str = ""
    """Source, epoch and number in hex; the record's key."""
    at_ns: int = 0
    """When it was made, Unix ns."""


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
