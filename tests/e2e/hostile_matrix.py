"""The cases in which HTTP parsers differ: what must be refused, and what must be read in one way only.

Each is one connection's bytes and the statuses of all answers that come, in order, the same at both doors.
"""

from __future__ import annotations

import json

BODY = json.dumps(
    {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
).encode()
SIZE = len(BODY)
LINE = b"POST /v2/models/linear/infer HTTP/1.1\r\n"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (SIZE, BODY)


def _fields(*lines: bytes, body: bytes = BODY) -> bytes:
    return LINE + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


GOES_ON = "a request behind another's body"
"""The one whose refusal is of its body, not of its form: the connection lives on."""
LENGTH = b"Content-Length: %d" % SIZE
CHUNKED = b"Transfer-Encoding: chunked"

MATRIX: dict[str, tuple[bytes, list[int]]] = {
    "no host": (_fields(LENGTH), [400]),
    "two hosts": (_fields(b"Host: a", b"Host: b", LENGTH), [400]),
    "the same host twice": (_fields(b"Host: a", b"host: a", LENGTH), [400]),
    "bare LF": (_fields(b"Host: a", LENGTH).replace(b"\r\n", b"\n"), [400]),
    "one bare LF": (_fields(b"Host: a", b"X-A: b\nX-B: c", LENGTH), [400]),
    "bare CR": (_fields(b"Host: a", b"X-A: b\rX-B: c", LENGTH), [400]),
    "obs-fold": (_fields(b"Host: a", b"X-A: b\r\n c", LENGTH), [400]),
    "obs-fold of the length": (_fields(b"Host: a", b"Content-Length:\r\n %d" % SIZE), [400]),
    "length and chunked": (_fields(b"Host: a", LENGTH, CHUNKED, body=CHUNKS), [400]),
    "chunked and length": (_fields(b"Host: a", CHUNKED, LENGTH, body=CHUNKS), [400]),
    "two lengths": (_fields(b"Host: a", LENGTH, LENGTH), [400]),
    "two lengths that differ": (_fields(b"Host: a", LENGTH, b"Content-Length: 5"), [400]),
    "a list of lengths": (_fields(b"Host: a", b"Content-Length: %d, %d" % (SIZE, SIZE)), [400]),
    "a signed length": (_fields(b"Host: a", b"Content-Length: +%d" % SIZE), [400]),
    "a negative length": (_fields(b"Host: a", b"Content-Length: -1"), [400]),
    "a hexadecimal length": (_fields(b"Host: a", b"Content-Length: 0x%x" % SIZE), [400]),
    "a length beyond 64 bits": (_fields(b"Host: a", b"Content-Length: " + b"9" * 30), [400]),
    "a length of nothing": (_fields(b"Host: a", b"Content-Length:"), [400]),
    "xchunked": (_fields(b"Host: a", b"Transfer-Encoding: xchunked", body=CHUNKS), [400]),
    "chunked, identity": (_fields(b"Host: a", b"Transfer-Encoding: chunked, identity", body=CHUNKS), [400]),
    "identity": (_fields(b"Host: a", b"Transfer-Encoding: identity", body=CHUNKS), [400]),
    "gzip, chunked": (_fields(b"Host: a", b"Transfer-Encoding: gzip, chunked", body=CHUNKS), [400]),
    "chunked twice": (_fields(b"Host: a", CHUNKED, CHUNKED, body=CHUNKS), [400]),
    "a vertical tab before chunked": (
        _fields(b"Host: a", b"Transfer-Encoding: \x0bchunked", body=CHUNKS),
        [400],
    ),
    "a space before the colon": (_fields(b"Host: a", b"Content-Length : %d" % SIZE), [400]),
    "a space before the name": (_fields(b"Host: a", b" X-A: b", LENGTH), [400]),
    "no colon": (_fields(b"Host: a", b"X-A", LENGTH), [400]),
    "no name": (_fields(b"Host: a", b": b", LENGTH), [400]),
    "NUL in a value": (_fields(b"Host: a", b"X-A: b\0c", LENGTH), [400]),
    "NUL in a name": (_fields(b"Host: a", b"X\0A: b", LENGTH), [400]),
    "DEL in a value": (_fields(b"Host: a", b"X-A: b\x7fc", LENGTH), [400]),
    "a chunk size with a sign": (_fields(b"Host: a", CHUNKED, body=b"+" + CHUNKS), [400]),
    "a chunk size with 0x": (_fields(b"Host: a", CHUNKED, body=b"0x" + CHUNKS), [400]),
    "a chunk size beyond 64 bits": (_fields(b"Host: a", CHUNKED, body=b"f" * 17 + b"\r\n"), [400]),
    "a chunk that is longer than it says": (
        _fields(b"Host: a", CHUNKED, body=b"5\r\n" + BODY + b"\r\n0\r\n\r\n"),
        [400],
    ),
    "a chunk that ends in LF": (_fields(b"Host: a", CHUNKED, body=CHUNKS.replace(b"\r\n", b"\n")), [400]),
    "a version of HTTP that is none": (_fields(b"Host: a", LENGTH).replace(b"HTTP/1.1", b"HTTP/1.7"), [400]),
    "HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64, [400]),
    "two spaces in the request line": (_fields(b"Host: a", LENGTH).replace(b"POST ", b"POST  "), [200]),
    "a target that is not ASCII": (_fields(b"Host: a", LENGTH).replace(b"linear", b"lin\xc3\xa4r"), [400]),
    "a target that is an address": (_fields(b"Host: a", LENGTH).replace(b"/v2", b"http://b/v2"), [200]),
    "a tunnel": (b"CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\nxx", [400]),
    "a chunk extension": (
        _fields(b"Host: a", CHUNKED, body=b"%x;a=b;c\r\n%b\r\n0\r\n\r\n" % (SIZE, BODY)),
        [200],
    ),
    "a trailer": (_fields(b"Host: a", CHUNKED, body=CHUNKS[:-2] + b"Host: b\r\n\r\n"), [200]),
    "leading zeros": (_fields(b"Host: a", b"Content-Length: 000%d" % SIZE), [200]),
    "white space about the length": (_fields(b"Host: a", b"Content-Length: \t %d \t" % SIZE), [200]),
    GOES_ON: (
        _fields(
            b"Host: a", b"Content-Length: %d" % (SIZE * 2), body=BODY + _fields(b"Host: a", LENGTH)[:SIZE]
        ),
        [400],
    ),
    "a pipeline whose second is refused": (
        _fields(b"Host: a", LENGTH) + _fields(b"Host: a", LENGTH, CHUNKED) + _fields(b"Host: a", LENGTH),
        [200, 400],
    ),
}
