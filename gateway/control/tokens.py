"""Who asks: the tokens of the admin listener, made at the first start, compared in constant time.

The CLI reads `admin.token`, the sidecar `sidecar.token`; which of them was given is the principal of a change.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from gateway.errors import Unauthorized

ADMIN, SIDECAR = "admin", "sidecar"
PRINCIPALS = (ADMIN, SIDECAR)
TOKEN_CHARS_MIN = 32
"""A shorter one is no token: what a kill or a full disk left of one must not open the door."""


def ensure_tokens(state_dir: Path) -> dict[str, str]:
    """The token of every principal."""
    return {principal: ensure_token(state_dir, principal) for principal in PRINCIPALS}


def ensure_token(state_dir: Path, principal: str = ADMIN) -> str:
    """A principal's token in this state directory; made with mode 0600 when there is none that can be used.

    Threading: one control process at a time (it holds its own lock).
    """
    path = state_dir / f"{principal}.token"
    try:
        token = path.read_text(errors="replace").strip()
    except FileNotFoundError:
        token = ""
    if len(token) >= TOKEN_CHARS_MIN and token.isascii():
        return token
    token = secrets.token_hex(32)
    temporary = path.with_name(path.name + ".new")
    # A rest of an earlier try may have other rights.
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, f"{token}\n".encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.rename(path)
    return token


def check_bearer(header: str | None, tokens: Mapping[str, str]) -> str:
    """The principal whose token an Authorization header holds.

    Raises:
        Unauthorized: absent or another.
    """
    scheme, _, given = (header or "").partition(" ")
    offered = given.strip().encode()
    # All are compared, always: how long it takes says nothing.
    known = [
        principal
        for principal, token in tokens.items()
        if hmac.compare_digest(offered, token.encode()) and token
    ]
    if scheme.lower() != "bearer" or not known:
        msg = "a bearer token is needed: the admin token lies in the state directory as admin.token"
        raise Unauthorized(msg)
    return known[0]
