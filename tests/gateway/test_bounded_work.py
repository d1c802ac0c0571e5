"""What one request may cost a worker: work that a few bytes ask for is bounded, and whatever is refused is told."""

from __future__ import annotations

import asyncio
import gzip
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest

from gateway.admission import check_reply
from gateway.api.codec import Codec
from gateway.api.compression import accepted
from gateway.api.crowd import Limits
from gateway.api.forms import CLASSES_MAX, Described, best_classes
from gateway.api.incoming import Held, Room
from gateway.api.openapi import paths_of
from gateway.api.problems import reply_of
from gateway.api.v1 import Rows
from gateway.batching import Inference
from gateway.errors import InvalidRequest, Overloaded
from loaders.signature import Signature, TensorSpec
from tests.gateway.path import SIGNATURE
from tests.gateway.test_fast_door import REQUEST, Waiting, connect


def test_long_accept_encoding_is_not_taken_apart() -> None:
    """Thousands of codings in one head would be as many steps on the loop."""
    assert accepted(b"gzip," + b"a," * 500) == "gzip"
    assert accepted(b"gzip," + b"a," * 16_000) is None


def test_classes_of_one_reply_are_bounded() -> None:
    """Each is a string; a million rows ask for millions with one parameter."""
    rows = CLASSES_MAX // 2
    assert best_classes(np.zeros((rows, 2), np.float32), 2, None, batched=True).shape == (rows, 2)
    with pytest.raises(InvalidRequest, match=f"2 classes for each of {rows + 1} rows"):
        best_classes(np.zeros((rows + 1, 2), np.float32), 2, None, batched=True)


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs":{"\\ud800":NaN}}',
        b'{"instances":[[' + b'{"a":' * 1015 + b"1" + b"}" * 1015 + b"]]}",
        b'{"instances":[["\\ud800",NaN]]}',
    ],
)
def test_refusal_can_be_told_whatever_it_quotes(body: bytes) -> None:
    """Half a surrogate pair is no UTF-8; an object may be as deep as any: the client is told, not cut off."""
    codec = Codec("sum", SIGNATURE, batchable=True)
    with pytest.raises(InvalidRequest) as refused:
        codec.decode_v1(body, None, Inference(None, 0))
    status, _, told = reply_of(refused.value)
    assert status == 400
    assert orjson.loads(told)["code"] == "invalid_request"


def test_inflated_bodies_are_counted_until_they_are_answered() -> None:
    """A connection counts what was sent; what it inflates to is a thousand times that, and is held as well."""

    async def main() -> None:
        room = Room(5000)
        first, second = Held(room), Held(room)
        packed = gzip.compress(bytes(3000))
        assert len(await first.inflated(packed, "gzip", 4000)) == 3000
        with pytest.raises(Overloaded):
            await second.inflated(packed, "gzip", 4000)
        second.let_go()
        first.let_go()
        assert len(await second.inflated(packed, "gzip", 4000)) == 3000
        second.let_go()
        assert room.held_bytes == 0

    asyncio.run(main())


def test_model_of_large_rows_has_no_example() -> None:
    """An example of millions of numbers would hold the loop up for seconds, for anyone who asks."""

    def examples(*shape: int) -> list[bool]:
        signature = Signature((TensorSpec("X", "FP32", shape),), SIGNATURE.outputs)
        version = SimpleNamespace(model="m", signature=signature, batchable=True)
        posts = [path["post"] for path in paths_of(version).values() if "post" in path]  # type: ignore[arg-type]
        return ["example" in post["requestBody"]["content"]["application/json"] for post in posts]

    assert examples(-1, 4096) == [True, True]
    assert examples(-1, 3, 1024, 1024) == [False, False]


def test_small_request_behind_a_large_one_lets_nothing_of_it_go() -> None:
    """Bodies that are being worked on count, or a pipelined few bytes would make room for more of them."""

    async def main() -> None:
        door = connect(Waiting())
        large = Limits().body_max_bytes // 64
        door.app = _never  # type: ignore[assignment]
        head = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % large
        door.data_received(head)
        door.data_received(bytes(large))
        assert door.crowd.held_bytes == large
        door.data_received(REQUEST[:-5])
        door.data_received(REQUEST[-5:])
        assert door.crowd.held_bytes == large
        door.cycle.disconnected = True
        door.connection_lost(None)
        assert door.crowd.held_bytes == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("rows", "form", "taken"),
    [
        (100, None, True),
        (101, None, False),
        (101, Rows(101), False),
        (101, Described((0, 1), (True, False), (0, 0)), False),
        (101, Described((0, 1), (True, True), (0, 0)), True),
    ],
)
def test_reply_in_json_is_bounded(rows: int, form: Any, taken: bool) -> None:
    """Binary rows are taken by the million; as JSON the loop would stand still while they are written."""
    inference = Inference(None, 0, rows=rows, form=form)
    version = SimpleNamespace(model="m", json_rows=100)
    with nullcontext() if taken else pytest.raises(InvalidRequest, match="ask for binary outputs"):
        check_reply(version, inference)  # type: ignore[arg-type]


async def _never(scope: object, receive: object, send: object) -> None:
    await asyncio.sleep(0)
