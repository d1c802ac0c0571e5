"""A kept head is never more lenient than the parser: what it reads, the parser reads in the same way."""

from __future__ import annotations

import random
from typing import Any

import httptools
import msgspec
import pytest

from gateway.api import kept
from gateway.api.heads import make_head
from gateway.api.kept import KeptHead, keep
from gateway.head import Head

BODY = b'{"inputs":[]}'
TRACE = b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
LINE = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: h\r\n"
HEADS = {
    "plain": LINE + b"content-length: 13\r\n\r\n",
    "length first": LINE.replace(b"host", b"Content-Length:13\r\nhost") + b"accept: */*\r\n\r\n",
    "traced": LINE + TRACE + b"\r\nx-request-id: a1-b2\r\ncontent-length: 13\r\nx-b3-traceid: 7\r\n\r\n",
    "binary": LINE + b"Inference-Header-Content-Length: 13\r\ncontent-length: 13\r\n\r\n",
    "keyed": LINE + b"content-length:\t13\r\nx-routing-key: u-17\r\nx-request-timeout-ms: 250\r\n\r\n",
}
MUTATIONS = 3000


def caller(*key: str | None) -> msgspec.Raw:
    return msgspec.Raw(repr(key).encode())


class Parsed:
    """What the parser makes of a buffer: None for anything but exactly one whole message."""

    def __init__(self, data: bytes) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.url = self.body = b""
        self.begun = self.complete = 0
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(data)
            self.ok = self.begun == self.complete == 1 and parser.get_method() == b"POST"
            self.ok = self.ok and parser.should_keep_alive()
        except httptools.HttpParserError:
            self.ok = False

    def on_message_begin(self) -> None:
        self.begun += 1

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete += 1

    @property
    def head(self) -> Head:
        return make_head(caller, self.url, self.headers)


def read(head: KeptHead, data: bytes) -> tuple[Head, int] | None:
    """As the door does; by the pattern and without it, which agree."""
    if not data.startswith(head.before):
        return None
    slow: Any = head._read_slowly(data)
    head._pattern = kept._pattern(head.parts)
    quick = head.read(data)
    assert quick == slow
    return slow


def changed(data: bytes, rng: random.Random) -> bytes:
    """One to three bytes changed, put in or taken out, in the head more often than not."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(out) if rng.random() < 0.1 else len(data) - len(BODY))
        how = rng.randrange(4)
        if how == 0:
            out[at] = rng.choice(b"\0\t\n\r :;,0123456789abcdef\x7f\x80\xff")
        elif how == 1:
            out.insert(at, rng.choice(b"\0\t\n\r :,19af"))
        elif how == 2:
            del out[at]
        else:
            out[at:at] = rng.choice(
                (b"\r\n ", b"\r\nx: y", b"\r\nhost: b", b"\r\n\r\n", b"\r\ncontent-length: 13")
            )
    return bytes(out)


@pytest.mark.parametrize("name", HEADS)
def test_what_a_kept_head_reads_the_parser_reads_too(name: str) -> None:
    """Whatever a few changed bytes make of a request: read from the kept head, it is the parser's message exactly."""
    rng, text = random.Random(name), HEADS[name]
    first = Parsed(text + BODY)
    assert first.ok
    head = keep(text, first.head)
    assert head is not None
    assert read(head, text + BODY) == (first.head, len(text))
    taken = 0
    for _ in range(MUTATIONS):
        data = changed(text + BODY, rng)
        found = read(head, data)
        if found is None:
            continue
        taken += 1
        parsed = Parsed(data)
        assert parsed.ok, data
        assert parsed.body == data[found[1] :]
        assert parsed.head == found[0]
    assert taken > MUTATIONS // 500


@pytest.mark.parametrize(
    "text",
    [
        LINE + b"content-length: 13\r\ncontent-length: 13\r\n\r\n",
        LINE + b"content-length: 13\r\nx-request-id: a\r\nX-Request-Id: b\r\n\r\n",
        LINE + b"accept: */*\r\n\r\n",
        LINE + b"content-length: 13\r\nx-routing-key: a b\r\n\r\n",
        LINE + b"content-length: 13\r\nx-a: " + b"b" * 8192 + b"\r\n\r\n",
    ],
)
def test_heads_that_are_not_kept(text: bytes) -> None:
    """A field given twice, no length, a value of ours with a space in it, a long head."""
    assert keep(text, Parsed(LINE + b"content-length: 13\r\n\r\n" + BODY).head) is None


def test_ids_may_differ_and_are_read() -> None:
    """Another trace, request id and length: the same model, the new trace, and the body where it starts."""
    text = HEADS["traced"]
    head = keep(text, Parsed(text + BODY).head)
    assert head is not None
    other = text.replace(b"4bf9", b"aaaa").replace(b"a1-b2", b"another-one").replace(b": 13", b": 2") + b"{}"
    found = read(head, other)
    assert found is not None
    assert found[0].traceparent == "00-aaaa2f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert other[found[1] :] == b"{}"


def test_a_traceparent_that_is_none_is_not_taken() -> None:
    """Zero ids and other forms give no trace, from a kept head as from the parser."""
    text = HEADS["traced"]
    head = keep(text, Parsed(text + BODY).head)
    assert head is not None
    for bad in (
        b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01",
        b"ff-" + b"1" * 32 + b"-" + b"1" * 16 + b"-01",
        b"nonsense",
    ):
        data = text.replace(TRACE, b"traceparent: " + bad) + BODY
        found = read(head, data)
        assert found is not None
        assert found[0].traceparent is None
        assert Parsed(data).head.traceparent is None
