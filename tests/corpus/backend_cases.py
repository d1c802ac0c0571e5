"""The ONNX backend suite as requests: `python -m tests.corpus.backend_cases FILE [MODULE ...]`.

Nobody here wrote these models, inputs or expected outputs: the package `onnx` makes the node cases in memory and
holds the others on disk. A case is kept when the Open Inference Protocol can say all its tensors, ONNX Runtime
answers it as the suite expects, and a second session answers with the same bytes. Run as a child: an operator
may take its process down, and the cases take memory.
"""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import importlib
import pickle
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parents[2]
DISK_KINDS = ("simple", "pytorch-converted", "pytorch-operator")


class Tensor(NamedTuple):
    """A tensor as OIP's binary form has it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes

    def array(self) -> np.ndarray:
        """As numpy has it; BYTES as an object array of str."""
        from loaders.datatypes import NUMPY

        if self.datatype != "BYTES":
            return np.frombuffer(self.data, NUMPY[self.datatype]).reshape(self.shape)
        texts, offset = [], 0
        while offset < len(self.data):
            end = offset + 4 + int.from_bytes(self.data[offset : offset + 4], "little")
            texts.append(self.data[offset + 4 : end].decode())
            offset = end
        made = np.empty(len(texts), dtype=object)
        made[:] = texts
        return made.reshape(self.shape)


class DataSet(NamedTuple):
    """One request: what is sent, what the suite expects, what ONNX Runtime answers."""

    inputs: tuple[Tensor, ...]
    expected: tuple[np.ndarray, ...]
    answered: tuple[Tensor, ...]


class Case(NamedTuple):
    """A model of the suite and its data."""

    name: str
    model: bytes
    rtol: float
    atol: float
    sets: tuple[DataSet, ...]


class Passed(Exception):
    """A case that is no request here; the text says why."""


def tensor(name: str, value: Any) -> Tensor:
    """A numpy array (or scalar, or TensorProto) as a tensor; raises Passed when OIP has no such datatype."""
    from loaders.datatypes import NUMPY

    array = np.asarray(value)
    if array.dtype.kind in "OSU":
        texts = [v.decode() if isinstance(v, bytes) else str(v) for v in array.ravel().tolist()]
        raws = [text.encode() for text in texts]
        data = b"".join(len(raw).to_bytes(4, "little") + raw for raw in raws)
        return Tensor(name, "BYTES", array.shape, data)
    for datatype, dtype in NUMPY.items():
        if array.dtype == dtype and datatype != "BYTES":
            return Tensor(name, datatype, array.shape, np.ascontiguousarray(array).tobytes())
    raise Passed(f"datatype {array.dtype}")


def similar(got: np.ndarray, expected: np.ndarray, rtol: float, atol: float) -> bool:
    """As the suite compares: shape, kind, and values within its tolerances."""
    if got.shape != expected.shape:
        return False
    if got.dtype.kind in "OSU" or expected.dtype.kind in "OSU":
        return got.astype(str).tolist() == expected.astype(str).tolist()
    if got.dtype != expected.dtype:
        return False
    with np.errstate(all="ignore"):
        return bool(np.allclose(got, expected, rtol=rtol, atol=atol, equal_nan=True))


def _plain(value: Any) -> np.ndarray:
    from onnx import TensorProto, numpy_helper

    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, list | tuple | dict) or value is None:
        raise Passed("sequence, map or optional")
    return np.asarray(value)


def _node_cases(modules: Sequence[str]) -> list[Any]:
    from onnx.backend.test.case import node

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        if not modules:
            return node.collect_testcases(None)
        for module in modules:
            importlib.import_module(f"onnx.backend.test.case.node.{module}")
    return list(node._NodeTestCases)  # noqa: SLF001


def _disk_cases() -> list[Any]:
    from onnx.backend.test.loader import load_model_tests

    return [case for kind in DISK_KINDS for case in sorted(load_model_tests(kind=kind), key=lambda c: c.name)]


def _material(case: Any) -> tuple[bytes, list[tuple[list[Any], list[Any]]]]:
    """Model and data sets, wherever they are."""
    import onnx

    if case.model is not None:
        return case.model.SerializeToString(), list(case.data_sets)
    directory = Path(case.model_dir)
    sets = []
    for folder in sorted(directory.glob("test_data_set_*")):
        pair = []
        for what in ("input", "output"):
            protos = []
            for i in range(len(list(folder.glob(f"{what}_*.pb")))):
                proto = onnx.TensorProto()
                try:
                    proto.ParseFromString((folder / f"{what}_{i}.pb").read_bytes())
                except Exception:  # noqa: BLE001  a sequence's file is no tensor's
                    raise Passed("sequence, map or optional") from None
                protos.append(proto)
            pair.append(protos)
        sets.append((pair[0], pair[1]))
    return (directory / "model.onnx").read_bytes(), sets


def _sessions(model: bytes) -> list[Any]:
    """Two, with the options that the gateway sets."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return [
            onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]) for _ in "ab"
        ]
    except Exception:  # noqa: BLE001
        raise Passed("ONNX Runtime does not load it") from None


