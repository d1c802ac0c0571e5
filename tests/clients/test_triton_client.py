"""tritonclient, unmodified: its calls as its makers wrote them, over HTTP, blocking and asyncio, on two workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from bench.serving import Gateway
from loaders.datatypes import NUMPY
from tests.clients.conftest import ONNX_TYPES
from tests.e2e.onnx_models import linear_weights, write_linear

ROUNDS = 20


def edges(datatype: str) -> np.ndarray:
    """Two rows with the ends of a datatype's range."""
    dtype = NUMPY[datatype]
    if datatype == "BYTES":
        return np.array([[b"", b"plain", "ü 漢".encode()], [b"a\x00b", b" ", b'"\\']], dtype=object)
    if dtype.kind == "b":
        return np.array([[True, False, True], [False, False, True]])
    info: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)  # type: ignore[type-var]
    return np.array([[info.min, 0, info.max], [1, 2, 100]], dtype=dtype)


@pytest.fixture
def address(gateway: Gateway) -> str:
    """Host and port, as the client wants them."""
    return gateway.data_url.removeprefix("http://")


@pytest.fixture
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    """The blocking client with several connections, so that both workers are asked."""
    with triton.InferenceServerClient(address, concurrency=8) as made:
        yield made


def inputs_of(feeds: dict[str, np.ndarray], *, binary: bool = True) -> list[triton.InferInput]:
    """The client's inputs."""
    made = []
    for name, array in feeds.items():
        datatype = "BYTES" if array.dtype == object else next(d for d, t in NUMPY.items() if t == array.dtype)
        made.append(triton.InferInput(name, list(array.shape), datatype))
        made[-1].set_data_from_numpy(array, binary_data=binary)
    return made


def simple() -> dict[str, np.ndarray]:
    """What the makers' own examples send."""
    first = np.arange(16, dtype=np.int32).reshape(1, 16)
    return {"INPUT0": first, "INPUT1": np.ones((1, 16), np.int32)}


def equal(got: np.ndarray, sent: np.ndarray) -> bool:
    """BYTES come as bytes from binary and as str from JSON: the makers' own examples decode them."""
    if sent.dtype == object:
        plain = [[v.encode() if isinstance(v, str) else v for v in row] for row in got.tolist()]
        return plain == sent.tolist()
    return got.dtype == sent.dtype and np.array_equal(got, sent)


@pytest.mark.parametrize("binary_out", [True, False], ids=["binary-out", "json-out"])
@pytest.mark.parametrize("binary_in", [True, False], ids=["binary-in", "json-in"])
def test_every_datatype(client: triton.InferenceServerClient, binary_in: bool, binary_out: bool) -> None:
    """All thirteen datatypes, at the ends of their range, go through unchanged in all four mixes."""
    sent = {f"in_{name}": edges(name) for name in ONNX_TYPES}
    outputs = [triton.InferRequestedOutput(f"out_{name}", binary_data=binary_out) for name in ONNX_TYPES]
    result = client.infer("echo", inputs_of(sent, binary=binary_in), outputs=outputs)
    for name in ONNX_TYPES:
        got = result.as_numpy(f"out_{name}")
        assert equal(got, sent[f"in_{name}"]), (name, got)


def test_nothing_asked_is_everything_in_binary(client: triton.InferenceServerClient) -> None:
    """Without outputs the client asks for binary; the order is the model's, id and version come back."""
    result = client.infer("simple", inputs_of(simple()), request_id="r-7", model_version="1")
    response = result.get_response()
    assert [output["name"] for output in response["outputs"]] == ["OUTPUT0", "OUTPUT1"]
    assert all(output["parameters"]["binary_data_size"] == 64 for output in response["outputs"])
    assert (response["id"], response["model_name"], response["model_version"]) == ("r-7", "simple", "1")
    feeds = simple()
    assert equal(result.as_numpy("OUTPUT0"), feeds["INPUT0"] + feeds["INPUT1"])
    assert equal(result.as_numpy("OUTPUT1"), feeds["INPUT0"] - feeds["INPUT1"])


