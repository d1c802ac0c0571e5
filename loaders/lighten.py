"""Lighten: a model's file without its large weights, which are then read from where they stand in it.

material -> **lighten** -> session. ONNX Runtime parses a file while it holds the interpreter, a millisecond a megabyte
in which a worker answers nobody. Weights in another file are read later, with the interpreter free: so the model is
given without them, and the file itself, in memory, is that other file. Nothing is copied but what is small.
"""

from __future__ import annotations

from loaders.wire import encoded, spans

LOCATION = "tidegate:model"
"""How the model names its own file: no path of any other."""
WEIGHT_MIN_BYTES = 65_536
_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_NAME, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 8, 9, 13, 14
_KEY, _VALUE = 1, 2
_EXTERNAL = 1


def lightened(content: bytes) -> bytes | None:
    """The model, its large weights replaced by their place in `content`; None where there are none.

    Raises:
        ValueError: the bytes are no ONNX file.
    """
    if len(content) < WEIGHT_MIN_BYTES:
        return None
    model = memoryview(content)
    graphs = [(start, at, end) for number, start, at, end in spans(model) if number == _MODEL_GRAPH]
    if len(graphs) != 1:
        return None
    ((start, at, end),) = graphs
    graph = _graph(model[at:end], at)
    if graph is None:
        return None
    return b"".join((model[:start], encoded(_MODEL_GRAPH, graph), model[end:]))


def _graph(graph: memoryview, offset: int) -> bytes | None:
    parts: list[bytes | memoryview] = []
    changed, kept = False, 0
    names: set[bytes] = set()
    for number, start, at, end in spans(graph):
        if number != _GRAPH_INITIALIZER:
            continue
        name = b"".join(bytes(graph[at + a : at + b]) for n, _, a, b in spans(graph[at:end]) if n == _NAME)
        if name in names:
            # Which of the two it takes is ONNX Runtime's own.
            return None
        names.add(name)
        if end - at < WEIGHT_MIN_BYTES:
            continue
        tensor = _tensor(graph[at:end], offset + at)
        if tensor is not None:
            changed = True
            parts += (graph[kept:start], encoded(_GRAPH_INITIALIZER, tensor))
            kept = end
    parts.append(graph[kept:])
    return b"".join(parts) if changed else None


def _tensor(tensor: memoryview, offset: int) -> bytes | None:
    parts: list[bytes | memoryview] = []
    place: tuple[int, int] | None = None
    for number, start, at, end in spans(tensor):
        if number in {_EXTERNAL_DATA, _DATA_LOCATION}:
            return None
        if number != _RAW_DATA:
            parts.append(tensor[start:end])
        elif place is not None:
            return None
        else:
            place = (offset + at, end - at)
    if place is None or place[1] < WEIGHT_MIN_BYTES:
        return None
    for key, value in (("location", LOCATION), ("offset", str(place[0])), ("length", str(place[1]))):
        entry = encoded(_KEY, key.encode()) + encoded(_VALUE, value.encode())
        parts.append(encoded(_EXTERNAL_DATA, entry))
    parts.append(encoded(_DATA_LOCATION, _EXTERNAL))
    return b"".join(parts)
