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
from gateway.control.tokens import Tokens
from gateway.errors import ConfigInvalid
from gateway.settings import Admin
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


def certificates_of(admin: Admin, tokens: Tokens) -> Certificates | None:
    """What the listener needs where it is, before it takes a connection.

    Raises:
        ConfigInvalid: others than this host reach it, and there is no token; or TLS cannot be had. Names the setting.
    """
    if not admin.on_loopback and not tokens.live():
        msg = (
            f"admin.host is {admin.host!r}, which others reach: it needs a live token in tokens.toml besides TLS. Start"
            " on loopback once, and make one with `tidegate token new`"
        )
        raise ConfigInvalid(msg)
    if admin.tls is None:
        if not admin.on_loopback:
            msg = f"admin.host is {admin.host!r}: set admin.tls.cert and admin.tls.key, or a loopback address"
            raise ConfigInvalid(msg)
        return None
    client_ca = admin.tls.client_ca
    return Certificates(
        Path(admin.tls.cert), Path(admin.tls.key), None if client_ca is None else Path(client_ca)
    )
