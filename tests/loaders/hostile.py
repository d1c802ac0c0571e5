"""Models that want to hurt whoever loads them, made at test time: nothing of them is kept in the repository.

Each maker puts version 1 of a model into a repository. `REFUSED` must be refused, with these words; `HARMLESS` may
load, and then do no harm.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from loaders.wire import encoded
from tests.loaders import graphs

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
Maker = Callable[[Path, str], None]


def _bytes(content: bytes) -> Maker:
    def put(root: Path, name: str) -> None:
        graphs.put(root, content, name)

    return put


def _external(location: str, prepare: Callable[[Path, Path], None] = lambda root, version: None) -> Maker:
    """Weights at `location`; `prepare` puts something there."""

    def put(root: Path, name: str) -> None:
        version = graphs.put(root, graphs.adding_weights(location), name)
        prepare(root, version)

    return put


def _secret(root: Path) -> Path:
    secret = root / "secret"
    secret.write_bytes(b"sixteen secrets!")
    return secret


def _hard_link(root: Path, version: Path) -> None:
    os.link(_secret(root), version / "w")


def _symlink(root: Path, version: Path) -> None:
    (version / "w").symlink_to(_secret(root))


def _pipe(root: Path, version: Path) -> None:
    os.mkfifo(version / "w")


def _made(nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], functions=(), domain="own"):  # type: ignore[no-untyped-def]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("X", FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("Y", FLOAT, None)],
        weights,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=list(functions))
    return model.SerializeToString()


def doubling(levels: int) -> bytes:
    """Functions that call the one before twice: 2 ** levels operators from a few hundred bytes."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = [
        helper.make_function("own", "f0", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], opsets)
    ]
    for level in range(1, levels + 1):
        calls = [
            helper.make_node(f"f{level - 1}", ["a"], ["m"], domain="own"),
            helper.make_node(f"f{level - 1}", ["m"], ["b"], domain="own"),
        ]
        functions.append(helper.make_function("own", f"f{level}", ["a"], ["b"], calls, opsets))
    return bytes(_made([helper.make_node(f"f{levels}", ["X"], ["Y"], domain="own")], [], functions))


def recursive() -> bytes:
    """A function that calls itself through another."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = [
        helper.make_function(
            "own", a, ["a"], ["b"], [helper.make_node(b, ["a"], ["b"], domain="own")], opsets
        )
        for a, b in (("f", "g"), ("g", "f"))
    ]
    return bytes(_made([helper.make_node("f", ["X"], ["Y"], domain="own")], [], functions))


def constant(dims: list[int]) -> bytes:
    """A constant of this shape, made while the model loads."""
    shape = numpy_helper.from_array(np.array(dims, np.int64), "shape")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Add", ["X", "sum"], ["Y"]),
    ]
    return bytes(_made(nodes, [shape]))


def hidden_constant(megabytes: int) -> bytes:
    """The same by another way than a constant shape: one times another, folded."""
    parts = [numpy_helper.from_array(np.array([n], np.int64), f"s{n}") for n in (1024, 256 * megabytes)]
    nodes = [
        helper.make_node("Mul", ["s1024", f"s{256 * megabytes}"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Add", ["X", "sum"], ["Y"]),
    ]
    return bytes(_made(nodes, parts))


def endless() -> bytes:
    """A Loop that ends never; it loads."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["v", "one"], ["w"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", INT64, []),
            helper.make_tensor_value_info("go", BOOL, []),
            helper.make_tensor_value_info("v", FLOAT, None),
        ],
        [helper.make_tensor_value_info("go_on", BOOL, []), helper.make_tensor_value_info("w", FLOAT, None)],
    )
    weights = [
        numpy_helper.from_array(np.array(2**62, np.int64), "many"),
        numpy_helper.from_array(np.array(True), "yes"),
        numpy_helper.from_array(np.array(1, np.float32), "one"),
    ]
    return bytes(_made([helper.make_node("Loop", ["many", "yes", "X"], ["Y"], body=body)], weights))


def weights_of(dims: list[int], content: bytes, kind: int = FLOAT) -> bytes:
    """An initializer that declares one thing and holds another."""
    tensor = TensorProto(name="w", data_type=kind, dims=dims, raw_data=content)
    return bytes(_made([helper.make_node("Add", ["X", "w"], ["Y"])], [tensor]))


def odd_entry(key: str, value: str) -> bytes:
    """External data with an entry of this kind."""
    model = onnx.load_from_string(graphs.adding_weights("w"))
    entries = model.graph.initializer[0].external_data
    for entry in entries:
        if entry.key == key:
            entry.value = value
            break
    else:
        entries.add(key=key, value=value)
    return bytes(model.SerializeToString())


def nested(depth: int) -> bytes:
    """Branches within branches, deeper than the onnx package writes them."""
    graph = b""
    for _ in range(depth):
        # GraphProto.node = 1, NodeProto.attribute = 5, AttributeProto.g = 6.
        graph = encoded(1, encoded(5, encoded(6, graph)))
    return encoded(1, 8) + encoded(7, graph)


