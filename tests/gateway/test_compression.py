"""Replies compressed: who gets them, and that they say the same."""

from __future__ import annotations

import gzip
import zlib

import pytest

from gateway.api.compression import accepted, compressed


@pytest.mark.parametrize(
    ("asked", "coding"),
    [
        (b"gzip", "gzip"), (b"gzip, deflate, br", "gzip"), (b"deflate", "deflate"), (b"GZIP;q=0.5", "gzip"),
        (b"gzip;q=0, deflate", "deflate"), (b"gzip; q=0.000", None), (b"br", None), (b"identity", None),
        (b"", None), (b"*", None), (b"xgzip", None),
    ],
)  # fmt: skip
def test_coding_is_of_those_asked(asked: bytes, coding: str | None) -> None:
    """gzip before deflate, neither where it is not named or has weight 0."""
    assert accepted(asked) == coding


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_reply_says_the_same(coding: str) -> None:
    """The body comes back; the fields name the coding and the new length, and keep the rest. Equal each time."""
    body = b'{"data":[1.5,2.5]}' * 2000
    fields = b"content-type: application/json\r\ncontent-length: %d\r\nx-tidegate-audit: spool\r\n" % len(
        body
    )
    told, packed = compressed(coding, fields, body)
    assert (gzip.decompress if coding == "gzip" else zlib.decompress)(packed) == body
    assert told == (
        b"content-type: application/json\r\ncontent-length: %d\r\ncontent-encoding: %b\r\n"
        b"vary: accept-encoding\r\nx-tidegate-audit: spool\r\n" % (len(packed), coding.encode())
    )
    assert compressed(coding, fields, body) == (told, packed)


def test_the_length_of_a_binary_replys_json_stays() -> None:
    """It counts the inflated bytes; the content's length alone is another."""
    body = bytes(50_000)
    fields = b"inference-header-content-length: 77\r\ncontent-length: 50000\r\n"
    told, packed = compressed("gzip", fields, body)
    assert told.startswith(b"inference-header-content-length: 77\r\ncontent-length: %d\r\n" % len(packed))
