"""tokens.toml: its form, and how private files of the state directory are read and written.

tokens (every process that checks one), token_store (control, which makes them) -> **token_table**. What others may
read or write is refused, what is not of the form is refused as a whole: half a table would shut somebody out, or in.
"""

from __future__ import annotations

import errno
import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.control.access import BARE, OF_MODELS, PLAIN
from gateway.errors import TokensUnusable
from gateway.routing import NAME_PATTERN

TABLE = "tokens.toml"
TABLE_MAX_BYTES = 1_048_576
TOKENS_MAX = 1000
LIVE_MAX = 2
"""Tokens of one principal: the one in use, and the one that takes its place."""
CLOCK_NS = 60_000_000_000
"""A token is taken so long after its end: clocks differ."""
Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_MODEL = re.compile(NAME_PATTERN)


class Token(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A `[[token]]` of tokens.toml."""

    id: Annotated[str, Meta(pattern=r"^[0-9a-f]{8}\Z")]
    principal: Name
    sha256: Digest
    scopes: tuple[str, ...]
    created_ns: int = 0
    expires_ns: int | None = None
    automaton: bool = False

    def is_live(self, now_ns: int) -> bool:
        """Whether it opens anything now."""
        return self.expires_ns is None or now_ns < self.expires_ns + CLOCK_NS


class Certificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A `[[certificate]]` of tokens.toml: what a client certificate of this subject may."""

    subject: Annotated[str, Meta(min_length=1, max_length=256)]
    """A name among the certificate's alternative names, or its common name where it has none."""
    principal: Name
    scopes: tuple[str, ...]
    automaton: bool = False


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """tokens.toml."""

    token: tuple[Token, ...] = ()
    certificate: tuple[Certificate, ...] = ()


def check_scopes(scopes: Sequence[str]) -> None:
    """Whether each is a scope.

    Raises:
        ValueError: names the first that is none, and what was expected.
    """
    for text in scopes:
        word, colon, model = text.partition(":")
        if word in OF_MODELS and (model == "*" or _MODEL.match(model)):
            continue
        if not colon and (word in PLAIN or word in BARE):
            continue
        if not colon and word in OF_MODELS:
            msg = f"scope {text!r} needs a model: {word}:MODEL, or {word}:* for all"
            raise ValueError(msg)
        plain, models = ", ".join(PLAIN), ", ".join(f"{name}:MODEL" for name in OF_MODELS)
        msg = f"scope {text[:140]!r} is none; expected one of {plain}, {models}"
        raise ValueError(msg)
    if not scopes:
        msg = "a token without a scope opens nothing; give one, as in read"
        raise ValueError(msg)


def read_table(state_dir: Path, now_ns: int) -> Table:
    """tokens.toml; an empty table where there is no such file.

    Raises:
        TokensUnusable: others may read it, or it is not of that form; says what is wrong and what to do.
    """
    content = read_private(state_dir / TABLE)
    if content is None:
        return Table()
    try:
        table = msgspec.convert(tomllib.loads(content.decode()), Table)
        for scopes in (*(t.scopes for t in table.token), *(c.scopes for c in table.certificate)):
            check_scopes(scopes)
    except (tomllib.TOMLDecodeError, ValueError) as exc:
        msg = f"{TABLE} in the state directory: {exc}"
        raise TokensUnusable(msg) from exc
    check_counts(table, now_ns)
    return table


def check_counts(table: Table, now_ns: int) -> None:
    """At most two live tokens of a principal, no id and no secret twice.

    Raises:
        TokensUnusable: says which.
    """
    live: dict[str, list[str]] = {}
    for token in table.token:
        if token.is_live(now_ns):
            live.setdefault(token.principal, []).append(token.id)
    for principal, ids in live.items():
        if len(ids) > LIVE_MAX:
            msg = (
                f"{TABLE}: {principal} has {len(ids)} live tokens ({', '.join(ids)}); at most {LIVE_MAX} are"
                " taken: revoke one"
            )
            raise TokensUnusable(msg)
    for what, values in (("id", [t.id for t in table.token]), ("sha256", [t.sha256 for t in table.token])):
        if len(set(values)) != len(values):
            msg = f"{TABLE}: two tokens have the same {what}; take one of them out"
            raise TokensUnusable(msg)
    if len(table.token) > TOKENS_MAX:
        msg = f"{TABLE} has {len(table.token)} tokens; at most {TOKENS_MAX} are taken"
        raise TokensUnusable(msg)


def read_private(path: Path) -> bytes | None:
    """A file that nobody else may read; None where there is none.

    Raises:
        TokensUnusable: it may be read or written by others, or is no plain file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as exc:
        msg = f"{path.name} in the state directory cannot be read: {exc.strerror}"
        raise TokensUnusable(msg) from exc
    try:
        found = os.fstat(fd)
        if found.st_mode & 0o077 or found.st_uid not in {os.geteuid(), 0}:
            msg = (
                f"{path.name} in the state directory may be read by others (mode {found.st_mode & 0o777:04o},"
                f" uid {found.st_uid}): chmod 600 it, and make new tokens if somebody may have seen it"
            )
            raise TokensUnusable(msg)
        if found.st_size > TABLE_MAX_BYTES:
            msg = f"{path.name} in the state directory has {found.st_size} bytes; expected at most {TABLE_MAX_BYTES}"
            raise TokensUnusable(msg)
        return os.read(fd, TABLE_MAX_BYTES)
    finally:
        os.close(fd)


def rewrite_private(path: Path, content: bytes) -> None:
    """As `write_private`, for a full disk: in the blocks that the file has, line feeds behind what is shorter now.

    Power lost meanwhile may leave neither the old nor the new, which is refused as a whole.

    Raises:
        OSError: there is no such file, or it has less room.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        size_bytes = os.fstat(fd).st_size
        if len(content) > size_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _write_all(fd, content.ljust(size_bytes, b"\n"))
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, content: bytes) -> None:
    """A disk that is nearly full takes a part, and says that it took that."""
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]


def write_private(path: Path, content: bytes) -> None:
    """Replace a file whole or not at all, mode 0600, on disk when this returns.

    Raises:
        OSError: the disk does not take it; the file stays as it was.
    """
    temporary = path.with_name(path.name + ".new")
    # A rest of an earlier try may have other rights.
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _write_all(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.rename(path)
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
