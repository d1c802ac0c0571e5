"""Tokens: private, kept, and nothing but themselves opens the door."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from gateway.control import token_store, token_table
from gateway.control.token_store import Asked, TokenStore
from gateway.control.token_table import CLOCK_NS, TABLE, read_table
from gateway.control.tokens import CLIENTS, PRINCIPALS, Tokens, ensure_token, ensure_tokens
from gateway.errors import ChangeInvalid, StateConflict, TokensUnusable, Unauthorized

S = 1_000_000_000


def test_token_is_made_once_and_private(tmp_path: Path) -> None:
    """32 random bytes as hex, mode 0600, the same at the next start."""
    token = ensure_token(tmp_path)
    path = tmp_path / "admin.token"
    assert len(bytes.fromhex(token)) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert ensure_token(tmp_path) == token == path.read_text().strip()
    assert [p.name for p in tmp_path.iterdir()] == ["admin.token"]


def test_each_principal_has_its_own(tmp_path: Path) -> None:
    """Private files, a token in each; the token says who asks. Those of one listener open nothing at the other."""
    ensure_tokens(tmp_path)
    names = ("admin", "feedback", "publish", "sidecar", "worker")
    secrets = {name: (tmp_path / f"{name}.token").read_text().strip() for name in names}
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{name}.token" for name in names]
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o600}
    assert len({*secrets.values()}) == 5
    for known in (PRINCIPALS, CLIENTS):
        tokens = Tokens(tmp_path, known)
        for name, secret in secrets.items():
            found = tokens.of(f"Bearer {secret}".encode())
            assert (found.name if found else None) == (name if name in known else None)
    ensure_tokens(tmp_path)
    assert {name: (tmp_path / f"{name}.token").read_text().strip() for name in names} == secrets


@pytest.mark.parametrize("rest", [b"", b"\n", b"abc", b"\xff" * 64], ids=repr)
def test_rest_of_a_token_is_none(tmp_path: Path, rest: bytes) -> None:
    """What a kill at the first start left is replaced, not trusted."""
    (tmp_path / "admin.token").write_bytes(rest)
    token = ensure_token(tmp_path)
    assert len(token) == 64
    with pytest.raises(Unauthorized):
        Tokens(tmp_path, PRINCIPALS).find("Bearer ")


def test_own_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """At start, naming the file, its mode and what to do; a running process goes on with what it knew."""
    token = ensure_token(tmp_path)
    tokens = Tokens(tmp_path, PRINCIPALS)
    (tmp_path / "admin.token").chmod(0o640)
    with pytest.raises(TokensUnusable, match=r"admin\.token .*mode 0640.*chmod 600"):
        ensure_token(tmp_path)
    assert not tokens.reload()
    assert "chmod 600" in str(tokens.problem)
    assert tokens.find(f"Bearer {token}").name == "admin"


def test_rest_of_a_try_keeps_no_rights(tmp_path: Path) -> None:
    """A temporary file that others may read does not become the token."""
    loose = tmp_path / "admin.token.new"
    loose.write_text("x")
    loose.chmod(0o666)
    ensure_token(tmp_path)
    assert (tmp_path / "admin.token").stat().st_mode & 0o777 == 0o600


class Known:
    """A state directory with a store on it, and what another process knows of it; time stands until it is moved."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.now_ns = 1_785_312_000 * S
        self.store = TokenStore(state_dir, lambda: self.now_ns)
        self.word = 0
        self.tokens = Tokens(state_dir, (), lambda: self.now_ns, lambda: self.word)

    def new(self, principal: str = "ci", *scopes: str, **facts: int) -> tuple[str, str]:
        """Id and Authorization header of a token that is made and written."""
        token, secret = self.store.drawn(Asked(principal=principal, scopes=scopes or ("read",), **facts))  # type: ignore[arg-type]
        self.store.add(token)
        self.tokens.reload()
        return token.id, f"Bearer {secret}"

    def opens(self, header: str) -> bool:
        """Whether the other process takes it."""
        return self.tokens.of(header.encode()) is not None


@pytest.fixture
def known(tmp_path: Path) -> Known:
    """No tokens yet."""
    return Known(tmp_path)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_right_token_passes(known: Known, scheme: str) -> None:
    """The scheme's case does not matter; the principal has the token's name, id and scopes."""
    token_id, header = known.new("ci", "shift:m", "read")
    found = known.tokens.find(f"{scheme} {header.split()[1]}")
    assert (found.name, found.token_id, found.scopes) == ("token:ci", token_id, {"shift:m", "read"})


