"""Who asks: the tokens that a process knows, read from the state directory and read again when they change.

api.guarding -> **tokens** -> access says what the principal may. Two sorts: secrets that the gateway makes for its own
processes and for first use, each a file of its name (`admin.token` is the CLI's, `sidecar.token` the sidecar's,
`worker.token` the workers'; `feedback.token` and `publish.token` open the data listener only); and those that operators
make, in `tokens.toml`, where the file has their SHA-256 and nothing that opens a door. Files that others may read are
refused.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gateway.control.access import EVERYTHING, LEASE, LOAD, READ, ROLLBACK, Principal
from gateway.control.token_table import (
    CLOCK_NS,
    TABLE,
    Certificate,
    Table,
    Token,
    read_private,
    read_table,
    write_private,
)
from gateway.errors import TokensUnusable, Unauthorized
from gateway.routing import iso_time

log = logging.getLogger("tidegate.tokens")

ADMIN, SIDECAR, WORKER = "admin", "sidecar", "worker"
FEEDBACK, PUBLISH = "feedback", "publish"
PRINCIPALS = (ADMIN, SIDECAR, WORKER)
"""Of the admin listener."""
CLIENTS = (FEEDBACK, PUBLISH)
"""Of the data listener."""
BUILT_IN = {
    ADMIN: Principal(ADMIN, frozenset((EVERYTHING,))),
    SIDECAR: Principal(SIDECAR, frozenset((READ, ROLLBACK, LEASE)), automaton=True),
    WORKER: Principal(WORKER, frozenset((LOAD,))),
    FEEDBACK: Principal(FEEDBACK, frozenset(("feedback:*",))),
    PUBLISH: Principal(PUBLISH, frozenset(("publish:*",))),
}
"""What these may. Of rollbacks the sidecar has those of a canary only (`gateway.api.admin_routes`)."""
TOKEN_CHARS_MIN = 32
"""A shorter one is no token: what a kill or a full disk left of one must not open the door."""
CACHED_MAX = 1024
HEADER_MAX_BYTES = 1024
"""A longer Authorization header holds no token: headers are remembered, and must be small for that."""
_BEARER = re.compile(r"bearer +(\S+) *\Z", re.IGNORECASE | re.ASCII)


def ensure_tokens(state_dir: Path) -> None:
    """Make the gateway's own secrets that are not there yet.

    Raises:
        TokensUnusable: others may read one.
    """
    for principal in (*PRINCIPALS, *CLIENTS):
        ensure_token(state_dir, principal)


def ensure_token(state_dir: Path, principal: str = ADMIN) -> str:
    """A principal's own secret in this state directory; made with mode 0600 when there is none that can be used.

    Threading: one control process at a time (it holds its own lock).

    Raises:
        TokensUnusable: others may read it.
    """
    path = state_dir / f"{principal}.token"
    token = usable_secret(path)
    if token:
        return token
    token = secrets.token_hex(32)
    write_private(path, f"{token}\n".encode())
    return token


def usable_secret(path: Path) -> str:
    """A secret's text; empty where there is none that can be used.

    Raises:
        TokensUnusable: others may read it.
    """
    try:
        token = path.read_text(errors="replace").strip()
    except FileNotFoundError:
        return ""
    if len(token) < TOKEN_CHARS_MIN or not token.isascii():
        return ""
    read_private(path)
    return token


class Tokens:
    """What one process knows of tokens: which principal a header or a certificate belongs to.

    Args:
        state_dir: None for a process that knows none.
        built_in: the gateway's own principals that this listener takes.
        clock_ns: wall clock.
        word: moves when control has changed the tokens (the fleet's word): then they are read again.

    Threading: the loop thread. Cost: `of` is one look-up for a header seen before, else a SHA-256 and a comparison
    with each token; `reload` is a stat of each file.
    """

    def __init__(
        self,
        state_dir: Path | None,
        built_in: Sequence[str] = (),
        clock_ns: Callable[[], int] = time.time_ns,
        word: Callable[[], int] = int,
    ) -> None:
        self.generation = 0
        """Moves with each change; who keeps a principal drops it then."""
        self.problem: str | None = None
        """Why what is on disk now is not taken up; what was known before holds meanwhile."""
        self.table = Table()
        self._files = [] if state_dir is None else [state_dir / f"{name}.token" for name in built_in]
        self._state_dir = state_dir
        self._built_in = built_in
        self._clock_ns = clock_ns
        self._known: list[tuple[bytes, Principal, int | None]] = []
        self._cached: dict[bytes, tuple[Principal, int | None]] = {}
        self._seen: object = None
        self._word = word
        self._word_seen = word()
        self.reload()

    def reload(self) -> bool:
        """Look at the files, and take up what is new; whether anything was. Never raises: see `problem`."""
        if self._state_dir is None:
            return False
        seen = tuple(map(_signature, (*self._files, self._state_dir / TABLE)))
        if seen == self._seen:
            return False
        try:
            table = read_table(self._state_dir, self._clock_ns())
            own = [usable_secret(path) for path in self._files]
        except (TokensUnusable, OSError) as exc:
            # Not taken as seen: where it was we who could not read, as without a descriptor left, the next look may,
            # and what was revoked meanwhile opens nothing.
            if str(exc) != self.problem:
                self.problem = str(exc)
                log.error("tokens_unusable", extra={"why": str(exc)})  # noqa: TRY400
            return False
        self._seen = seen
        self.problem = None
        self.take_up(table, own)
        return True

    def take_up(self, table: Table, own: Sequence[str]) -> None:
        """Know these from now on, and no others.

        Args:
            own: the secrets of the gateway's own principals, in their order; empty texts are none.
        """
        known: list[tuple[bytes, Principal, int | None]] = [
            (_digest(secret.encode()), BUILT_IN[name], None)
            for name, secret in zip(self._built_in, own, strict=True)
            if secret
        ]
        for token in table.token:
            expires_ns = None if token.expires_ns is None else token.expires_ns + CLOCK_NS
            known.append((bytes.fromhex(token.sha256), _principal(token, token.id), expires_ns))
        self.table = table
        self._known = known
        self._cached.clear()
        self.generation += 1

    def follow(self) -> bool:
        """Reload when control says that tokens changed; whether anything was new."""
        word = self._word()
        if word == self._word_seen:
            return False
        self._word_seen = word
        return self.reload()

    def of(self, header: bytes) -> Principal | None:
        """The principal whose live token an Authorization header holds."""
        found = self._cached.get(header)
        if found is None:
            found = self._look_up(header)
            if found is None and self.follow():
                # Made a moment ago: whoever has it need not wait for our next tick.
                found = self._look_up(header)
            if found is None:
                return None
            if len(self._cached) >= CACHED_MAX:
                self._cached.clear()
            self._cached[header] = found
        principal, expires_ns = found
        return principal if expires_ns is None or self._clock_ns() < expires_ns else None

    def find(self, header: str | None, needed: str = ADMIN) -> Principal:
        """As `of`, for handlers.

        Args:
            needed: whose token the message asks for.

        Raises:
            Unauthorized: absent, not known, or over.
        """
        raw = (header or "").encode("latin-1", "replace")
        found = self.of(raw)
        if found is not None:
            return found
        over = self._look_up(raw)
        if over is not None:
            ended = iso_time((over[1] or CLOCK_NS) - CLOCK_NS)
            msg = f"the token {over[0].token_id} of {over[0].name} ended at {ended}: ask for another"
            raise Unauthorized(msg)
        msg = (
            f"a bearer token is needed: the {needed} token lies in the state directory as {needed}.token;"
            " `tidegate token new` makes others"
        )
        raise Unauthorized(msg)

    def of_certificate(self, names: Sequence[str]) -> Principal | None:
        """The principal of a verified client certificate with these names."""
        for certificate in self.table.certificate:
            if certificate.subject in names:
                return _principal(certificate, "")
        return None

    def live(self) -> int:
        """Tokens and certificates of tokens.toml that open something now."""
        now_ns = self._clock_ns()
        return sum(t.is_live(now_ns) for t in self.table.token) + len(self.table.certificate)

    def _look_up(self, header: bytes) -> tuple[Principal, int | None] | None:
        found = None
        given = _BEARER.match(header.decode("latin-1")) if len(header) <= HEADER_MAX_BYTES else None
        digest = _digest(given[1].encode("latin-1") if given else b"")
        # All are compared, always: how long it takes says nothing.
        for known, principal, expires_ns in self._known:
            if hmac.compare_digest(digest, known) and given:
                found = (principal, expires_ns)
        return found


def _principal(entry: Token | Certificate, token_id: str) -> Principal:
    return Principal(f"token:{entry.principal}", frozenset(entry.scopes), token_id, entry.automaton)


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def _signature(path: Path) -> object:
    try:
        found = path.stat(follow_symlinks=False)
    except OSError as exc:
        return exc.errno
    return found.st_mtime_ns, found.st_ino, found.st_size, found.st_mode, found.st_uid
