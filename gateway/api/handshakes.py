"""Listening over TLS: connections are accepted, and those whose handshake is not done are bounded in number and time.

server -> **handshakes** -> admin_door. A connection counts among the listener's only once its handshake is done. Before
that, each client that sends nothing would hold a descriptor, and without descriptors control writes no log: so beyond a
number the one that has taken longest goes. An honest handshake takes milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable

log = logging.getLogger("tidegate.tls")

HANDSHAKE_S = 5.0
HANDSHAKES_MAX = 128
"""So many at once."""
AGAIN_S = 1.0
"""So long nothing is accepted after the system had nothing to accept with."""


class TlsListener:
    """Accepts on a socket. As `asyncio.Server` as far as uvicorn needs one.

    Args:
        sock: listens already.
        context: what handshakes are made with.
        connection: makes the protocol of a connection whose handshake begins.

    Threading: the loop thread; made inside it.
    """

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, connection: Callable[[], asyncio.Protocol]
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._context = context
        self._connection = connection
        self._shaking: dict[asyncio.Task[None], socket.socket | None] = {}
        """Oldest first; each with its socket as long as nobody else has that."""
        self._accepting = asyncio.create_task(self._accept())

    def close(self) -> None:
        """Accept no more; handshakes that are under way end."""
        for task in (self._accepting, *self._shaking):
            task.cancel()

    async def wait_closed(self) -> None:
        """Until nothing of it runs."""
        await asyncio.wait((self._accepting, *self._shaking))

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(self._sock)
            except OSError as exc:
                log.warning("accept_failed", extra={"why": exc.strerror or str(exc)})
                await asyncio.sleep(AGAIN_S)
                continue
            if len(self._shaking) >= HANDSHAKES_MAX:
                longest = next(iter(self._shaking))
                self._shaking.pop(longest)
                longest.cancel()
            task = loop.create_task(self._shake(accepted))
            self._shaking[task] = accepted
            task.add_done_callback(self._shaken)
            # It has its first step now: one that had none could not be ended in order.
            await asyncio.sleep(0)

    async def _shake(self, accepted: socket.socket) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._shaking[task] = None
        # What a client sends instead of a handshake is its own affair.
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().connect_accepted_socket(
                self._connection,
                accepted,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=HANDSHAKE_S,
            )

    def _shaken(self, task: asyncio.Task[None]) -> None:
        unused = self._shaking.pop(task, None)
        if unused is not None:
            unused.close()
