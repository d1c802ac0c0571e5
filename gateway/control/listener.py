"""What the admin listener needs where it is configured to be: TLS, and somebody who may ask.

settings, tokens -> **listener** -> `gateway.api.admin_server`. Looked at by `tidegate serve` before anything starts,
and by control before it takes a connection.
"""

from __future__ import annotations

from pathlib import Path

from gateway.control.tokens import Tokens
from gateway.errors import ConfigInvalid
from gateway.settings import Admin
from gateway.tls import Certificates


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
