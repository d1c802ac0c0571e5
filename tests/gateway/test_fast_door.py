"""The fast door by itself: one connection, a transport that keeps what is written, a core that does not answer."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import uvicorn
from uvicorn.server import ServerState

from gateway.api.fast import FastProtocol

BODY = b'{"inputs":[]}'
REQUEST = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> Any:
        return None

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def write_eof(self) -> None:
        pass


class Waiting:
    """A core whose requests wait until the test answers them."""

    def __init__(self) -> None:
        self.sinks: list[Any] = []

    def caller(self, endpoint: str, protocol: str, principal: str | None) -> msgspec.Raw:
        return msgspec.Raw(b"")

    def receive(self, head: Any, body: bytes, sink: Any, received_ns: int) -> None:
        assert body == BODY
        self.sinks.append(sink)


def connect(core: Waiting) -> FastProtocol:
    settings = uvicorn.Config(app=None, log_config=None, server_header=False)
    settings.load()
    door = FastProtocol.bind(core, takes_fast=True, connections_max=4)
    made = door(settings, ServerState(), {}, _loop=asyncio.get_running_loop())
    made.connection_made(Transport())
    return made


def test_a_client_that_left_is_known_to_what_it_has_in_flight() -> None:
    """A request whose head was repeated is marked as left, also when another one waits behind it."""

    async def main() -> None:
        core = Waiting()
        door = connect(core)
        door.data_received(REQUEST)
        core.sinks[0].reply(200, b"content-length: 0\r\n", b"")
        door.data_received(REQUEST)
        door.data_received(REQUEST)
        assert len(core.sinks) == 2
        door.connection_lost(None)
        assert core.sinks[1].disconnected

    asyncio.run(main())
