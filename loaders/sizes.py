"""Sizes that values decide: does a run's cost depend on what stands in a request, not on how many rows it has?

graph (parsed) -> **sizes** -> session. `Range`, `Tile` and their like make tensors as large as a number says. Where
that number comes from a request, a run of one row may take seconds, and nothing that was measured tells which: such a
model never runs on the event loop, where it would stop every other model of the worker.
"""

from __future__ import annotations

from collections.abc import Iterable

from loaders.graph import Graph, Model

SIZE_INPUTS: dict[str, tuple[int, ...]] = {
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Resize": (1, 2, 3),
    "Tile": (1,),
    "Upsample": (1,),
}
"""Operators whose output may be larger than all they are given, and the inputs that say by how much."""
_OF_SHAPES = frozenset(("Shape", "Size"))
"""They tell how large something is, which follows from the number of rows."""


def by_values(model: Model) -> bool:
    """Whether some tensor's size may follow from values of a request. Cost: one pass over the nodes.

    Bodies of functions are taken to be called with values of a request.
    """
    called = frozenset((function.domain, function.name) for function in model.functions)
    graphs: Iterable[Graph] = (model.graph, *(function.body for function in model.functions))
    return any(_in_graph(graph, called) for graph in graphs)


def _in_graph(graph: Graph, called: frozenset[tuple[str, str]]) -> bool:
    fixed = {"", *(tensor.name for tensor in graph.initializers)}
    for node in graph.nodes:
        at = SIZE_INPUTS.get(node.op, ())
        if any(node.inputs[i] not in fixed for i in at if i < len(node.inputs)):
            return True
        own = (node.domain, node.op) in called
        if node.op in _OF_SHAPES or (not own and all(name in fixed for name in node.inputs)):
            fixed.update(node.outputs)
    return False
