"""What a client may send that is meant to hurt, drawn from a seed: the same seed gives the same bytes.

An exchange is one connection's bytes, in the pieces in which they are sent, and how the client ends it. Most are
answered with a refusal, some are odd but right; what none may do is the runner's matter (hostile_clients).
"""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

from tests.e2e.hostile_matrix import BODY, MATRIX


class Exchange(NamedTuple):
    """One connection's bytes.

    `ends`: "stay" waits for an answer, "half" closes its sending side after the last piece, "reset" leaves without
    reading, "silent" says no more and waits.
    """

    kind: str
    pieces: list[bytes]
    ends: str = "stay"


def post(body: bytes, *fields: bytes, path: bytes = b"/v2/models/linear/infer") -> bytes:
    """A whole request."""
    lines = b"".join(field + b"\r\n" for field in fields)
    return b"POST %b HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n%b" % (path, lines, len(body), body)


def _tensor(**changes: object) -> dict[str, object]:
    return {"name": "X", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4], **changes}


def _json(content: object) -> bytes:
    return json.dumps(content).encode()


def _with(raw: bytes, place: str = "data") -> bytes:
    """A request with raw JSON text as the value of one field of its tensor."""
    marked = _json({"inputs": [_tensor(**{place: "@"})]})
    return marked.replace(b'"@"', raw)


# --- kinds, each (draw, rng) -> Exchange ---------------------------------------------------------


def _parsers(rng: random.Random) -> Exchange:
    name = rng.choice(list(MATRIX))
    return Exchange("parsers", [MATRIX[name][0]])


def _one_byte(rng: random.Random) -> Exchange:
    """Requests of one connection whose heads differ by a byte: what is kept of one must not answer the other."""
    good = post(BODY, b"traceparent: 00-%032x-%016x-01" % (rng.getrandbits(128) | 1, rng.getrandbits(64) | 1))
    head = good.index(b"\r\n\r\n") + 4
    pieces = [good]
    for _ in range(rng.randint(1, 4)):
        changed = bytearray(good)
        at = rng.randrange(head)
        how = rng.randrange(3)
        if how == 0:
            changed[at] = rng.choice((0, 9, 10, 11, 13, 32, 58, 127, 128, 255, rng.randrange(256)))
        elif how == 1:
            changed.insert(at, rng.choice((0, 9, 10, 13, 32, 44, 48, 58)))
        else:
            del changed[at]
        pieces.append(bytes(changed))
    return Exchange("one byte", pieces)


def _cut(rng: random.Random) -> Exchange:
    """A request in two or three segments, cut anywhere."""
    good = post(BODY)
    cuts = sorted(rng.sample(range(1, len(good)), rng.randint(1, 2)))
    edges = [0, *cuts, len(good)]
    return Exchange("cut", [good[a:b] for a, b in zip(edges, edges[1:], strict=False)])


def _fields(rng: random.Random) -> Exchange:
    """Header fields of ours with values that cannot be meant, given twice, or very long."""
    name = rng.choice(
        (
            b"inference-header-content-length",
            b"x-request-timeout-ms",
            b"traceparent",
            b"x-routing-key",
            b"x-tidegate-audit-level",
            b"content-encoding",
            b"content-type",
            b"expect",
            b"connection",
            b"authorization",
        )
    )
    value = rng.choice(
        (
            b"",
            b"-1",
            b"0",
            b"9" * rng.choice((12, 13, 400)),
            b"\xff\xfe",
            b"x" * 2000,
            b"../../etc/passwd",
            b"a\tb",
            b"0x10",
        )
    )
    return Exchange("fields", [post(BODY, *[b"%b: %b" % (name, value)] * rng.randint(1, 2))])


