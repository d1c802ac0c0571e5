"""Makes and revokes the tokens of tokens.toml. Control alone writes that file.

api.admin_tokens -> **token_store** -> tokens.toml -> `Tokens` of every process. A secret is shown once, to who asked
for it; the file has its SHA-256. Tokens that are over leave the file with the next change: the log has them.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from gateway.control.snapshot import NO_ROOM
from gateway.control.token_table import (
    LIVE_MAX,
    TABLE,
    TABLE_MAX_BYTES,
    TOKENS_MAX,
    Certificate,
    Table,
    Token,
    check_scopes,
    read_table,
    rewrite_private,
    write_private,
)
from gateway.errors import ChangeInvalid, NotFound, StateConflict

SECRET_BYTES = 24
_HEAD = "# Tokens of this gateway. `tidegate token new` and `revoke` write it; the secrets are not in here.\n"


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A token that somebody wants made."""

    principal: str
    scopes: tuple[str, ...]
    expires_ns: int | None = None
    automaton: bool = False


class TokenStore:
    """The file.

    Args:
        clock_ns: wall clock.

    Threading: one caller at a time. Each change is a read and a write of the file, on disk when it returns.
    """

    def __init__(self, state_dir: Path, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._state_dir = state_dir
        self._clock_ns = clock_ns

    def listed(self) -> tuple[Token, ...]:
        """What the file has.

        Raises:
            TokensUnusable: it is not as it should be.
        """
        return read_table(self._state_dir, self._clock_ns()).token

    def drawn(self, asked: Asked) -> tuple[Token, str]:
        """A token as it would be made, and its secret; nothing is written.

        Raises:
            ChangeInvalid: a scope is none, or it would be over already.
            StateConflict: the principal has two live tokens, or the file has no room for more.
            TokensUnusable: the file is not as it should be.
        """
        now_ns = self._clock_ns()
        try:
            check_scopes(asked.scopes)
        except ValueError as exc:
            raise ChangeInvalid(str(exc)) from exc
        if asked.expires_ns is not None and asked.expires_ns <= now_ns:
            msg = f"expires_ns is {asked.expires_ns}, which is over; expected a time to come, in Unix nanoseconds"
            raise ChangeInvalid(msg)
        table = read_table(self._state_dir, now_ns)
        live = [t.id for t in table.token if t.principal == asked.principal and t.is_live(now_ns)]
        if len(live) >= LIVE_MAX:
            msg = (
                f"{asked.principal} has {len(live)} live tokens ({', '.join(live)}), one in use and one to take"
                f" its place: revoke one first, `tidegate token revoke {live[0]}`"
            )
            raise StateConflict(msg)
        token_id = secrets.token_hex(4)
        while any(t.id == token_id for t in table.token):
            token_id = secrets.token_hex(4)
        secret = f"tg_{token_id}_{secrets.token_hex(SECRET_BYTES)}"
        token = Token(
            id=token_id,
            principal=asked.principal,
            sha256=hashlib.sha256(secret.encode()).hexdigest(),
            scopes=tuple(sorted(set(asked.scopes))),
            created_ns=now_ns,
            expires_ns=asked.expires_ns,
            automaton=asked.automaton,
        )
        self._check_room((*(t for t in table.token if t.is_live(now_ns)), token), table.certificate)
        return token, secret

    def add(self, token: Token) -> None:
        """Write a token that was drawn.

        Raises:
            TokensUnusable, OSError: nothing is written.
        """
        now_ns = self._clock_ns()
        table = read_table(self._state_dir, now_ns)
        kept = tuple(t for t in table.token if t.is_live(now_ns))
        self._write((*kept, token), table.certificate)

    def get(self, token_id: str) -> Token:
        """A token by its id.

        Raises:
            NotFound: there is none.
        """
        for token in read_table(self._state_dir, self._clock_ns()).token:
            if token.id == token_id:
                return token
        msg = f"no token {token_id[:40]!r}; `tidegate token list` shows those that there are"
        raise NotFound(msg)

    def revoke(self, token_id: str) -> None:
        """Take a token out; none of that id is no error. Also on a full disk.

        Raises:
            TokensUnusable, OSError: nothing is written.
        """
        now_ns = self._clock_ns()
        table = read_table(self._state_dir, now_ns)
        kept = tuple(t for t in table.token if t.id != token_id and t.is_live(now_ns))
        try:
            self._write(kept, table.certificate)
        except OSError as exc:
            if exc.errno not in NO_ROOM:
                raise
            rewrite_private(self._state_dir / TABLE, _toml(Table(token=kept, certificate=table.certificate)))

    def _check_room(self, tokens: Sequence[Token], certificates: Sequence[Certificate]) -> None:
        """That the file would be one that is read again: of one that is not, nothing could be revoked.

        Raises:
            StateConflict: too many tokens, or too many bytes of them.
        """
        size_bytes = len(_toml(Table(token=tuple(tokens), certificate=tuple(certificates))))
        if len(tokens) > TOKENS_MAX or size_bytes > TABLE_MAX_BYTES:
            msg = (
                f"{TABLE} would have {len(tokens)} tokens in {size_bytes} bytes; at most {TOKENS_MAX} in"
                f" {TABLE_MAX_BYTES} are taken: revoke some, or give them fewer scopes"
            )
            raise StateConflict(msg)

    def _write(self, tokens: Sequence[Token], certificates: Sequence[Certificate]) -> None:
        write_private(
            self._state_dir / TABLE, _toml(Table(token=tuple(tokens), certificate=tuple(certificates)))
        )


def _toml(table: Table) -> bytes:
    """The file's text: every value is a text, a number, a truth or a list of texts, which TOML writes as JSON does."""
    lines = [_HEAD]
    for name in ("token", "certificate"):
        for entry in getattr(table, name):
            lines.append(f"[[{name}]]")
            values = msgspec.to_builtins(entry).items()
            lines += [f"{key} = {_value(value)}" for key, value in values if value is not None]
            lines.append("")
    return "\n".join(lines).encode()


def _value(value: object) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
