"""HTTP as bytes on a socket: requests are written out, replies are kept as they came."""

from __future__ import annotations

import json
import re
import socket
from typing import NamedTuple
from urllib.parse import urlsplit


class RawReply(NamedTuple):
    """A reply as bytes: head (status line and fields) and body."""

    head: bytes
    body: bytes

    @property
    def status(self) -> int:
        """The status code."""
        return int(self.head.split(b" ", 2)[1])

    @property
    def fields(self) -> dict[str, str]:
        """Header fields by lower-case name."""
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines if line)}

    def masked(self) -> bytes:
        """Everything, with the ids and the date struck out."""
        head = re.sub(rb"(?im)^date: [^\r]*", b"date: *", self.head)
        # A request without an id gets the prediction's in its body too.
        return re.sub(rb"[0-9a-f]{16}-[0-9a-f]{8}-[0-9a-f]{16}", b"*", head + self.body)


class Wire:
    """One connection. Not thread-safe."""

    def __init__(self, url: str, timeout_s: float = 30) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname or "", parts.port or 80), timeout_s)
        self._buffer = b""

    def send(self, content: bytes) -> None:
        """Write bytes out."""
        self._socket.sendall(content)

    def reply(self, *, has_body: bool = True) -> RawReply:
        """The next whole reply (with Content-Length); raises ConnectionError when there is none.

        Args:
            has_body: not so of a reply to HEAD, whose Content-Length tells what GET would get.
        """
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, rest = self._buffer.partition(b"\r\n\r\n")
        length = int(RawReply(head, b"").fields.get("content-length", "0")) if has_body else 0
        self._buffer = rest
        while len(self._buffer) < length:
            self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return RawReply(head + b"\r\n\r\n", body)

    def _more(self) -> None:
        chunk = self._socket.recv(65536)
        if not chunk:
            msg = f"connection closed by the server; {len(self._buffer)} bytes of a reply were there"
            raise ConnectionError(msg)
        self._buffer += chunk

    def exchange(self, content: bytes) -> RawReply:
        """Send and take the reply."""
        self.send(content)
        return self.reply(has_body=not content.startswith(b"HEAD "))

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def post(path: str, body: object, **fields: str) -> bytes:
    """The bytes of a POST; `body` is bytes as they are, or anything that JSON holds."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {
        "content-type": "application/json",
        **{k.replace("_", "-"): v for k, v in fields.items()},
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{lines}content-length: {len(content)}\r\n\r\n"
    return head.encode() + content


def get(path: str) -> bytes:
    """The bytes of a GET."""
    return f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()


def infer(model: str, rows: list[list[float]], request_id: str | None = None, **fields: str) -> bytes:
    """An inference request with input X; header fields by keyword, `_` for `-`."""
    data = [value for row in rows for value in row]
    tensor = {"name": "X", "datatype": "FP32", "shape": [len(rows), len(rows[0])], "data": data}
    body: dict[str, object] = {"inputs": [tensor]}
    if request_id is not None:
        body["id"] = request_id
    return post(f"/v2/models/{model}/infer", body, **fields)
