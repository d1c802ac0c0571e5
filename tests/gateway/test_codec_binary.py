"""Binary tensors, requests without JSON, parameters: what is taken, what is refused and with which words."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from gateway.api.codec import Codec
from gateway.api.encode import RunEncoder
from gateway.batching import Inference
from gateway.errors import InvalidRequest
from gateway.tensors import pack_strings
from loaders.datatypes import NUMPY
from loaders.signature import Signature, TensorSpec

ROW = [{"name": "X", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]


def codec_of(*specs: TensorSpec, batchable: bool = True) -> Codec:
    """A codec of these inputs."""
    return Codec("m", Signature(specs, (TensorSpec("y", "FP32", (-1, 2)),)), batchable=batchable)


def decoded(codec: Codec, body: bytes, json_bytes: int | None = None) -> Inference:
    """A body taken."""
    into = Inference(None, 0)
    codec.decode(body, json_bytes, into)
    return into


def binary(shape: list[int], blob: bytes, datatype: str = "FP32", **more: object) -> tuple[bytes, int]:
    """A body of one binary tensor, and its JSON's length."""
    tensor = {
        "name": "X",
        "datatype": datatype,
        "shape": shape,
        "parameters": {"binary_data_size": len(blob)},
    }
    text = json.dumps({"inputs": [tensor], **more}).encode()
    return text + blob, len(text)


X = TensorSpec("X", "FP32", (-1, 3))


@pytest.mark.parametrize(
    ("spec", "batchable", "blob", "shape"),
    [
        (X, True, bytes(12), (1, 3)),
        (TensorSpec("X", "INT16", (-1, -1)), True, bytes(10), (1, 5)),
        (TensorSpec("X", "FP64", (-1, 2)), False, bytes(48), (3, 2)),
        (TensorSpec("X", "BYTES", (-1, 1)), True, "é".encode(), (1, 1)),
        (TensorSpec("X", "UINT8", ()), False, b"\x07", ()),
    ],
)
def test_a_request_without_json_is_the_one_input(
    spec: TensorSpec, batchable: bool, blob: bytes, shape: tuple
) -> None:
    """The shape follows from the size, one row of it; all outputs are binary."""
    into = decoded(codec_of(spec, batchable=batchable), blob, 0)
    assert into.inputs == [pack_strings([blob.decode()]) if spec.datatype == "BYTES" else blob]
    assert (into.shapes, into.rows) == ([shape], 1)
    assert into.form.binary == (True,)


@pytest.mark.parametrize(
    ("specs", "blob", "found"),
    [
        ((X,), bytes(11), "has 11 bytes; its shape takes 12"),
        ((TensorSpec("X", "FP32", (-1, -1, 3)),), bytes(13), "takes multiples of 12"),
        ((TensorSpec("X", "FP32", (-1, -1, -1)),), bytes(12), "at most one dimension can vary"),
        ((TensorSpec("X", "FP32", (-1, -1, 0)),), bytes(12), "multiples of 0"),
        ((TensorSpec("X", "BYTES", (-1, 2)),), b"a", "takes 2 strings"),
        ((TensorSpec("X", "BYTES", (-1, 1)),), b"\xff", "not UTF-8"),
        ((X, TensorSpec("Z", "FP32", (-1, 3))), bytes(12), "this model has 2"),
    ],
)
def test_a_request_without_json_that_fits_no_shape_is_refused(specs: tuple, blob: bytes, found: str) -> None:
    """The message says what was found."""
    with pytest.raises(InvalidRequest, match=found):
        decoded(codec_of(*specs), blob, 0)


def test_any_byte_but_zero_is_true() -> None:
    """The model and the log get 1."""
    codec = codec_of(TensorSpec("X", "BOOL", (-1, 3)))
    for _ in range(2):
        assert decoded(codec, *binary([1, 3], b"\x00\x02\xff", "BOOL")).inputs == [b"\x00\x01\x01"]


