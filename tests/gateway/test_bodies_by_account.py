"""Bodies on their way in are counted by whose they are: many slow uploads of one client leave room for others."""

from __future__ import annotations

import asyncio

import pytest
import uvicorn
from uvicorn.server import ServerState

from gateway.api.askers import Askers
from gateway.api.fast import FastProtocol
from gateway.fairness import Bodies
from gateway.settings import Allowance, Limits
from tests.gateway.test_fast_door import Transport, Waiting

BODY_BYTES, MOST_BYTES = 400_000, 500_000


def begun(path: bytes = b"/v2/models/m/infer", sent: int = 300_000) -> bytes:
    """The beginning of a large binary request."""
    return (
        b"POST %b HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\ninference-header-content-length: 77\r\n\r\n"
        % (path, BODY_BYTES)
    ) + b"x" * sent


async def turns() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.mark.parametrize("path", [b"/v2/models/m/infer", b"/v1/models/m:predict"])
def test_uploads_of_one_client_leave_room_for_others(path: bytes) -> None:
    """At both doors: the second upload of an address is refused with 429, another address's goes on; once the first
    is given up there is room again."""

    async def main() -> None:
        settings = uvicorn.Config(app=None, log_config=None, server_header=False)
        settings.load()
        bodies = Bodies(Limits(default=Allowance(bytes_max=MOST_BYTES)))
        made = FastProtocol.bind(
            Waiting(),  # type: ignore[arg-type]
            takes_fast=True,
            connections_max=9,
            askers=Askers(counts=True),
            bodies=bodies,
        )

        def connect(address: str) -> tuple[FastProtocol, Transport]:
            door = made(settings, ServerState(), {}, _loop=asyncio.get_running_loop())
            transport = Transport()
            door.connection_made(transport)  # type: ignore[arg-type]
            door.client = (address, 1)
            # No application answers here.
            door._start_asgi_task = lambda *_: None  # type: ignore[method-assign]
            return door, transport

        first, heard_first = connect("192.0.2.1")
        second, heard_second = connect("192.0.2.1")
        other, heard_other = connect("192.0.2.2")
        for door in (first, second, other):
            door.data_received(begun(path))
            await turns()
        assert heard_second.written.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: " in heard_second.written
        assert (heard_first.written, heard_other.written) == (b"", b"")
        first.connection_lost(None)
        again, heard_again = connect("192.0.2.1")
        again.data_received(begun(path))
        await turns()
        assert heard_again.written == b""
        for door in (second, other, again):
            door.connection_lost(None)
        assert bodies._bytes == {}

    asyncio.run(main())
