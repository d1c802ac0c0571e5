"""The HTTP server of the data and the admin listener: uvicorn's, stopped by us.

worker, control -> **server** -> leaving. A server that is to end is a lame duck first: it takes no more connections,
and whatever it answers says `connection: close`, so that clients go elsewhere by themselves. Closed at once, a kept
connection would be reset under the request that its client is just sending.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Iterator

import uvicorn

from gateway.api.handshakes import TlsListener


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: the process that runs it says when to stop.

    Args:
        lame_duck_s: connections that ask nothing are kept for so long after `leave`. Where it is above 0 the
            connections are of `gateway.api.leaving`.
        tls: what handshakes are made with; None: none are.

    Threading: the loop thread alone.
    """

    def __init__(
        self, config: uvicorn.Config, *, lame_duck_s: float = 0.0, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(config)
        self._tls = tls
        self._lame_duck_s = lame_duck_s
        self._lame_until_s: float | None = None
        """None: not told to leave."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing to capture."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; over TLS a handshake that takes long is cut off."""
        if self._tls is None:
            await super().startup(sockets)
            return
        loop = asyncio.get_running_loop()

        def connection() -> asyncio.Protocol:
            made = self.config.http_protocol_class
            return made(config=self.config, server_state=self.server_state, app_state={}, _loop=loop)  # type: ignore[call-arg]

        self.servers = [TlsListener(sock, self._tls, connection) for sock in sockets or ()]  # type: ignore[misc]
        self.started = True

    def leave(self) -> None:
        """Take no more connections, answer those that there are once more, and end when they are gone.

        What is idle when the lame-duck time is over is closed; what is in flight then is waited for, as uvicorn's
        `timeout_graceful_shutdown` says. Called again: nothing is waited for.
        """
        if self._lame_until_s is not None:
            self.should_exit = self.force_exit = True
            return
        self._lame_until_s = time.monotonic() + self._lame_duck_s
        self._stop_accepting()
        for connection in list(self.server_state.connections):
            connection.go_lame()  # type: ignore[union-attr]

    def _stop_accepting(self) -> None:
        # Our copy of the listening socket: others that have it accept on, and what waits in its queue is theirs.
        listening: list[asyncio.base_events.Server] = getattr(self, "servers", [])
        for one in listening:
            one.close()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        if self._lame_until_s is not None:
            # Again: it may have been told before it listened.
            self._stop_accepting()
            self.should_exit |= not self.server_state.connections or time.monotonic() >= self._lame_until_s
        return await super().on_tick(counter)