def foreign(op: str, domain: str) -> bytes:
    """An operator of someone else's."""
    return bytes(_made([helper.make_node(op, ["X"], ["Y"], domain=domain)], [], domain=domain))


def _odd(key: str, value: str) -> Maker:
    def put(root: Path, name: str) -> None:
        (graphs.put(root, odd_entry(key, value), name) / "w").write_bytes(bytes(16))

    return put


def _random(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


REFUSED: dict[str, tuple[Maker, str]] = {
    "traversal": (
        _external("../secret", lambda root, _: _secret(root) and None),
        "expected a file name inside",
    ),
    "traversal-nested": (_external("a/../../../secret"), "expected a file name inside"),
    "absolute": (_external("/etc/passwd"), "expected a file name inside"),
    "device": (_external("/dev/zero"), "expected a file name inside"),
    "backslash": (_external("..\\secret"), "expected a file name inside"),
    "null": (_external("w\0"), "expected a file name inside"),
    "no-location": (_external(""), "expected a file name inside"),
    "gone": (_external("gone"), "which is not there"),
    "symlink": (_external("w", _symlink), "a link that leaves the version's directory"),
    "symlink-loop": (_external("w", lambda _, v: (v / "w").symlink_to("w")), "which is not there"),
    "hard-link": (_external("w", _hard_link), "hard link"),
    "pipe": (_external("w", _pipe), "is no regular file"),
    "directory": (_external("w", lambda _, v: (v / "w").mkdir()), "is no regular file"),
    "short-file": (
        _external("w", lambda _, v: (v / "w").write_bytes(b"1234") and None),
        "needs bytes 0 to 16",
    ),
    "offset-negative": (_odd("offset", "-16"), "offset is '-16'"),
    "offset-beyond": (_odd("offset", "999999999999"), "needs bytes"),
    "length-odd": (_odd("length", "8"), "has 8 bytes of external data"),
    "entry-unknown": (_odd("location_override", "/etc/passwd"), "'location_override'"),
    "functions-2^30": (_bytes(doubling(30)), "expand to 1,073,741,824 operators"),
    "functions-2^300": (_bytes(doubling(300)), "expand to about 10^90 operators"),
    "recursion": (_bytes(recursive()), "calls itself"),
    "constant-1GiB": (_bytes(constant([268_435_456])), "ConstantOfShape makes a constant"),
    "constant-4TiB": (_bytes(constant([1 << 20, 1 << 20])), "ConstantOfShape makes a constant"),
    "huge-dims": (_bytes(weights_of([2**40, 2**40], bytes(16))), "holds 16 bytes"),
    "negative-dims": (_bytes(weights_of([-1, 4], bytes(16))), "negative dimension"),
    "short-raw": (_bytes(weights_of([1, 8], bytes(16))), "holds 16 bytes; its shape [1, 8] needs 32"),
    "long-raw": (_bytes(weights_of([1, 4], bytes(32))), "holds 32 bytes; its shape [1, 4] needs 16"),
    "nested": (_bytes(nested(2000)), "nested more than 48 deep"),
    "operator": (_bytes(foreign("Run", "evil")), "custom operators are not loaded"),
    "ep-context": (_bytes(foreign("EPContext", "com.microsoft")), "EPContext"),
    "ort-format": (_bytes(b"\x28\0\0\0ORTM" + bytes(64)), "own .ort format"),
    "empty": (_bytes(b""), "is empty"),
    "random": (_bytes(_random(1, 4096)), "model.onnx"),
    "random-long": (_bytes(_random(2, 1 << 20)), "model.onnx"),
    "text": (_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "model.onnx"),
    "truncated": (_bytes(graphs.double()[:-40]), "model.onnx"),
}
"""Name -> (maker, words of the refusal)."""

HARMLESS: dict[str, Maker] = {
    "endless-loop": _bytes(endless()),
    "functions-2^6": _bytes(doubling(6)),
    "constant-64MiB": _bytes(constant([1 << 24])),
    "hidden-constant-1GiB": _bytes(hidden_constant(1)),
}


def mutations(count: int, seed: int = 7) -> list[bytes]:
    """Good models with some bytes changed, cut out or put in."""
    rng = random.Random(seed)
    good = [
        graphs.double(),
        graphs.mixing(),
        graphs.choosing(),
        graphs.total(),
        doubling(3),
        graphs.echo_text(),
    ]
    made = []
    for _ in range(count):
        content = bytearray(rng.choice(good))
        for _ in range(rng.randint(1, 8)):
            at = rng.randrange(len(content))
            kind = rng.randrange(4)
            if kind == 0:
                content[at] = rng.randrange(256)
            elif kind == 1:
                content[at] ^= 1 << rng.randrange(8)
            elif kind == 2:
                del content[at : at + rng.randint(1, 9)]
            else:
                content[at:at] = rng.randbytes(rng.randint(1, 9))
            if not content:
                content = bytearray(b"\0")
        made.append(bytes(content))
    return made
