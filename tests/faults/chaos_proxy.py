"""A TCP proxy on loopback that does to connections what networks do: slow, cut, silent, half closed, wrong.

In a thread of its own with its own event loop, so that tests of any kind stand before it. What it does can be changed
while connections are open, and holds for what comes from then on.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any

CHUNK_BYTES = 16 * 1024
HELD_POLL_S = 0.005


@dataclass(frozen=True)
class Weather:
    """What happens to bytes of one direction.

    Attributes:
        latency_ms: each byte comes so much later.
        bytes_per_s: no faster; 0: as fast as it goes.
        is_black_hole: bytes are taken and go nowhere; nobody is told.
        is_held: bytes that come wait until it is over, and go on then.
        corrupt_each: one bit of each so many bytes is turned; 0: none.
        reset_after_bytes: the connection is reset (RST) when so many have passed; -1: never.
        half_close_after_bytes: this direction ends (FIN) when so many have passed; -1: never.
    """

    latency_ms: float = 0.0
    bytes_per_s: float = 0.0
    is_black_hole: bool = False
    is_held: bool = False
    corrupt_each: int = 0
    reset_after_bytes: int = -1
    half_close_after_bytes: int = -1


class ChaosProxy:
    """Passes connections to `host:port` on; `up` is from the client, `down` to it. Close it.

    Threading: its own thread; attributes are set from any.
    """

    def __init__(self, target: str = "") -> None:
        self.target = target
        """host:port; may be named after the start, of a server that must know the proxy's own."""
        self.up = self.down = Weather()
        self.refuses = False
        """New connections are closed at once."""
        self.connections = 0
        """Taken since the start."""
        self.held = 0
        """Pieces that wait, of all connections."""
        self.answered = bytearray()
        """All that was passed down, in the order in which it came."""
        self._open: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._call(self._listen())
        self.port: int = self._server.sockets[0].getsockname()[1]

    @property
    def address(self) -> str:
        """host:port for clients."""
        return f"127.0.0.1:{self.port}"

    def both(self, **changes: Any) -> None:
        """The same weather for both directions, from what it is now."""
        self.up, self.down = replace(self.up, **changes), replace(self.down, **changes)

    def clear(self) -> None:
        """Fair weather; connections that were broken stay so."""
        self.up = self.down = Weather()
        self.refuses = False

    def reset_all(self) -> None:
        """RST on every open connection, both ways."""
        self._loop.call_soon_threadsafe(self._reset_open)

    def close(self) -> None:
        """End it with all connections."""
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def _end(self) -> None:
        self._server.close()
        self._reset_open()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _reset_open(self) -> None:
        for pair in tuple(self._open):
            for writer in pair:
                _reset(writer)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refuses:
            _reset(writer)
            return
        try:
            host, _, port = self.target.rpartition(":")
            there, back = await asyncio.open_connection(host, int(port))
        except (OSError, ValueError):
            _reset(writer)
            return
        self._open.add((writer, back))
        passing = (self._pass(reader, back, "up"), self._pass(there, writer, "down"))
        tasks = [self._loop.create_task(one) for one in passing]
        self._tasks.update(tasks)
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.difference_update(tasks)
        self._open.discard((writer, back))
        for one in (writer, back):
            one.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        """Bytes of one direction until it ends."""
        passed = 0
        free_at_s = time.monotonic()
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while data := await reader.read(CHUNK_BYTES):
                weather: Weather = getattr(self, way)
                if weather.is_black_hole:
                    continue
                if weather.is_held:
                    weather = await self._fair(way)
                free_at_s = max(free_at_s, time.monotonic())
                if weather.bytes_per_s:
                    free_at_s += len(data) / weather.bytes_per_s
                wait_s = free_at_s - time.monotonic() + weather.latency_ms / 1000
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                if weather.corrupt_each:
                    data = _corrupted(data, passed, weather.corrupt_each)
                cut = min(
                    (n for n in (weather.reset_after_bytes, weather.half_close_after_bytes) if n >= 0),
                    default=-1,
                )
                if 0 <= cut <= passed + len(data):
                    writer.write(data[: max(cut - passed, 0)])
                    await writer.drain()
                    if cut == weather.reset_after_bytes:
                        self._reset_pair(writer)
                        return
                    break
                passed += len(data)
                if way == "down":
                    self.answered += data
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.write_eof()

    async def _fair(self, way: str) -> Weather:
        """The weather once nothing is held any more."""
        self.held += 1
        try:
            while (weather := getattr(self, way)).is_held:
                await asyncio.sleep(HELD_POLL_S)
        finally:
            self.held -= 1
        return weather

    def _reset_pair(self, writer: asyncio.StreamWriter) -> None:
        for pair in tuple(self._open):
            if writer in pair:
                for one in pair:
                    _reset(one)


def _corrupted(data: bytes, passed: int, each: int) -> bytes:
    found = bytearray(data)
    for at in range((-passed) % each, len(found), each):
        found[at] ^= 1
    return bytes(found)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST: what was sent and not acknowledged is thrown away."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
