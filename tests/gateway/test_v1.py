"""The v1 dialects: what `:predict` takes and answers, through the codec and as a form of reply."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import tensors
from gateway.api import v1
from gateway.api.codec import Codec
from gateway.api.encode import RunEncoder
from gateway.api.heads import make_head
from gateway.batching import Inference
from gateway.errors import InvalidRequest, NotFound
from loaders.signature import Signature, TensorSpec
from tests.gateway.path import Path_, Sink, until

X = TensorSpec("X", "FP32", (-1, 2))
FLAG = TensorSpec("flag", "BOOL", (-1,))
WORD = TensorSpec("word", "BYTES", (-1, 1))
ONE = Signature((X,), (TensorSpec("Y", "FP32", (-1, 2)),))
TWO = Signature((X, FLAG), (TensorSpec("Y", "FP32", (-1, 2)), TensorSpec("n", "INT64", (-1,))))
WORDS = Signature((WORD,), (TensorSpec("kind", "BYTES", (-1, 1)), TensorSpec("kind_bytes", "BYTES", (-1, 1))))


def decoded(signature: Signature, body: Any, *, batchable: bool = True) -> tuple[Inference, list[Any]]:
    """What a body gives: the request and its arrays."""
    into = Inference(None, 0)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    Codec("m", signature, batchable=batchable).decode_v1(content, None, into)
    made = [
        tensors.to_array(spec.datatype, data, shape, spec.name).tolist()
        for spec, data, shape in zip(signature.inputs, into.inputs, into.shapes, strict=True)
    ]
    return into, made


def replied(
    signature: Signature, form: Any, outputs: list[Any], *, rows: int, row0: int = 0, batchable: bool = True
) -> Any:
    """A reply's content."""
    encoder = RunEncoder("m", "1", signature, batchable=batchable)
    inference = Inference(None, 0, rows=rows)
    body, fields = form.body(encoder, inference, b'"id"', outputs, row0)
    assert fields == b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
    return json.loads(body)


def test_rows_as_values() -> None:
    """`instances` as a list of rows of the one input."""
    into, made = decoded(ONE, {"signature_name": "serving_default", "instances": [[1, 2], [3, 4.5]]})
    assert (made, into.rows, into.form) == ([[[1, 2], [3, 4.5]]], 2, v1.Rows(2))


def test_rows_as_objects() -> None:
    """`instances` as objects by input name, in any order of keys."""
    into, made = decoded(TWO, {"instances": [{"X": [1, 2], "flag": True}, {"flag": False, "X": [3, 4]}]})
    assert (made, into.rows) == ([[[1, 2], [3, 4]], [True, False]], 2)
    _, made = decoded(ONE, {"instances": [{"X": [1, 2]}]})
    assert made == [[[1, 2]]]


def test_columns() -> None:
    """`inputs` as the one tensor, or as tensors by name."""
    into, made = decoded(ONE, {"inputs": [[1, 2], [3, 4], [5, 6]]})
    assert (made, into.rows, into.form) == ([[[1, 2], [3, 4], [5, 6]]], 3, v1.COLUMNS)
    into, made = decoded(TWO, {"inputs": {"X": [[1, 2]], "flag": [True]}})
    assert (made, into.rows) == ([[[1, 2]], [True]], 1)


def test_values_may_come_flat() -> None:
    """Rows of a known size need no inner lists, nor does a row of one value."""
    assert decoded(ONE, {"inputs": [1, 2, 3, 4]})[1] == [[[1, 2], [3, 4]]]
    assert decoded(WORDS, {"instances": ["a", "b"]})[1] == [[["a"], ["b"]]]


def test_strings_as_base64() -> None:
    """{"b64": …} is a string, also as a row by itself; what it holds must be UTF-8."""
    coded = base64.b64encode("né".encode()).decode()
    assert decoded(WORDS, {"instances": [{"b64": coded}, [{"b64": coded}], "plain"]})[1] == [
        [["né"], ["né"], ["plain"]]
    ]
    for wrong in ({"b64": "/w=="}, {"b64": "?"}, {"b64": 5}, {"b64": coded, "more": 1}):
        with pytest.raises(InvalidRequest, match="'word'"):
            decoded(WORDS, {"inputs": {"word": [[wrong]]}})


