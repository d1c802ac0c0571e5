"""Two more clients as their makers have them: the Open Inference Protocol's own, and KServe's way with httpx.

The first is generated from the protocol's description and holds every reply against its types. KServe's compares the
content type for equality, reads `live` and `ready` out of the bodies and parses with orjson, which knows no NaN.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from open_inference.openapi.client import AsyncOpenInferenceClient, OpenInferenceClient
from open_inference.openapi.core.api_error import ApiError
from open_inference.openapi.errors import BadRequestError, NotFoundError
from open_inference.openapi.types import InferenceRequest, RequestInput, RequestOutput

from bench.serving import Gateway
from tests.e2e.onnx_models import linear_weights

JSON = "application/json"
HEADER = "inference-header-content-length"
ROW = [1.0, 2.0, 3.0, 4.0]


@pytest.fixture
def open_client(gateway: Gateway) -> Iterator[OpenInferenceClient]:
    """The protocol's own client."""
    with httpx.Client(timeout=30) as transport:
        yield OpenInferenceClient(base_url=gateway.data_url, httpx_client=transport)


@pytest.fixture
def kserve(gateway: Gateway) -> Iterator[httpx.Client]:
    """httpx as KServe's client has it: kept connections, codings offered."""
    with httpx.Client(base_url=gateway.data_url, timeout=30) as made:
        yield made


def request(name: str = "X", **more: Any) -> InferenceRequest:
    """One row."""
    return InferenceRequest(inputs=[RequestInput(name=name, shape=[1, 4], datatype="FP32", data=ROW)], **more)


def expected() -> list[float]:
    """What `linear` answers to the row."""
    return (np.array(ROW, np.float32) @ linear_weights(0.5)).tolist()


def test_the_protocols_client(open_client: OpenInferenceClient) -> None:
    """Health, metadata and inference are of the protocol's types."""
    open_client.check_server_liveness()
    open_client.check_server_readiness()
    open_client.check_model_readiness("linear")
    open_client.check_model_version_readiness("linear", "2")
    server = open_client.read_server_metadata()
    assert server.name == "tidegate"
    assert "binary_tensor_data" in server.extensions
    for metadata in (
        open_client.read_model_metadata("linear"),
        open_client.read_model_version_metadata("linear", "2"),
    ):
        assert (metadata.name, metadata.versions, metadata.platform) == ("linear", ["1", "2"], "onnx_onnxv1")
        assert [(t.name, t.datatype, t.shape) for t in metadata.inputs] == [("X", "FP32", [-1, 4])]
    answer = open_client.model_infer("linear", request=request(id="r-1"))
    assert (answer.id, answer.model_name, answer.model_version) == ("r-1", "linear", "2")
    assert answer.outputs[0].shape == [1, 3]
    np.testing.assert_allclose(_numbers(answer.outputs[0].data), expected())
    asked = request(outputs=[RequestOutput(name="scores")])
    twin = open_client.model_version_infer("twin", "1", request=asked)
    assert [output.name for output in twin.outputs] == ["scores"]


def _numbers(data: Any) -> list[float]:
    return list(getattr(data, "__root__", data))


def test_the_protocols_client_meets_errors(open_client: OpenInferenceClient) -> None:
    """Wrong requests and unknown names are the client's own exceptions, with the reason."""
    with pytest.raises(BadRequestError) as wrong:
        open_client.model_infer("linear", request=request(name="OTHER"))
    assert "OTHER" in str(wrong.value.body)
    for unknown in (
        lambda: open_client.model_infer("nobody", request=request()),
        lambda: open_client.read_model_metadata("nobody"),
        lambda: open_client.check_model_readiness("nobody"),
    ):
        with pytest.raises((NotFoundError, ApiError)) as missing:
            unknown()
        assert missing.value.status_code == 404
        assert "nobody" in str(missing.value.body)


def test_the_protocols_asyncio_client(gateway: Gateway) -> None:
    """Sixteen at once, each with its own answer."""

    async def talk() -> None:
        async with httpx.AsyncClient(timeout=30) as transport:
            client = AsyncOpenInferenceClient(base_url=gateway.data_url, httpx_client=transport)
            await client.check_server_readiness()
            answers = await asyncio.gather(
                *(client.model_infer("linear", request=request(id=f"r-{i}")) for i in range(16))
            )
        assert [answer.id for answer in answers] == [f"r-{i}" for i in range(16)]

    asyncio.run(talk())


