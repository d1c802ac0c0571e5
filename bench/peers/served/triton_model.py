"""Triton's side: an ONNX model in its Python backend, as its documentation shows one.

Triton hands `execute` the requests of a batch that its dynamic batcher made (or one, without it): their rows are one
run. Instances are Triton's (`instance_group`): each is a process of its own with a session of its own. The backend was
built for NumPy 1: under 2 it takes a wrong size for an element.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# The backend's interpreter knows no virtual environment and does not honour PYTHONPATH.
_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
sys.path.insert(0, str(Path(os.environ["VIRTUAL_ENV"]) / "lib" / _VERSION / "site-packages"))

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402


class TritonPythonModel:
    """What the backend looks for in this file."""

    def initialize(self, args):
        """Load the version's file; one thread a run, since instances are what runs beside each other."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        file = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._inputs = [
            (tensor.name, tensor.type == "tensor(string)") for tensor in self._session.get_inputs()
        ]
        self._outputs = [tensor.name for tensor in self._session.get_outputs()]

    def execute(self, requests):
        """A reply for each request, from one run."""
        try:
            columns = {
                name: [_array(request, name, is_text) for request in requests]
                for name, is_text in self._inputs
            }
            if len(requests) == 1:
                outputs = self._session.run(None, {name: column[0] for name, column in columns.items()})
                return [self._reply(outputs)]
            feeds = {name: np.concatenate(column) for name, column in columns.items()}
            outputs = self._session.run(None, feeds)
        except Exception as exc:
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(str(exc))) for _ in requests]
        ends = np.cumsum([len(array) for array in next(iter(columns.values()))])[:-1]
        rows = zip(*(np.split(output, ends) for output in outputs), strict=True)
        return [self._reply(parts) for parts in rows]

    def _reply(self, outputs):
        named = zip(self._outputs, outputs, strict=True)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, output) for name, output in named])


def _array(request, name, is_text):
    array = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
    if not is_text:
        return array
    # ONNX Runtime takes the text of a bytes object for its content.
    texts = np.empty(array.shape, object)
    texts.ravel()[:] = [value.decode() for value in array.ravel()]
    return texts