def _paths(rng: random.Random) -> Exchange:
    """Names that are paths, targets, or nothing; methods that are not for them."""
    name = rng.choice(
        (
            b"..",
            b"%2e%2e%2f%2e%2e",
            b"..%2f..%2fetc%2fpasswd",
            b"%00",
            b"a%0d%0ab",
            b"\\..\\",
            b"%c0%ae",
            b"x" * 300,
            b"%",
            b"%zz",
            b"",
        )
    )
    path = rng.choice(
        (b"/v2/models/%b/infer", b"/v2/models/linear/versions/%b/infer", b"/v2/models/%b", b"/%b")
    )
    method = rng.choice((b"POST", b"GET", b"PUT", b"DELETE", b"TRACE", b"OPTIONS", b"HEAD"))
    target = path % name
    return Exchange(
        "paths",
        [post(BODY, path=target).replace(b"POST", method, 1)]
        if method != b"HEAD"
        else [post(BODY, path=target)],
    )


def _numbers(rng: random.Random) -> Exchange:
    """Numbers that no type holds, or that are none."""
    value = rng.choice(
        (b"1e999", b"-1e999", b"1e-400", b"NaN", b"-Infinity", b"9" * 4000, b"0." + b"1" * 4000, b"01", b"+1", b"0x1",
         b"1e", b".5", b"--1", b"1_0", b"true", b"null", b'"1"', b"1e39", b"18446744073709551616", b"{}", b"-0")
    )  # fmt: skip
    place = rng.choice(("data", "shape", "parameters"))
    raw = b"[1,2,3,%b]" % value if place != "parameters" else b'{"a":%b}' % value
    return Exchange("numbers", [post(_with(raw, place))])


def _shapes(rng: random.Random) -> Exchange:
    """Shapes that overflow, are negative, empty, or of another rank."""
    dims = [
        rng.choice((0, 1, 4, -1, 2**31, 2**32 + 1, 2**40, 2**62, 2**63, 2**64, 2**70))
        for _ in range(rng.randint(0, 6))
    ]
    return Exchange(
        "shapes", [post(_json({"inputs": [_tensor(shape=dims, data=[1] * rng.choice((0, 1, 4)))]}))]
    )


