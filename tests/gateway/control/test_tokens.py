"""The admin token: made once, private, and never matched by nothing."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gateway.control.tokens import TOKEN_FILE, check_bearer, ensure_token
from gateway.errors import Unauthorized


def test_made_once_and_private(tmp_path: Path) -> None:
    """64 hex digits, mode 0600, the same at the next start."""
    token = ensure_token(tmp_path)
    assert len(bytes.fromhex(token)) == 32
    assert stat.S_IMODE((tmp_path / TOKEN_FILE).stat().st_mode) == 0o600
    assert ensure_token(tmp_path) == token
    assert [path.name for path in tmp_path.iterdir()] == [TOKEN_FILE]


@pytest.mark.parametrize("left", [(TOKEN_FILE, ""), (TOKEN_FILE, "\n"), (f"{TOKEN_FILE}.new", "ab")])
def test_half_made_token_is_made_anew(tmp_path: Path, left: tuple[str, str]) -> None:
    """A kill or a full disk at the first start leaves no empty token in force."""
    (tmp_path / left[0]).write_text(left[1])
    assert len(ensure_token(tmp_path)) == 64
    assert (tmp_path / TOKEN_FILE).read_text().strip() == ensure_token(tmp_path)


def test_operators_own_token_is_kept(tmp_path: Path) -> None:
    """A token that was put there holds."""
    (tmp_path / TOKEN_FILE).write_text("mine\n")
    assert ensure_token(tmp_path) == "mine"


@pytest.mark.parametrize("header", ["Bearer secret", "bearer secret", "BEARER  secret "])
def test_scheme_in_any_case(header: str) -> None:
    """As HTTP has it."""
    check_bearer(header, "secret")


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer secre", "Basic secret", "secret", "Bearer \u00e9"]
)
@pytest.mark.parametrize("token", ["secret", ""])
def test_anything_else_is_refused(header: str | None, token: str) -> None:
    """No header, another scheme, another token; and an empty token lets nobody in."""
    with pytest.raises(Unauthorized, match=r"admin\.token"):
        check_bearer(header, token)
