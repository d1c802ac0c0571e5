"""What a request's head says, as the doors hand it to the core. Belongs to the admit stage."""

from __future__ import annotations

from typing import Any

import msgspec

TIMEOUT_MAX_MS = 30_000
LEVELS = ("none", "spool", "fsync")
CAPTURES = ("hash", "full")
CAPTURE_PARAMETER = "audit_capture"
"""What a body says for the header x-tidegate-audit-capture."""


def raised(level: str, asked: str | None) -> str:
    """The audit level of a request: the gateway's, or the one it asks for where that is higher."""
    return level if asked is None else max(level, asked, key=LEVELS.index)


class Head(msgspec.Struct, frozen=True):
    """What a request's head says; the doors make it and may keep it as long as heads repeat."""

    model: str
    version: str | None
    caller: msgspec.Raw
    """The encoded `Caller`; equal callers share one object."""
    endpoint: str
    json_bytes: int | None = None
    timeout_ms: int | None = None
    traceparent: str | None = None
    routing_key: str | None = None
    audit_level: str | None = None
    captures_full: bool = False
    """Its tensors are to be recorded whole. A head that says so has a level, the lowest where it asked for none: the
    common way need not look."""
    dialect: str = "oip"
    """Whose words the body is in: "oip", or "v1" of `:predict`."""

    accepts: str | None = None
    """The coding in which a large reply may be sent."""
    account: str = ""
    """What `[limits]` counts it on; empty where nobody is limited."""
    variant: str | None = None
    """The variant of the route that is to answer. A head that names one has an audit level, as for `captures_full`."""
    forces: bool = False
    """Its token has the scope for that; needed where others than this host reach the listener."""

    def decoder(self, codec: Any) -> Any:
        """What reads the body."""
        return codec.decode if self.dialect == "oip" else codec.decode_v1