def test_not_finite_values_are_read() -> None:
    """NaN and Infinity tokens, and null for NaN."""
    _, ((row, other),) = decoded(ONE, b'{"instances": [[NaN, -Infinity], [null, Infinity]]}')
    np.testing.assert_array_equal([row, other], [[np.nan, -np.inf], [np.nan, np.inf]])


@pytest.mark.parametrize(
    ("signature", "body", "says"),
    [
        (ONE, {"instances": [[1, 2]], "inputs": [[1, 2]]}, "both of"),
        (ONE, {}, "neither of"),
        (ONE, [], "an object"),
        (ONE, b"{", "not JSON"),
        (ONE, b'{"instances": [[NaN, 1e400]]}', "not JSON"),
        (ONE, {"instances": []}, "empty"),
        (ONE, {"instances": 5}, "no list"),
        (ONE, {"instances": [[1, 2], [3]]}, "'X' has shape"),
        (ONE, {"instances": [[1, 2, 3]]}, "'X' has shape"),
        (ONE, {"instances": [[1, True]]}, "true; expected FP32"),
        (ONE, {"instances": [["1", 2]]}, '"1"; expected FP32'),
        (ONE, {"instances": [{"Z": [1, 2]}]}, "expected an object with X"),
        (ONE, {"instances": [{"X": [1, 2]}, [3, 4]]}, "instance 1"),
        (ONE, {"inputs": {"Z": [[1, 2]]}}, "has Z; expected X"),
        (TWO, {"instances": [[1, 2]]}, "2 inputs"),
        (TWO, {"inputs": [[1, 2]]}, "2 inputs"),
        (TWO, {"inputs": {"X": [[1, 2], [3, 4]], "flag": [True]}}, "differ in rows"),
        (TWO, {"instances": [{"X": [1, 2], "flag": 1}]}, "1; expected BOOL"),
        (WORDS, {"instances": [5]}, "5; expected BYTES"),
        (ONE, b'{"instances": ' + b"[" * 80 + b"1" + b"]" * 80 + b"}", "nested deeper"),
        (ONE, b"[" * 5000, "not JSON"),
    ],
)
def test_refused(signature: Signature, body: Any, says: str) -> None:
    """What cannot be meant is refused, and named."""
    with pytest.raises(InvalidRequest, match=says):
        decoded(signature, body)


def test_rows_are_answered_with_rows() -> None:
    """A bare list for one output, objects for several; each request gets its own rows of the run."""
    # ONNX Runtime's integers are of another of numpy's types than int64, of the same size.
    y, n = np.array([[1, 2], [3, np.nan], [5, 6]], np.float32), np.array([7, 8, 9], np.longlong)
    assert replied(ONE, v1.Rows(2), [y], rows=2, row0=1) == {"predictions": [[3.0, None], [5.0, 6.0]]}
    assert replied(TWO, v1.Rows(2), [y, n], rows=2) == {
        "predictions": [{"Y": [1.0, 2.0], "n": 7}, {"Y": [3.0, None], "n": 8}]
    }
    bare = np.array([0.1, np.nan, 1], np.float32)
    assert replied(TWO, v1.Rows(2), [y, bare], rows=2)["predictions"][0]["n"] == 0.1


def test_columns_are_answered_with_columns() -> None:
    """The bare tensor for one output, tensors by name for several."""
    y, n = np.array([[1, 2], [3, 4]], np.float32), np.array([7, 8])
    assert replied(ONE, v1.COLUMNS, [y], rows=1, row0=1) == {"outputs": [[3.0, 4.0]]}
    assert replied(TWO, v1.COLUMNS, [y, n], rows=2) == {
        "outputs": {"Y": [[1.0, 2.0], [3.0, 4.0]], "n": [7, 8]}
    }


