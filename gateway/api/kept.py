"""A connection's kept head: what the next one must repeat, byte for byte, and where it may differ.

Clients send the same head again and again but for the length of the body and ids of traces and requests. A head that
the parser has read is cut at the values of those fields; a buffer that repeats what stands between them, with values
that no parser could read in two ways, needs no parsing. Whatever is different in any other place goes to the parser,
so a kept head is never more lenient than that: what may differ is looked at more strictly than there.
"""

from __future__ import annotations

import re
from copy import copy
from functools import lru_cache

from msgspec.structs import force_setattr as set_field

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
_FORMS = {
    _LENGTH: rb"(?P<length>[0-9]{1,6})",
    _ID: rb"([!-~]{1,255})",
    _TRACE: rb"(00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})",
    _KEY: rb"([!-~]{1,255})",
    _TIMEOUT: rb"([0-9]{1,12})",
    _JSON: rb"([0-9]{1,12})",
}
PATTERN_AFTER = 64
"""A head that was repeated so often is worth a compiled pattern, which reads it three times as fast."""
_VISIBLE = bytes(range(0x21, 0x7F))


class KeptHead:
    """A head that was read, and where the next one may differ.

    Attributes:
        before: what stands before the first value that may differ.
        plain: only Content-Length may differ; `behind` is then what stands behind it.
    """

    __slots__ = (
        "_groups",
        "_pattern",
        "_reads",
        "before",
        "before_bytes",
        "behind",
        "head",
        "parts",
        "plain",
    )

    def __init__(self, before: bytes, parts: list[tuple[int, bytes]], head: Head) -> None:
        self.before = before
        self.before_bytes = len(before)
        self.parts = tuple((kind, behind, len(behind)) for kind, behind in parts)
        """A value's kind, and what stands behind it up to the next."""
        self.plain = len(parts) == 1
        self.behind = parts[0][1]
        self.head = head
        self._reads = 0
        self._pattern: re.Pattern[bytes] | None = None
        self._groups = tuple(
            (kind, group) for group, (kind, _) in enumerate(parts, 1) if kind not in (_ID, _LENGTH)
        )

    def read(self, data: bytes) -> tuple[Head, int] | None:
        """The head of a buffer that begins with `before`, and where its body starts.

        None unless it repeats the kept one and the body is all the rest, as long as Content-Length says.
        """
        pattern = self._pattern
        if pattern is None:
            self._reads += 1
            if self._reads == PATTERN_AFTER:
                self._pattern = _pattern(self.parts)
        elif (found := pattern.match(data, self.before_bytes)) is not None:
            at = found.end()
            if len(data) - at != int(found["length"]):
                return None
            head = self.head
            if self._groups:
                head = head.__copy__()  # type: ignore[attr-defined]
                for kind, group in self._groups:
                    if kind == _TRACE:
                        # The pattern takes what `read_traceparent` does.
                        set_field(head, "traceparent", found[group].decode())
                    else:
                        _read_ours(head, kind, found[group])
            return head, at
        return self._read_slowly(data)

    def _read_slowly(self, data: bytes) -> tuple[Head, int] | None:
        at = self.before_bytes
        length = -1
        head = self.head
        for kind, behind, behind_bytes in self.parts:
            end = data.find(b"\r", at, at + VALUE_MAX_BYTES)
            if end <= at or not data.startswith(behind, end):
                return None
            value = data[at:end]
            at = end + behind_bytes
            if kind == _LENGTH:
                if not value.isdigit() or len(value) > LENGTH_DIGITS:
                    return None
                length = int(value)
            elif value.translate(None, _VISIBLE):
                return None
            elif kind != _ID:
                if head is self.head:
                    head = copy(head)
                if not _read_ours(head, kind, value):
                    return None
        return (head, at) if len(data) - at == length else None


@lru_cache(256)
def _pattern(parts: tuple[tuple[int, bytes, int], ...]) -> re.Pattern[bytes]:
    """What `_read_slowly` takes, but only well-formed traceparents of version 00. Making one costs up to 1 ms."""
    return re.compile(b"".join(_FORMS[kind] + re.escape(behind) for kind, behind, _ in parts))


def _read_ours(head: Head, kind: int, value: bytes) -> bool:
    """Set what a field of ours says; False where the parser's way would refuse it."""
    if kind == _TRACE:
        set_field(head, "traceparent", read_traceparent(value))
    elif kind == _KEY:
        set_field(head, "routing_key", value.decode())
    elif not value.isdigit() or len(value) > 12:
        return False
    elif kind == _JSON:
        set_field(head, "json_bytes", int(value))
    else:
        set_field(head, "timeout_ms", min(max(int(value), 1), TIMEOUT_MAX_MS))
    return True


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
