"""The admin listener's server: connections within limits, TLS where it is configured, both looked after on a tick.

control -> **admin_server** -> admin_door -> `gateway.api.admin`.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import uvicorn

from gateway.api.admin_door import AdminDoor
from gateway.api.server import Server
from gateway.control.token_table import write_private
from gateway.tls import Certificates

PUBLIC = "admin.pem"
"""In the state directory: the listener's certificate, by which those on this host know it."""
GRACE_S = 5


class AdminServer(Server):
    """Serves the admin API.

    Args:
        app: the ASGI application.
        certificates: of the listener; None: it speaks plain HTTP.

    Threading: the loop thread; `tick` is called twice a second.
    """

    def __init__(self, app: Any, certificates: Certificates | None, state_dir: Path) -> None:
        self._certificates = certificates
        self._public = state_dir / PUBLIC
        config = uvicorn.Config(
            app,
            http=AdminDoor.bind(),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_S,
        )
        super().__init__(config, tls=None if certificates is None else certificates.context)
        self._publish()

    def tick(self) -> None:
        """Take up certificates that changed; end connections that are too slow."""
        if self._certificates is not None and self._certificates.reload():
            self._publish()
        now_s = time.monotonic()
        for connection in list(self.server_state.connections):
            if isinstance(connection, AdminDoor):
                connection.reap(now_s)

    def _publish(self) -> None:
        with contextlib.suppress(OSError):
            if self._certificates is None:
                self._public.unlink(missing_ok=True)
            else:
                write_private(self._public, self._certificates.public)
