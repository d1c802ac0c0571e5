"""ONNX file: where a model lies, and what tensors it takes and gives, for peers that must be told.

NAME/VERSION/model.onnx -> **onnx_file** -> adapters write configurations from it, and send a first request.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import loaders  # noqa: F401  (turns ONNX Runtime's telemetry off before it is imported)
from loaders.datatypes import FROM_ORT, NUMPY
from loaders.signature import Signature, TensorSpec


def model_file_of(repository: Path, model: str, version: str = "1") -> Path:
    """Where a version of a model lies in a repository."""
    return repository / model / version / "model.onnx"


def signature_of(model_file: Path) -> Signature:
    """The declared tensors; -1 for what varies.

    Raises:
        KeyError: a tensor is of a type that the protocol has no name for.
    Cost: loads the model once.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(model_file), options, providers=["CPUExecutionProvider"])

    def specs(values: Any) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                value.name,
                FROM_ORT[value.type],
                tuple(size if isinstance(size, int) and size >= 0 else -1 for size in value.shape),
            )
            for value in values
        )

    return Signature(specs(session.get_inputs()), specs(session.get_outputs()))


def is_batchable(signature: Signature) -> bool:
    """Whether rows of several requests can be one run: every tensor's first dimension varies."""
    return all(spec.shape[:1] == (-1,) for spec in (*signature.inputs, *signature.outputs))


def ones(signature: Signature) -> dict[str, NDArray[Any]]:
    """The smallest right request: one row of ones; of texts, "1"."""
    feeds: dict[str, NDArray[Any]] = {}
    for spec in signature.inputs:
        shape = tuple(1 if size < 0 else size for size in spec.shape)
        feeds[spec.name] = (
            np.full(shape, "1", object) if spec.datatype == "BYTES" else np.ones(shape, NUMPY[spec.datatype])
        )
    return feeds