def _fed(session: Any, given: Sequence[np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Bind by the graph's order; an optional input may be left out of the data."""
    wanted = [value.name for value in session.get_inputs()]
    by_graph = dict(zip(names, given, strict=False))
    if set(wanted) == set(by_graph):
        return {name: by_graph[name] for name in wanted}
    if len(wanted) != len(given):
        raise Passed("inputs and data differ in number")
    return dict(zip(wanted, given, strict=True))


def kept(case: Any) -> Case:
    """A case of the suite as requests; raises Passed."""
    import onnx

    model, sets = _material(case)
    sessions = _sessions(model)
    if not sets:
        raise Passed("no data")
    # Weights may be listed as graph inputs; the data is for the others.
    graph = onnx.load_model_from_string(model).graph
    weights = {value.name for value in graph.initializer}
    names = [value.name for value in graph.input if value.name not in weights]
    made = []
    for inputs, outputs in sets:
        feeds = _fed(sessions[0], [_plain(value) for value in inputs], names)
        sent = tuple(tensor(name, value) for name, value in feeds.items())
        expected = tuple(_plain(value) for value in outputs)
        try:
            got, again = ([np.asarray(v) for v in s.run(None, feeds)] for s in sessions)
        except Exception:  # noqa: BLE001
            raise Passed("ONNX Runtime does not run it") from None
        named = [value.name for value in sessions[0].get_outputs()]
        answered, repeated = (
            tuple(tensor(name, value) for name, value in zip(named, values, strict=True))
            for values in (got, again)
        )
        if answered != repeated:
            raise Passed("two sessions answer with different bytes")
        if len(got) != len(expected) or not all(
            similar(g, e, case.rtol, case.atol) for g, e in zip(got, expected, strict=True)
        ):
            raise Passed("ONNX Runtime answers something else than expected")
        made.append(DataSet(sent, expected, answered))
    return Case(case.name, model, case.rtol, case.atol, tuple(made))


def _all(modules: Sequence[str]) -> Iterator[Any]:
    yield from _node_cases(modules)
    if not modules:
        yield from _disk_cases()


def main() -> None:
    """Write the kept cases to the file named first; say what was passed over and why."""
    file, *modules = sys.argv[1:]
    cases: list[Case] = []
    passed: Counter[str] = Counter()
    for case in _all(modules):
        try:
            cases.append(kept(case))
        except Passed as exc:
            passed[str(exc).partition(" bfloat")[0]] += 1
    Path(file).write_bytes(pickle.dumps(cases))
    total = len(cases) + sum(passed.values())
    sys.stdout.write(f"{len(cases)} of {total} cases are requests\n")
    for why, count in passed.most_common():
        sys.stdout.write(f"  {count:4} passed over: {why}\n")


def make(file: Path, *modules: str) -> tuple[list[Case], str]:
    """Cases of the named modules (none: of the whole suite), made in a child process, and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.corpus.backend_cases", str(file), *modules],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        msg = f"the suite's child ended with {done.returncode}: {done.stderr[-1000:]}"
        raise ChildProcessError(msg)
    return pickle.loads(file.read_bytes()), done.stdout  # noqa: S301  our own child's


if __name__ == "__main__":
    # Under this name pickle would look for the classes in the reader's __main__.
    sys.modules["tests.corpus.backend_cases"].main() if "tests.corpus.backend_cases" in sys.modules else (
        importlib.import_module("tests.corpus.backend_cases").main()
    )
