"""Models that others published or that a converter made, against ONNX Runtime itself."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from bench.serving import Gateway
from tests.clients import real_models, wheels
from tests.clients.asked import (
    HEADER,
    Arrays,
    ask,
    ask_json,
    at_once,
    binary_request,
    direct,
    logged,
    ort,
    same_bytes,
)

SUMMED_OTHERWISE = 1e-4
"""Between a row alone and in company: ONNX Runtime's kernels sum in another order, in Magika by up to 4e-5."""
COMPANY = 32
MAGIKA_CONFIG = """
max_batch_size: 32
output [ { name: "target_label" data_type: TYPE_FP32 dims: [ 214 ] label_filename: "labels.txt" } ]
"""
ROWS_OF = {
    "diabetes": real_models.regression,
    "digits": real_models.multiclass,
    "words": real_models.words,
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One worker with all the models of this module that need no network."""
    directory = tmp_path_factory.mktemp("real")
    repository = directory / "models"
    repository.mkdir()
    for name, model in {
        **{name: make()[0] for name, make in ROWS_OF.items()},
        "half": real_models.half(),
        "squeezenet": real_models.light("squeezenet"),
        "shufflenet": real_models.light("shufflenet"),
    }.items():
        real_models.put(repository, name, "1", model)
    with Gateway(repository, directory / "state", settings=["sidecar.enabled=false"]) as started:
        yield started


@pytest.fixture(scope="module")
def published(gateway: Gateway) -> Gateway:
    """The same gateway with the larger models out of packages, put there while it serves."""
    files = {"magika": wheels.file_of(wheels.MAGIKA_1), "pitch": wheels.file_of(wheels.BASIC_PITCH)}
    names = json.loads(wheels.file_of(wheels.MAGIKA_LABELS).read_text())["target_labels_space"]
    (gateway.models / "magika").mkdir()
    (gateway.models / "magika" / "labels.txt").write_text("\n".join(names))
    (gateway.models / "magika" / "config.pbtxt").write_text(MAGIKA_CONFIG)
    for name, file in files.items():
        real_models.put(gateway.models, name, "1", file)
        await_version(gateway, name, "1")
    return gateway


@pytest.fixture
def client(gateway: Gateway) -> Iterator[httpx.Client]:
    """Keep-alive connections to the data listener."""
    with httpx.Client(base_url=gateway.data_url, timeout=60) as made:
        yield made


def await_version(gateway: Gateway, model: str, version: str, client: httpx.Client | None = None) -> None:
    """Have the repository read; wait until the version is ready everywhere and its model has a route, which the worker
    behind the client's connection has read."""
    assert gateway.admin("POST", "models/refresh", {"reason": "a test put one there"}).status == 200
    deadline = time.monotonic() + 30
    while True:
        content = gateway.admin("GET", f"models/{model}").content
        states = {v["version"]: (v["state"], v["reason"]) for v in content["versions"]}
        is_ready = states[version][0] == "ready" and gateway.admin("GET", f"routes/{model}").status == 200
        if is_ready and (client is None or client.get(f"/v2/models/{model}").status_code == 200):
            return
        assert states[version][0] != "failed", states
        assert time.monotonic() < deadline, states
        time.sleep(0.05)


def direct_of(gateway: Gateway, model: str, version: str = "1") -> Any:
    """ONNX Runtime over the file that the gateway serves."""
    return ort(gateway.models / model / version / "model.onnx")


def batchable(client: httpx.Client, model: str) -> bool:
    """What the gateway found."""
    return client.get(f"/v2/models/{model}").json()["properties"]["batchable"] == "true"


def picture(seed: int) -> np.ndarray:
    """150,528 numbers."""
    return np.random.default_rng(seed).random((1, 3, 224, 224), dtype=np.float32)


@pytest.mark.parametrize(
    ("model", "name"),
    [("squeezenet", "data_0"), ("shufflenet", "gpu_0/data_0")],
    ids=["squeezenet", "shufflenet"],
)
def test_a_network_of_fixed_batch(gateway: Gateway, client: httpx.Client, model: str, name: str) -> None:
    """150k floats a request, a batch of one that is written into the graph, names with slashes."""
    session = direct_of(gateway, model)
    assert not batchable(client, model)
    for seed in (1, 2):
        assert same_bytes(
            ask(client, model, {name: picture(seed)}).outputs, direct(session, {name: picture(seed)})
        )
    (told,) = ask_json(client, model, {name: picture(3)}).values()
    (expected,) = direct(session, {name: picture(3)}).values()
    assert told["shape"] == list(expected.shape)
    np.testing.assert_array_equal(np.array(told["data"], np.float32), expected.ravel())
    two = np.zeros((2, 3, 224, 8))
    body = {"inputs": [{"name": name, "datatype": "FP32", "shape": [2, 3, 224, 8], "data": two.tolist()}]}
    refused = client.post(f"/v2/models/{model}/infer", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"].startswith(f"input '{name}' has shape [2, 3, 224, 8]")


@pytest.mark.parametrize("model", ["diabetes", "digits", "words"])
def test_a_converted_model(gateway: Gateway, client: httpx.Client, model: str) -> None:
    """Regression, many classes, strings: one row, many rows and none are what ONNX Runtime answers."""
    rows = ROWS_OF[model]()[1]
    session = direct_of(gateway, model)
    for some in (rows[:1], rows[3:10], rows[:100]):
        expected = direct(session, {"X": some})
        assert same_bytes(ask(client, model, {"X": some}).outputs, expected)
        told = ask_json(client, model, {"X": some})
        for name, array in expected.items():
            flat = np.array(told[name]["data"], dtype=array.dtype)
            np.testing.assert_array_equal(flat, array.ravel())
    none = ask(client, model, {"X": rows[:0]}).outputs
    assert [array.shape[0] for array in none.values()] == [0] * len(session.get_outputs())
    assert [output["data"] for output in ask_json(client, model, {"X": rows[:0]}).values()] == [[]] * len(
        none
    )


def test_half_precision_and_a_scalar(gateway: Gateway, client: httpx.Client) -> None:
    """FP16 goes in and out as binary and as JSON numbers; a scalar beside rows keeps them from being batched."""
    session = direct_of(gateway, "half")
    rows = (np.arange(24).reshape(3, 8) / 5).astype(np.float16)
    feeds = {"X": rows, "s": np.array(0.5, np.float16)}
    expected = direct(session, feeds)
    assert not batchable(client, "half")
    assert same_bytes(ask(client, "half", feeds).outputs, expected)
    told = ask_json(client, "half", feeds)["Y"]
    assert told["datatype"] == "FP16"
    np.testing.assert_array_equal(np.array(told["data"], np.float16), expected["Y"].ravel())


def test_a_voice_detector_keeps_each_callers_state(gateway: Gateway, client: httpx.Client) -> None:
    """Silero has its batch on axis 1 of one input and a scalar: not batched, and two interleaved chains stay apart."""
    real_models.put(gateway.models, "silero", "1", wheels.file_of(wheels.SILERO))
    await_version(gateway, "silero", "1", client)
    session = direct_of(gateway, "silero")
    assert not batchable(client, "silero")
    rng = np.random.default_rng(7)
    rate = np.array(16_000, np.int64)
    states = {caller: np.zeros((2, 1, 128), np.float32) for caller in ("a", "b")}
    kept = dict(states)
    for _ in range(10):
        for caller, state in states.items():
            chunk = rng.standard_normal((1, 512), dtype=np.float32) * 0.1
            expected = direct(session, {"input": chunk, "state": kept[caller], "sr": rate})
            got = ask(client, "silero", {"input": chunk, "state": state, "sr": rate}).outputs
            assert same_bytes(got, expected)
            states[caller], kept[caller] = got["stateN"], expected["stateN"]
    # Three callers in one request, batched by themselves.
    many = {"input": np.zeros((3, 512), np.float32), "state": np.zeros((2, 3, 128), np.float32), "sr": rate}
    assert same_bytes(ask(client, "silero", many).outputs, direct(session, many))


@pytest.mark.prove
def test_a_transcriber_with_three_outputs(published: Gateway, client: httpx.Client) -> None:
    """Basic Pitch: 44k floats a row, names with colons, any one of three outputs alone."""
    session = direct_of(published, "pitch")
    name = "serving_default_input_2:0"
    sound = np.sin(np.arange(43_844, dtype=np.float32) / 12).reshape(1, -1, 1)
    expected = direct(session, {name: sound})
    assert same_bytes(ask(client, "pitch", {name: sound}).outputs, expected)
    for output, array in expected.items():
        alone = ask(client, "pitch", {name: sound}, [output]).outputs
        assert same_bytes(alone, {output: array})


@pytest.mark.prove
def test_a_classifier_says_its_labels(published: Gateway, client: httpx.Client) -> None:
    """Magika's 214 names beside its config.pbtxt: classification tells what a file is, as its makers would."""
    session = direct_of(published, "magika")
    names = (published.models / "magika" / "labels.txt").read_text().split("\n")
    found = []
    for features in real_models.source_files(6):
        body, fields = binary_request({"bytes": features}, ["target_label"])
        asked = json.loads(body[: int(fields[HEADER])])
        asked["outputs"][0]["parameters"] = {"classification": 2, "binary_data": False}
        head = json.dumps(asked).encode()
        reply = client.post(
            "/v2/models/magika/versions/1/infer",
            content=head + features.tobytes(),
            headers={HEADER: str(len(head))},
        )
        assert reply.status_code == 200, reply.text
        (output,) = reply.json()["outputs"]
        assert (output["datatype"], output["shape"]) == ("BYTES", [1, 2])
        scores = session.run(None, {"bytes": features})[0][0]
        value, index, label = output["data"][0].split(":")
        assert (int(index), float(value)) == (scores.argmax(), pytest.approx(float(scores.max()), abs=1e-5))
        assert label == names[int(index)]
        found.append(label)
    assert found.count("python") >= 4, found


@pytest.mark.prove
def test_a_real_upgrade(published: Gateway, client: httpx.Client) -> None:
    """Magika 0.6.3 beside 0.6.1, then half the traffic, then all: each answer is that of the version it names."""
    real_models.put(published.models, "magika", "2", wheels.file_of(wheels.MAGIKA_2))
    await_version(published, "magika", "2", client)
    sessions = {version: direct_of(published, "magika", version) for version in ("1", "2")}
    files = real_models.source_files(16)

    def served() -> list[str]:
        versions = []
        for features in files:
            got = ask(client, "magika", {"bytes": features})
            assert same_bytes(got.outputs, direct(sessions[got.version], {"bytes": features}))
            versions.append(got.version)
        return versions

    assert set(served()) == {"1"}
    route = published.admin("GET", "routes/magika").content
    variants = [
        {"name": "primary", "version": "1", "role": "primary", "weight_bp": 5000},
        {"name": "canary", "version": "2", "role": "canary", "weight_bp": 5000},
    ]
    split = published.admin(
        "PUT", "routes/magika", {"variants": variants, "reason": "try it"}, revision=route["revision"]
    )
    assert split.status == 200, split.content
    assert set(served()) == {"1", "2"}
    all_of_it = published.admin(
        "POST", "routes/magika/promote", {"variant": "canary", "reason": "it is good"},
        revision=split.content["revision"],
    )  # fmt: skip
    assert all_of_it.status == 200, all_of_it.content
    assert set(served()) == {"2"}
    labels = np.array([sessions["2"].run(None, {"bytes": features})[0].argmax() for features in files])
    assert len(set(labels.tolist())) <= 3, "python sources, nearly all of them"


@pytest.mark.parametrize(
    "model", ["digits", "diabetes", "words", pytest.param("magika", marks=pytest.mark.prove)]
)
def test_batched_equals_unbatched(request: pytest.FixtureRequest, client: httpx.Client, model: str) -> None:
    """Requests of different callers that shared a run, by the log, have the answers that each has alone.

    Bit for bit they are ONNX Runtime's for the run's rows in the log's order.
    """
    gateway: Gateway = request.getfixturevalue("published" if model == "magika" else "gateway")
    if model == "magika":
        requests: list[Arrays] = [{"bytes": features} for features in real_models.source_files(COMPANY)]
    else:
        rows = ROWS_OF[model]()[1]
        requests = [{"X": rows[i % len(rows) :][:1]} for i in range(COMPANY)]
    answers = at_once(gateway, model, "1", requests)
    events = logged(gateway, [answer.prediction_id for answer in answers])
    runs: dict[int, list[tuple[int, Arrays, Arrays]]] = {}
    for feeds, answer in zip(requests, answers, strict=True):
        batch = events[answer.prediction_id].batch
        assert batch is not None
        runs.setdefault(batch.id, []).append((batch.row0, feeds, answer.outputs))
    # Magika costs more a row in company than alone: it is the gateway's to find that out.
    assert max(map(len, runs.values())) >= 8 or model == "magika", {n: len(run) for n, run in runs.items()}
    session = direct_of(gateway, model)
    for run in runs.values():
        ordered = sorted(run, key=lambda part: part[0])
        joined = {name: np.concatenate([feeds[name] for _, feeds, _ in ordered]) for name in ordered[0][1]}
        together = direct(session, joined)
        for row0, feeds, outputs in ordered:
            assert same_bytes(outputs, {name: array[row0 : row0 + 1] for name, array in together.items()})
            alone = ask(client, model, feeds, version="1").outputs
            assert same_bytes(alone, direct(session, feeds))
            for name, array in alone.items():
                if array.dtype.kind == "f":
                    np.testing.assert_allclose(
                        outputs[name], array, rtol=SUMMED_OTHERWISE, atol=SUMMED_OTHERWISE
                    )
                else:
                    assert outputs[name].tolist() == array.tolist()
