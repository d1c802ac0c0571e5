"""What an ONNX file says, read without the onnx package: operators, shapes, where weights lie.

The file is protobuf; a few field numbers of onnx.proto are enough, they stand beside the code that reads them.
session reads a file with `parse`, `precheck` judges it, and only then ONNX Runtime sees it. Everything here is data of
strangers: nothing is evaluated, nesting is bounded, and numbers are not trusted.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from loaders.wire import Value, fields, packed, text

CONTROL_FLOW = frozenset(("Loop", "If", "Scan", "SequenceMap"))
DEPTH_MAX = 48
"""Graphs within graphs; protobuf itself stops at 100 messages."""
VALUES_MAX = 64
"""Numbers kept of a tensor: enough for a shape."""
INT32, INT64 = 6, 7
ITEM_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128,
    16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
"""Bits of an element by TensorProto.DataType; texts (8) have none."""


class Tensor(NamedTuple):
    """A TensorProto: what it declares and what it holds."""

    name: str
    kind: int
    dims: tuple[int, ...]
    raw_bytes: int | None
    """Length of raw_data; None without."""
    typed: int
    """Elements in the typed fields (float_data, int64_data …)."""
    values: tuple[int, ...]
    """The first integers it holds, of INT64 and INT32."""
    external: dict[str, str] | None
    """Keys of external_data; None when the data are here."""


class Node(NamedTuple):
    """A NodeProto."""

    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: dict[str, Tensor]
    ints: dict[str, tuple[int, ...]]
    graphs: tuple[Graph, ...]


class Graph(NamedTuple):
    """A GraphProto, or the body of a function."""

    nodes: tuple[Node, ...]
    initializers: tuple[Tensor, ...]


class Function(NamedTuple):
    """A FunctionProto: called by (domain, name)."""

    domain: str
    name: str
    body: Graph


class Model(NamedTuple):
    """A ModelProto."""

    graph: Graph
    functions: tuple[Function, ...]

    def nodes(self) -> Iterator[Node]:
        """Every node, those of branches and functions too."""
        for graph in self.graphs():
            yield from graph.nodes

    def graphs(self) -> Iterator[Graph]:
        """Every graph: the model's, those of branches, bodies of functions."""
        waiting = [self.graph, *(function.body for function in self.functions)]
        while waiting:
            graph = waiting.pop()
            yield graph
            waiting.extend(inner for node in graph.nodes for inner in node.graphs)

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor that is stored: initializers and those in attributes."""
        for graph in self.graphs():
            yield from graph.initializers
            for node in graph.nodes:
                yield from node.tensors.values()

    @property
    def operators(self) -> frozenset[str]:
        """Names of all operators."""
        return frozenset(node.op for node in self.nodes())

    @property
    def locations(self) -> tuple[str, ...]:
        """Names of the other files that hold weights, sorted."""
        return tuple(
            sorted({t.external.get("location", "") for t in self.tensors() if t.external is not None})
        )


def parse(content: bytes) -> Model:
    """Read a model file. Cost: one pass over its structure; weights are stepped over.

    Raises:
        ValueError: the bytes are no protobuf message, or graphs are nested too deep.
    """
    graph = Graph((), ())
    functions = []
    for number, _, value in fields(memoryview(content)):
        if number == 7:  # ModelProto.graph
            graph = _graph(_view(value), 0)
        elif number == 25:  # .functions
            functions.append(_function(_view(value)))
    return Model(graph, tuple(functions))


def _view(value: Value) -> memoryview:
    if isinstance(value, int):
        msg = "not an ONNX file: a number stands where a message is expected"
        raise ValueError(msg)  # noqa: TRY004  the caller's word for bytes that are none
    return value


def _graph(message: memoryview, depth: int) -> Graph:
    if depth > DEPTH_MAX:
        msg = f"graphs are nested more than {DEPTH_MAX} deep"
        raise ValueError(msg)
    nodes, initializers = [], []
    for number, _, value in fields(message):
        if number == 1:  # GraphProto.node
            nodes.append(_node(_view(value), depth))
        elif number == 5:  # .initializer
            initializers.append(_tensor(_view(value)))
        elif number == 15:  # .sparse_initializer
            initializers.extend(_sparse(_view(value)))
    return Graph(tuple(nodes), tuple(initializers))


def _sparse(message: memoryview) -> Iterator[Tensor]:
    for number, _, value in fields(message):
        if number in {1, 2}:  # SparseTensorProto.values, .indices
            yield _tensor(_view(value))


def _function(message: memoryview) -> Function:
    name = domain = ""
    nodes = []
    for number, _, value in fields(message):
        if number == 1:  # FunctionProto.name
            name = text(value)
        elif number == 7:  # .node
            nodes.append(_node(_view(value), 0))
        elif number == 10:  # .domain
            domain = text(value)
    return Function(domain, name, Graph(tuple(nodes), ()))


def _node(message: memoryview, depth: int) -> Node:
    op = domain = ""
    inputs, outputs, graphs = [], [], []
    tensors: dict[str, Tensor] = {}
    ints: dict[str, tuple[int, ...]] = {}
    for number, _, value in fields(message):
        if number == 1:  # NodeProto.input
            inputs.append(text(value))
        elif number == 2:  # .output
            outputs.append(text(value))
        elif number == 4:  # .op_type
            op = text(value)
        elif number == 7:  # .domain
            domain = text(value)
        elif number == 5:  # .attribute
            graphs += _attribute(_view(value), depth, tensors, ints)
    return Node(op, domain, tuple(inputs), tuple(outputs), tensors, ints, tuple(graphs))


def _attribute(
    message: memoryview, depth: int, tensors: dict[str, Tensor], ints: dict[str, tuple[int, ...]]
) -> list[Graph]:
    name = ""
    numbers: list[int] = []
    graphs, held = [], []
    for number, _, value in fields(message):
        if number == 1:  # AttributeProto.name
            name = text(value)
        elif number in {3, 8}:  # .i, .ints
            numbers += islice(packed(value), max(VALUES_MAX - len(numbers), 0))
        elif number in {6, 11}:  # .g, .graphs
            graphs.append(_graph(_view(value), depth + 1))
        elif number in {5, 10}:  # .t, .tensors
            held.append(_tensor(_view(value)))
        elif number in {22, 23}:  # .sparse_tensor, .sparse_tensors
            held += _sparse(_view(value))
    for i, tensor in enumerate(held):
        tensors[name if i == 0 else f"{name}[{i}]"] = tensor
    ints[name] = tuple(numbers)
    return graphs


def _tensor(message: memoryview) -> Tensor:
    name, kind, dims, raw, typed = "", 0, [], None, 0
    values: list[int] = []
    external: dict[str, str] = {}
    elsewhere = False
    for number, wire, value in fields(message):
        if number == 1:  # TensorProto.dims
            dims += list(packed(value))
        elif number == 2:  # .data_type
            kind = value if isinstance(value, int) else 0
        elif number == 8:  # .name
            name = text(value)
        elif number == 9:  # .raw_data
            raw = _view(value)
        elif number == 13:  # .external_data
            elsewhere = True
            external.update([_entry(_view(value))])
        elif number == 14:  # .data_location
            elsewhere |= value == 1
        elif number in {4, 5, 6, 7, 10, 11}:  # float, int32, string, int64, double, uint64 data
            typed += _count(number, wire, value)
            if number in {5, 7} and len(values) < VALUES_MAX:
                values += islice(packed(value), VALUES_MAX)
    if raw is not None and kind in {INT32, INT64}:
        size = 8 if kind == INT64 else 4
        values = [
            int.from_bytes(raw[at : at + size], "little", signed=True)
            for at in range(0, min(len(raw), VALUES_MAX * size), size)
        ]
    size_of = None if raw is None else len(raw)
    return Tensor(name, kind, tuple(dims), size_of, typed, tuple(values), external if elsewhere else None)


def _count(number: int, wire: int, value: Value) -> int:
    """How many elements a typed field holds."""
    if isinstance(value, int) or number == 6 or wire != 2:
        return 1
    if number in {4, 10}:
        return len(value) // (4 if number == 4 else 8)
    # A varint ends at each byte below 128.
    return sum(byte < 0x80 for byte in value) if len(value) < 4096 else _ends(value)


def _ends(value: memoryview) -> int:
    content = bytes(value)
    return len(content) - len(content.translate(None, bytes(range(0x80))))


def _entry(message: memoryview) -> tuple[str, str]:
    key = value = ""
    for number, _, part in fields(message):
        if number == 1:  # StringStringEntryProto.key
            key = text(part)
        elif number == 2:  # .value
            value = text(part)
    return key, value
