"""A repository as Triton's examples have it, with tiny models of our own: served as it is, settings and all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnx import TensorProto, helper

from bench.serving import Gateway, call
from tests.loaders import graphs

SIMPLE = """
name: "simple"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [
  { name: "INPUT0" data_type: TYPE_INT32 dims: [ 16 ] },
  { name: "INPUT1" data_type: TYPE_INT32 dims: [ 16 ] }
]
output [
  { name: "OUTPUT0" data_type: TYPE_INT32 dims: [ 16 ] },
  { name: "OUTPUT1" data_type: TYPE_INT32 dims: [ 16 ] }
]
"""
DENSENET = """
name: "densenet_onnx"
platform: "onnxruntime_onnx"
max_batch_size : 0
input [
  {
    name: "data_0"
    data_type: TYPE_FP32
    format: FORMAT_NCHW
    dims: [ 3, 2, 2 ]
    reshape { shape: [ 1, 3, 2, 2 ] }
  }
]
output [
  {
    name: "fc6_1"
    data_type: TYPE_FP32
    dims: [ 12 ]
    reshape { shape: [ 1, 12, 1, 1 ] }
    label_filename: "densenet_labels.txt"
  }
]
"""


def write_repository(root: Path) -> None:
    """simple: sum and difference; densenet_onnx: an image's numbers as scores; broken: another backend's."""
    kind = TensorProto.INT32
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
            helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
        ],
        "g",
        [helper.make_tensor_value_info(f"INPUT{i}", kind, ["N", 16]) for i in range(2)],
        [helper.make_tensor_value_info(f"OUTPUT{i}", kind, ["N", 16]) for i in range(2)],
    )
    opsets = [helper.make_opsetid("", 17)]
    graphs.put(
        root, helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString(), "simple"
    )
    (root / "simple" / "config.pbtxt").write_text(SIMPLE)
    shape = helper.make_node("Constant", [], ["shape"], value_ints=[1, 12, 1, 1])
    flat = helper.make_graph(
        [shape, helper.make_node("Reshape", ["data_0", "shape"], ["fc6_1"])],
        "g",
        [helper.make_tensor_value_info("data_0", TensorProto.FLOAT, [1, 3, 2, 2])],
        [helper.make_tensor_value_info("fc6_1", TensorProto.FLOAT, [1, 12, 1, 1])],
    )
    content = helper.make_model(flat, opset_imports=opsets, ir_version=9).SerializeToString()
    graphs.put(root, content, "densenet_onnx")
    (root / "densenet_onnx" / "config.pbtxt").write_text(DENSENET)
    (root / "densenet_onnx" / "densenet_labels.txt").write_text("".join(f"CLASS {i}\n" for i in range(12)))
    graphs.put(root, graphs.double(), "broken")
    (root / "broken" / "config.pbtxt").write_text('backend: "python"')


def infer(gateway: Gateway, model: str, inputs: list[dict[str, Any]], **more: Any) -> Any:
    """One request; status and body."""
    reply = call(gateway.data_url, "POST", f"/v2/models/{model}/infer", {"inputs": inputs, **more})
    return reply.status, reply.content


def tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    """One input."""
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def test_repository_of_triton_is_served(tmp_path: Path) -> None:
    """Both models answer as their settings say; the third is refused with its field, and hurts neither."""
    write_repository(tmp_path / "models")
    gateway = Gateway(tmp_path / "models", tmp_path / "state").start()
    try:
        rows = [tensor(f"INPUT{i}", "INT32", [2, 16], [i + 1] * 32) for i in range(2)]
        status, body = infer(gateway, "simple", rows)
        assert (status, [o["data"][0] for o in body["outputs"]]) == (200, [3, -1])
        many = [tensor(f"INPUT{i}", "INT32", [9, 16], [1] * 144) for i in range(2)]
        status, body = infer(gateway, "simple", many)
        assert status == 400
        assert (
            "9 rows in one request; at most 8 are taken by model 'simple' (max_batch_size)" in body["error"]
        )
        config = call(gateway.data_url, "GET", "/v2/models/simple/config").content
        assert (config["max_batch_size"], config["input"][0]["dims"]) == (8, [16])
        image = [tensor("data_0", "FP32", [3, 2, 2], [float(i) for i in range(12)])]
        status, body = infer(gateway, "densenet_onnx", image)
        assert (status, body["outputs"][0]["shape"]) == (200, [12])
        asked = [{"name": "fc6_1", "parameters": {"classification": 2}}]
        status, body = infer(gateway, "densenet_onnx", image, outputs=asked)
        assert status == 200, body
        assert [text.split(":")[-1] for text in body["outputs"][0]["data"]] == ["CLASS 11", "CLASS 10"]
        broken = gateway.admin("GET", "models/broken").content["versions"][0]
        assert broken["state"] == "failed"
        assert "backend is 'python'; only ONNX models are served" in broken["reason"]
        assert gateway.stop() == 0
    finally:
        gateway.kill9_all()
