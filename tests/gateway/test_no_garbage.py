"""What is left when a connection ends: nothing that only the garbage collector would find."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from tests.gateway.test_fast_door import BODY, REQUEST, Waiting, connect

FIELDS = b"host: h\r\ncontent-length: %d\r\n\r\n" % len(BODY)
CHUNKED = b"POST /v1/models/m:predict HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [REQUEST],
        [REQUEST, REQUEST],
        [REQUEST * 3],
        [REQUEST[:-3]],
        [b"POST /v2/models/m/infer HTTP/1.1\r\n" + FIELDS[9:] + BODY],
        [REQUEST.replace(b"host: h", b"host: h\r\nx-request-timeout-ms: no")],
        [REQUEST, REQUEST.replace(b"host: h", b"host: h\r\nhost: i")],
        [b"POST /v2/models/m\xe4/infer HTTP/1.1\r\n" + FIELDS],
        [b"\x16\x03\x01\x02\x00"],
        [b"GET /v2 HTTP/1.1\r\nhost: h\r\n\r\n"],
        [CHUNKED, b"1\r\nx\r\n" * 1100],
        [REQUEST, CHUNKED + b"1\r\nx\r\n" * 1100],
    ],
)
@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("lost", [None, ConnectionResetError()])
def test_connection_that_is_lost_leaves_no_garbage(
    pieces: list[bytes], answered: bool, lost: Exception | None
) -> None:
    """Bodies hang on it, and the collector comes late and then holds the loop up: counted references are enough."""

    async def main() -> Any:
        core = Waiting()
        door = connect(core)
        door.app = _ends  # type: ignore[assignment]
        gone = weakref.ref(door)
        for piece in pieces:
            door.data_received(piece)
            if answered and core.sinks:
                core.sinks[-1].reply(200, b"content-length: 0\r\n", b"")
        await asyncio.sleep(0)
        door.connection_lost(lost)
        for _ in range(4):
            await asyncio.sleep(0)
        core.sinks.clear()
        del door
        return gone

    gone = asyncio.run(main())
    assert gone() is None


async def _ends(scope: object, receive: Any, send: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
