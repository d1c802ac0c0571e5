"""The quick way through decode: what it takes the general path takes alike, what it leaves is refused alike."""

from __future__ import annotations

import json
from math import prod
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.api.codec import Codec
from gateway.batching import Inference
from gateway.errors import GatewayError, InvalidRequest
from gateway.tensors import CODES
from loaders.signature import Signature, TensorSpec

SHAPES = [(-1, 3), (-1,), (-1, 1), (-1, 2, 2), (-1, 0), (-1, 1, 1, 4)]
NUMBERS = [
    "0", "1", "-1", "1.0", "1e3", "0.5", "-0.0", "-0", "255", "256", "65535", "65536", "127", "128", "-129",
    "32768", "2147483647", "2147483648", "-2147483649", "4294967296", "9223372036854775807",
    "9223372036854775808", "18446744073709551615", "18446744073709551616", "1e38", "3.5e38", "-3.5e38",
    "65504", "65520", "1e-46", "1e308", "1e309", "1e400", "null", "true", "false", '"1"', "NaN", "Infinity",
    "-Infinity", "[1]", "[]", "{}", "1e-400", "16777217", "0.1", "01", "1.", "+1",
    "123456789012345678901234567890",
]  # fmt: skip
SHAPE_PARTS: list[Any] = [0, 1, 2, 3, -1, 2**40, 2**63, True, 1.0, "1", None]
FIELDS = {
    "name": ['"Y"', '"x"', '""', "null", '"\\u0058"', "1", '"X\\u0000"'],
    "datatype": ['"FP32"', '"fp32"', "null", '"INT64"', '"BYTES"', "1"],
    "data": ["null", "1", "{}", '""', "[[],[]]"],
    "parameters": ["null", "{}", '{"binary_data_size":12}', '{"a":1}', '{"a":null}', "1", '{"binary_data":true}'],
    "extra": ["1", "[[[[]]]]", '"x"'],
}  # fmt: skip
ABOVE = {
    "id": ["null", '"a"', '""', "1"],
    "parameters": ["null", "{}", '{"routing_key":"k"}', '{"binary_data_output":true}', '{"t":18446744073709551616}'],
    "outputs": ["null", "[]", '[{"name":"X"}]', '[{"name":"X"},{"name":"X"}]', '[{"name":"Z"}]'],
    "zzz": ["1"],
}  # fmt: skip
WRONG = ["value", "more", "fewer", "part", "rank", "field", "above"]


def codecs(datatype: str, shape: tuple[int, ...]) -> tuple[Codec, Codec]:
    """The codec as it is, and one without the quick way."""
    specs = (TensorSpec("X", datatype, shape),)
    quick, general = (Codec("m", Signature(specs, specs), batchable=True) for _ in range(2))
    general._single = None
    return quick, general


CODECS = {(datatype, shape): codecs(datatype, shape) for datatype in CODES for shape in SHAPES}


def read(codec: Codec, body: bytes) -> tuple[Any, ...]:
    """All that a decode leaves, or the words with which it refuses; anything else that is raised fails the test."""
    into = Inference(None, 1)
    try:
        codec.decode(body, None, into)
    except GatewayError as exc:
        return type(exc), str(exc)
    # Empty requests run alone: their key is an object of their own.
    key = into.key if isinstance(into.key, tuple | None) else "its own"
    facts = (into.id_json, into.request_id, repr(into.parameters), into.wanted, into.form)
    return *facts, into.rows, into.log_bytes, into.inputs, [tuple(shape) for shape in into.shapes], key


@st.composite
def bodies(draw: st.DrawFn, datatype: str, shape: tuple[int, ...]) -> bytes:
    """A body of one tensor that is right, or wrong in a few places."""
    rows = draw(st.sampled_from([1, 1, 2, 3, 0, 5]))
    fine = ["true", "false"] if datatype == "BOOL" else ["0", "1", "7", "100"]
    count = rows * prod(shape[1:])
    data = draw(st.lists(st.sampled_from(fine), min_size=count, max_size=count))
    given_shape: list[Any] = [rows, *shape[1:]]
    fields: dict[str, str] = {"name": '"X"', "datatype": f'"{datatype}"'}
    above: dict[str, str] = {}
    for wrong in draw(st.lists(st.sampled_from(WRONG), max_size=3)):
        match wrong:
            case "value" if data:
                data[draw(st.integers(0, len(data) - 1))] = draw(st.sampled_from(NUMBERS))
            case "more":
                data.append(draw(st.sampled_from(NUMBERS)))
            case "fewer":
                data = data[1:]
            case "part" if given_shape:
                given_shape[draw(st.integers(0, len(given_shape) - 1))] = draw(st.sampled_from(SHAPE_PARTS))
            case "rank":
                given_shape = draw(
                    st.sampled_from([[], [*given_shape, 1], given_shape[1:], [1, *given_shape]])
                )
            case "field":
                name = draw(st.sampled_from(sorted(FIELDS)))
                fields[name] = draw(st.sampled_from(FIELDS[name]))
            case "above":
                name = draw(st.sampled_from(sorted(ABOVE)))
                above[name] = draw(st.sampled_from(ABOVE[name]))
    fields = {"shape": json.dumps(given_shape), "data": f"[{','.join(data)}]", **fields}
    names = draw(st.permutations(sorted(fields)))
    tensor = ",".join(f'"{name}":{fields[name]}' for name in names[draw(st.sampled_from([0] * 9 + [1])) :])
    more = "".join(f',"{name}":{text}' for name, text in above.items())
    body = f'{{"inputs":[{{{tensor}}}]{more}}}'.encode()
    return body[: draw(st.sampled_from([len(body)] * 19 + [len(body) // 2]))]


@st.composite
def asked(draw: st.DrawFn) -> tuple[str, tuple[int, ...], bytes]:
    """A signature and a body for it."""
    datatype, shape = draw(st.sampled_from(sorted(CODECS)))
    return datatype, shape, draw(bodies(datatype, shape))


@settings(max_examples=600, deadline=None)
@given(asked())
@example(("FP32", (-1,), b'{"inputs":[{"name":"X","datatype":"FP32","shape":[],"data":[1]}]}'))
def test_quick_path_is_the_general_path(case: tuple[str, tuple[int, ...], bytes]) -> None:
    """Equal bytes, shapes, rows and facts, or the same words of refusal."""
    datatype, shape, body = case
    quick, general = CODECS[datatype, shape]
    assert quick._single is not None
    assert read(quick, body) == read(general, body)


@pytest.mark.parametrize("datatype", sorted(CODES))
def test_shape_without_dimensions_is_refused(datatype: str) -> None:
    """A scalar where a list of numbers is expected: a 400 that names both."""
    value = "true" if datatype == "BOOL" else "1"
    body = f'{{"inputs":[{{"name":"X","datatype":"{datatype}","shape":[],"data":[{value}]}}]}}'.encode()
    with pytest.raises(InvalidRequest, match=r"'X' has shape \[\]; expected \[-1\]"):
        CODECS[datatype, (-1,)][0].decode(body, None, Inference(None, 1))
