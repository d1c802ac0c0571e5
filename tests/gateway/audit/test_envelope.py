"""Records of the topic are CloudEvents in binary mode: what stands in their headers."""

from __future__ import annotations

import time
from typing import Any

import pytest
from aiokafka.record.memory_records import MemoryRecords

from gateway.audit.batch import Parcel, Pending
from gateway.audit.envelope import Envelope
from gateway.audit.event import Event, Gap, Prediction, decode_event

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ID = "0102030405060708-6543210f-0000000000000005"


def read(parcel: Parcel) -> list[Any]:
    """Records as a consumer sees them."""
    pending = Pending()
    pending.add(parcel)
    return list(MemoryRecords(pending.batch(1 << 20)._build()).next_batch())


def record_of(event: Event, encoding: str = "msgpack") -> Any:
    """One event's."""
    (record,) = read(Envelope("0011223344556677", 0xAB, encoding).of_events([event], [6]))
    return record


@pytest.mark.parametrize("encoding", ["msgpack", "json"])
def test_headers_name_the_event(encoding: str) -> None:
    """Version, id, type, source and content type; the key is the id, the value the event."""
    event = Gap(source="a" * 16, epoch=1, from_seq=2, to_seq=3, cause="ring_full", id=ID, at_ns=5_000_000)
    record = record_of(event, encoding)
    assert (record.key, record.timestamp) == (ID.encode(), 5)
    assert dict(record.headers) == {
        "ce_specversion": b"1.0",
        "ce_id": ID.encode(),
        "ce_type": b"tidegate.gap",
        "ce_source": b"/tidegate/0011223344556677/00000000000000ab",
        "content-type": f"application/{encoding}".encode(),
    }
    assert decode_event(record.value) == event


def test_the_clients_trace_goes_on() -> None:
    """A request that came with a trace context has it in a header; one that had none has no such header."""
    with_trace, without = (
        dict(record_of(Prediction(kind="done", id=ID, traceparent=trace)).headers) for trace in (TRACE, None)
    )
    assert with_trace["ce_traceparent"] == TRACE.encode()
    assert without == {name: value for name, value in with_trace.items() if name != "ce_traceparent"}


def test_a_time_to_come_is_the_present() -> None:
    """Brokers refuse records from the future for ever: their time is now, the event keeps its own."""
    ahead_ns = time.time_ns() + 7200 * 10**9
    event = Gap(source="a" * 16, epoch=1, from_seq=2, to_seq=3, cause="ring_full", id=ID, at_ns=ahead_ns)
    record = record_of(event)
    assert abs(record.timestamp - time.time() * 1000) < 10_000
    assert decode_event(record.value).at_ns == ahead_ns
