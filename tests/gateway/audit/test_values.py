"""Values: a run's records from its columns are those of its events, byte for byte."""

from __future__ import annotations

from typing import Any
from unittest import mock

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.audit.envelope import Envelope
from gateway.audit.event import RouteFacts, encode_event
from gateway.audit.frame import Caller, Frame, Run, RunTensor, encoder, expand
from gateway.audit.values import values_of

SOURCE, EPOCH = 0xABCDEF0123456789, 7
MODEL = msgspec.Raw(encoder.encode({"name": "m", "version": "1", "runtime": "rt"}))
WHOLE = st.integers(0, 2**64 - 1)
JSON = st.none() | st.dictionaries(
    st.text(max_size=3), st.integers(-(2**63), 2**63 - 1) | st.text(max_size=3)
)
TEXT = st.none() | st.text(max_size=40) | st.sampled_from(["%", "%b%%", "100 %s"])

PLAIN = Run(
    model=MODEL, batch_id=1, cut="turn", infer_ns=1, rows=[1], received_ns=[1], done_ns=[1],
    route=[msgspec.Raw(encoder.encode(RouteFacts(1, 1, "1", "1", None, "weight")))], unit_hash=[None],
    caller=[msgspec.Raw(encoder.encode(Caller("/a", "oip-json", None)))], stages=[[1]] * 5, inputs=[], outputs=[],
)  # fmt: skip


def _columns(draw: Any, count: int, values: st.SearchStrategy[Any]) -> list[Any]:
    size = draw(st.sampled_from([1, count]))
    return draw(st.lists(values, min_size=size, max_size=size))


@st.composite
def runs(draw: Any) -> tuple[Frame, Run]:
    """A frame of a run with columns of every kind."""
    count = draw(st.integers(1, 9))
    rows = _columns(draw, count, st.integers(0, 300))
    each = rows if len(rows) == count else rows * count
    tensors = []
    for index in range(draw(st.integers(0, 17))):
        datatype, width = draw(st.sampled_from([("FP32", 4), ("INT64", 8), ("BOOL", 1), ("FP16", 2)]))
        tail = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
        batched = draw(st.booleans())
        for dim in tail:
            width *= dim
        size = sum(width * n for n in each) if batched else width * count
        tensors.append(RunTensor(f"t{index}", datatype, tail, bytes(i % 251 for i in range(size)), batched))

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return _columns(draw, count, values)

    def route(revision: int) -> msgspec.Raw:
        return msgspec.Raw(encoder.encode(RouteFacts(revision, 1, "1", None, revision % 7 or None, "weight")))

    def caller(endpoint: str) -> msgspec.Raw:
        return msgspec.Raw(encoder.encode(Caller(endpoint, "oip-json", None)))

    run = Run(
        model=MODEL,
        batch_id=draw(WHOLE),
        cut=draw(st.sampled_from(["turn", "max_rows"])),
        infer_ns=draw(WHOLE),
        rows=rows,
        received_ns=column(WHOLE),
        done_ns=column(st.integers(1, 2**64 - 1)),
        route=column(WHOLE.map(route)),
        unit_hash=column(st.none() | WHOLE),
        caller=column(st.text(max_size=40).map(caller)),
        stages=[column(st.integers(-5, 2**40)) for _ in range(5)],
        inputs=tensors,
        outputs=tensors[:2],
        kind=column(st.sampled_from(["done", "failed"])),
        request_id=column(TEXT),
        traceparent=column(TEXT),
        status=column(st.sampled_from([200, 503])),
        code=column(TEXT),
        degraded=column(st.sampled_from([(), ("nonfinite",)])),
        audit=column(st.sampled_from(["none", "spool"])),
        parameters=column(JSON),
        first_try=column(JSON),
        redacted=column(
            st.none() | st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=3)), max_size=2)
        ),
        flags=column(st.lists(st.text(max_size=4), max_size=3).map(tuple)),
        batch_rows=draw(st.integers(0, 4000)),
        batch_row0=draw(st.integers(0, 4000)),
    )
    return Frame(draw(st.integers(0, 2**63)), count, encoder.encode(run)), run


@settings(deadline=None, max_examples=100)
@given(runs())
def test_values_are_those_of_the_events(made: tuple[Frame, Run]) -> None:
    """The same bytes as made from events, ids and columns beside them."""
    frame, _ = made
    events = expand(SOURCE, EPOCH, frame)
    found = values_of(SOURCE, EPOCH, frame)
    assert found is not None
    assert found.values == [encode_event(event) for event in events]
    assert found.ids == [event.id.encode() for event in events]
    envelope = Envelope("0011223344556677", SOURCE, "msgpack")
    following = range(frame.first_seq + 1, frame.next_seq + 1)
    with mock.patch("gateway.audit.envelope.time.time_ns", return_value=2**60):
        assert envelope.of_values(found, following) == envelope.of_events(events, following)


@settings(deadline=None, max_examples=25)
@given(runs(), runs())
def test_runs_that_differ_in_one_thing_have_values_of_their_own(
    made: tuple[Frame, Run], other: tuple[Frame, Run]
) -> None:
    """What is kept of one run is not taken for another's, whatever field differs."""
    frame, run = made
    for name in Run.__struct_fields__:
        changed = msgspec.structs.replace(run, **{name: getattr(other[1], name)})
        for each in (run, changed):
            one = frame._replace(payload=encoder.encode(each))
            found = values_of(SOURCE, EPOCH, one)
            if found is not None:
                assert found.values == [encode_event(event) for event in expand(SOURCE, EPOCH, one)], name


def test_a_run_without_rows_is_left_to_the_events() -> None:
    """A column of no values fits no frame."""
    frame = Frame(0, 1, encoder.encode(msgspec.structs.replace(PLAIN, rows=[])))
    assert values_of(SOURCE, EPOCH, frame) is None


@pytest.mark.parametrize(
    "change",
    [
        {"capture": ["hash"]},
        {"inputs": [RunTensor("s", "BYTES", (), b"\x01\x00\x00\x00a")]},
        {"inputs": [RunTensor("x", "FP32", (2,), bytes(7))]},
        {"status": [200, 200, 200]},
        {"stages": [[1]] * 4},
    ],
)
def test_what_is_unusual_is_left_to_the_events(change: dict[str, Any]) -> None:
    """Hashes, strings and columns that do not fit: whoever makes events takes them or says what is wrong."""
    assert values_of(SOURCE, EPOCH, Frame(0, 1, encoder.encode(PLAIN))) is not None
    changed = msgspec.structs.replace(PLAIN, **change)
    assert values_of(SOURCE, EPOCH, Frame(0, 1, encoder.encode(changed))) is None