def test_asked_outputs_come_in_their_order_each_in_its_form(client: triton.InferenceServerClient) -> None:
    """One output as JSON, the other as binary, in the order asked; then one of them alone."""
    outputs = [
        triton.InferRequestedOutput("OUTPUT1", binary_data=False),
        triton.InferRequestedOutput("OUTPUT0", binary_data=True),
    ]
    result = client.infer("simple", inputs_of(simple()), outputs=outputs)
    told = result.get_response()["outputs"]
    assert [(output["name"], "data" in output) for output in told] == [("OUTPUT1", True), ("OUTPUT0", False)]
    assert result.as_numpy("OUTPUT1").tolist() == [[i - 1 for i in range(16)]]
    assert result.as_numpy("OUTPUT0").tolist() == [[i + 1 for i in range(16)]]
    alone = client.infer("simple", inputs_of(simple()), outputs=outputs[:1])
    assert alone.as_numpy("OUTPUT0") is None


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_and_replies(client: triton.InferenceServerClient, algorithm: str) -> None:
    """The client's two codings, both ways; the reply is large enough to be compressed, and binary."""
    feeds = {"X": np.arange(32_768, dtype=np.float32).reshape(8192, 4)}
    result = client.infer(
        "linear", inputs_of(feeds), model_version="1",
        request_compression_algorithm=algorithm, response_compression_algorithm=algorithm,
    )  # fmt: skip
    plain = client.infer("linear", inputs_of(feeds), model_version="1")
    assert equal(result.as_numpy("Y"), plain.as_numpy("Y"))


def test_classification(client: triton.InferenceServerClient) -> None:
    """`class_count` gives value and index of the largest, best first."""
    rows = np.array([[1, 0, 0, 0], [0, 0, 0, 1]], np.float32)
    outputs = [triton.InferRequestedOutput("scores", class_count=2)]
    scores = client.infer("twin", inputs_of({"X": rows})).as_numpy("scores")
    best = client.infer("twin", inputs_of({"X": rows}), outputs=outputs).as_numpy("scores")
    assert best.shape == (2, 2)
    for row, texts in zip(scores, best, strict=True):
        parts = [text.decode().split(":")[:2] for text in texts]
        order = sorted(range(3), key=lambda i: -row[i])[:2]
        assert [int(index) for _, index in parts] == order
        np.testing.assert_allclose([float(value) for value, _ in parts], row[order], atol=1e-5)


def test_health_metadata_and_configuration(client: triton.InferenceServerClient) -> None:
    """What the client shows of server and model has the fields that its users read."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("linear", "2")
    assert not client.is_model_ready("linear", "9")
    assert not client.is_model_ready("nobody")
    server = client.get_server_metadata()
    assert server["name"] == "tidegate"
    assert {"binary_tensor_data", "classification", "model_repository", "statistics"} <= set(
        server["extensions"]
    )
    metadata = client.get_model_metadata("linear")
    assert metadata["versions"] == ["1", "2"]
    assert metadata["inputs"] == [{"name": "X", "datatype": "FP32", "shape": [-1, 4]}]
    config = client.get_model_config("linear", "2")
    assert (config["name"], config["platform"]) == ("linear", "onnxruntime_onnx")
    assert config["max_batch_size"] > 0
    assert config["input"][0] == {**config["input"][0], "name": "X", "data_type": "TYPE_FP32", "dims": [4]}


def _succeeded(statistics: dict[str, Any]) -> int:
    return sum(int(entry["inference_stats"]["success"]["count"]) for entry in statistics["model_stats"])


def test_statistics_count_every_worker(address: str, client: triton.InferenceServerClient) -> None:
    """Requests over connections of their own land on both workers; whoever is asked tells the sum."""
    before = _succeeded(client.get_inference_statistics("simple"))
    for _ in range(ROUNDS):
        with triton.InferenceServerClient(address) as other:
            other.infer("simple", inputs_of(simple()))
    deadline = time.monotonic() + 30
    while (found := _succeeded(client.get_inference_statistics("simple"))) - before != ROUNDS:
        assert time.monotonic() < deadline, (before, found)
        time.sleep(0.05)
    (entry,) = client.get_inference_statistics("simple", "1")["model_stats"]
    assert entry["inference_count"] >= entry["execution_count"] > 0
    for stage in ("queue", "compute_input", "compute_infer", "compute_output"):
        assert entry["inference_stats"][stage]["count"] > 0, stage
        assert entry["inference_stats"][stage]["ns"] > 0, stage
    everything = client.get_inference_statistics()["model_stats"]
    assert {"echo", "linear", "simple"} <= {entry["name"] for entry in everything}


def test_load_unload_and_index(gateway: Gateway, address: str, client: triton.InferenceServerClient) -> None:
    """A model put into the repository is loaded, answers at every worker, is unloaded at all, and comes back."""
    write_linear(gateway.models, "late", scale=1.0)

    def index() -> dict[str, str]:
        return {entry["name"]: entry["state"] for entry in client.get_model_repository_index()}

    def states() -> set[bool]:
        found = set()
        for _ in range(ROUNDS):
            with triton.InferenceServerClient(address) as other:
                found.add(other.is_model_ready("late"))
        return found

    client.load_model("late")
    assert states() == {True}
    assert index()["late"] == "READY"
    row = {"X": np.ones((1, 4), np.float32)}
    assert client.infer("late", inputs_of(row)).as_numpy("Y").tolist() == [[-2, 2, 6]]
    client.unload_model("late")
    assert states() == {False}
    assert index()["late"] == "UNAVAILABLE"
    with pytest.raises(InferenceServerException) as refused:
        client.infer("late", inputs_of(row))
    assert "late" in refused.value.message()
    client.load_model("late")
    assert states() == {True}
    with pytest.raises(InferenceServerException) as unknown:
        client.load_model("nobody")
    assert "nobody" in unknown.value.message()


def test_errors_are_the_clients_own_with_text(client: triton.InferenceServerClient) -> None:
    """Whatever is wrong is an InferenceServerException with status and a sentence."""
    feeds = simple()
    cases = {
        ("400", "unknown input 'OTHER'"): lambda: client.infer(
            "simple", inputs_of({"OTHER": feeds["INPUT0"], "INPUT1": feeds["INPUT1"]})
        ),
        ("400", "input 'INPUT1' is missing"): lambda: client.infer(
            "simple", inputs_of({"INPUT0": feeds["INPUT0"]})
        ),
        ("400", "INPUT0"): lambda: client.infer(
            "simple", inputs_of({**feeds, "INPUT0": np.zeros((1, 15), np.int32)})
        ),
        ("400", "datatype"): lambda: client.infer(
            "simple", inputs_of({**feeds, "INPUT0": np.zeros((1, 16), np.int64)})
        ),
        ("400", "unknown output 'OUTPUT9'"): lambda: client.infer(
            "simple", inputs_of(feeds), outputs=[triton.InferRequestedOutput("OUTPUT9")]
        ),
        ("404", "Request for unknown model"): lambda: client.infer("nobody", inputs_of(feeds)),
        ("404", "unknown model: 'nobody'"): lambda: client.get_model_metadata("nobody"),
        ("404", "version"): lambda: client.infer("simple", inputs_of(feeds), model_version="9"),
        ("404", "no such address"): lambda: client.get_trace_settings(),
    }
    for (status, text), call in cases.items():
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert caught.value.status() == status, (text, caught.value)
        assert text in caught.value.message(), caught.value


def test_a_deadline_is_kept(client: triton.InferenceServerClient) -> None:
    """The client's `timeout` (microseconds) ends a run that takes longer: an exception that says so."""
    many = inputs_of({"X": np.full((1, 4), 5_000, np.float32)})
    began = time.monotonic()
    with pytest.raises(InferenceServerException) as late:
        client.infer("turns", many, timeout=200_000)
    assert late.value.status() in {"503", "504"}
    assert "deadline" in late.value.message()
    assert time.monotonic() - began < 5
    few = inputs_of({"X": np.full((1, 4), 1, np.float32)})
    assert client.infer("turns", few, timeout=20_000_000, priority=1).as_numpy("Y").tolist() == [[1] * 4]


