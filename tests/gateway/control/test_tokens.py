"""Tokens: private, kept, and nothing but themselves opens the door."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.control.tokens import FEEDBACK, TokenFile, check_bearer, ensure_token, ensure_tokens
from gateway.errors import Unauthorized


def test_token_is_made_once_and_private(tmp_path: Path) -> None:
    """32 random bytes as hex, mode 0600, the same at the next start."""
    token = ensure_token(tmp_path)
    path = tmp_path / "admin.token"
    assert len(bytes.fromhex(token)) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert ensure_token(tmp_path) == token == path.read_text().strip()
    assert [p.name for p in tmp_path.iterdir()] == ["admin.token"]


def test_each_principal_has_its_own(tmp_path: Path) -> None:
    """Private files, a token in each; the token says who asks. Those of the data listener open nothing here."""
    tokens = ensure_tokens(tmp_path)
    names = ("admin", "feedback", "publish", "sidecar", "worker")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{name}.token" for name in names]
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o600}
    assert len({*tokens.values()}) == 3
    for principal in ("admin", "sidecar", "worker"):
        given = (tmp_path / f"{principal}.token").read_text().strip()
        assert check_bearer(f"Bearer {given}", tokens) == principal
    assert ensure_tokens(tmp_path) == tokens


@pytest.mark.parametrize("rest", [b"", b"\n", b"abc", b"\xff" * 64], ids=repr)
def test_rest_of_a_token_is_none(tmp_path: Path, rest: bytes) -> None:
    """What a kill at the first start left is replaced, not trusted."""
    (tmp_path / "admin.token").write_bytes(rest)
    token = ensure_token(tmp_path)
    assert len(token) == 64
    with pytest.raises(Unauthorized):
        check_bearer("Bearer ", {"admin": token})


def test_rest_of_a_try_keeps_no_rights(tmp_path: Path) -> None:
    """A temporary file that others may read does not become the token."""
    loose = tmp_path / "admin.token.new"
    loose.write_text("x")
    loose.chmod(0o666)
    ensure_token(tmp_path)
    assert (tmp_path / "admin.token").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_right_token_passes(scheme: str) -> None:
    """The scheme's case does not matter."""
    assert check_bearer(f"{scheme} {'a' * 64}", {"admin": "a" * 64}) == "admin"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {'a' * 63}",
        f"Bearer {'b' * 64}",
        "Basic " + "a" * 64,
        "a" * 64,
    ],
    ids=repr,
)
def test_anything_else_is_refused(header: str | None) -> None:
    """Absent, cut, another, or of another scheme."""
    with pytest.raises(Unauthorized, match=r"admin\.token"):
        check_bearer(header, {"admin": "a" * 64})


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer "], ids=repr)
def test_empty_token_opens_nothing(header: str | None) -> None:
    """No header equals the token that is not there."""
    with pytest.raises(Unauthorized):
        check_bearer(header, {"admin": "", "sidecar": ""})


def test_feedback_token_opens_nothing_else(tmp_path: Path) -> None:
    """It is made with the others, 0600, and the admin listener does not know it."""
    tokens = ensure_tokens(tmp_path)
    path = tmp_path / "feedback.token"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(Unauthorized):
        check_bearer(f"Bearer {path.read_text().strip()}", tokens)


def test_token_of_another_process(tmp_path: Path) -> None:
    """Nothing opens before control has made it; then it alone does."""
    known = TokenFile(tmp_path, FEEDBACK)
    for header in (None, "Bearer ", "Bearer", "Bearer " + "0" * 64):
        with pytest.raises(Unauthorized, match=r"feedback\.token"):
            known.check(header)
    token = ensure_token(tmp_path, FEEDBACK)
    assert known.check(f"Bearer {token}") == "feedback"
    other = ensure_token(tmp_path)
    with pytest.raises(Unauthorized):
        known.check(f"Bearer {other}")
