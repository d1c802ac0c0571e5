"""Feedback: what became of earlier predictions, as clients tell it. POST /v2/models/{model}/feedback

door -> **feedback** -> append -> ring -> ... -> shadow's labels. All labels of a request are one event of the log, so
that they are kept or refused together. Whether a prediction is known, or has a label already, is not asked here: it
may stand in another gateway's log. Only what no consumer could ever use is refused.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gateway.api.askers import ANONYMOUS
from gateway.append import Appender
from gateway.audit.event import Feedback
from gateway.audit.frame import Events, encoder
from gateway.audit.identity import parse_event_id
from gateway.entry import Entry
from gateway.errors import AuditTimeout, AuditUnavailable, BodyTooLarge, InvalidRequest
from gateway.head import raised
from gateway.serving import Models

FEEDBACK_MAX_BYTES = 1_048_576
LABELS_MAX = 1000
TURN_LABELS = 100
"""After so many the loop gets its turn: predictions do not wait for labels."""
YEAR_2000_NS = 946_684_800_000_000_000
AHEAD_NS = 86_400_000_000_000
"""A label's time may be so far ahead of our clock: clocks differ, and dates stand for whole days."""
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_EXPECTED = {
    "class": "an integer or a boolean, since labels.kind is 'class'",
    "value": "a finite number, since labels.kind is 'value'",
    "rank": "a finite number, since labels.kind is 'rank'",
    None: "a boolean or a finite number",
}


class LabelBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One label: of a row of a prediction, named by its x-prediction-id."""

    id: str
    value: bool | Int64 | float
    row: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    at_ns: Int64 | None = None
    """When the truth came to be, epoch ns; now when absent."""


class FeedbackBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the request carries."""

    labels: Annotated[tuple[LabelBody, ...], Meta(min_length=1, max_length=LABELS_MAX)]


_decoder = msgspec.json.Decoder(FeedbackBody)


def decode_labels(body: bytes) -> tuple[LabelBody, ...]:
    """A body's labels.

    Raises:
        InvalidRequest: not JSON of that form; names the place.
    """
    if body.count(b"}") > LABELS_MAX + 1:
        # Before the work: a small body can hold very many labels.
        msg = f"request body: more than {LABELS_MAX} labels; send the rest in another request"
        raise InvalidRequest(msg)
    try:
        return _decoder.decode(body).labels
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        msg = f"request body: {exc}"
        raise InvalidRequest(msg) from exc


def logged_label(index: int, label: LabelBody, kind: str | None, now_ns: int) -> dict[str, Any]:
    """A label as it stands in the log, defaults filled in.

    Args:
        index: its place in the request, for the message.
        kind: `labels.kind` of the model's bundle; None where it says nothing.

    Raises:
        InvalidRequest: no one could use it; names which, what was found and what was expected.
    """
    where = f"labels[{index}]"
    try:
        parse_event_id(label.id)
    except ValueError as exc:
        msg = f"{where}.id is {label.id[:60]!r}; expected 16-8-16 hex digits as in x-prediction-id"
        raise InvalidRequest(msg) from exc
    if not _fits(label.value, kind):
        msg = f"{where}.value is {label.value!r}; expected {_EXPECTED[kind]}"
        raise InvalidRequest(msg)
    at_ns = now_ns if label.at_ns is None else label.at_ns
    if not YEAR_2000_NS <= at_ns <= now_ns + AHEAD_NS:
        msg = f"{where}.at_ns is {at_ns}; expected epoch nanoseconds between 2000 and a day from now"
        raise InvalidRequest(msg)
    return {"id": label.id, "row": label.row, "value": label.value, "at_ns": at_ns}


def _fits(value: bool | int | float, kind: str | None) -> bool:
    if isinstance(value, bool):
        return kind in {None, "class"}
    return isinstance(value, int) or (kind != "class" and math.isfinite(value))


class FeedbackIntake:
    """Takes labels into the log, as predictions are: at the gateway's audit level or the higher one asked for.

    Args:
        audit_level: the gateway's; a request may ask for a higher one.

    Threading: the loop thread. Cost: about 5 us a label; predictions come in between.
    """

    def __init__(
        self,
        models: Models,
        appender: Appender,
        audit_level: str,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._models = models
        self._appender = appender
        self._audit_level = audit_level
        self._clock_ns = clock_ns

    async def take(
        self, entry: Entry, body: bytes, asked_level: str | None, principal: str = ANONYMOUS
    ) -> tuple[int, str]:
        """Keep a body's labels; returns how many, and the audit level reached.

        Raises:
            InvalidRequest: what `decode_labels` and `logged_label` refuse; nothing is kept then.
            BodyTooLarge: more than one frame of the log holds.
            AuditUnavailable: they are not kept.
            AuditTimeout: they may be kept; the disk was not awaited longer (policy `fail`).
        """
        appender = self._appender
        level = raised(self._audit_level, asked_level)
        if level != "none" and appender.fails and appender.unavailable:
            msg = "the audit log cannot be written at present; no label is accepted unlogged"
            raise AuditUnavailable(msg)
        now_ns, kind = self._clock_ns(), _label_kind(entry)
        labels = []
        for index, label in enumerate(decode_labels(body)):
            labels.append(logged_label(index, label, kind, now_ns))
            if len(labels) % TURN_LABELS == 0:
                await asyncio.sleep(0)
        event = Feedback(kind="label", at_ns=now_ns, model=entry.model, labels=labels, principal=principal)
        payload = encoder.encode(Events([event]))
        if len(payload) > appender.max_frame_bytes:
            msg = (
                f"{len(labels)} labels take {len(payload)} bytes; a record of this gateway holds at most"
                f" {appender.max_frame_bytes}: send fewer at once"
            )
            raise BodyTooLarge(msg)
        reached = await self._kept(payload, level)
        self._models.count_labels(entry.model, len(labels))
        return len(labels), reached

    async def _kept(self, payload: bytes, level: str) -> str:
        """Append one event and wait for its level; returns the level reached."""
        appender = self._appender
        done: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

        def tell(reached: str | None) -> None:
            if not done.done():
                done.set_result(reached)

        def release(seq: int | None, reached: str) -> None:
            if seq is None or reached == "none":
                # A number without a record, or none at all: there is nothing else that an answer could give.
                tell(None)
            elif level == "fsync":
                appender.after_sync(lambda synced: tell("fsync" if synced else reached), fails=appender.fails)
            else:
                tell(reached)

        appender.submit(payload, 1, release, waits=level != "none")
        reached = await done
        if reached is None:
            msg = "the audit log has no room at present; no label was accepted, try again"
            raise AuditUnavailable(msg)
        if level == "fsync" and reached != "fsync" and appender.fails:
            msg = "the labels were not on disk in time; they may be kept all the same, sending them again does no harm"
            raise AuditTimeout(msg)
        return reached


def _label_kind(entry: Entry) -> str | None:
    """What the bundle of the primary's version says of labels; None: nothing, or it is not loaded here now.

    Labels are about predictions that were made: they are taken also while the model cannot answer.
    """
    version = None if entry.table is None else entry.versions.get(entry.table.route.primary.version)
    settings = None if version is None else version.session.bundle.settings.labels
    return None if settings is None else settings.kind
