"""A bare loop: uvicorn's protocol class on uvloop, answering everything with one constant. A partner of the figures.

    python -m bench.bare --reply FILE        prints its port, ends when stdin does

It is what our worker would cost if it did nothing: the same kernel, the same event loop, the same parser. What a figure
has beyond it is ours.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState


class BareProtocol(HttpToolsProtocol):
    """Reads a request with the parser, as uvicorn does, and writes the constant."""

    reply = b""

    def on_message_begin(self) -> None:
        """Nothing to prepare."""

    def on_url(self, url: bytes) -> None:
        """Every address is the same."""

    def on_header(self, name: bytes, value: bytes) -> None:
        """Every head is the same."""

    def on_headers_complete(self) -> None:
        """No scope, no task."""

    def on_body(self, body: bytes) -> None:
        """Thrown away."""

    def on_message_complete(self) -> None:
        """Answer."""
        self.transport.write(self.reply)


async def _no_app(scope: Any, receive: Any, send: Any) -> None:
    """Never called."""


async def _serve(body: bytes) -> None:
    loop = asyncio.get_running_loop()
    config = uvicorn.Config(app=_no_app, log_config=None, access_log=False)
    config.load()
    state = ServerState()
    BareProtocol.reply = (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    )
    server = await loop.create_server(lambda: BareProtocol(config, state, {}, _loop=loop), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()

    def read() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            ended.set()

    loop.add_reader(sys.stdin.fileno(), read)
    await ended.wait()


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--reply", required=True, type=Path)
    uvloop.run(_serve(parser.parse_args().reply.read_bytes()))


if __name__ == "__main__":
    main()
