"""What one turn of the loop may do for all connections together: hundreds of sockets may be ready at once."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.api.connection import PIECE_BYTES
from gateway.api.crowd import TURN_MAX_NS, Crowd, Limits
from gateway.api.doors import TASK_NS
from gateway.api.incoming import JOINED_AT_ONCE_BYTES, Held, Room, read_body
from gateway.api.infer import _gone
from tests.gateway.test_fast_door import REQUEST, Transport, Waiting, connect


class Clock:
    """Processor time that a test lets pass."""

    def __init__(self) -> None:
        self.now_ns = 1

    def __call__(self) -> int:
        return self.now_ns


class Read(Transport):
    """Knows whether it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def crowded(core: Waiting, count: int, clock: Clock | None = None) -> tuple[list[Any], Clock]:
    """Connections of one worker, whose turns last as long as the clock says."""
    clock = clock or Clock()
    crowd = Crowd(Limits(), count, clock)
    doors = []
    for _ in range(count):
        door = connect(core)
        door.crowd = crowd
        door.connection_made(Read())
        doors.append(door)
    return doors, clock


def test_what_comes_in_a_spent_turn_waits_for_the_next() -> None:
    """A turn that parsed for long enough parses no more: the rest is not read on, and is first in the next turn."""

    async def main() -> None:
        core = Waiting()
        (first, second, third), clock = crowded(core, 3)
        first.data_received(REQUEST)
        clock.now_ns += TURN_MAX_NS
        second.data_received(REQUEST)
        third.data_received(REQUEST)
        assert len(core.sinks) == 1
        assert [door.transport.reading for door in (first, second, third)] == [True, False, False]
        while len(core.sinks) < 3:
            await asyncio.sleep(0)
        assert second.transport.reading
        assert third.transport.reading

    asyncio.run(main())


def test_those_that_wait_are_taken_while_a_turn_lasts() -> None:
    """All of them would be one long turn again; one of them a turn at least, or nobody would come on."""

    class Slow(Waiting):
        def receive(self, head: Any, body: bytes, sink: Any, received_ns: int) -> None:
            super().receive(head, body, sink, received_ns)
            clock.now_ns += TURN_MAX_NS // 2

    async def main() -> list[int]:
        core = Slow()
        doors = crowded(core, 6, clock)[0]
        for door in doors:
            door.data_received(REQUEST)
        taken = [len(core.sinks)]
        while taken[-1] < 6:
            await asyncio.sleep(0)
            taken.append(len(core.sinks))
        return taken

    clock = Clock()
    taken = asyncio.run(main())
    assert taken[0] == 2
    assert max(b - a for a, b in zip(taken, taken[1:], strict=False)) <= 2


def test_request_for_the_starlette_door_counts_its_task_too() -> None:
    """Tasks run in the turn behind: as many as a turn may parse would hold the loop up."""

    async def main() -> None:
        doors, clock = crowded(Waiting(), 2 + TURN_MAX_NS // TASK_NS)
        for door in doors:
            door.app = _never
            door.data_received(b"GET /v2 HTTP/1.1\r\nhost: h\r\n\r\n")
        assert clock.now_ns == 1
        assert doors[-2].cycle is not None
        assert doors[-1].cycle is None
        while doors[-1].cycle is None:
            await asyncio.sleep(0)

    asyncio.run(main())


def test_long_body_under_a_kept_head_counts() -> None:
    """The quick way asks nobody while bodies are small; quarter megabytes of JSON are no quick way."""

    async def main() -> None:
        core = Waiting()
        (door, other), clock = crowded(core, 2)
        door.data_received(REQUEST)
        core.sinks[0].reply(200, b"content-length: 0\r\n", b"")
        other.data_received(REQUEST)
        clock.now_ns += TURN_MAX_NS
        door.data_received(REQUEST)
        assert len(core.sinks) == 3
        core.sinks[2].reply(200, b"content-length: 0\r\n", b"")
        size = PIECE_BYTES
        head = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % size
        door.data_received(head + bytes(size))
        assert len(core.sinks) == 3
        assert not door.transport.reading

    asyncio.run(main())


def test_what_nobody_reads_is_thrown_away_in_turns_too() -> None:
    """A refused client goes on sending megabytes; reading them takes as long as if they were wanted."""

    async def main() -> None:
        (door, other), clock = crowded(Waiting(), 2)
        door.data_received(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 999999999\r\n\r\n")
        other.data_received(REQUEST)
        clock.now_ns += TURN_MAX_NS
        assert door.transport.reading
        door.data_received(bytes(PIECE_BYTES))
        assert not door.transport.reading
        while not door.transport.reading:
            await asyncio.sleep(0)

    asyncio.run(main())


def test_large_bodies_are_put_together_one_a_turn() -> None:
    """Copying or counting megabytes takes milliseconds, and hundreds of bodies may be whole in the same turn."""

    async def main() -> None:
        room = Room(1 << 30)
        turns = 0
        done: list[int] = []

        async def count() -> None:
            nonlocal turns
            while len(done) < 8:
                turns += 1
                await asyncio.sleep(0)

        waiting = [asyncio.create_task(room.in_turn(lambda: done.append(turns))) for _ in range(8)]
        await asyncio.gather(count(), *waiting)
        assert len(set(done)) == 8

    asyncio.run(main())


def test_small_body_waits_for_no_turn() -> None:
    """It is put together at once; a larger one behind all that came before it."""

    class Headers(dict[str, str]):
        def getlist(self, name: str) -> list[str]:
            return []

    class Request:
        headers = Headers()

        def __init__(self, size: int) -> None:
            self.size = size

        async def stream(self) -> Any:
            yield bytes(self.size)

    async def main() -> None:
        room = Room(1 << 30)
        before = asyncio.create_task(room.in_turn(len, b""))
        await asyncio.sleep(0)
        assert not before.done()
        small = read_body(Request(JOINED_AT_ONCE_BYTES), 1 << 30, Held(room))  # type: ignore[arg-type]
        assert len(await small) == JOINED_AT_ONCE_BYTES
        assert not before.done()
        large = read_body(Request(JOINED_AT_ONCE_BYTES + 1), 1 << 30, Held(room))  # type: ignore[arg-type]
        assert len(await large) == JOINED_AT_ONCE_BYTES + 1
        assert before.done()

    asyncio.run(main())


def test_client_that_left_is_noticed_without_asking_again_and_again() -> None:
    """Starlette's own question imports a framework on the loop when it is first asked."""

    class Request:
        def __init__(self) -> None:
            self.messages = ["http.request", "http.disconnect"]

        async def receive(self) -> dict[str, str]:
            return {"type": self.messages.pop(0)}

    asyncio.run(_gone(Request()))  # type: ignore[arg-type]


async def _never(scope: object, receive: object, send: object) -> None:
    await asyncio.sleep(0)
