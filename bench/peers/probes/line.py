"""Line: a kept connection as a careful client has it, and one as a broken client does.

A peer's Message (or raw bytes) -> **line** -> a reply, or how the connection ended. For probes, which send few
requests and want to know all about each. Nothing here retries.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from bench.peers.peer import Message
from bench.peers.probes.room import note

ANSWER_S = 30.0
_READ_BYTES = 1 << 16


class Reply(NamedTuple):
    """What came back.

    Attributes:
        headers: by lower-case name.
        took_s: from the first byte sent to the last received.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    took_s: float = 0.0

    def text(self, characters: int = 120) -> str:
        """Status and the beginning of the body, as tables have it."""
        said = " ".join(self.body[: 4 * characters].decode(errors="replace").split())
        return f"{self.status} {said[:characters]}".strip()


class Line:
    """A kept connection. Not for several threads at once.

    Args:
        url: scheme, host and port.

    Raises (all methods): OSError where no whole reply came; the connection is closed then.
    """

    def __init__(self, url: str, timeout_s: float = ANSWER_S) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)

    def send(self, message: Message) -> Reply:
        """Ask for a prediction."""
        return self.request("POST", message.path, message.body, dict(message.headers))

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Any request."""
        started_s = time.monotonic()
        try:
            self._connection.request(method, path, body, dict(headers or {}))
            reply = self._connection.getresponse()
            content = reply.read()
        except http.client.HTTPException as exc:
            self._connection.close()
            msg = f"no HTTP reply: {exc!r}"
            raise ConnectionError(msg) from exc
        except OSError as exc:
            self._connection.close()
            note(exc)
            raise
        named = {name.lower(): value for name, value in reply.getheaders()}
        return Reply(reply.status, named, content, time.monotonic() - started_s)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def ask(url: str, message: Message, timeout_s: float = ANSWER_S) -> Reply:
    """A prediction, on a connection of its own; raises OSError where no whole reply came."""
    with Line(url, timeout_s) as line:
        return line.send(message)


def get(url: str, path: str, timeout_s: float = ANSWER_S) -> Reply:
    """A page, on a connection of its own; raises OSError where no whole reply came."""
    with Line(url, timeout_s) as line:
        return line.request("GET", path)


def throw(url: str, raw: bytes, timeout_s: float = ANSWER_S) -> bytes:
    """Send bytes as they are and read until the server hangs up or is silent for `timeout_s`.

    Returns what came: b"" where nothing did. A body that is announced and not sent is waited for by the server, not
    here.

    Raises:
        OSError: the connection could not be made.
    """
    parts = urlsplit(url)
    came = b""
    with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=timeout_s) as wire:
        try:
            wire.sendall(raw)
            while chunk := wire.recv(_READ_BYTES):
                came += chunk
                if _is_whole(came):
                    break
        except OSError:
            pass
    return came


def status_of(came: bytes) -> int:
    """The status in a reply's first line; 0 where there is none."""
    words = came.split(b"\r\n", 1)[0].split(b" ", 2)
    return int(words[1]) if len(words) > 1 and words[0].startswith(b"HTTP/") and words[1].isdigit() else 0


def _is_whole(came: bytes) -> bool:
    head, cut, body = came.partition(b"\r\n\r\n")
    if not cut:
        return False
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            return len(body) >= int(value)
    return came.endswith(b"0\r\n\r\n")
