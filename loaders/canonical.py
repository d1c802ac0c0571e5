"""The canonical digest: equal for two exports of one model that differ in nothing that computes.

Exporters write random graph names, their own version, and sets in any order. Here opset imports and metadata are
sorted, producer, dates and notes are left out, the graph has no name, and weights of other files stand in place: what
remains is hashed. The digest of a version's files (`bundle.tree_sha256`) names bytes; this one names what they say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from loaders.wire import BYTES, FIXED32, FIXED64, Value, encoded, fields, text

# Of ModelProto: producer_name, producer_version, domain, model_version, doc_string.
_MODEL_NOTES = frozenset((2, 3, 4, 5, 6))
_GRAPH, _OPSETS, _METADATA, _FUNCTIONS = 7, 8, 14, 25
# Nested messages that may hold notes, by the kind of message they stand in: number -> kind.
_INSIDE: dict[str, dict[int, str]] = {
    "graph": {1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
    "function": {7: "node"},
    "tensor": {},
    "value": {},
}
_NOTES: dict[str, frozenset[int]] = {
    "graph": frozenset((2, 10)),
    "node": frozenset((6,)),
    "attribute": frozenset((13,)),
    "function": frozenset((8,)),
    "tensor": frozenset((12,)),
    "value": frozenset((3,)),
}
_RAW, _EXTERNAL, _LOCATION = 9, 13, 14
_SORTED: dict[str, frozenset[int]] = {
    "graph": frozenset((16,)),
    "node": frozenset((9,)),
    "function": frozenset((9, 14)),
    "tensor": frozenset((16,)),
}
"""Repeated fields whose order means nothing: metadata, a function's opsets."""


def canonical_sha256(content: bytes, weights: Mapping[str, bytes]) -> str:
    """The digest of a model, as hex. Cost: one pass, and a copy of the weights.

    Args:
        content: the model's file.
        weights: content of the other files that it names, by location.

    Raises:
        ValueError: the bytes are no protobuf message.
    """
    parts: list[tuple[int, bytes]] = []
    for number, wire, value in fields(memoryview(content)):
        if number in _MODEL_NOTES:
            continue
        if number == _GRAPH and not isinstance(value, int):
            parts.append((number, encoded(number, _message("graph", value, weights))))
        elif number == _FUNCTIONS and not isinstance(value, int):
            parts.append((number, encoded(number, _message("function", value, weights))))
        else:
            parts.append((number, _plain(number, wire, value)))
    # Fields in the order of their numbers; opsets, metadata and functions are sets.
    parts.sort(key=lambda part: (part[0], part[1] if part[0] in {_OPSETS, _METADATA, _FUNCTIONS} else b""))
    digest = hashlib.sha256()
    for _, part in parts:
        digest.update(part)
    return digest.hexdigest()


def _message(kind: str, message: memoryview, weights: Mapping[str, bytes]) -> bytes:
    inside, notes, order = _INSIDE[kind], _NOTES[kind], _SORTED.get(kind, frozenset())
    parts: list[tuple[int, bytes]] = []
    external: dict[str, str] = {}
    for number, wire, value in fields(message):
        if number in notes:
            continue
        if kind == "tensor" and number in {_EXTERNAL, _LOCATION}:
            if number == _EXTERNAL and not isinstance(value, int):
                entry = {n: text(v) for n, _, v in fields(value)}
                external[entry.get(1, "")] = entry.get(2, "")
            continue
        inner = inside.get(number)
        if inner is not None and not isinstance(value, int):
            parts.append((number, encoded(number, _message(inner, value, weights))))
        else:
            parts.append((number, _plain(number, wire, value)))
    if external:
        parts.append((_RAW, encoded(_RAW, _slice(external, weights))))
    parts.sort(key=lambda part: (part[0], part[1] if part[0] in order else b""))
    return b"".join(part for _, part in parts)


def _slice(external: Mapping[str, str], weights: Mapping[str, bytes]) -> bytes:
    whole = weights.get(external.get("location", ""), b"")
    offset = int(external.get("offset", "0"))
    length = int(external.get("length", "0")) or len(whole) - offset
    return whole[offset : offset + length]


def _plain(number: int, wire: int, value: Value) -> bytes:
    if isinstance(value, int):
        return encoded(number, value)
    if wire == BYTES:
        return encoded(number, bytes(value))
    key = encoded(number, 0)[:-1]
    # The key of a number, with the wire type of a fixed one.
    assert wire in {FIXED32, FIXED64}  # noqa: S101
    return bytes((key[0] | wire,)) + key[1:] + bytes(value)
