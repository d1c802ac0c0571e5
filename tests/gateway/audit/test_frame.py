"""Frames: a run reads back as the requests that it was made of, however it was cut."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.audit.event import BatchFacts, Heartbeat, ModelFacts, Prediction, RouteFacts, Tensor
from gateway.audit.frame import (
    HEADER_BYTES,
    Caller,
    Events,
    Frame,
    Run,
    RunTensor,
    encoder,
    expand,
    open_frame,
    scan,
    seal,
)
from gateway.audit.identity import EventId
from gateway.errors import FrameCorrupt

SOURCE, EPOCH = 0xABCDEF, 7
MODEL = ModelFacts("m", "1", "11" * 32, None, None, "rt")
STAGES = ("admit", "decode", "route", "queue", "encode")


class Request(msgspec.Struct):
    """One request of a run, as a test makes it up."""

    rows: int
    capture: str
    words: tuple[bytes, ...]
    unit: int | None
    request_id: str | None
    endpoint: str
    status: int
    ns: int


REQUEST = st.builds(
    Request,
    rows=st.integers(1, 4),
    capture=st.sampled_from(["full", "hash"]),
    words=st.tuples(*[st.binary(max_size=5)] * 4),
    unit=st.none() | st.integers(0, 2**64 - 1),
    request_id=st.none() | st.text(max_size=4),
    endpoint=st.sampled_from(["/a", "/b"]),
    status=st.sampled_from([200, 504]),
    ns=st.integers(0, 2**60),
)


def tensors_of(request: Request) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    """(name, datatype, row shape, bytes) of a request's tensors: fixed width, bits, and strings."""
    floats = bytes((request.ns + i) % 256 for i in range(request.rows * 2 * 4))
    flags = bytes(request.rows)
    words = b"".join(len(w).to_bytes(4, "little") + w for w in request.words[: request.rows])
    return [("f", "FP32", (2,), floats), ("b", "BOOL", (1,), flags), ("s", "BYTES", (), words)]


def column(values: list[Any]) -> list[Any]:
    """A column, as one value where all agree."""
    return values[:1] if all(v == values[0] for v in values) else values


def run_of(requests: list[Request], before: list[Request], total_rows: int) -> Run:
    """The frame of `requests`, a part of a run of `total_rows` with `before` in earlier frames."""
    sets = [tensors_of(r) for r in requests]
    made = []
    for k, (name, datatype, tail, _) in enumerate(sets[0]):
        data = b"".join(s[k][3] for s, r in zip(sets, requests, strict=True) if r.capture == "full")
        digests = [
            None if r.capture == "full" else hashlib.sha256(s[k][3]).hexdigest()
            for s, r in zip(sets, requests, strict=True)
        ]
        made.append(RunTensor(name, datatype, tail, data, True, digests if any(digests) else ()))
    return Run(
        model=msgspec.Raw(encoder.encode(MODEL)),
        batch_id=3,
        cut="turn",
        infer_ns=5,
        rows=column([r.rows for r in requests]),
        received_ns=[r.ns for r in requests],
        done_ns=column([r.ns for r in requests]),
        route=[msgspec.Raw(encoder.encode(RouteFacts(1, 1, "1", "1", None, "weight")))],
        unit_hash=column([r.unit for r in requests]),
        caller=column([msgspec.Raw(encoder.encode(Caller(r.endpoint, "oip-json", None))) for r in requests]),
        stages=[column([r.ns % 7 for r in requests]) for _ in STAGES],
        inputs=made,
        outputs=made[:1],
        request_id=column([r.request_id for r in requests]),
        status=column([r.status for r in requests]),
        capture=column([r.capture for r in requests]),
        batch_rows=total_rows,
        batch_row0=sum(r.rows for r in before),
    )


def event_of(request: Request, seq: int, row0: int, total_rows: int) -> Prediction:
    """What the log must say of a request."""
    parts = [
        Tensor(name, datatype, (request.rows, *tail), data)
        if request.capture == "full"
        else Tensor(name, datatype, (request.rows, *tail), None, hashlib.sha256(data).hexdigest())
        for name, datatype, tail, data in tensors_of(request)
    ]
    unit = None if request.unit is None else f"{request.unit:016x}"
    return Prediction(
        kind="done",
        id=str(EventId(SOURCE, EPOCH, seq)),
        received_ns=request.ns,
        done_ns=request.ns,
        request_id=request.request_id,
        endpoint=request.endpoint,
        protocol="oip-json",
        rows=request.rows,
        route=RouteFacts(1, 1, "1", "1", None, "weight", unit),
        model=MODEL,
        batch=BatchFacts(3, total_rows, row0, "turn"),
        inputs=parts,
        outputs=parts[:1],
        stage_ns={**dict.fromkeys(STAGES, request.ns % 7), "infer": 5},
        status=request.status,
        capture=request.capture,
    )