def test_outputs_of_bytes_are_base64() -> None:
    """Strings are strings, and base64 where the output's name ends in `_bytes`."""
    words = np.array([["é"]], dtype=object)
    coded = {"b64": base64.b64encode("é".encode()).decode()}
    assert replied(WORDS, v1.Rows(1), [words, words], rows=1) == {
        "predictions": [{"kind": ["é"], "kind_bytes": [coded]}]
    }


def test_rows_of_a_model_without_a_batch_dimension() -> None:
    """Instances are stacked; outputs must have a row for each, or the request is told to ask by columns."""
    fixed = Signature((TensorSpec("X", "FP32", (2, -1)),), (TensorSpec("Y", "FP32", (-1, -1)),))
    into, made = decoded(fixed, {"instances": [[1, 2, 3], [4, 5, 6]]}, batchable=False)
    assert (made, into.rows, into.form) == ([[[1, 2, 3], [4, 5, 6]]], 1, v1.Rows(2))
    y = np.array([[1], [2]], np.float32)
    assert replied(fixed, into.form, [y], rows=1, batchable=False) == {"predictions": [[1.0], [2.0]]}
    for other in (y[:1], np.float32(3)):
        with pytest.raises(InvalidRequest, match="ask by columns"):
            replied(fixed, into.form, [np.asarray(other)], rows=1, batchable=False)
    assert replied(fixed, v1.COLUMNS, [np.asarray(np.float32(3))], rows=1, batchable=False) == {
        "outputs": 3.0
    }


@given(
    st.lists(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=2), min_size=1, max_size=5)
)
def test_all_ways_to_say_a_tensor_are_one(rows: list[list[float]]) -> None:
    """Rows, named rows, columns and named columns of the same values are the same request, byte for byte."""
    said = [
        {"instances": rows}, {"instances": [{"X": row} for row in rows]}, {"inputs": rows}, {"inputs": {"X": rows}},
    ]  # fmt: skip
    read = [decoded(ONE, json.dumps(body).encode())[0] for body in said]
    assert {(tuple(i.inputs), tuple(i.shapes), i.rows) for i in read} == {
        (tuple(read[0].inputs), tuple(read[0].shapes), len(rows))
    }


def test_head_of_a_prediction() -> None:
    """The address tells model and version; headers are read as for v2; there is no binary part."""
    made = []
    headers = [
        (b"x-routing-key", b"k"),
        (b"x-request-timeout-ms", b"50"),
        (b"inference-header-content-length", b"3"),
    ]
    path = b"/v1/models/m%2Ex/versions/2:predict"
    head = make_head(lambda *caller: made.append(caller) or b"", path, headers)  # type: ignore[func-returns-value]
    assert (head.model, head.version, head.dialect, head.json_bytes) == ("m.x", "2", "v1", None)
    assert (head.routing_key, head.timeout_ms) == ("k", 50)
    assert made == [("/v1/models/m.x/versions/2:predict", "v1", "anonymous")]
    for other in (b"/v1/models/m", b"/v1/models/m:explain", b"/v1/models/m/versions/0:predict"):
        with pytest.raises(NotFound):
            make_head(lambda *caller: b"", other, [])


def test_prediction_is_routed_batched_and_logged_as_any_other(tmp_path: Path) -> None:
    """A v1 and a v2 request share a run; the log says which was which."""

    async def run() -> None:
        path = Path_(tmp_path)
        sink = Sink()
        caller = path.core.caller("/v1/models/sum:predict", "v1", "anonymous")
        path.send_body(b'{"instances": [[1, 2, 3, 4], [0, 0, 0, 1]]}', sink, dialect="v1", caller=caller)
        other = path.send([5, 5, 5, 5])
        await until(lambda: sink.status and other.status)
        assert (sink.status, sink.body) == (200, {"predictions": [[10.0], [1.0]]})
        assert other.body["outputs"][0]["data"] == [20.0]
        assert path.session.runs[-1] == 3
        first, second = path.predictions()
        assert (first.protocol, first.endpoint, first.rows) == ("v1", "/v1/models/sum:predict", 2)
        assert (second.protocol, second.rows, first.batch.id) == ("oip-json", 1, second.batch.id)
        assert sink.fields["x-prediction-id"] == first.id
        path.close()

    asyncio.run(run())
