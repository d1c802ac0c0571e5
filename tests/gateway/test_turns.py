"""A turn: whom it waits for, and how its replies leave."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from gateway.api.cycle import FastCycle
from gateway.batching import Batch, Inference, VersionQueue
from gateway.core import JOIN_MIN, JOINS_MAX
from gateway.finite import _all_finite
from gateway.head import Head
from gateway.replies import Appended, reply_all
from tests.gateway.path import Path_

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_who_comes_while_others_are_read_joins_their_run(tmp_path: Path) -> None:
    """After several, the sockets are read again before the run, a bounded number of times; one alone runs at once."""

    async def main() -> None:
        path = Path_(tmp_path)
        sinks = [path.send([1, 2, 3, 4]) for _ in range(JOIN_MIN)]
        for _ in range(JOINS_MAX):
            await asyncio.sleep(0)
            assert not any(sink.status for sink in sinks)
            sinks += [path.send([1, 2, 3, 4]) for _ in range(JOIN_MIN)]
        await asyncio.sleep(0)
        assert {sink.status for sink in sinks} == {200}
        assert len({event.batch.id for event in path.predictions()}) == 1
        alone = path.send([1, 2, 3, 4])
        await asyncio.sleep(0)
        assert alone.status == 200
        path.close()

    asyncio.run(main())


def test_a_rest_of_a_few_rows_has_no_run_of_its_own() -> None:
    """What waits runs whole where it is a little more than a batch; beyond that batches are cut at their limit."""
    cost = SimpleNamespace(limit_rows=8, whole_rows=10, limit_ns=0)
    sizes = {}
    for count in (8, 10, 11):
        queue = VersionQueue(batchable=True)
        for _ in range(count):
            one = Inference(SimpleNamespace(disconnected=False), 0)
            one.deadline_ns = one.order_ns = 10
            queue.put(one)
        batches = iter(lambda queue=queue: queue.cut(0, "turn", cost, lambda *_: None), None)
        sizes[count] = [batch.rows for batch in batches]
    assert sizes == {8: [8], 10: [10], 11: [8, 3]}


class Door:
    """What a cycle needs of its connection."""

    def __init__(self) -> None:
        self.written = b""
        self.pipeline: list[object] = []
        self.replied = 0
        self.server_state = SimpleNamespace(default_headers=[(b"date", b"today")])
        self.transport = SimpleNamespace(write=self._write)

    def _write(self, data: bytes) -> None:
        self.written += data

    def after_reply(self, cycle: FastCycle) -> None:
        """Nothing waits."""


class InTwo(FastCycle):
    """A door that takes no reply in one piece."""

    __slots__ = ()

    def reply_whole(self, rest: bytes) -> bool:
        return False


@pytest.mark.parametrize("id_json", [None, b'"mine"'])
@pytest.mark.parametrize("traceparent", [None, TRACE])
@pytest.mark.parametrize("keep_alive", [True, False])
def test_a_reply_in_one_piece_is_the_reply(
    id_json: bytes | None, traceparent: str | None, keep_alive: bool
) -> None:
    """Byte for byte what the longer way writes, whatever the request has that the short way does not know."""
    encoder = SimpleNamespace(literals=lambda *_: [b'{"id":', b',"outputs":[', b"]}"])
    version = SimpleNamespace(encoder=encoder, batchable=True, json_body=None, model="m", version="1")
    written = []
    for kind in (FastCycle, InTwo):
        part, doors = [], []
        for _ in range(3):
            doors.append(Door())
            sink = kind(doors[-1])
            sink.keep_alive = keep_alive
            sink.head = Head("m", None, None, "", traceparent=traceparent)  # type: ignore[arg-type]
            part.append(Inference(sink, 0, id_json=id_json))
        part[1].sink.disconnected = True
        batch = Batch(part, 3, "turn")
        texts = [[b"1.0", b"22.0", b"333.0"]]
        reply_all(Appended(version, batch, part, 17, "spool", 0, texts, None), b"p", None, None, [])  # type: ignore[arg-type]
        written.append([door.written for door in doors])
    assert written[0] == written[1]
    first, gone, last = written[0]
    assert not gone
    assert b"x-prediction-id: p0000000000000011\r\n" in first
    assert b"333.0" in last
    assert b"x-prediction-id: p0000000000000013\r\n" in last
    assert int(last.partition(b"content-length: ")[2].split(b"\r\n")[0]) == len(
        last.partition(b"\r\n\r\n")[2]
    )


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
@pytest.mark.parametrize("value", [1.0, 6e4, 3e38, float("inf"), float("-inf"), float("nan")])
def test_finite_is_finite_also_where_squares_are_not(dtype: str, value: float) -> None:
    """The quick look is held against the plain one."""
    import numpy as np

    with np.errstate(over="ignore"):
        array = np.ones((3, 2)).astype(dtype)
        array[1, 1] = value
    assert _all_finite(array) is bool(np.isfinite(array).all())
