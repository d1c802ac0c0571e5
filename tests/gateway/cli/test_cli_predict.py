"""`tidegate predict` against a fake data listener."""

from __future__ import annotations

import json

import pytest

METADATA = {
    "name": "m",
    "versions": ["1"],
    "platform": "onnx_onnxv1",
    "inputs": [{"name": "X", "datatype": "FP32", "shape": [-1, 3]}],
    "outputs": [{"name": "label", "datatype": "INT64", "shape": [-1]}],
}
REPLY = {
    "model_name": "m",
    "model_version": "2",
    "outputs": [
        {"name": "label", "datatype": "INT64", "shape": [2], "data": [0, 1]},
        {"name": "p", "datatype": "FP32", "shape": [2, 2], "data": [0.75, 0.25, 0.125, 0.875]},
    ],
}
ID = "0123456789abcdef-6b03f3b8-0000000000000001"


@pytest.fixture
def at(fake, state_dir):
    """The fake with one model; the arguments that lead there."""
    fake.on("GET", "/v2/models/m", METADATA)
    headers = {"x-prediction-id": ID, "x-tidegate-audit": "spool"}
    fake.on("POST", "/v2/models/m/infer", REPLY, headers=headers)
    return ("--state-dir", str(state_dir))


def test_without_input_says_what_is_expected(run, at) -> None:
    """Exit 2, each input with type and shape, and a command that would work."""
    result = run("predict", "m", *at)
    assert result.exit_code == 2
    assert "FP32" in result.stderr
    assert "--input 'X=[[0.5,0.5,0.5]]'" in result.stderr


def test_answers_as_table_and_as_json(run, at, fake) -> None:
    """Rows side by side, the version that answered, the prediction id."""
    result = run("predict", "m", "--input", "X=[[1,2,3],[4,5,6]]", *at)
    assert result.exit_code == 0, result.stderr
    assert fake.seen[-1].body == {
        "inputs": [{"name": "X", "datatype": "FP32", "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]}]
    }
    assert "0.75 0.25" in result.stdout
    assert "version 2" in result.stdout
    assert ID in result.stdout
    document = json.loads(run("predict", "m", "--input", "X=[[1,2,3]]", "--json", *at).stdout)
    assert document["prediction_id"] == ID
    assert document["outputs"] == REPLY["outputs"]


def test_one_row_may_leave_out_the_batch_dimension(run, at, fake) -> None:
    """[1,2,3] for shape [-1,3] is one row."""
    assert run("predict", "m", "--input", "X=[1,2,3]", *at).exit_code == 0
    assert fake.seen[-1].body["inputs"][0]["shape"] == [1, 3]


def test_data_takes_three_forms(run, at, fake, tmp_path) -> None:
    """A whole request, a map of inputs, or the bare list of a one-input model; - is stdin."""
    whole = {
        "id": "a",
        "inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}],
    }
    for document in (whole, {"X": [[1, 2, 3]]}, [[1, 2, 3]]):
        (tmp_path / "in.json").write_text(json.dumps(document))
        assert run("predict", "m", "--data", "in.json", *at).exit_code == 0
        assert fake.seen[-1].body["inputs"] == whole["inputs"]
        assert run("predict", "m", "--data", "-", *at, stdin=json.dumps(document)).exit_code == 0
        assert fake.seen[-1].body["inputs"] == whole["inputs"]


@pytest.mark.parametrize(
    "args",
    [
        ("--input", "X"),
        ("--input", "X=[[1,2"),
        ("--input", "X=[[1,2]]"),
        ("--input", "X=[[1,2,3],[4]]"),
        ("--input", "Y=[1]"),
        ("--data", "missing.json"),
        ("--input", "X=[1,2,3]", "--data", "-"),
    ],
)
def test_input_mistakes_are_named_before_anything_is_sent(run, at, fake, args) -> None:
    """Exit 2, one line, no inference."""
    result = run("predict", "m", *args, *at)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert all(seen.method == "GET" for seen in fake.seen)


def test_version_and_routing_key(run, at, fake) -> None:
    """--version pins in the address; --routing-key goes as header."""
    fake.on("GET", "/v2/models/m/versions/2", METADATA)
    fake.on("POST", "/v2/models/m/versions/2/infer", REPLY)
    args = ("--version", "2", "--routing-key", "u1", "--input", "X=[1,2,3]")
    assert run("predict", "m", *args, *at).exit_code == 0
    assert fake.seen[-1].path == "/v2/models/m/versions/2/infer"
    assert fake.seen[-1].headers["x-routing-key"] == "u1"


def test_exit_codes(run, at, fake) -> None:
    """Unknown model 2, not ready 1, nobody there 3."""
    fake.on("GET", "/v2/models/gone", {"error": "unknown model 'gone'", "code": "unknown_model"}, 404)
    assert run("predict", "gone", *at).exit_code == 2
    fake.on("POST", "/v2/models/m/infer", {"error": "busy", "code": "overloaded"}, 503)
    assert run("predict", "m", "--input", "X=[1,2,3]", *at).exit_code == 1
    assert run("predict", "m", "--url", "http://127.0.0.1:9").exit_code == 3


def test_a_variant_is_asked_by_its_header(run, at, fake) -> None:
    """Past the draw, as a version is; not both."""
    assert run("predict", "m", "--input", "X=[1,2,3]", "--variant", "canary", *at).exit_code == 0
    assert fake.seen[-1].headers["x-tidegate-variant"] == "canary"
    assert run("predict", "m", "--input", "X=[1,2,3]", *at).exit_code == 0
    assert "x-tidegate-variant" not in fake.seen[-1].headers
    both = run("predict", "m", "--input", "X=[1,2,3]", "--variant", "canary", "--version", "1", *at)
    assert both.exit_code == 2
