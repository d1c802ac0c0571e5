"""A look into an ONNX file without the onnx package: which operators does it use, are weights elsewhere?

The file is protobuf; a few field numbers of onnx.proto are enough: ModelProto.graph = 7, .functions = 25;
GraphProto.node = 1, .initializer = 5; FunctionProto.node = 7; NodeProto.op_type = 4, .attribute = 5;
AttributeProto.t = 5, .tensors = 10, .g = 6, .graphs = 11; TensorProto.external_data = 13.
Not a step of its own: session looks before it gives the file to ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

CONTROL_FLOW = frozenset(("Loop", "If", "Scan", "SequenceMap"))


class Seen(NamedTuple):
    """Names of all operators, those of subgraphs and functions too; whether weights lie in other files."""

    operators: frozenset[str]
    external_data: bool


def look(content: bytes) -> Seen:
    """Look through a model file. Cost: one pass over its structure; weights are stepped over.

    Raises:
        ValueError: when the bytes are no protobuf message.
    """
    pass_ = _Pass()
    for number, value in _fields(memoryview(content)):
        if number == 7:
            pass_.graph(value)
        elif number == 25:
            pass_.function(value)
    return Seen(frozenset(pass_.names), pass_.external_data)


class _Pass:
    """What one pass has seen so far."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.external_data = False

    def graph(self, message: memoryview) -> None:
        for number, value in _fields(message):
            if number == 1:
                self._node(value)
            elif number == 5:
                self._tensor(value)

    def function(self, message: memoryview) -> None:
        for number, value in _fields(message):
            if number == 7:
                self._node(value)

    def _node(self, message: memoryview) -> None:
        for number, value in _fields(message):
            if number == 4:
                self.names.add(bytes(value).decode("utf-8", "replace"))
            elif number == 5:
                for inner, part in _fields(value):
                    if inner in {6, 11}:
                        self.graph(part)
                    elif inner in {5, 10}:
                        self._tensor(part)

    def _tensor(self, message: memoryview) -> None:
        self.external_data |= any(number == 13 for number, _ in _fields(message))


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of a message."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 0:
            _, at = _varint(message, at)
        elif wire == 1:
            at += 8
        elif wire == 5:
            at += 4
        elif wire == 2:
            size, at = _varint(message, at)
            if at + size > end:
                msg = "not an ONNX file: a field runs past its message"
                raise ValueError(msg)
            yield key >> 3, message[at : at + size]
            at += size
        else:
            msg = f"not an ONNX file: wire type {wire}"
            raise ValueError(msg)


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            msg = "not an ONNX file: a number does not end"
            raise ValueError(msg)
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