def kserve_body(model: str, inputs: list[dict[str, Any]], **parameters: Any) -> dict[str, Any]:
    """KServe's client always sends an id, the model's name, and parameters where there are any."""
    made = {"id": str(uuid.uuid4()), "model_name": model, "inputs": inputs}
    return {**made, "parameters": parameters} if parameters else made


def test_kserves_health(kserve: httpx.Client) -> None:
    """The bodies say it, not the status alone."""
    assert orjson.loads(kserve.get("/v2/health/live").content)["live"] is True
    assert orjson.loads(kserve.get("/v2/health/ready").content)["ready"] is True
    assert orjson.loads(kserve.get("/v2/models/linear/ready").content)["ready"] is True
    assert orjson.loads(kserve.get("/").content) == {"status": "alive"}


def test_kserves_content_types_are_compared_for_equality(kserve: httpx.Client) -> None:
    """JSON is exactly application/json, replies and errors alike; binary is octet-stream with the JSON's length."""
    body = kserve_body("linear", [{"name": "X", "shape": [1, 4], "datatype": "FP32", "data": ROW}])
    plain = kserve.post("/v2/models/linear/infer", json=body)
    assert plain.headers["content-type"] == JSON
    told = orjson.loads(plain.content)
    assert (told["id"], told["model_name"]) == (body["id"], "linear")
    assert {"name", "shape", "datatype", "data"} <= set(told["outputs"][0])
    binary = kserve.post("/v2/models/linear/infer", json={**body, "parameters": {"binary_data_output": True}})
    assert binary.headers["content-type"] == "application/octet-stream"
    cut = int(binary.headers[HEADER])
    output = orjson.loads(binary.content[:cut])["outputs"][0]
    assert output["parameters"]["binary_data_size"] == len(binary.content) - cut == 12
    np.testing.assert_allclose(np.frombuffer(binary.content[cut:], "<f4"), expected())
    for path, content in (
        ("/v2/models/nobody/infer", body),
        ("/v2/models/linear/infer", {**body, "inputs": []}),
        ("/v2/nowhere", body),
    ):
        wrong = kserve.post(path, json=content)
        assert wrong.status_code >= 400
        assert wrong.headers["content-type"] == JSON
        assert orjson.loads(wrong.content)["error"]
    assert kserve.get("/v2/models/linear/infer").headers["content-type"] == JSON


def test_kserves_parser_reads_what_is_not_finite(kserve: httpx.Client) -> None:
    """null for what is no number in JSON; the binary form keeps them."""
    inputs = [{"name": "INPUT0", "shape": [1, 1], "datatype": "FP32", "data": [0]}]
    plain = kserve.post("/v2/models/nan/infer", json=kserve_body("nan", inputs))
    assert orjson.loads(plain.content)["outputs"][0]["data"] == [None, None, None, 1.0, 0.1]
    binary = kserve.post("/v2/models/nan/infer", json=kserve_body("nan", inputs, binary_data_output=True))
    values = np.frombuffer(binary.content[int(binary.headers[HEADER]) :], "<f4")
    np.testing.assert_array_equal(values, np.array([np.nan, np.inf, -np.inf, 1, 0.1], np.float32))


def test_kserves_half_precision_is_binary_both_ways(kserve: httpx.Client) -> None:
    """FP16 as KServe's client sends it: binary, with the length of the JSON before it."""
    rows = (np.arange(16).reshape(2, 8) / 3).astype(np.float16)
    scale = np.array(2, np.float16)
    inputs = [
        {"name": n, "shape": list(a.shape), "datatype": "FP16", "parameters": {"binary_data_size": a.nbytes}}
        for n, a in (("X", rows), ("s", scale))
    ]
    head = orjson.dumps(kserve_body("half", inputs, binary_data_output=True))
    reply = kserve.post(
        "/v2/models/half/infer",
        content=head + rows.tobytes() + scale.tobytes(),
        headers={"content-type": "application/octet-stream", HEADER: str(len(head))},
    )
    assert reply.status_code == 200, reply.text
    got = np.frombuffer(reply.content[int(reply.headers[HEADER]) :], "<f2").reshape(2, 4)
    weights = (np.arange(32).reshape(8, 4) / 7).astype(np.float16)
    np.testing.assert_allclose(got.astype(float), ((rows * scale) @ weights).astype(float), rtol=4e-3)
