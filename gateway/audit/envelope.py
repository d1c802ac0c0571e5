"""Envelopes: events of one source as records, CloudEvents in binary mode.

values, or whole events -> **envelope** -> batch. The key is the event's id, headers say its type, source and content
type, the record's time is the event's own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from gateway.audit.batch import Head, Parcel, head_of
from gateway.audit.event import Event, Prediction, encode_event, time_of
from gateway.audit.values import Values


def made_ms(event: Event) -> int:
    """An event's own time, Unix ms."""
    return (time_of(event) or time.time_ns()) // 1_000_000


class Envelope:
    """Makes events of one source into records.

    A time that is to come is a clock that was wrong: brokers refuse it, and would refuse it for ever. Such a record
    gets the present as its time; the event keeps its own.

    Args:
        encoding: of values, "msgpack" or "json".
    """

    def __init__(self, gateway_id: str, source: int, encoding: str) -> None:
        self._encoding = encoding
        self._heads: dict[type, Head] = {}
        self._version = ("ce_specversion", b"1.0")
        self._source = ("ce_source", f"/tidegate/{gateway_id}/{source:016x}".encode())
        self._content = ("content-type", f"application/{encoding}".encode())

    def of_events(self, events: Sequence[Event], next_seqs: Sequence[int]) -> Parcel:
        """Whole events as they go to the topic."""
        now_ms = time.time_ns() // 1_000_000
        return Parcel(
            next_seqs,
            [event.id.encode() for event in events],
            [encode_event(event, self._encoding) for event in events],
            [min(made_ms(event), now_ms) for event in events],
            [self._head(type(event), getattr(event, "traceparent", None)) for event in events],
        )

    def of_values(self, made: Values, next_seqs: Sequence[int]) -> Parcel:
        """The same for a run's values."""
        count = len(made.ids)
        now_ms = time.time_ns() // 1_000_000
        times_ms = [min(done_ns // 1_000_000, now_ms) for done_ns in made.done_ns]
        heads = [self._head(Prediction, trace) for trace in made.traceparents]
        return Parcel(
            next_seqs,
            made.ids,
            made.values,
            times_ms if len(times_ms) == count else times_ms * count,
            heads if len(heads) == count else heads * count,
        )

    def _head(self, kind: type, trace: str | None) -> Head:
        head = self._heads.get(kind) if trace is None else None
        if head is None:
            tag = kind.__struct_config__.tag  # type: ignore[attr-defined]
            after = [("ce_type", f"tidegate.{tag}".encode()), self._source, self._content]
            if trace is not None:
                # CloudEvents' distributed tracing extension: who reads the topic goes on in the client's trace.
                return head_of([self._version], [*after, ("ce_traceparent", trace.encode())])
            head = self._heads[kind] = head_of([self._version], after)
        return head
