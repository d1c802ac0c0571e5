"""One gateway of two workers for the clients that nobody here wrote; models whose answers can be told by eye."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from onnx import TensorProto, helper

from bench.serving import Gateway
from tests.clients import real_models
from tests.e2e import onnx_models

WORKERS = 2
ONNX_TYPES = {
    "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32, "UINT64": TensorProto.UINT64, "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16, "INT32": TensorProto.INT32, "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16, "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}  # fmt: skip
"""Every datatype of the protocol that is served."""


def echo() -> bytes:
    """Every datatype in, the same out: in_<datatype>[N,3] -> out_<datatype>[N,3]."""
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in ONNX_TYPES],
        "echo",
        [helper.make_tensor_value_info(f"in_{name}", kind, ["N", 3]) for name, kind in ONNX_TYPES.items()],
        [helper.make_tensor_value_info(f"out_{name}", kind, ["N", 3]) for name, kind in ONNX_TYPES.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Clients may load and unload; whoever does so puts it back."""
    directory = tmp_path_factory.mktemp("clients")
    repository = directory / "models"
    onnx_models.write_simple(repository)
    onnx_models.write_two_outputs(repository)
    onnx_models.write_turns(repository)
    onnx_models.write_not_finite(repository)
    for version, scale in (("1", 0.25), ("2", 0.5)):
        onnx_models.write_linear(repository, version=version, scale=scale)
    real_models.put(repository, "echo", "1", echo())
    real_models.put(repository, "half", "1", real_models.half())
    settings = ["sidecar.enabled=false", "data.model_control=true"]
    with Gateway(repository, directory / "state", workers=WORKERS, settings=settings) as started:
        yield started
