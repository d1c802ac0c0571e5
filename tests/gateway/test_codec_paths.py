"""Every way through decode gives the same tensors as the standard library, or refuses where it does.

Bodies are drawn from a seed: of all datatypes and ranks, flat and nested, with NaN tokens, nulls, numbers at every
limit, keys twice, odd names, and with bytes changed. Each goes through every way; `tensor_oracle` says what is right.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterator

import pytest

from gateway.api import codec as codec_module
from gateway.api import ladder, single
from gateway.api.codec import Codec
from gateway.batching import Inference
from gateway.errors import InvalidRequest
from loaders.datatypes import NUMPY
from loaders.signature import Signature, TensorSpec
from tests.gateway import tensor_oracle as oracle

DATATYPES = sorted(NUMPY)
NUMBERS = [
    "0", "1", "-1", "2", "3", "7", "127", "128", "-128", "-129", "255", "256", "32767", "32768",
    "65504", "65519", "65520",
    "2147483647", "2147483648", "4294967295", "4294967296", "9007199254740993", "9223372036854775807",
    "9223372036854775808", "-9223372036854775808", "-9223372036854775809", "18446744073709551615",
    "18446744073709551616", "1" * 30, "-0", "-0.0", "0.5", "1.0", "1e2", "1E-2", "0.1", "3.4028235e38",
    "3.4028235677973366e38", "3.5e38", "1e39", "1e308", "1e309", "1e400", "1e-400", "5e-324", "2.2250738585072011e-308",
    "1.00000017881393432617187499", "16777217", "0.30000000000000004", "9" * 309, "1" * 400,
]  # fmt: skip
"""The first six fit every number type."""
ODD = [
    "NaN",
    "Infinity",
    "-Infinity",
    "null",
    "true",
    "false",
    '"1"',
    "[1]",
    "[]",
    "{}",
    "01",
    "1.",
    "-",
    "+1",
    ".5",
    "NaNa",
]
STRINGS = [
    '"a"',
    '""',
    '"\\u00e9"',
    '"é"',
    '"\\ud83d\\ude00"',
    '"[,]"',
    '"\\"data\\":[1]"',
    '"\\\\"',
    '"\\u0000"',
    '"NaN"',
]
BAD_STRINGS = ['"\\ud800"', '"\\x"', "1", "null", '"\n"']
NAMES = ["X", "data", "in\\u0070ut", "é", "a b", "[x]"]


def signatures() -> list[tuple[Signature, bool]]:
    """Of each datatype: ranks 0 to 8, batchable and not, dimensions that vary; and some of several inputs."""
    rng = random.Random(3)  # noqa: S311
    made = []
    for datatype in DATATYPES:
        for rank in range(9):
            shape = tuple(rng.choice([1, 2, 3, -1] if rank < 5 else [1, 1, 2]) for _ in range(rank))
            name = json.loads(f'"{rng.choice(NAMES)}"')
            out = (TensorSpec("y", "FP32", (-1,)),)
            made.append((Signature((TensorSpec(name, datatype, shape),), out), False))
            if rank:
                made.append((Signature((TensorSpec(name, datatype, (-1, *shape[1:])),), out), True))
        specs = tuple(TensorSpec(f"i{k}", rng.choice(DATATYPES), (-1, 2)) for k in range(rng.choice([2, 3])))
        made.append((Signature(specs, out), True))
    return made


SIGNATURES = signatures()


def _value(rng: random.Random, datatype: str, wild: float) -> str:
    if rng.random() < wild:
        return rng.choice(ODD + BAD_STRINGS + NUMBERS)
    if datatype == "BYTES":
        return rng.choice(STRINGS)
    if datatype == "BOOL":
        return rng.choice(["true", "false"])
    if datatype.startswith("FP"):
        return rng.choice(
            ["NaN", "Infinity", "-Infinity", "null", "-0.0", "0.1", "-0", "1e2"] + NUMBERS[:13] * 2
        )
    return rng.choice(NUMBERS[:2] + NUMBERS[3:7])


def _nest(values: list[str], shape: tuple[int, ...], gap: str) -> str:
    if not shape:
        return values[0]
    step = math.prod(shape[1:])
    parts = [_nest(values[k * step : (k + 1) * step], shape[1:], gap) for k in range(shape[0])]
    return "[" + f",{gap}".join(parts) + "]"


def _tensor(rng: random.Random, spec: TensorSpec, rows: int, wild: float) -> str:
    gap = rng.choice(["", "", " ", "\n\t"])
    shape = tuple(
        rows if k == 0 and dim == -1 else rng.choice([1, 2]) if dim == -1 else dim
        for k, dim in enumerate(spec.shape)
    )
    values = [_value(rng, spec.datatype, wild) for _ in range(math.prod(shape))]
    if rng.random() < wild:
        values.append("1")
    data = _nest(values, shape, gap) if rng.random() < 0.4 else f"[{gap}" + f"{gap},".join(values) + "]"
    said = [
        int(dim) if rng.random() > wild / 4 else rng.choice([0, -1, 2**40, 2**41, 1.0, "1"]) for dim in shape
    ]
    name = json.dumps(spec.name, ensure_ascii=rng.random() < 0.5)
    fields = [
        f'"name"{gap}:{name}', f'"shape":{json.dumps(said)}', f'"datatype":"{spec.datatype}"', f'"data":{gap}{data}',
    ]  # fmt: skip
    if rng.random() < wild:
        fields.append(
            rng.choice(
                [fields[3], '"data":[2]', '"parameters":{"a":1}', '"parameters":{"triton_x":1}', '"x":NaN']
            )
        )
    if rng.random() < 0.3:
        rng.shuffle(fields)
    return "{" + f",{gap}".join(fields) + "}"


MORE = [
    '"id":"a\\"b"', '"id":""', '"parameters":{"p":1.5}', '"parameters":{"p":18446744073709551616}', '"model_name":"m"',
    '"model_name":7', '"x":{"data":[1,[2]]}', '"x":{"data":[[1],"a"]}', '"x":"\\ud800"', '"x":[1e400]',
    '"x":' + "[" * 62 + "]" * 62,
    '"x":' + "[" * 64 + "]" * 64, '"x":' + "[" * 2000 + "]" * 2000, '"x":"' + "[" * 70 + '"', '"x":Infinity', '"id":3',
    '"x":"\\\\","y":{"data":[1]}',
]  # fmt: skip


def draw(rng: random.Random) -> tuple[int, bytes]:
    """A signature's number and a body for it."""
    at = rng.randrange(len(SIGNATURES))
    signature, _ = SIGNATURES[at]
    wild = rng.choice([0, 0, 0.02, 0.3])
    rows = rng.choice([1, 1, 1, 2, 3, 0])
    tensors = [_tensor(rng, spec, rows, wild) for spec in signature.inputs]
    if rng.random() < 0.1:
        rng.shuffle(tensors)
    fields = ['"inputs":[' + ",".join(tensors) + "]"]
    if rng.random() < 0.15:
        fields.append(rng.choice(MORE))
        rng.shuffle(fields)
    body = ("{" + ",".join(fields) + "}").encode()
    chance = rng.random()
    if chance < 0.15:
        mutable = bytearray(body)
        for _ in range(rng.choice([1, 1, 2, 4])):
            where = rng.randrange(len(mutable))
            how = rng.random()
            if how < 0.4:
                mutable[where] = rng.choice(b'[]{},:"\\ 0-.eN\xff\x00\x0c')
            elif how < 0.7:
                del mutable[where : where + rng.choice([1, 1, 5])]
                mutable += b" " * (not mutable)
            else:
                mutable[where:where] = mutable[where : where + rng.choice([1, 3, 10])]
        body = bytes(mutable)
    elif chance < 0.16:
        body = b"\xef\xbb\xbf" + body
    return at, body


