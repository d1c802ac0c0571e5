"""A connection's kept head: what the next one must repeat, byte for byte, and where it may differ.

Clients send the same head again and again but for the length of the body and ids of traces and requests. A head that
the parser has read is cut at the values of those fields; a buffer that repeats what stands between them, with values
that no parser could read in two ways, needs no parsing. Whatever is different in any other place goes to the parser,
so a kept head is never more lenient than that: what may differ is looked at more strictly than there.
"""

from __future__ import annotations

import msgspec

from gateway.api.heads import read_traceparent
from gateway.head import TIMEOUT_MAX_MS, Head

HEAD_MAX_BYTES = 8192
"""Longer heads are not kept."""
VALUE_MAX_BYTES = 256
"""Longer values are the parser's."""
LENGTH_DIGITS = 6

_LENGTH, _ID, _TRACE, _KEY, _TIMEOUT, _JSON = range(6)
VARYING = {
    b"content-length": _LENGTH,
    b"inference-header-content-length": _JSON,
    b"traceparent": _TRACE,
    b"x-routing-key": _KEY,
    b"x-request-timeout-ms": _TIMEOUT,
} | dict.fromkeys(
    (
        b"tracestate",
        b"baggage",
        b"b3",
        b"x-b3-traceid",
        b"x-b3-spanid",
        b"x-b3-parentspanid",
        b"x-amzn-trace-id",
        b"x-cloud-trace-context",
        b"uber-trace-id",
        b"x-request-id",
        b"request-id",
        b"x-correlation-id",
        b"correlation-id",
        b"idempotency-key",
    ),
    _ID,
)
"""Fields whose value may differ: those that mean nothing here, and those of ours that are read anew each time."""
_VISIBLE = bytes(range(0x21, 0x7F))
_DIGITS = {_TIMEOUT, _JSON}


class KeptHead:
    """A head that was read, and where the next one may differ.

    Attributes:
        before: what stands before the first value that may differ.
        plain: only Content-Length may differ; `behind` is then what stands behind it.
    """

    __slots__ = ("before", "before_bytes", "behind", "head", "parts", "plain")

    def __init__(self, before: bytes, parts: list[tuple[int, bytes]], head: Head) -> None:
        self.before = before
        self.before_bytes = len(before)
        self.parts = tuple((kind, behind, len(behind)) for kind, behind in parts)
        """A value's kind, and what stands behind it up to the next."""
        self.plain = len(parts) == 1
        self.behind = parts[0][1]
        self.head = head

    def read(self, data: bytes) -> tuple[Head, int] | None:
        """The head of a buffer that begins with `before`, and where its body starts.

        None unless it repeats the kept one and the body is all the rest, as long as Content-Length says.
        """
        at = self.before_bytes
        length = -1
        changes = None
        for kind, behind, behind_bytes in self.parts:
            end = data.find(b"\r", at, at + VALUE_MAX_BYTES)
            value = data[at:end]
            if end <= at or not data.startswith(behind, end):
                return None
            at = end + behind_bytes
            if kind == _LENGTH:
                if not value.isdigit() or len(value) > LENGTH_DIGITS:
                    return None
                length = int(value)
                continue
            if value.translate(None, _VISIBLE):
                return None
            if kind == _ID:
                continue
            if kind in _DIGITS and (not value.isdigit() or len(value) > 12):
                return None
            if changes is None:
                changes = {}
            if kind == _TRACE:
                changes["traceparent"] = read_traceparent(value)
            elif kind == _KEY:
                changes["routing_key"] = value.decode()
            elif kind == _JSON:
                changes["json_bytes"] = int(value)  # type: ignore[assignment]
            else:
                changes["timeout_ms"] = min(max(int(value), 1), TIMEOUT_MAX_MS)  # type: ignore[assignment]
        if len(data) - at != length:
            return None
        return self.head if changes is None else msgspec.structs.replace(self.head, **changes), at


def keep(text: bytes, head: Head) -> KeptHead | None:
    """Cut a head that the parser has read, from its request line to the empty line; None: it is not one to keep."""
    if len(text) > HEAD_MAX_BYTES:
        return None
    cuts: list[tuple[int, int, int]] = []
    seen = set()
    at = text.index(b"\r\n") + 2
    while at < len(text) - 2:
        end = text.index(b"\r\n", at)
        name, _, value = text[at:end].partition(b":")
        name = name.lower()
        if name in seen:
            return None
        seen.add(name)
        kind = VARYING.get(name)
        if kind is not None:
            start = end - len(value.lstrip(b" \t"))
            value = text[start:end]
            if value and len(value) < VALUE_MAX_BYTES and not value.translate(None, _VISIBLE):
                cuts.append((kind, start, end))
            elif kind != _ID:
                return None
        at = end + 2
    if not any(kind == _LENGTH for kind, _, _ in cuts):
        return None
    starts = [start for _, start, _ in cuts[1:]] + [len(text)]
    parts = [(kind, text[end:start]) for (kind, _, end), start in zip(cuts, starts, strict=True)]
    return KeptHead(text[: cuts[0][1]], parts, head)
