"""The codec: all ways of saying a tensor give the same bytes, and replies give back what was computed."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api.codec import Codec
from gateway.api.encode import RunEncoder
from gateway.batching import Inference
from gateway.errors import InvalidRequest
from gateway.tensors import pack_strings, to_array
from loaders.datatypes import NUMPY
from loaders.signature import Signature, TensorSpec

RANGES = {
    "UINT8": (0, 2**8 - 1), "UINT16": (0, 2**16 - 1), "UINT32": (0, 2**32 - 1), "UINT64": (0, 2**64 - 1),
    "INT8": (-(2**7), 2**7 - 1), "INT16": (-(2**15), 2**15 - 1), "INT32": (-(2**31), 2**31 - 1),
    "INT64": (-(2**63), 2**63 - 1),
}  # fmt: skip


def values_of(datatype: str) -> st.SearchStrategy:
    """Values that fit a datatype."""
    if datatype in RANGES:
        return st.integers(*RANGES[datatype])
    if datatype == "BOOL":
        return st.booleans()
    if datatype == "BYTES":
        return st.text(max_size=8)
    width = {"FP16": 16, "FP32": 32, "FP64": 64}[datatype]
    return st.floats(width=width, allow_nan=False, allow_infinity=False)


def codec_of(datatype: str) -> Codec:
    spec = (TensorSpec("X", datatype, (-1, 3)),)
    return Codec("m", Signature(spec, spec), batchable=True)


def decode(codec: Codec, document: dict, blob: bytes = b"") -> Inference:
    text = json.dumps(document).encode()
    into = Inference(None, time.perf_counter_ns())
    codec.decode(text + blob, len(text) if blob else None, into)
    return into


@settings(max_examples=300, deadline=None)
@given(data=st.data(), datatype=st.sampled_from(sorted(NUMPY)), rows=st.integers(1, 4))
def test_flat_nested_and_binary_say_the_same(data, datatype: str, rows: int) -> None:
    """One tensor as flat JSON, nested JSON and binary decodes to the same bytes, for every datatype."""
    flat = data.draw(st.lists(values_of(datatype), min_size=rows * 3, max_size=rows * 3))
    tensor = {"name": "X", "datatype": datatype, "shape": [rows, 3]}
    codec = codec_of(datatype)
    one = decode(codec, {"inputs": [{**tensor, "data": flat}]})
    nested = [flat[i : i + 3] for i in range(0, rows * 3, 3)]
    two = decode(codec, {"inputs": [{**tensor, "data": nested}]})
    expected = pack_strings(flat) if datatype == "BYTES" else np.array(flat, NUMPY[datatype]).tobytes()
    three = decode(
        codec, {"inputs": [{**tensor, "parameters": {"binary_data_size": len(expected)}}]}, expected
    )
    assert one.inputs == two.inputs == three.inputs == [expected]
    assert one.rows == rows


@settings(max_examples=200, deadline=None)
@given(data=st.data(), datatype=st.sampled_from(sorted(NUMPY)), rows=st.integers(1, 4))
def test_replies_give_back_the_outputs(data, datatype: str, rows: int) -> None:
    """JSON made of a run's rows reads back as the output, for every datatype."""
    flat = data.draw(st.lists(values_of(datatype), min_size=rows * 3, max_size=rows * 3))
    packed = pack_strings(flat) if datatype == "BYTES" else np.array(flat, NUMPY[datatype]).tobytes()
    array = to_array(datatype, packed, (rows, 3), "X")
    encoder = RunEncoder("m", "1", codec_of(datatype).signature, batchable=True)
    texts = encoder.rows_json([array], rows)[0]
    back = json.loads(b"[" + b",".join(texts) + b"]")
    again = back if datatype == "BYTES" else np.array(back, NUMPY[datatype]).tolist()
    assert again == (flat if datatype == "BYTES" else array.ravel().tolist())


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity", "null"])
def test_missing_and_infinite_values_are_taken(token: str) -> None:
    """null means NaN, and the tokens that some clients send are read."""
    body = f'{{"inputs":[{{"name":"X","datatype":"FP32","shape":[1,3],"data":[1,{token},3]}}]}}'.encode()
    into = Inference(None, 0)
    codec_of("FP32").decode(body, None, into)
    value = np.frombuffer(into.inputs[0], "<f4")[1]
    assert np.isnan(value) if token in {"NaN", "null"} else np.isinf(value)


@pytest.mark.parametrize(
    ("datatype", "bad"),
    [("FP32", "true"), ("FP32", '"1"'), ("INT32", "1.5"), ("INT8", "300"), ("UINT8", "-1"), ("BOOL", "1"),
     ("BYTES", "7"), ("INT64", "9223372036854775808"), ("FP16", "1e6")],
)  # fmt: skip
def test_values_of_another_kind_are_refused(datatype: str, bad: str) -> None:
    """No silent coercion, no wrap-around, no overflow to infinity; the message names the tensor."""
    good = {"BYTES": '"a"', "BOOL": "true"}.get(datatype, "1")
    body = f'{{"inputs":[{{"name":"X","datatype":"{datatype}","shape":[1,3],"data":[{good},{good},{bad}]}}]}}'
    with pytest.raises(InvalidRequest, match="'X'"):
        codec_of(datatype).decode(body.encode(), None, Inference(None, 0))


@pytest.mark.parametrize(
    "data", ["[" * 100 + "1" + "]" * 100, "[" * 5000 + "]" * 5000, '{"a":1}', "[[[],[]],1]"]
)
def test_deep_or_odd_nesting_is_a_clean_refusal(data: str) -> None:
    """Depth and shape of JSON never reach the interpreter's limits."""
    body = f'{{"inputs":[{{"name":"X","datatype":"FP32","shape":[1,3],"data":{data}}}]}}'.encode()
    with pytest.raises(InvalidRequest):
        codec_of("FP32").decode(body, None, Inference(None, 0))


