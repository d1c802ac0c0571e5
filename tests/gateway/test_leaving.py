"""Connections of a worker that stops, one by one: who is told, who is closed, who is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from gateway.api.fast import FastProtocol
from tests.gateway.test_fast_door import REQUEST, Waiting, connect

FIELDS = b"content-length: 0\r\n"
CLOSE = b"connection: close\r\n"


def run(check: Callable[[Waiting, FastProtocol], None]) -> None:
    """Check one new connection, on a loop."""

    async def main() -> None:
        core = Waiting()
        check(core, connect(core))

    asyncio.run(main())


def answer(core: Waiting, door: FastProtocol) -> bytes:
    """What is written when the core answers its last request."""
    before = len(door.transport.written)
    core.sinks[-1].reply(200, FIELDS, b"")
    return door.transport.written[before:]


def test_a_kept_head_is_told_too() -> None:
    """A connection whose head is kept reads its next request with the parser, and ends with the answer."""

    def check(core: Waiting, door: FastProtocol) -> None:
        door.data_received(REQUEST)
        assert CLOSE not in answer(core, door)
        assert door._before is not None
        door.go_lame()
        door.data_received(REQUEST)
        assert CLOSE in answer(core, door)
        assert door.transport.closed

    run(check)


def test_what_is_in_flight_tells() -> None:
    """A request that runs when the worker is told to stop is answered with the close."""

    def check(core: Waiting, door: FastProtocol) -> None:
        door.data_received(REQUEST)
        door.go_lame()
        assert not door.transport.closed
        assert CLOSE in answer(core, door)
        assert door.transport.closed

    run(check)


def test_of_a_pipeline_the_last_tells() -> None:
    """Requests that came before any answer told are all answered; the close comes with the last."""

    def check(core: Waiting, door: FastProtocol) -> None:
        door.data_received(REQUEST + REQUEST)
        door.go_lame()
        assert CLOSE not in answer(core, door)
        assert not door.transport.closed
        door._submit(door._running)
        assert CLOSE in answer(core, door)
        assert door.transport.closed

    run(check)


@pytest.mark.parametrize("already", [b"POST", REQUEST[:30], REQUEST[:-3]], ids=["word", "head", "body"])
def test_the_end_of_the_lame_duck_time_cuts_no_request(already: bytes) -> None:
    """A request that has begun to come, the connection's first too, is waited for and answered."""

    def check(core: Waiting, door: FastProtocol) -> None:
        door.data_received(already)
        door.go_lame()
        door.shutdown()
        assert not door.transport.closed
        door.data_received(REQUEST[len(already) :])
        assert CLOSE in answer(core, door)
        assert door.transport.closed
        assert door.crowd.lame_closed == 0

    run(check)


def test_idle_ones_go_when_the_time_is_over() -> None:
    """A connection that asks nothing is closed and counted, one that left before is not counted."""

    def check(core: Waiting, door: FastProtocol) -> None:
        door.go_lame()
        assert not door.transport.closed
        door.shutdown()
        assert door.transport.closed
        assert door.crowd.lame_closed == 1
        door.shutdown()
        assert door.crowd.lame_closed == 1

    run(check)


def test_one_accepted_just_before_is_told() -> None:
    """A connection that was taken from the queue as the worker was told to stop is lame from its start."""

    def check(core: Waiting, door: FastProtocol) -> None:
        door.crowd.lame = True
        late = type(door)(door.config, door.server_state, {}, _loop=door.loop)
        late.connection_made(type(door.transport)())
        late.data_received(REQUEST)
        assert CLOSE in answer(core, late)

    run(check)
