"""From a request's head to the core's `Head`; one reading of it for both doors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from urllib.parse import unquote_to_bytes

import msgspec

from gateway.errors import InvalidRequest, NotFound
from gateway.head import LEVELS, TIMEOUT_MAX_MS, Head

URL_MAX_BYTES = 8192
HEADERS_MAX_BYTES = 32_768
HEADERS_MAX = 100
FAST_BODY_MAX_BYTES = 262_144
"""Larger bodies go through the Starlette door, and JSON among them is decoded off the loop."""

ANONYMOUS = "anonymous"
"""The principal of a request without a token."""

MakeCaller = Callable[[str, str, str | None], msgspec.Raw]
"""(endpoint, protocol, principal) to the encoded caller; one object for equal ones."""

INFER = re.compile(rb"/v2/models/([^/?#]+)(?:/versions/([^/?#]+))?/infer")
_VERSION = re.compile(rb"[1-9][0-9]{0,17}")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def make_head(caller: MakeCaller, path: bytes, headers: Iterable[tuple[bytes, bytes]]) -> Head:
    """Read an infer request's path and headers (names in lower case).

    Raises:
        NotFound: the path is no infer address.
        InvalidRequest: a header of ours has a value that cannot be meant.
    """
    match = INFER.fullmatch(path)
    if match is None:
        msg = "no such address"
        raise NotFound(msg)
    model = _name(match[1])
    version = match[2]
    if version is not None and _VERSION.fullmatch(version) is None:
        msg = f"no such address: versions are positive integers, found {version.decode('latin-1')!r}"
        raise NotFound(msg)
    json_bytes = timeout_ms = traceparent = routing_key = level = None
    for name, value in headers:
        if name == b"inference-header-content-length":
            json_bytes = _number(name, value)
        elif name == b"x-request-timeout-ms":
            timeout_ms = min(max(_number(name, value), 1), TIMEOUT_MAX_MS)
        elif name == b"traceparent" and _TRACEPARENT.fullmatch(value):
            traceparent = value.decode()
        elif name == b"x-routing-key" and value:
            routing_key = value.decode("latin-1")
        elif name == b"x-tidegate-audit-level":
            level = read_level(value)
    protocol = "oip-binary" if json_bytes is not None else "oip-json"
    # The endpoint as recorded is bounded: unknown names do not make callers without end.
    endpoint = f"/v2/models/{model}" + (f"/versions/{version.decode()}" if version else "") + "/infer"
    return Head(
        model=model,
        version=version.decode() if version else None,
        caller=caller(endpoint, protocol, ANONYMOUS),
        endpoint=endpoint,
        json_bytes=json_bytes,
        timeout_ms=timeout_ms,
        traceparent=traceparent,
        routing_key=routing_key,
        audit_level=level,
    )


def read_level(value: bytes) -> str:
    """What x-tidegate-audit-level asks for.

    Raises:
        InvalidRequest: no such level.
    """
    level = value.decode("latin-1").strip().lower()
    if level not in LEVELS:
        msg = f"x-tidegate-audit-level is {level!r}; expected one of {', '.join(LEVELS)}"
        raise InvalidRequest(msg)
    return level


def _name(raw: bytes) -> str:
    if b"%" in raw:
        raw = unquote_to_bytes(raw)
    return raw.decode("utf-8", "replace")[:256]


def _number(name: bytes, value: bytes) -> int:
    if not value.isdigit() or len(value) > 12:
        msg = f"header {name.decode()} is {value[:40].decode('latin-1')!r}; expected a number"
        raise InvalidRequest(msg)
    return int(value)
