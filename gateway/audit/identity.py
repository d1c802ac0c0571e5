"""Who wrote a record and which it is: (source, epoch, seq).

A *source* is one writer of the log, a u64 derived from the gateway's id, its role and its index
there. An *epoch* (u32) is one life of that writer. *seq* (u64) counts from 0 in an epoch without
holes. The text form is what clients get as `x-prediction-id`, what records carry as `id`, and the key
in the topic:

    <source, 16 hex>-<epoch, 8 hex>-<seq, 16 hex>
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

ROLES = ("worker", "control", "sidecar", "mirror", "recorder")
"""Roles that write; each owns sources of its own."""

_TEXT = re.compile(r"([0-9a-f]{16})-([0-9a-f]{8})-([0-9a-f]{16})", re.ASCII)


class EventId(NamedTuple):
    """The key of one event. Ordered by (source, epoch, seq)."""

    source: int
    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.source:016x}-{self.epoch:08x}-{self.seq:016x}"


def parse_event_id(text: str) -> EventId:
    """Read the text form.

    Raises:
        ValueError: when it is not 16-8-16 lower-case hex digits.
    """
    match = _TEXT.fullmatch(text)
    if match is None:
        msg = f"not an event id: {text!r}; expected 16-8-16 hex digits as in x-prediction-id"
        raise ValueError(msg)
    return EventId(*(int(part, 16) for part in match.groups()))


def id_prefix(source: int, epoch: int) -> str:
    """The text form up to and with the dash before seq."""
    return f"{source:016x}-{epoch:08x}-"


def source_of(gateway_id: str, role: str, index: int) -> int:
    """The u64 of the `index`-th source of a role in one gateway.

    The first eight bytes of SHA-256 over "gateway_id/role/index", so that many gateways can share a
    topic and any reader can recompute who is who.
    """
    if role not in ROLES:
        msg = f"unknown role {role!r}; expected one of {', '.join(ROLES)}"
        raise ValueError(msg)
    digest = hashlib.sha256(f"{gateway_id}/{role}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big")
