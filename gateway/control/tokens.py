"""The admin token: made at the first start, read by the CLI, compared in constant time."""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from gateway.errors import Unauthorized

TOKEN_FILE = "admin.token"
TOKEN_CHARS_MIN = 32
"""A shorter one is no token: what a kill or a full disk left of one must not open the door."""


def ensure_token(state_dir: Path) -> str:
    """The token of this state directory; made with mode 0600 when there is none that can be used.

    Threading: one control process at a time (it holds its own lock).
    """
    path = state_dir / TOKEN_FILE
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


def check_bearer(header: str | None, token: str) -> None:
    """Hold an Authorization header against the token.

    Raises:
        Unauthorized: absent or another.
    """
    scheme, _, given = (header or "").partition(" ")
    known = hmac.compare_digest(given.strip().encode(), token.encode())
    if scheme.lower() != "bearer" or not token or not known:
        msg = "a bearer token is needed: the admin token lies in the state directory as admin.token"
        raise Unauthorized(msg)
