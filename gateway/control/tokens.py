"""The admin token: made at the first start, read by the CLI, compared in constant time."""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from gateway.errors import Unauthorized

TOKEN_FILE = "admin.token"


def ensure_token(state_dir: Path) -> str:
    """The token of this state directory; made with mode 0600 when there is none."""
    path = state_dir / TOKEN_FILE
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    token = secrets.token_hex(32)
    try:
        os.write(fd, f"{token}\n".encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    return token


def check_bearer(header: str | None, token: str) -> None:
    """Hold an Authorization header against the token.

    Raises:
        Unauthorized: absent or another.
    """
    scheme, _, given = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
        msg = "a bearer token is needed: the admin token lies in the state directory as admin.token"
        raise Unauthorized(msg)