@pytest.mark.parametrize(
    ("size", "blob", "header"),
    [(11, b"0" * 12, None), (13, b"0" * 12, None), (12, b"0" * 13, None), (-1, b"0" * 12, None),
     (12, b"0" * 12, 10**6), (True, b"0" * 12, None)],
)  # fmt: skip
def test_binary_sizes_that_do_not_fit_are_refused(size, blob: bytes, header: int | None) -> None:
    """Too short, too long, left-over, negative and impossible sizes are 400s."""
    tensor = {
        "name": "X",
        "datatype": "FP32",
        "shape": [1, 3],
        "parameters": {"binary_data_size": size},
    }
    text = json.dumps({"inputs": [tensor]}).encode()
    with pytest.raises(InvalidRequest):
        codec_of("FP32").decode(text + blob, header or len(text), Inference(None, 0))


@pytest.mark.parametrize(
    ("more", "taken", "found"),
    [
        ({"id": "i" * 4094}, True, ""),
        ({"id": "i" * 4095}, False, "id takes 4097 bytes of JSON; at most 4096"),
        ({"id": "\u00e9" * 2048}, False, "id takes 4098 bytes"),
        ({"parameters": {"a": "p" * 16_378}}, True, ""),
        ({"parameters": {"a": "p" * 16_400}}, False, "parameters take 16406 bytes; at most 16384"),
        ({"parameters": {"n": 2**64 - 1}}, True, ""),
        ({"parameters": {"n": 2**64}}, False, "parameter 'n' is an integer beyond 64 bits"),
    ],
)
def test_what_goes_into_the_log_is_bounded(more: dict, taken: bool, found: str) -> None:
    """An id of 4 KiB and parameters of 16 KiB are taken, beyond that a 400 says what was found."""
    document = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}], **more}
    if taken:
        into = decode(codec_of("FP32"), document)
        assert (into.request_id, into.parameters) == (more.get("id"), more.get("parameters"))
        assert into.log_bytes >= sum(len(json.dumps(value)) - 16 for value in more.values())
    else:
        with pytest.raises(InvalidRequest, match=found):
            decode(codec_of("FP32"), document)


def reply(
    codec: Codec, encoder: RunEncoder, document: dict, outputs: list[np.ndarray]
) -> tuple[bytes, bytes]:
    """The reply to a request whose run gave these outputs."""
    into = decode(codec, document)
    return into.form.body(encoder, into, b'"i"', outputs, 0)


TWO = Signature(
    (TensorSpec("X", "FP32", (-1, 3)),),
    (TensorSpec("p", "FP32", (-1, 3)), TensorSpec("n", "INT64", (-1, 2)), TensorSpec("s", "BYTES", (-1,))),
)
ONE_ROW = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}
OUTPUTS = [
    np.array([[0.25, np.nan, 0.5]], "<f4"), np.array([[7, -7]], "<i8"), np.array(["é"], dtype=object),
]  # fmt: skip


def test_outputs_come_as_asked_and_in_that_order() -> None:
    """One binary, one JSON, one as classes; binary_data_output is what an output says nothing else about."""
    asked = [
        {"name": "s"},
        {"name": "p", "parameters": {"binary_data": False}},
        {"name": "n", "parameters": {"binary_data": False, "classification": 5}},
    ]
    document = {**ONE_ROW, "parameters": {"binary_data_output": True}, "outputs": asked}
    encoder = RunEncoder("m", "1", TWO, batchable=True, labels={"n": ("seven", "minus")})
    body, fields = reply(Codec("m", TWO, batchable=True), encoder, document, OUTPUTS)
    size = int(fields.partition(b"inference-header-content-length: ")[2].partition(b"\r\n")[0])
    s, p, n = json.loads(body[:size])["outputs"]
    assert (s["name"], s["parameters"], body[size:]) == ("s", {"binary_data_size": 6}, pack_strings(["é"]))
    assert (p["name"], p["data"], p["shape"]) == ("p", [0.25, None, 0.5], [1, 3])
    assert (n["datatype"], n["shape"], n["data"]) == ("BYTES", [1, 2], ["7:0:seven", "-7:1:minus"])


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, ["0.500000:2"]), (2, ["0.500000:2", "0.250000:0"]), (9, ["0.500000:2", "0.250000:0", "nan:1"])],
)
def test_classes_are_the_largest_first(count: int, expected: list[str]) -> None:
    """value:index with six decimals; no more than there are; a NaN is no class's best."""
    asked = [{"name": "p", "parameters": {"classification": count}}]
    codec, encoder = Codec("m", TWO, batchable=True), RunEncoder("m", "1", TWO, batchable=True)
    body, fields = reply(codec, encoder, {**ONE_ROW, "outputs": asked}, OUTPUTS)
    assert json.loads(body)["outputs"][0]["data"] == expected
    assert fields.startswith(b"content-type: application/json\r\n")


@pytest.mark.parametrize(
    ("output", "parameters", "found"),
    [("s", {"classification": 1}, "BYTES"), ("p", {"classification": -1}, "-1"),
     ("p", {"classification": True}, "True"),
     ("p", {"binary_data": 1}, "binary_data is 1"), ("q", {}, "unknown output 'q'")],
)  # fmt: skip
def test_an_output_that_cannot_be_given_so_is_refused(output: str, parameters: dict, found: str) -> None:
    """The message names the output and what was found."""
    document = {**ONE_ROW, "outputs": [{"name": output, "parameters": parameters}]}
    with pytest.raises(InvalidRequest, match=found) as caught:
        decode(Codec("m", TWO, batchable=True), document)
    assert f"output '{output}'" in str(caught.value)
