"""Sizing of frames: whatever a request carries, its record fits the ring, and no one is left without an answer."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import counting
from gateway import fleet as words_of
from loaders.signature import Signature, TensorSpec
from tests.gateway.path import Path_, Sink, SumSession, until

LABELLED = Signature(
    (TensorSpec("X", "FP32", (-1, 4)),),
    (TensorSpec("Y", "FP32", (-1, 1)), TensorSpec("label", "BYTES", (-1,))),
)


class Labels(SumSession):
    """Beside the sum, each row's first number many letters long."""

    def __init__(self) -> None:
        super().__init__(LABELLED)

    def run(self, feeds: dict[str, Any], names: Any = None, options: Any = None) -> list[Any]:
        texts = np.array(["\u00e9" * int(n) for n in feeds["X"][:, 0]], dtype=object)
        return [*super().run(feeds, names, options), texts]


def body(rows: list[list[float]], **more: Any) -> bytes:
    flat = [value for row in rows for value in row]
    tensor = {"name": "X", "datatype": "FP32", "shape": [len(rows), 4], "data": flat}
    return orjson.dumps({"inputs": [tensor], **more})


letters = st.integers(0, 1500).map(lambda n: 2 * n + 1)
request = st.tuples(st.integers(0, 4000), st.integers(0, 16_000), st.integers(1, 60), letters)


@settings(max_examples=60, deadline=None)
@given(st.lists(request, min_size=1, max_size=12))
def test_every_request_of_a_turn_is_answered_and_logged(asked: list[tuple[int, int, int, int]]) -> None:
    """Ids, parameters, rows and texts of any permitted size: all are 200, all events are there, frames fit."""

    async def main(tmp_path: Path) -> None:
        path = Path_(tmp_path, session=Labels(), ring_bytes=512 * 1024)
        sinks = [Sink() for _ in asked]
        for sink, (id_, note, rows, long) in zip(sinks, asked, strict=True):
            text = body([[long, 0, 0, 0]] * rows, id="i" * id_, parameters={"note": "n" * note})
            path.send_body(text, sink, traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
        events: list[Any] = []
        for _ in range(200):
            await asyncio.sleep(0)
            events += path.predictions()
        await until(lambda: all(sink.status for sink in sinks))
        assert [sink.status for sink in sinks] == [200] * len(sinks)
        events += path.predictions()
        assert sorted(len(event.parameters["note"]) for event in events) == sorted(n for _, n, _, _ in asked)
        assert path.core.inflight == 0
        path.close()

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(main(Path(directory)))


def test_many_names_take_room_too(tmp_path: Path) -> None:
    """A model with many inputs of long names: its frames are split in time, not refused by the ring."""
    specs = tuple(TensorSpec(f"{'feature' * 14}{n}", "FP32", (-1, 1)) for n in range(100))

    class Wide(SumSession):
        def run(self, feeds, names=None, options=None):
            return [sum(feeds.values())]

    async def main() -> None:
        path = Path_(tmp_path, session=Wide(Signature(specs, LABELLED.outputs[:1])), ring_bytes=512 * 1024)
        sinks = [Sink() for _ in range(60)]
        for sink in sinks:
            inputs = [{"name": s.name, "datatype": "FP32", "shape": [1, 1], "data": [1]} for s in specs]
            path.send_body(orjson.dumps({"inputs": inputs, "id": "i" * 900}), sink)
        await until(lambda: all(sink.status for sink in sinks))
        assert {sink.status for sink in sinks} == {200}
        assert len(path.predictions()) == 60
        path.close()

    asyncio.run(main())


def test_what_is_logged_by_hash_takes_no_room(tmp_path: Path) -> None:
    """Requests whose tensors are logged by hash share one frame, however large the tensors are."""

    async def main() -> None:
        session = SumSession()
        session.warm_cost_ns[4096] = 1000
        path = Path_(tmp_path, "audit.capture_max_bytes=1000", "batch.max_rows=8000", session=session)
        sinks = [path.send([[1.0, 2, 3, 4]] * 1000) for _ in range(8)]
        await until(lambda: all(sink.status for sink in sinks))
        frames, _, _ = path.ring.read(0, 1 << 30)
        assert [frame.count for frame in frames] == [1, 8]
        assert {event.capture for event in path.predictions()} == {"hash"}
        path.close()

    asyncio.run(main())


def test_capture_counts_the_tensors_alone(tmp_path: Path) -> None:
    """`audit.capture_max_bytes` is about tensors: exactly so many are in full, an id does not count."""

    async def main() -> None:
        path = Path_(tmp_path, "audit.capture_max_bytes=20")
        sinks = [Sink(), Sink()]
        path.send_body(body([[1, 2, 3, 4]], id="i" * 2000), sinks[0])
        path.send_body(body([[1, 2, 3, 4]] * 2), sinks[1])
        await until(lambda: all(sink.status for sink in sinks))
        assert [event.capture for event in path.predictions()] == ["full", "hash"]
        path.close()

    asyncio.run(main())


def test_what_no_frame_takes_is_answered_and_logged(tmp_path: Path) -> None:
    """Should a payload be larger than was reckoned, its requests get an error each, the others an answer."""

    async def main() -> None:
        path = Path_(tmp_path, ring_bytes=128 * 1024)
        room, capture = path.core.delivery.limits
        path.core.delivery.limits = (3 * room, capture)
        sinks = [Sink() for _ in range(8)]
        for n, sink in enumerate(sinks):
            path.send_body(body([[n, 0, 0, 0]], parameters={"note": "n" * 12_000 if n < 4 else ""}), sink)
        await until(lambda: all(sink.status for sink in sinks))
        assert [sink.status for sink in sinks] == [500] * 3 + [200] * 5
        path.core.turn()
        assert path.core.inflight == 0
        counting.publish()
        words = path.fleet.slot(0, 0)
        counted = ("ADMITTED", "RECORDED", "DONE", "FAILED")
        assert [words[getattr(words_of, name)] for name in counted] == [8, 8, 5, 3]
        assert sorted(event.status for event in path.predictions()) == [200] * 5 + [500] * 3
        path.close()

    asyncio.run(main())
