"""Bodies as they come in: the codings that are taken, and what is no such coding."""

from __future__ import annotations

import gzip
import zlib

import pytest

from gateway.api.incoming import inflated
from gateway.errors import BodyTooLarge, UnsupportedCoding

BODY = b'{"inputs":[]}' * 100
RAW = zlib.compress(BODY)[2:-4]
"""deflate without zlib's frame."""


@pytest.mark.parametrize(
    ("coding", "body"),
    [("gzip", gzip.compress(BODY)), ("x-gzip", gzip.compress(BODY)), ("deflate", zlib.compress(BODY))],
)
def test_codings_are_undone(coding: str, body: bytes) -> None:
    """gzip by both its names, and deflate in zlib's format; exactly at the limit too."""
    assert inflated(body, coding, len(BODY)) == BODY


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_limit_holds_for_what_is_inside(coding: str) -> None:
    """A small body must not become a large one; no more than the limit is ever made."""
    packed = gzip.compress(bytes(1 << 24)) if coding == "gzip" else zlib.compress(bytes(1 << 24))
    assert len(packed) < 20_000
    with pytest.raises(BodyTooLarge, match="inflates to more than 4096 bytes"):
        inflated(packed, coding, 4096)


@pytest.mark.parametrize(
    ("coding", "body", "says"),
    [
        ("br", BODY, "'br'; expected gzip, deflate or none"),
        ("gzip, gzip", gzip.compress(gzip.compress(BODY)), "'gzip, gzip'"),
        ("gzip,deflate", BODY, "'gzip,deflate'"),
        ("deflate", RAW, "zlib's format"),
        ("gzip", b"xx" + gzip.compress(BODY), "is not gzip"),
        ("gzip", zlib.compress(BODY), "is not gzip"),
        ("gzip", gzip.compress(BODY)[:-6], "cut short"),
        ("gzip", b"", "cut short"),
        ("gzip", gzip.compress(BODY) + b"tail", "4 bytes follow"),
    ],
)
def test_what_is_refused(coding: str, body: bytes, says: str) -> None:
    """Other codings, several of them, and bodies that are not in the one they name: never taken as they are."""
    with pytest.raises(UnsupportedCoding, match=says):
        inflated(body, coding, 1 << 20)