def stored(first_seq: int, count: int, content: Run | Events) -> Frame:
    """Through its bytes."""
    data = seal(first_seq, count, encoder.encode(content))
    frame, following = open_frame(data, 0, len(data))
    assert following == len(data)
    return frame


@settings(deadline=None, max_examples=20)
@given(st.lists(REQUEST, min_size=1, max_size=6), st.data())
def test_a_run_reads_back_however_it_is_cut(requests, data):
    """One frame or several, in full or by hash: the same events."""
    total = sum(r.rows for r in requests)
    wanted, row0 = [], 0
    for i, request in enumerate(requests):
        wanted.append(event_of(request, 10 + i, row0, total))
        row0 += request.rows
    cuts = data.draw(st.sets(st.integers(1, len(requests) - 1)) if len(requests) > 1 else st.just(set()))
    edges = [0, *sorted(cuts), len(requests)]
    got = []
    for start, end in zip(edges, edges[1:], strict=False):
        part = run_of(requests[start:end], requests[:start], total)
        got += expand(SOURCE, EPOCH, stored(10 + start, end - start, part))
    assert got == wanted
    assert expand(SOURCE, EPOCH, stored(10, len(requests), run_of(requests, [], 0))) == wanted


def test_unbatched_tensors_keep_their_whole_shape():
    """A run of one request that is not batched: the tail is the whole shape."""
    request = Request(1, "full", (b"",) * 4, None, None, "/a", 200, 1)
    run = run_of([request], [], 0)
    run.inputs = [RunTensor("x", "UINT8", (2, 3), bytes(6), False)]
    (event,) = expand(SOURCE, EPOCH, stored(0, 1, run))
    assert event.inputs == [Tensor("x", "UINT8", (2, 3), bytes(6))]


@pytest.mark.parametrize("change", ["column", "bytes", "count", "content"])
def test_frames_that_contradict_themselves(change):
    """A frame whose content does not fit its numbers is corrupt, not guessed at."""
    request = Request(1, "full", (b"",) * 4, None, None, "/a", 200, 1)
    run = run_of([request, request, request], [], 0)
    if change == "column":
        run.received_ns = [1, 2]
    elif change == "bytes":
        run.inputs[0].data += b"\0"
    content: Any = (
        Events([Heartbeat()]) if change == "count" else {"frame": "?"} if change == "content" else run
    )
    with pytest.raises(FrameCorrupt):
        expand(SOURCE, EPOCH, stored(0, 3, content))


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6), st.integers(0, 10**6), st.integers(1, 255))
def test_scan_ends_at_the_first_damage(payloads, where, flip):
    """A changed byte hides the frame it is in and those behind it; those before it read as they were."""
    frames = [seal(i, 1, payload) for i, payload in enumerate(payloads)]
    data = bytearray(b"".join(frames))
    at = where % len(data)
    data[at] ^= flip
    hit = next(i for i in range(len(frames)) if at < sum(map(len, frames[: i + 1])))
    got = [frame.payload for _, frame in scan(data, 0, len(data))]
    padding = at - sum(map(len, frames[:hit])) >= HEADER_BYTES + len(payloads[hit])
    assert got == (payloads if padding else payloads[:hit])


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=40), st.data())
def test_a_torn_frame_is_no_frame(payload, data):
    """A frame cut short anywhere before its padding is not one."""
    whole = seal(3, 1, payload)
    size = data.draw(st.integers(0, HEADER_BYTES + len(payload) - 1))
    with pytest.raises(FrameCorrupt):
        open_frame(whole[:size], 0, size)


def _one(**changed: Any) -> bytes:
    request = Request(1, "full", (b"a",) * 4, 1, None, "/a", 200, 5)
    return encoder.encode(msgspec.structs.replace(run_of([request], [], 1), **changed))


@pytest.mark.parametrize("count", [100_000, 2**32 - 1])
def test_a_count_that_a_frame_has_no_bytes_for_fills_no_memory(count: int):
    """Columns of one value stand for many requests, but for no more than the frame can hold."""
    with pytest.raises(FrameCorrupt, match=f"says {count} requests"):
        expand(SOURCE, EPOCH, Frame(0, count, _one()))


def test_a_shape_of_more_texts_than_there_are_bytes_ends():
    """A shape is no reason to count to 2**60."""
    endless = RunTensor("s", "BYTES", (2**60,), b"\0\0\0\0" * 4)
    with pytest.raises(FrameCorrupt, match="texts"):
        expand(SOURCE, EPOCH, Frame(0, 1, _one(inputs=[endless])))