def test_anything_else_is_refused(known: Known) -> None:
    """Absent, cut, lengthened, another, the digest itself, or of another scheme; the message says where to look."""
    _, header = known.new()
    secret = header.split()[1]
    digest = read_table(known.state_dir, known.now_ns).token[0].sha256
    for text in (
        None,
        "",
        "Bearer",
        "Bearer ",
        header[:-1],
        header + "0",
        f"Bearer {digest}",
        f"Basic {secret}",
        secret,
    ):
        with pytest.raises(Unauthorized, match=r"admin\.token"):
            known.tokens.find(text)
    with pytest.raises(Unauthorized, match=r"feedback\.token"):
        known.tokens.find(None, "feedback")


def test_file_has_no_secret(known: Known) -> None:
    """Mode 0600, and nothing in it opens the door; 128 random bits at least."""
    _, header = known.new()
    secret = header.removeprefix("Bearer ")
    path = known.state_dir / TABLE
    assert path.stat().st_mode & 0o777 == 0o600
    assert secret not in path.read_text()
    assert secret.rsplit("_", 1)[1] not in path.read_text()
    assert len(bytes.fromhex(secret.rsplit("_", 1)[1])) * 8 >= 128


def test_two_live_tokens_a_principal(known: Known) -> None:
    """The one in use and its successor; a third is refused, naming both, until one is revoked or over."""
    first, header = known.new("ci")
    second, other = known.new("ci", expires_ns=known.now_ns + S)
    assert known.opens(header)
    assert known.opens(other)
    with pytest.raises(StateConflict, match=f"{first}, {second}"):
        known.new("ci")
    known.new("another")
    known.now_ns += S + CLOCK_NS
    third, _ = known.new("ci")
    assert [t.id for t in known.store.listed() if t.principal == "ci"] == [first, third]
    known.store.revoke(first)
    known.new("ci")


def test_expiry_has_a_minute_for_clocks_that_differ(known: Known) -> None:
    """Taken until a minute after its end, without a reload; then refused as over, not as unknown."""
    token_id, header = known.new("ci", expires_ns=known.now_ns + S)
    known.now_ns += S + CLOCK_NS - 1
    assert known.opens(header)
    known.now_ns += 1
    assert not known.opens(header)
    with pytest.raises(Unauthorized, match=f"the token {token_id} of token:ci ended at"):
        known.tokens.find(header)


def test_revoked_token_opens_nothing_after_a_reload(known: Known) -> None:
    """Also one that was looked up before; the other of its principal goes on."""
    first, header = known.new()
    _, other = known.new()
    assert known.opens(header)
    known.store.revoke(first)
    generation = known.tokens.generation
    assert known.tokens.reload()
    assert known.tokens.generation > generation
    assert not known.opens(header)
    assert known.opens(other)
    assert not known.tokens.reload()


def test_fleets_word_brings_a_reload(known: Known) -> None:
    """Once a word: the files are not looked at again for the same one."""
    token_id, header = known.new()
    known.store.revoke(token_id)
    assert not known.tokens.follow()
    assert known.opens(header)
    known.word += 1
    assert known.tokens.follow()
    assert not known.opens(header)
    assert not known.tokens.follow()


def test_token_made_a_moment_ago_opens_at_once(known: Known) -> None:
    """Before the next tick, where the word says that there are new ones; a header that is none costs no second look."""
    token, secret = known.store.drawn(Asked(principal="ci", scopes=("read",)))
    known.store.add(token)
    assert not known.opens(f"Bearer {secret}")
    known.word += 1
    assert known.opens(f"Bearer {secret}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("token = 7", "array"),
        ("[[token]]\nid = 'ab'", "id"),
        ("[[tokens]]", "tokens"),
        ("\x00", "TOML|invalid|Invalid"),
        (f"[[token]]\nid='0123abcd'\nprincipal='../x'\nscopes=['read']\nsha256='{'a' * 64}'", "principal"),
        (f"[[token]]\nid='0123abcd'\nprincipal='x'\nscopes=['shift']\nsha256='{'a' * 64}'", "shift:MODEL"),
        (f"[[token]]\nid='0123abcd'\nprincipal='x'\nscopes=['root']\nsha256='{'a' * 64}'", "root"),
    ],
    ids=range(7),
)
def test_file_that_is_none_changes_nothing(known: Known, content: str, said: str) -> None:
    """What was known holds, and what is wrong is told."""
    _, header = known.new()
    (known.state_dir / TABLE).write_text(content)
    assert not known.tokens.reload()
    assert known.opens(header)
    with pytest.raises(TokensUnusable, match=said):
        read_table(known.state_dir, known.now_ns)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o606, 0o644])
def test_file_that_others_may_read_is_refused(known: Known, mode: int) -> None:
    """Whoever may write it may let anybody in; whoever may read it learns who there is."""
    known.new()
    (known.state_dir / TABLE).chmod(mode)
    with pytest.raises(TokensUnusable, match=f"mode {mode:04o}.*chmod 600"):
        read_table(known.state_dir, known.now_ns)