def test_many_at_once(client: triton.InferenceServerClient) -> None:
    """`async_infer` over the client's eight connections: each caller has its own answer."""
    rows = [np.full((1, 4), i, np.float32) for i in range(64)]
    pending = [client.async_infer("linear", inputs_of({"X": row}), model_version="1") for row in rows]
    for row, waiting in zip(rows, pending, strict=True):
        np.testing.assert_allclose(waiting.get_result().as_numpy("Y"), row @ linear_weights(0.25))


def test_the_asyncio_client(gateway: Gateway, address: str) -> None:
    """The same over aiohttp: inference, compression, metadata, statistics, load, errors."""

    async def talk() -> None:
        async with triton_aio.InferenceServerClient(address, conn_limit=8) as client:
            assert await client.is_server_live()
            assert await client.is_model_ready("simple")
            assert (await client.get_model_metadata("simple"))["name"] == "simple"
            assert (await client.get_model_config("simple"))["name"] == "simple"
            index = await client.get_model_repository_index()
            assert {"name": "simple", "version": "1", "state": "READY", "reason": ""} in index
            results = await asyncio.gather(
                *(
                    client.infer(
                        "simple",
                        inputs_of(simple(), binary=i % 2 == 0),
                        request_compression_algorithm=(None, "gzip", "deflate")[i % 3],
                    )
                    for i in range(12)
                )
            )
            for result in results:
                assert result.as_numpy("OUTPUT0").tolist() == [list(range(1, 17))]
            assert _succeeded(await client.get_inference_statistics("simple")) > 0
            await client.unload_model("echo")
            assert not await client.is_model_ready("echo")
            await client.load_model("echo")
            assert await client.is_model_ready("echo")
            with pytest.raises(InferenceServerException) as unknown:
                await client.infer("nobody", inputs_of(simple()))
            assert unknown.value.message().startswith("Request for unknown model: 'nobody' is not found")

    asyncio.run(talk())
