"""Bodies as they come in: the codings that are taken, and what is no such coding."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import Any

import pytest
from starlette.requests import Request

from gateway.api.incoming import inflated, read_body
from gateway.errors import BodyTooLarge, Overloaded, UnsupportedCoding

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


def test_a_body_that_is_not_there_when_the_server_gives_up_is_told_so() -> None:
    """The server ends what still waits by cancelling it: the client may try again, and nothing broke here."""

    async def never() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def main() -> None:
        reading = asyncio.create_task(read_body(Request({"type": "http", "headers": []}, never), 100))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(Overloaded, match="stopping"):
            await reading

    asyncio.run(main())
