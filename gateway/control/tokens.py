"""Who asks: tokens, made by control at the first start, compared in constant time.

The CLI reads `admin.token`, the sidecar `sidecar.token`; which of them was given is the principal of a change.
A worker has `worker.token`, for what clients ask of it: to load and unload models, and no more.
Two are of the data listener alone, where it is not on loopback: `feedback.token` for those who send labels,
`publish.token` for those who load and unload.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from gateway.errors import Unauthorized

ADMIN, SIDECAR, WORKER = "admin", "sidecar", "worker"
FEEDBACK, PUBLISH = "feedback", "publish"
PRINCIPALS = (ADMIN, SIDECAR, WORKER)
"""Of the admin listener."""
TOKEN_CHARS_MIN = 32
"""A shorter one is no token: what a kill or a full disk left of one must not open the door."""


def ensure_tokens(state_dir: Path) -> dict[str, str]:
    """The token of every principal of the admin listener; those of the data listener are made beside them."""
    for principal in (FEEDBACK, PUBLISH):
        ensure_token(state_dir, principal)
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


class TokenFile:
    """A principal's token as another process than control knows it: read at the first use that finds it."""

    def __init__(self, state_dir: Path, principal: str) -> None:
        self._path = state_dir / f"{principal}.token"
        self._principal = principal
        self._token = ""

    def check(self, header: str | None) -> str:
        """The principal, for an Authorization header with its token.

        Raises:
            Unauthorized: absent or another, or control has not made it yet.
        """
        if not self._token:
            with contextlib.suppress(OSError):
                token = self._path.read_text(errors="replace").strip()
                self._token = token if len(token) >= TOKEN_CHARS_MIN else ""
        return check_bearer(header, {self._principal: self._token}, needed=self._principal)


def check_bearer(header: str | None, tokens: Mapping[str, str], *, needed: str = ADMIN) -> str:
    """The principal whose token an Authorization header holds.

    Args:
        needed: whose token the message asks for.

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
        msg = f"a bearer token is needed: the {needed} token lies in the state directory as {needed}.token"
        raise Unauthorized(msg)
    return known[0]
