"""Large binary bodies at the fast door: put together from any pieces, counted until they are answered."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from path import Path_, Sink, until
from test_fast_door import REQUEST, Waiting, connect

from gateway.api.large import ALIGN_BYTES, LargeCycle
from gateway.api.leaving import BYTES_PER_S

LARGE_BYTES = 400_000
JSON_BYTES = 77
BODY = bytes(range(256)) * (LARGE_BYTES // 256) + b"end"


def _request(body: bytes, json_bytes: int = JSON_BYTES, more: bytes = b"") -> bytes:
    return (
        b"POST /v2/models/m/infer HTTP/1.1\r\nhost: h\r\n%bcontent-length: %d\r\n"
        b"inference-header-content-length: %d\r\n\r\n" % (more, len(body), json_bytes)
    ) + body


class Taking(Waiting):
    """Keeps the bodies of large requests as well."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[memoryview] = []

    def receive_binary(self, head: Any, body: memoryview, sink: Any, received_ns: int) -> None:
        self.bodies.append(body)
        self.sinks.append(sink)


async def _turns(count: int = 50) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, len(_request(BODY)) - 1), max_size=12, unique=True))
def test_any_pieces_make_the_same_body(cuts: list[int]) -> None:
    """However the network cuts a large request and the small one behind it, both arrive as they were sent."""

    async def main() -> None:
        core = Taking()
        door = connect(core)
        sent = _request(BODY) + REQUEST
        edges = [0, *sorted(cuts), len(sent)]
        for start, stop in zip(edges, edges[1:], strict=False):
            door.data_received(sent[start:stop])
            await _turns()
        assert [bytes(body) for body in core.bodies] == [BODY]
        core.sinks[0].reply(200, b"content-length: 0\r\n", b"")
        await _turns()
        assert len(core.sinks) == 2

    asyncio.run(main())


def test_bytes_that_trickle_in_take_no_more_than_they_are() -> None:
    """Small parts are gathered: a list of single bytes would take sixty times as much as the body."""
    cycle = LargeCycle(None, 0)
    for _ in range(10_000):
        cycle.take(b"x")
    assert len(cycle._parts) == 1
    assert bytes(cycle.whole()) == b"x" * 10_000


def test_the_first_tensor_stands_in_line() -> None:
    """Behind JSON of any length the numbers begin where a processor reads them best."""
    for json_bytes in range(40):
        cycle = LargeCycle(None, json_bytes)
        cycle.take(bytes(LARGE_BYTES))
        view = np.frombuffer(cycle.whole()[json_bytes:], np.uint8)
        assert view.ctypes.data % ALIGN_BYTES == 0


def test_a_body_counts_until_it_is_answered() -> None:
    """What a worker holds of bodies is what comes, not what is claimed, and goes with the answer."""

    async def main() -> None:
        core = Taking()
        door = connect(core)
        sent = _request(BODY)
        door.data_received(sent[:100_000])
        await _turns()
        head_bytes = len(sent) - len(BODY)
        assert door.crowd.held_bytes == 100_000 - head_bytes
        door.data_received(sent[100_000:])
        await _turns()
        assert door.crowd.held_bytes == len(BODY)
        core.sinks[0].reply(200, b"content-length: 0\r\n", b"")
        assert door.crowd.held_bytes == 0
        door.data_received(sent)
        await _turns()
        core.sinks[1].reply(503, b"content-length: 0\r\n", b"")
        assert door.crowd.held_bytes == 0

    asyncio.run(main())


def test_a_client_that_leaves_takes_its_bytes_along() -> None:
    """Nothing stays counted of a body that was not whole, nor of one that is worked on."""

    async def main() -> None:
        core = Taking()
        door = connect(core)
        door.data_received(_request(BODY)[:300_000])
        door.connection_lost(None)
        assert door.crowd.held_bytes == 0
        again = connect(core)
        again.data_received(_request(BODY))
        await _turns()
        again.connection_lost(None)
        core.sinks[0].reply(200, b"content-length: 0\r\n", b"")
        core.sinks.clear()
        assert again.crowd.held_bytes == 0

    asyncio.run(main())


def test_what_a_client_left_behind_counts_until_it_is_dropped() -> None:
    """A body that waits to run is in memory although nobody waits for its answer."""

    async def main() -> None:
        core = Taking()
        door = connect(core)
        door.data_received(_request(BODY))
        await _turns()
        crowd = door.crowd
        door.connection_lost(None)
        del door
        assert crowd.held_bytes == len(BODY)
        core.sinks.clear()
        assert crowd.held_bytes == 0

    asyncio.run(main())


