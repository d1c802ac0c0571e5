"""What is refused before ONNX Runtime sees a file: that which would hang it, exhaust memory or read other files.

session: read -> graph.parse -> **precheck** -> ONNX Runtime, in a child of the trial server. The rules hold for data of
strangers; what they do not catch meets the child's caps (`trial`). Each refusal is one sentence that names the model,
what was found and what is taken.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from math import prod
from pathlib import Path, PurePosixPath

from loaders.errors import ModelInvalid, WeightsInvalid
from loaders.graph import ITEM_BITS, Function, Graph, Model, Node, Tensor

EXPANDED_NODES_MAX = 100_000
"""Operators once every call of a function of the model is written out."""
CONSTANT_MAX_BYTES = 256 << 20
"""A tensor that is made of constants alone: ONNX Runtime would make it while it loads."""
DOMAINS = frozenset(
    (
        "",
        "ai.onnx",
        "ai.onnx.ml",
        "ai.onnx.preview",
        "ai.onnx.training",
        "ai.onnx.preview.training",
        "com.microsoft",
        "com.ms.internal.nhwc",
    )
)
"""Of operators that this ONNX Runtime brings along."""
_EXTERNAL_KEYS = frozenset(("location", "offset", "length", "checksum", "basepath"))
_ORT_MAGIC = b"ORTM"
_SHOWN = 60
_SHAPE_INPUT = {"ConstantOfShape": 0, "Expand": 1}


def check_format(content: bytes, where: str) -> None:
    """Refuse formats that are not ONNX and that ONNX Runtime would take for one.

    Raises:
        ModelInvalid: it is ONNX Runtime's own format, or empty.
    """
    if content[4:8] == _ORT_MAGIC:
        msg = f"{where} is in ONNX Runtime's own .ort format; expected ONNX: export the model again"
        raise ModelInvalid(msg)
    if not content:
        msg = f"{where} is empty; was it copied whole?"
        raise ModelInvalid(msg)


def check(model: Model, where: str) -> None:
    """Refuse what would harm: operators of others, functions without end, bombs, data that are not there.

    Raises:
        ModelInvalid: with what was found.
    """
    _check_operators(model, where)
    _check_expansion(model, where)
    for tensor in model.tensors():
        _check_tensor(tensor, where)
    for graph in model.graphs():
        _check_constants(graph, where)


def _check_operators(model: Model, where: str) -> None:
    own = {(function.domain, function.name) for function in model.functions}
    for node in model.nodes():
        if node.op == "EPContext":
            msg = (
                f"{where} holds a compiled context of an execution provider (EPContext), which is not served"
            )
            raise ModelInvalid(msg)
        if node.domain not in DOMAINS and (node.domain, node.op) not in own:
            msg = (
                f"{where}: operator {node.op[:_SHOWN]!r} is of domain {node.domain[:_SHOWN]!r}; custom operators are"
                " not loaded, only those of ONNX and ONNX Runtime"
            )
            raise ModelInvalid(msg)


def _check_expansion(model: Model, where: str) -> None:
    """Count operators as ONNX Runtime will see them, each function once however often it is called."""
    known = {(function.domain, function.name): function for function in model.functions}
    counted: dict[tuple[str, str], int] = {}
    for function in model.functions:
        _expanded(function, known, counted, where)
    total = _nodes_of(model.graph, counted)
    if max([total, *counted.values()]) > EXPANDED_NODES_MAX:
        most = max([total, *counted.values()])
        many = f"{most:,}" if most < 10**12 else f"about 10^{len(str(most)) - 1}"
        msg = (
            f"{where}: its functions call each other so often that they expand to {many} operators;"
            f" {EXPANDED_NODES_MAX:,} are taken"
        )
        raise ModelInvalid(msg)


def _expanded(
    first: Function,
    known: Mapping[tuple[str, str], Function],
    counted: dict[tuple[str, str], int],
    where: str,
) -> None:
    # By hand rather than by recursion: a chain of functions may be as long as a stranger likes.
    open_, stack = set(), [first]
    while stack:
        function = stack[-1]
        key = (function.domain, function.name)
        if key in counted:
            stack.pop()
            continue
        open_.add(key)
        waiting = [call for call in _calls(function.body, known) if call not in counted]
        if not waiting:
            counted[key] = _nodes_of(function.body, counted)
            open_.discard(key)
            stack.pop()
            continue
        for call in waiting:
            if call in open_:
                msg = f"{where}: function {call[1][:_SHOWN]!r} calls itself, at once or through others"
                raise ModelInvalid(msg)
        stack.append(known[waiting[0]])


def _calls(body: Graph, known: Mapping[tuple[str, str], Function]) -> set[tuple[str, str]]:
    return {(node.domain, node.op) for node in Model(body, ()).nodes() if (node.domain, node.op) in known}


def _nodes_of(body: Graph, counted: Mapping[tuple[str, str], int]) -> int:
    return sum(counted.get((node.domain, node.op), 1) for node in Model(body, ()).nodes())


def _check_tensor(tensor: Tensor, where: str) -> None:
    """Hold what a tensor declares against what it holds."""
    name = tensor.name[:_SHOWN]
    if any(dim < 0 for dim in tensor.dims):
        msg = f"{where}: tensor {name!r} has a negative dimension: {_shape(tensor.dims)}"
        raise ModelInvalid(msg)
    items = prod(tensor.dims)
    if tensor.external is not None:
        _check_entry(tensor, where)
        return
    bits = ITEM_BITS.get(tensor.kind)
    if tensor.raw_bytes is not None:
        if bits is not None and tensor.raw_bytes != (items * bits + 7) // 8:
            msg = (
                f"{where}: tensor {name!r} holds {tensor.raw_bytes:,} bytes; its shape {_shape(tensor.dims)}"
                f" needs {_large((items * bits + 7) // 8)}"
            )
            raise ModelInvalid(msg)
        return
    # Complex numbers take two places, small integers may share one.
    if bits is not None and bits >= 8 and tensor.kind not in {14, 15} and tensor.typed != items:
        msg = (
            f"{where}: tensor {name!r} holds {tensor.typed:,} elements; its shape {_shape(tensor.dims)}"
            f" needs {_large(items)}"
        )
        raise ModelInvalid(msg)


def _check_entry(tensor: Tensor, where: str) -> None:
    name, external = tensor.name[:_SHOWN], tensor.external or {}
    odd = sorted(set(external) - _EXTERNAL_KEYS)
    if odd:
        msg = (
            f"{where}: tensor {name!r}: external data have a key {odd[0][:_SHOWN]!r} that ONNX does not know"
        )
        raise ModelInvalid(msg)
    for key in ("offset", "length"):
        value = external.get(key, "0")
        if not (value.isascii() and value.isdigit() and len(value) < 19):
            msg = f"{where}: tensor {name!r}: external data: {key} is {value[:_SHOWN]!r}; expected a number of bytes"
            raise ModelInvalid(msg)


def check_sizes(model: Model, sizes: Mapping[str, int], where: str) -> None:
    """Hold tensors whose data lie in other files against the length of these.

    Raises:
        ModelInvalid: a tensor reaches past its file, or its length is not that of its shape.
    """
    for tensor in model.tensors():
        if tensor.external is None:
            continue
        external, name = tensor.external, tensor.name[:_SHOWN]
        location = external.get("location", "")
        offset = int(external.get("offset", "0"))
        bits = ITEM_BITS.get(tensor.kind, 8)
        needed = (prod(tensor.dims) * bits + 7) // 8
        length = int(external.get("length", "0")) or needed
        if length != needed:
            msg = (
                f"{where}: tensor {name!r} has {length:,} bytes of external data; its shape {_shape(tensor.dims)}"
                f" needs {_large(needed)}"
            )
            raise ModelInvalid(msg)
        if offset + length > sizes[location]:
            msg = (
                f"{where}: tensor {name!r} needs bytes {offset:,} to {_large(offset + length)} of"
                f" {location[:_SHOWN]!r}, which has {sizes[location]:,}"
            )
            raise ModelInvalid(msg)


def external_path(base: Path, location: str, where: str) -> Path:
    """The file that holds external data, if it may be read.

    Args:
        base: the directory of the model's file.

    Raises:
        WeightsInvalid: outside of the version's directory, not there, no regular file, or a second name of one.
    """
    shown = location[:_SHOWN]
    pure = PurePosixPath(location)
    if not location or "\0" in location or "\\" in location or pure.is_absolute() or ".." in pure.parts:
        msg = f"{where}: its weights lie at {shown!r}; expected a file name inside of the version's directory"
        raise WeightsInvalid(msg)
    path = base / location
    try:
        real = path.resolve(strict=True)
        found = os.stat(real)  # noqa: PTH116  one look
    except (OSError, RuntimeError) as exc:
        msg = f"{where}: its weights lie in {shown!r}, which is not there; put it beside the model's file"
        raise WeightsInvalid(msg) from exc
    if not real.is_relative_to(base.resolve()):
        msg = f"{where}: {shown!r} is a link that leaves the version's directory; expected the file itself"
        raise WeightsInvalid(msg)
    if not stat.S_ISREG(found.st_mode):
        msg = f"{where}: {shown!r} is no regular file; expected one that holds the weights"
        raise WeightsInvalid(msg)
    if found.st_nlink != 1:
        msg = (
            f"{where}: {shown!r} is a second name (hard link) of a file that may lie anywhere;"
            " expected a copy of its own"
        )
        raise WeightsInvalid(msg)
    return real


def _check_constants(graph: Graph, where: str) -> None:
    """Follow shapes that are constants to the operators that would make a tensor of them."""
    known: dict[str, tuple[int, ...]] = {
        t.name: t.values for t in graph.initializers if t.external is None and t.values
    }
    for node in graph.nodes:
        if node.op == "Constant" and node.outputs:
            tensor = node.tensors.get("value")
            known[node.outputs[0]] = tensor.values if tensor else _plain(node)
        dims = _made_dims(node, known)
        # Eight bytes an element are assumed: it is the order that counts.
        if dims and all(dim > 0 for dim in dims) and prod(dims) * 8 > CONSTANT_MAX_BYTES * 2:
            msg = (
                f"{where}: {node.op} makes a constant of shape {_shape(dims)}, over"
                f" {CONSTANT_MAX_BYTES >> 20} MiB, while it loads; expected weights in the file"
            )
            raise ModelInvalid(msg)


def _plain(node: Node) -> tuple[int, ...]:
    return node.ints.get("value_ints") or node.ints.get("value_int") or ()


def _made_dims(node: Node, known: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    at = _SHAPE_INPUT.get(node.op)
    if at is not None and len(node.inputs) > at:
        return known.get(node.inputs[at], ())
    if node.op in {"RandomNormal", "RandomUniform"}:
        return node.ints.get("shape", ())
    if node.op == "Range" and len(node.inputs) == 3:
        parts = [known.get(name, ()) for name in node.inputs]
        if all(len(part) == 1 for part in parts) and parts[2][0]:
            start, limit, delta = (part[0] for part in parts)
            return (max((limit - start) // delta, 0),)
    return ()


def _shape(dims: tuple[int, ...]) -> str:
    return "[" + ", ".join(str(dim) for dim in dims[:8]) + (", …]" if len(dims) > 8 else "]")


def _large(number: int) -> str:
    return f"{number:,}" if number < 10**15 else f"about 10^{len(str(number)) - 1}"