def test_link_is_no_table(known: Known, tmp_path: Path) -> None:
    """A link in its place leads nowhere."""
    known.new()
    (known.state_dir / TABLE).rename(known.state_dir / "elsewhere")
    (known.state_dir / TABLE).symlink_to(known.state_dir / "elsewhere")
    with pytest.raises(TokensUnusable, match="cannot be read"):
        read_table(known.state_dir, known.now_ns)


@pytest.mark.parametrize(
    "scope", ["", "shift", "shift:", "shift:a/b", "read:m", "admin:*", "nothing", "shift:m:n", "Shift:m"]
)
def test_scope_that_is_none_makes_no_token(known: Known, scope: str) -> None:
    """A misspelt scope is refused, not ignored."""
    with pytest.raises(ChangeInvalid, match="scope"):
        known.new("ci", scope)


def test_token_that_is_over_is_not_made(known: Known) -> None:
    """An end in the past is a slip."""
    with pytest.raises(ChangeInvalid, match="expires_ns"):
        known.new("ci", expires_ns=known.now_ns)


def test_three_live_tokens_by_hand_are_refused(known: Known) -> None:
    """The limit holds for the file, too, whoever wrote it."""
    rows = [
        f"[[token]]\nid='0000000{i}'\nprincipal='x'\nscopes=['read']\nsha256='{str(i) * 64}'"
        for i in range(3)
    ]
    (known.state_dir / TABLE).write_text("\n".join(rows))
    (known.state_dir / TABLE).chmod(0o600)
    with pytest.raises(TokensUnusable, match="x has 3 live tokens"):
        read_table(known.state_dir, known.now_ns)


def test_certificates_stay_when_tokens_are_made(known: Known) -> None:
    """What an operator wrote of certificates is kept, whatever its text."""
    odd = 'CN \u00e9"\\ \u007f'
    text = f'[[certificate]]\nsubject = {json.dumps(odd)}\nprincipal = "ops"\nscopes = ["read"]\n'
    (known.state_dir / TABLE).write_text(text.replace("\x7f", "\\u007f"))
    (known.state_dir / TABLE).chmod(0o600)
    known.new()
    found = known.tokens.of_certificate(["other", odd])
    assert found is not None
    assert (found.name, found.scopes) == ("token:ops", {"read"})
    assert known.tokens.of_certificate(["other"]) is None


def test_revoked_token_opens_nothing_once_the_file_can_be_read_again(
    known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process without a descriptor left, as in a flood of connections, misses the change at first: not for ever."""
    token_id, header = known.new()
    known.store.revoke(token_id)
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", raising(errno.EMFILE))
        assert not known.tokens.reload()
        assert known.opens(header)
        assert "Too many open files" in str(known.tokens.problem)
    assert known.tokens.reload()
    assert not known.opens(header)
    assert known.tokens.problem is None


def test_token_is_revoked_on_a_full_disk(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the blocks that the file has: what shuts a door needs no room. A token is made only where there is room."""
    first, header = known.new()
    _, other = known.new()
    before = (known.state_dir / TABLE).stat()
    monkeypatch.setattr(token_store, "write_private", raising(errno.ENOSPC))
    known.store.revoke(first)
    after = (known.state_dir / TABLE).stat()
    assert (after.st_ino, after.st_size, after.st_mode) == (before.st_ino, before.st_size, before.st_mode)
    known.tokens.reload()
    assert (known.opens(header), known.opens(other)) == (False, True)
    with pytest.raises(OSError, match="No space left"):
        known.new()


def test_disk_that_takes_a_part_gets_the_rest(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    """A nearly full disk writes less than asked and says so: no half table takes the place of a whole one."""
    write = os.write
    monkeypatch.setattr(token_table.os, "write", lambda fd, content: write(fd, content[:7]))
    _, header = known.new()
    assert known.opens(header)


def test_table_that_would_not_be_read_again_is_not_written(
    known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing could be revoked any more: the token that is one too many, or too large, is refused."""
    monkeypatch.setattr(token_store, "TOKENS_MAX", 2)
    ids = [known.new(name)[0] for name in ("a", "b")]
    with pytest.raises(StateConflict, match="would have 3 tokens"):
        known.new("c")
    known.store.revoke(ids[0])
    monkeypatch.setattr(token_store, "TABLE_MAX_BYTES", 1000)
    with pytest.raises(StateConflict, match="fewer scopes"):
        known.new("c", *(f"shift:m{i}" for i in range(100)))
    assert [t.id for t in known.store.listed()] == [ids[1]]


def test_long_header_holds_no_token(known: Known) -> None:
    """Nor is it remembered: a client could fill memory with spaces around one."""
    _, header = known.new()
    assert known.opens(header.replace(" ", " " * 900))
    assert not known.opens(header.replace(" ", " " * 2000))


def raising(number: int) -> Callable[..., NoReturn]:
    """A call that fails with this error."""

    def failing(*args: object, **rest: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return failing