@pytest.mark.parametrize(
    "blob", [b"\x01\x00\x00\x00\xff", b"\x02\x00\x00\x00a", b"\x00\x00\x00\x00a", b"\x00\x00"]
)
def test_strings_are_held_even_when_their_head_is_known(blob: bytes) -> None:
    """No UTF-8, too short, left over: refused, and so after a like request was taken."""
    codec = codec_of(TensorSpec("X", "BYTES", (-1, 1)))
    decoded(codec, *binary([1, 1], b"\x01\x00\x00\x00a", "BYTES"))
    with pytest.raises(InvalidRequest, match="input 'X'"):
        decoded(codec, *binary([1, 1], blob, "BYTES"))


def test_a_head_that_is_known_says_the_same() -> None:
    """Rows, outputs, parameters and order of inputs are as when it was read; other bytes are other tensors."""
    specs = (X, TensorSpec("Z", "INT8", (-1, -1)))
    codec = codec_of(*specs)
    tensors = [
        {"name": "Z", "datatype": "INT8", "shape": [2, 2], "parameters": {"binary_data_size": 4}},
        {"name": "X", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}},
    ]
    text = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True, "priority": 3}}).encode()
    first, second = (decoded(codec, text + bytes([fill]) * 28, len(text)) for fill in (1, 2))
    assert second.inputs == [b"\x02" * 24, b"\x02" * 4]
    for name in (
        "shapes",
        "rows",
        "key",
        "wanted",
        "form",
        "parameters",
        "priority",
        "log_bytes",
        "request_id",
    ):
        assert getattr(first, name) == getattr(second, name), name
    with pytest.raises(InvalidRequest, match="1 bytes left"):
        decoded(codec, text + bytes(29), len(text))


