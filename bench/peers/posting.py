"""Posting: one request to a server, and what came back."""

from __future__ import annotations

import http.client
from typing import NamedTuple
from urllib.parse import urlsplit

from bench.peers.peer import Message


class Answer(NamedTuple):
    """A reply: status, headers by lower-case name, body."""

    status: int
    headers: dict[str, str]
    body: bytes


def post(url: str, message: Message, timeout_s: float = 30.0) -> Answer:
    """Send one request on a connection of its own; raises OSError when there is no whole answer."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request("POST", message.path, message.body, dict(message.headers))
        reply = connection.getresponse()
        return Answer(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
    except http.client.HTTPException as exc:
        raise ConnectionError(str(exc)) from exc
    finally:
        connection.close()