def test_a_body_that_stops_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What came fast before does not buy the rest an hour; a body that goes on may take as long as it needs."""

    async def main() -> None:
        core = Taking()
        door = connect(core)
        now_s = door.loop.time()
        sent = _request(BODY)
        door.data_received(sent[:-1])
        await _turns()
        limits = door.crowd.limits
        door.reap(now_s + limits.body_s + 1)
        assert not door._deaf
        door.reap(now_s + 2 * (limits.body_s + 1) + 1)
        assert door._deaf
        assert b"408" in door.transport.written
        again = connect(core)
        now_s = again.loop.time()
        step = int(BYTES_PER_S * (limits.body_s + 2))
        for start in range(0, len(sent) - 1, step):
            again.data_received(sent[start : start + step])
            await _turns()
            now_s += limits.body_s + 1
            again.reap(now_s)
        assert not again._deaf

    asyncio.run(main())


def test_the_connection_keeps_its_head_meanwhile() -> None:
    """The parts of a large body are no requests that miss the head that is kept."""

    async def main() -> None:
        core = Taking()
        door = connect(core)
        door.data_received(REQUEST)
        core.sinks[-1].reply(200, b"content-length: 0\r\n", b"")
        assert door._before is not None
        sent = _request(BODY)
        for start in range(0, len(sent), 20_000):
            door.data_received(sent[start : start + 20_000])
            await _turns(3)
        core.sinks[-1].reply(200, b"content-length: 0\r\n", b"")
        assert door._before is not None

    asyncio.run(main())


def test_large_json_goes_the_other_way() -> None:
    """JSON that would hold the loop up is the Starlette door's, whatever it says of itself."""

    async def main() -> None:
        core = Taking()
        door = connect(core)
        asked: list[dict[str, Any]] = []

        async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
            asked.append(scope)

        door.app = app  # type: ignore[assignment]
        door.data_received(_request(BODY, json_bytes=300_000)[:5000])
        await _turns()
        assert len(asked) == 1
        assert not core.sinks

    asyncio.run(main())


def test_a_large_request_is_logged_by_the_digest_that_its_lane_made(tmp_path: Path) -> None:
    """The core takes a view of a body, and the log has the hash of what the model was given."""

    async def main() -> None:
        path = Path_(tmp_path, "audit.capture_max_bytes=1024", "batch.inline_us=0", "batch.lanes=1")
        rows = np.arange(1000, 5000, dtype="<f4").reshape(-1, 4)
        blob = rows.tobytes()
        text = (
            b'{"inputs":[{"name":"X","datatype":"FP32","shape":[1000,4],"parameters":{"binary_data_size":%d}}]}'
            % len(blob)
        )
        sink = Sink()
        path.core.receive_binary(
            path.head(json_bytes=len(text)), memoryview(text + blob), sink, time.perf_counter_ns()
        )
        await until(lambda: sink.status)
        assert sink.body["outputs"][0]["data"] == rows.sum(axis=1).tolist()
        (event,) = path.predictions()
        assert event.inputs[0].sha256 == hashlib.sha256(blob).hexdigest()
        path.close()

    asyncio.run(main())


def test_large_text_is_decoded_beside_the_loop(tmp_path: Path) -> None:
    """Strings are looked at one by one: megabytes of them would hold the loop up."""

    async def main() -> None:
        path = Path_(tmp_path)
        codec = path.models.get("sum").codec
        codec.walks = True
        threads: list[str] = []
        decode = codec.decode

        def seen(*args: Any) -> None:
            threads.append(threading.current_thread().name)
            decode(*args)

        codec.decode = seen
        sink = Sink()
        text = (
            b'{"inputs":[{"name":"X","datatype":"FP32","shape":[1,4],"parameters":{"binary_data_size":16}}]}'
        )
        path.core.receive_binary(
            path.head(json_bytes=len(text)), memoryview(text + bytes(16)), sink, time.perf_counter_ns()
        )
        await until(lambda: sink.status)
        assert sink.status == 200
        assert threads[0].startswith("decode")
        path.close()

    asyncio.run(main())


def test_a_large_request_for_no_model_is_refused(tmp_path: Path) -> None:
    """Whoever asks for what is not there is told so, by either way in."""

    async def main() -> None:
        path = Path_(tmp_path)
        sink = Sink()
        path.core.receive_binary(path.head(model="gone", json_bytes=2), memoryview(b"{}"), sink, 0)
        assert (sink.status, sink.body["code"]) == (404, "unknown_model")
        sink = Sink()
        path.core.receive_binary(path.head(version="9", json_bytes=2), memoryview(b"{}"), sink, 0)
        assert sink.status == 404
        path.close()

    asyncio.run(main())