def _binary(rng: random.Random) -> Exchange:
    """Binary tensors of the wrong size, at the wrong place, or announced by a wrong header."""
    size = rng.choice((0, 1, 15, 16, 17, 2**31, 2**63, -1))
    text = _json(
        {
            "inputs": [
                {"name": "X", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": size}}
            ]
        }
    )
    announced = rng.choice((len(text), len(text) - 1, len(text) + 1, 0, 1, 2**40))
    blob = bytes(rng.randrange(256) for _ in range(rng.choice((0, 15, 16, 17, 64))))
    return Exchange("binary", [post(text + blob, b"Inference-Header-Content-Length: %d" % announced)])


def _utf8(rng: random.Random) -> Exchange:
    """Bytes that are no UTF-8, anywhere in a body."""
    body = bytearray(BODY)
    at = rng.randrange(len(body))
    body[at:at] = rng.choice(
        (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\0", b"\xe2\x80\xa8")
    )
    return Exchange("utf8", [post(bytes(body))])


def _deep(rng: random.Random) -> Exchange:
    """Nesting, in every field."""
    depth = rng.choice((10, 63, 64, 65, 500, 1000, 1100, 20_000, 100_000))
    text = rng.choice((b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth, b"[" * depth))
    place = rng.choice(("data", "shape", "parameters", "name", "id", "outputs", "unknown", "top"))
    if place == "top":
        body = text
    elif place in {"id", "outputs", "unknown"}:
        body = b'{"%b":%b,%b' % (place.encode(), text, BODY[1:])
    else:
        body = _with(text, place)
    return Exchange("deep", [post(body)])


def _gzip(rng: random.Random) -> Exchange:
    """Bodies that inflate to very much, are no stream, end early, or say another coding."""
    packed = rng.choice((*_bombs(), gzip.compress(BODY), gzip.compress(BODY)[:-6], BODY, b""))
    coding = rng.choice((b"gzip", b"deflate", b"gzip, gzip", b"br", b"zstd", b"\xff", b"identity"))
    return Exchange("gzip", [post(packed, b"Content-Encoding: %b" % coding)])


def _chunks(rng: random.Random) -> Exchange:
    """Bodies in single bytes, with long extensions, many trailers."""
    head = b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    how = rng.randrange(3)
    if how == 0:
        padded = BODY + b" " * rng.choice((0, 1000, 60_000))
        return Exchange("chunks", [head, b"".join(b"1\r\n%c\r\n" % byte for byte in padded) + b"0\r\n\r\n"])
    extension = b";" + b"e" * rng.choice((1, 1000, 100_000)) if how == 1 else b""
    trailers = b"X-T: b\r\n" * rng.choice((0, 10, 2000)) if how == 2 else b""
    return Exchange("chunks", [head, b"%x%b\r\n%b\r\n0\r\n%b\r\n" % (len(BODY), extension, BODY, trailers)])


def _pipelines(rng: random.Random) -> Exchange:
    """Many small requests at once."""
    some = [
        post(BODY),
        b"GET /nope HTTP/1.1\r\nHost: a\r\n\r\n",
        post(b"{}"),
        post(b"{}", path=b"/v2/models/no/infer"),
    ]
    return Exchange("pipelines", [b"".join(rng.choice(some) for _ in range(rng.choice((2, 10, 100))))])


def _leaves(rng: random.Random) -> Exchange:
    """A client that goes away in the middle, in one of three ways."""
    good = post(BODY + b" " * rng.choice((0, 300_000)))
    return Exchange("leaves", [good[: rng.randrange(1, len(good) + 1)]], rng.choice(("half", "reset")))


def _silent(rng: random.Random) -> Exchange:
    """A client that says the beginning and then nothing."""
    good = post(BODY)
    return Exchange("silent", [good[: rng.randrange(1, len(good))]], "silent")


def _large(rng: random.Random) -> Exchange:
    """Megabytes: brackets, values, header fields, a body that nobody asked for."""
    how = rng.randrange(6)
    if how == 0:
        return Exchange("large", [post(_with(b"[" + b"[]," * (8 * 2**20 // 3) + b"[]]"))])
    if how == 1:
        return Exchange("large", [post(_with(b"[" + b"1," * 2**19 + b"1]"))])
    if how == 2:
        return Exchange(
            "large", [b"GET /v2 HTTP/1.1\r\nHost: a\r\n", *[b"X-A: %b\r\n" % (b"b" * 2**20)] * 24, b"\r\n"]
        )
    if how == 3:
        return Exchange("large", [post(b" " * (8 * 2**20), path=b"/nope")])
    if how == 4:
        return Exchange("large", [post(_with(b"[" + b"[]," * 80_000 + b"[]]"))])
    return Exchange("large", [post(b'{"parameters":{"a":"%b"},%b' % (b"p" * 2**20, BODY[1:]))])


@cache
def _bombs() -> tuple[bytes, bytes]:
    return gzip.compress(b" " * (80 * 2**20), 6), zlib.compress(b"[" * (80 * 2**20), 6)


KINDS: dict[Callable[[random.Random], Exchange], int] = {
    _parsers: 120, _one_byte: 200, _cut: 80, _fields: 80, _paths: 80, _numbers: 100, _shapes: 80, _binary: 60,
    _utf8: 40,
    _deep: 30, _gzip: 20, _chunks: 20, _pipelines: 20, _leaves: 40, _silent: 20, _large: 3,
}  # fmt: skip
"""How often each is drawn."""


def exchanges(seed: int, count: int) -> Iterator[Exchange]:
    """`count` exchanges of all kinds."""
    rng = random.Random(seed)
    kinds, weights = list(KINDS), list(KINDS.values())
    for _ in range(count):
        yield rng.choices(kinds, weights)[0](rng)


def one_of_each(seed: int) -> Iterator[Exchange]:
    """Every kind once, the rare ones too."""
    rng = random.Random(seed)
    for kind in KINDS:
        yield kind(rng)
