"""A flood: one client that asks as fast as it is answered, whatever the answers say. A process of its own.

`python -m bench.flood --url URL --source 127.0.0.2 --connections 64 --body FILE` prints an empty line with its first
answer, floods until its stdin ends and then prints what it got, by status, as one line of JSON. It connects from an
address of its own on loopback, so that the gateway knows it from others. A connection that breaks is made again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import threading
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *([0-9]+)")
AGAIN_S = 0.01
"""After a connection broke, until the next is made."""


class _Asking(asyncio.Protocol):
    """One connection: sends when it is there, and whenever an answer is whole."""

    def __init__(self, flood: Flood) -> None:
        self._flood = flood
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._transport.write(self._flood.request)

    def data_received(self, data: bytes) -> None:
        """Ask again for each whole answer."""
        self._buffer += data
        if not self._flood.got:
            sys.stdout.write("\n")
            sys.stdout.flush()
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            found = _LENGTH.search(self._buffer, 0, end + 2)
            size = end + 4 + (int(found[1]) if found else 0)
            if len(self._buffer) < size:
                return
            self._flood.got[self._buffer[9:12].decode()] += 1
            self._buffer = self._buffer[size:]
            self._transport.write(self._flood.request)

    def connection_lost(self, exc: Exception | None) -> None:
        """Come again."""
        self._flood.got["lost"] += 1
        self._flood.come_again()


class Flood:
    """The client.

    Args:
        source: the address that it connects from.
    """

    def __init__(self, url: str, source: str, body: bytes, path: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._source = source
        self.request = b"POST %b HTTP/1.1\r\nhost: flood\r\ncontent-length: %d\r\n\r\n%b" % (
            path.encode(), len(body), body,
        )  # fmt: skip
        self.got: Counter[str] = Counter()
        self._coming: set[asyncio.Task[None]] = set()

    def come_again(self, after_s: float = AGAIN_S) -> None:
        """One more connection."""
        task = asyncio.get_running_loop().create_task(self._come(after_s))
        self._coming.add(task)
        task.add_done_callback(self._coming.discard)

    async def _come(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: _Asking(self), self._host, self._port, local_addr=(self._source, 0)
            )
        except OSError:
            self.come_again()

    async def run(self, connections: int) -> None:
        """Flood until stdin ends."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        def wait() -> None:
            sys.stdin.read()
            loop.call_soon_threadsafe(over.set)

        threading.Thread(target=wait, daemon=True).start()
        for _ in range(connections):
            self.come_again(0)
        await over.wait()


def main() -> None:
    """Entry of the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--source", default="127.0.0.2")
    parser.add_argument("--path", required=True)
    parser.add_argument("--body", type=Path, required=True)
    parser.add_argument("--connections", type=int, default=64)
    asked = parser.parse_args()
    flood = Flood(asked.url, asked.source, asked.body.read_bytes(), asked.path)
    uvloop.run(flood.run(asked.connections))
    sys.stdout.write(json.dumps(flood.got) + "\n")


if __name__ == "__main__":
    main()