def again(rng: random.Random, at: int, body: bytes) -> tuple[int, bytes]:
    """A body of the same client: as one before, with one byte of a number changed; most are known by now."""
    places = [where for where, byte in enumerate(body) if 48 <= byte < 58]
    if places:
        where = rng.choice(places)
        new = rng.choice(
            [
                b"0",
                b"3",
                b"7",
                b"9",
                b"12",
                b"-1",
                b"1e1",
                b".5",
                b"NaN",
                b"null",
                b" ",
                b",",
                b"]",
                b"[",
                b'"',
            ]
        )
        body = body[:where] + new + body[where + 1 :]
    return at, body


WAYS: dict[str, dict[str, object]] = {
    "as served": {},
    "simdjson": {"quick": 0, "simd_min": 0},
    "typed": {"quick": 0, "simd_max": -1},
    "typed, in pieces of some bytes": {"quick": 0, "simd_max": -1, "piece": 3},
    "quick, without simdjson": {"quick": 1 << 20, "simd_max": -1},
}


class Ways:
    """Each way with codecs of its own, which learn from body to body."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self._codecs = {
            way: [Codec("m", signature, batchable=batchable) for signature, batchable in SIGNATURES]
            for way in WAYS
        }

    def results(self, at: int, body: bytes) -> Iterator[tuple[str, tuple | None]]:
        """What each way makes of a body; None where it refuses."""
        for way, knobs in WAYS.items():
            codec_module.QUICK_MAX_BYTES = single.QUICK_MAX_BYTES = knobs.get("quick", 4096)  # type: ignore[assignment]
            ladder.SIMD_MIN_BYTES = knobs.get("simd_min", 2048)  # type: ignore[assignment]
            ladder.SIMD_MAX_BYTES = knobs.get("simd_max", 1 << 24)  # type: ignore[assignment]
            ladder.PIECE_BYTES = knobs.get("piece", 65_536)  # type: ignore[assignment]
            into = Inference(None, 0)
            try:
                self._codecs[way][at].decode(body, None, into)
            except InvalidRequest:
                yield way, None
            else:
                yield way, (into.inputs, into.shapes, into.rows, into.request_id, into.parameters)


def expected(at: int, body: bytes) -> tuple[tuple | None, bool]:
    """What the oracle makes of it, and whether a key stands twice: such a body may be refused, everywhere alike."""
    signature, batchable = SIGNATURES[at]
    try:
        inputs, shapes, twice = oracle.read(signature, body, batchable=batchable)
        if oracle.has_constants(body):
            return None, False
    except oracle.RefusedError:
        return None, False
    return (inputs, shapes), twice


def prove(count: int, seed: int, patch: pytest.MonkeyPatch) -> int:
    """Hold `count` bodies; how many were taken."""
    for module, name in (
        (codec_module, "QUICK_MAX_BYTES"),
        (single, "QUICK_MAX_BYTES"),
        (ladder, "SIMD_MIN_BYTES"),
        (ladder, "SIMD_MAX_BYTES"),
        (ladder, "PIECE_BYTES"),
    ):
        patch.setattr(module, name, getattr(module, name))
    digits = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return _prove(count, seed, Ways(patch))
    finally:
        sys.set_int_max_str_digits(digits)


def _prove(count: int, seed: int, ways: Ways) -> int:
    rng = random.Random(seed)  # noqa: S311
    taken = 0
    seen: list[tuple[int, bytes]] = []
    for number in range(count):
        at, body = again(rng, *rng.choice(seen)) if seen and rng.random() < 0.3 else draw(rng)
        wanted, twice = expected(at, body)
        results = dict(ways.results(at, body))
        first = results["as served"]
        said = f"body {number} of seed {seed}: {SIGNATURES[at]} {body!r}"
        for way, result in results.items():
            assert repr(result) == repr(first), f"{way}: {said}"
        if not (twice and first is None):
            assert (None if first is None else first[:2]) == wanted, f"{wanted}: {said}"
        if first is not None:
            taken += 1
            seen = [(at, body), *seen[:7]]
    return taken


def test_all_ways_agree_with_the_standard_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of bodies: the same bytes on every way, or a refusal on every way."""
    assert prove(3_000, 1, monkeypatch) > 600


@pytest.mark.prove
@pytest.mark.parametrize("seed", [2, 3, 4, 5])
def test_a_million_bodies_agree(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of a million each, at least a fifth of them valid."""
    assert prove(250_000, seed, monkeypatch) > 50_000