def test_replies_in_binary_are_the_same_the_second_time() -> None:
    """Their JSON is kept but for the id; sizes, shapes and values are those of the reply."""
    codec, encoder = codec_of(X), RunEncoder("m", "1", codec_of(X).signature, batchable=True)
    into = decoded(
        codec, *binary([1, 3], bytes(12), outputs=[{"name": "y", "parameters": {"binary_data": True}}])
    )
    for value, id_json in ((1.5, b'"a"'), (2.5, b'"longer"')):
        array = np.array([[0, 0], [value, np.inf]], "<f4")
        body, fields = into.form.body(encoder, into, id_json, [array], 1)
        size = int(fields.partition(b"inference-header-content-length: ")[2].partition(b"\r\n")[0])
        assert json.loads(body[:size])["id"] == json.loads(id_json)
        output = {"name": "y", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
        assert json.loads(body[:size])["outputs"] == [output]
        assert body[size:] == array[1].tobytes()


@pytest.mark.parametrize("where", ["request", "input", "output"])
@pytest.mark.parametrize("name", ["triton_x", "sequence_id", "sequence_start", "shared_memory_region"])
def test_reserved_parameters_are_refused_by_name(where: str, name: str) -> None:
    """What they ask for is not offered; whoever sends one should know."""
    document: dict = {"inputs": [dict(ROW[0])], "outputs": [{"name": "y"}]}
    target = {"request": document, "input": document["inputs"][0], "output": document["outputs"][0]}[where]
    target["parameters"] = {name: 1}
    with pytest.raises(InvalidRequest, match=f"parameter {name} is reserved"):
        decoded(codec_of(X), json.dumps(document).encode())


@pytest.mark.parametrize("name", ["priority", "timeout"])
@pytest.mark.parametrize("value", [-1, "1", 1.5, True, 2**63])
def test_priority_and_timeout_are_whole_numbers(name: str, value: object) -> None:
    """A wrong type is a 400, not a default."""
    body = json.dumps({"inputs": ROW, "parameters": {name: value}}).encode()
    with pytest.raises(InvalidRequest, match=f"parameter {name} is "):
        decoded(codec_of(X), body)


def test_priority_is_taken() -> None:
    """1 is the highest; it reaches the queue."""
    assert (
        decoded(codec_of(X), json.dumps({"inputs": ROW, "parameters": {"priority": 1}}).encode()).priority
        == 1
    )


@pytest.mark.parametrize("deep", ["[" * 65 + "]" * 65, '{"a":' * 65 + "1" + "}" * 65, "[" * 200_000])
@pytest.mark.parametrize("where", ["unknown", "id", "parameters", "shape", "data", "in the tensor"])
def test_depth_is_refused_in_every_field(where: str, deep: str) -> None:
    """Nothing is nested deeper than 64, read or not, and nothing reaches the interpreter's limit."""
    tensor = {"name": '"X"', "datatype": '"FP32"', "shape": "[1,3]", "data": "[1,2,3]"}
    top = {}
    if where in tensor:
        tensor[where] = deep
    elif where == "in the tensor":
        tensor["more"] = deep
    else:
        top[where] = deep
    fields = ",".join(f'"{key}":{text}' for key, text in tensor.items())
    body = f'{{"inputs":[{{{fields}}}]{"".join(f",{json.dumps(k)}:{v}" for k, v in top.items())}}}'
    with pytest.raises(InvalidRequest):
        decoded(codec_of(X), body.encode())


@pytest.mark.parametrize(
    "shape",
    [[2**40, 3], [2**20 + 1, 3], [2**40, 2**40], [0, 2**40]],
    ids=["rows", "row more", "both", "zero"],
)
def test_shapes_beyond_all_bounds_are_refused_before_anything_is_built(shape: list[int]) -> None:
    """Products are reckoned in whole numbers; the message has the shape or the rows."""
    for spec in (TensorSpec("X", "FP32", (-1, -1)), TensorSpec("X", "BYTES", (-1, -1))):
        for codec in (codec_of(spec), codec_of(spec, batchable=False)):
            body = json.dumps({"inputs": [{**ROW[0], "datatype": spec.datatype, "shape": shape}]}).encode()
            with pytest.raises(InvalidRequest):
                decoded(codec, body)


def test_random_binary_requests_are_taken_or_refused() -> None:
    """Whatever shape, size, header and bytes: tensors of the size that their shape says, or a refusal."""
    rng = random.Random(11)  # noqa: S311
    codecs = [
        codec_of(TensorSpec("X", kind, (-1, -1)), batchable=rows)
        for kind in ("FP32", "BYTES", "BOOL")
        for rows in (True, False)
    ]
    taken = 0
    for _ in range(3000):
        codec = rng.choice(codecs)
        spec = codec.signature.inputs[0]
        shape = [rng.choice([0, 1, 2, 3, 2**31, 2**40]), rng.choice([1, 2, 2**33])]
        right = {"FP32": 4, "BOOL": 1, "BYTES": 5}[spec.datatype] * min(shape[0] * shape[1], 100)
        unit = pack_strings(["a"]) if spec.datatype == "BYTES" else bytes([rng.randrange(256)])
        body, size = binary(shape, (unit * right)[: rng.choice([right, right, right + 1, 3])], spec.datatype)
        try:
            into = decoded(codec, body, rng.choice([size, size, size, size - 1, size + 4, 0, len(body) + 1]))
        except InvalidRequest:
            continue
        taken += 1
        count = into.shapes[0][0] * into.shapes[0][1]
        assert (
            spec.datatype == "BYTES" or len(into.inputs[0]) == count * {"FP32": 4, "BOOL": 1}[spec.datatype]
        )
    assert taken > 200


@pytest.mark.parametrize("known", [False, True])
def test_views_say_what_bytes_say(known: bool) -> None:
    """A view of a body is decoded to the same bytes, first and when its head is known; numbers stand in line."""
    datatypes = ("UINT8", "FP32", "BOOL", "BYTES", "INT64", "FP16")
    specs = [TensorSpec(name, name, (-1, 3)) for name in datatypes]
    codec = codec_of(*specs)
    blobs = {
        "UINT8": b"abc", "FP32": bytes(range(12)), "BOOL": b"\x00\x07\x01", "BYTES": pack_strings(["a", "é", ""]),
        "INT64": bytes(range(24)), "FP16": bytes(range(6)),
    }  # fmt: skip
    inputs = [
        {"name": n, "datatype": n, "shape": [1, 3], "parameters": {"binary_data_size": len(blobs[n])}}
        for n in datatypes
    ]
    text = json.dumps({"inputs": inputs}).encode()
    before = b" " * (-len(text) % 16)
    text = text + before
    body = text + b"".join(blobs[n] for n in datatypes)
    if known:
        decoded(codec, body, len(text))
    plain = decoded(codec, body, len(text))
    viewed = decoded(codec, memoryview(body), len(text))  # type: ignore[arg-type]
    assert [bytes(data) for data in viewed.inputs] == plain.inputs
    assert viewed.shapes == plain.shapes
    for spec, data in zip(specs, viewed.inputs, strict=True):
        if spec.datatype in {"FP32", "INT64", "FP16"}:
            assert np.frombuffer(data, NUMPY[spec.datatype]).flags.aligned


@pytest.mark.parametrize(
    ("spec", "blob"), [(X, bytes(36)), (TensorSpec("X", "BYTES", (-1, 1)), "é".encode())]
)
def test_a_view_without_json_is_the_one_input(spec: TensorSpec, blob: bytes) -> None:
    """A large raw request says what a small one says."""
    codec = codec_of(spec, batchable=False)
    viewed, plain = decoded(codec, memoryview(blob), 0), decoded(codec, blob, 0)  # type: ignore[arg-type]
    assert [bytes(data) for data in viewed.inputs] == plain.inputs
    assert viewed.shapes == plain.shapes


ID_TEXTS = ["a", "r-000017", "x" * 128, "x" * 129, 'q"', "b\\", "é", "\x7f", "", "tab\t", "{}"]


@pytest.mark.parametrize("spaced", [False, True])
def test_heads_that_differ_in_their_id_are_known(spaced: bool) -> None:
    """A client's JSON repeats but for its id: what is said of a request is what a codec that knows nothing says."""
    known = codec_of(X)
    for text in [*ID_TEXTS, *ID_TEXTS]:
        for rows in (1, 2):
            tensor = {
                "name": "X",
                "datatype": "FP32",
                "shape": [rows, 3],
                "parameters": {"binary_data_size": 12 * rows},
            }
            content = {"id": text, "inputs": [tensor], "parameters": {"a": 1}}
            head = json.dumps(content, ensure_ascii=False, separators=None if spaced else (",", ":")).encode()
            body = head + np.arange(3 * rows, dtype="<f4").tobytes()
            fresh, again = decoded(codec_of(X), body, len(head)), decoded(known, body, len(head))
            for field in ("request_id", "id_json", "log_bytes", "parameters", "inputs", "shapes", "rows"):
                assert getattr(again, field) == getattr(fresh, field), (text, field)


def test_an_id_that_is_said_twice_is_the_last_one() -> None:
    """As JSON has it, whatever was known before."""
    codec = codec_of(X)
    blob = bytes(12)
    tensor = '"inputs":[{"name":"X","datatype":"FP32","shape":[1,3],"parameters":{"binary_data_size":12}}]}'
    for first in ("a", "b", "a"):
        head = f'{{"id":"{first}","id":"last",{tensor}'.encode()
        assert decoded(codec, head + blob, len(head)).request_id == "last"
        head = f'{{"id":"{first}",{tensor}'.encode()
        assert decoded(codec, head + blob, len(head)).request_id == first
        head = f'{{"id":"{first}","id":"{first}",{tensor}'.encode()
        assert decoded(codec, head + blob, len(head)).request_id == first


def test_what_is_left_of_a_known_head_is_no_head() -> None:
    """JSON that lacks the beginning is malformed, also where the rest is known."""
    codec = codec_of(X)
    rest = b'","inputs":[{"name":"X","datatype":"FP32","shape":[1,3],"parameters":{"binary_data_size":12}}]}'
    head = b'{"id":"abc' + rest
    decoded(codec, head + bytes(12), len(head))
    with pytest.raises(InvalidRequest):
        decoded(codec, rest + bytes(12), len(rest))
