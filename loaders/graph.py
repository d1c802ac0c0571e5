"""A look into an ONNX file without the onnx package: which operators does the graph use?

The file is protobuf; four message types and five field numbers of onnx.proto are enough:
ModelProto.graph = 7, GraphProto.node = 1, NodeProto.op_type = 4, NodeProto.attribute = 5,
AttributeProto.g = 6 and .graphs = 11; ModelProto.functions = 25, FunctionProto.node = 7.
"""

from __future__ import annotations

from collections.abc import Iterator

CONTROL_FLOW = frozenset(("Loop", "If", "Scan", "SequenceMap"))


def operators(content: bytes) -> set[str]:
    """The operator names of a graph and its subgraphs. Cost: one pass over the file's structure.

    Raises:
        ValueError: when the bytes are no protobuf message.
    """
    names: set[str] = set()
    for number, value in _fields(memoryview(content)):
        if number == 7:
            _graph(value, names, 1)
        elif number == 25:
            _graph(value, names, 7)
    return names


def _graph(message: memoryview, names: set[str], node_field: int) -> None:
    for number, value in _fields(message):
        if number == node_field:
            _node(value, names)


def _node(message: memoryview, names: set[str]) -> None:
    for number, value in _fields(message):
        if number == 4:
            names.add(bytes(value).decode("utf-8", "replace"))
        elif number == 5:
            for inner, subgraph in _fields(value):
                if inner in {6, 11}:
                    _graph(subgraph, names, 1)


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
