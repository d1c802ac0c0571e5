"""Requests: whole, distinct, of the shape asked for; what they ask can be made again."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from bench.requests import STEM_BYTES, Requests, Target, Tensor, read_bodies
from gateway.errors import ConfigInvalid

ROW = Target("m", (Tensor("X", "FP32", (-1, 30)),))
IMAGE = Target("m", (Tensor("X", "FP32", (1, 3, 80, 80)),), form="binary")


def test_requests_are_whole_and_distinct() -> None:
    """Each is one POST with its length, one row, an id and values of its own, which `feeds` makes again."""
    requests = Requests(ROW, count=300)
    assert len({part for (part,) in requests.parts}) == 300
    for number, (request,) in enumerate(requests.parts):
        head, _, body = request.partition(b"\r\n\r\n")
        assert head.startswith(b"POST /v2/models/m/infer HTTP/1.1\r\n")
        assert int(head.rpartition(b": ")[2]) == len(body)
        (tensor,) = json.loads(body)["inputs"]
        assert tensor["shape"] == [1, 30]
        assert (np.array(tensor["data"], np.float32) == requests.feeds(number)["X"][0]).all()


def test_heads_vary_only_when_asked() -> None:
    """Heads differ in nothing but their length unless every request is to have ids of its own."""
    for varying, expected in ((False, 1), (True, 200)):
        requests = Requests(ROW, count=200, varying_heads=varying)
        heads = {part.partition(b"\r\n\r\n")[0].rpartition(b"\r\n")[0] for (part,) in requests.parts}
        assert len(heads) == expected


def test_binary_requests_carry_the_bytes() -> None:
    """Rows as binary: the JSON part says its own length and the tensor's size; the bytes are the values."""
    requests = Requests(Target("m", (Tensor("X", "FP32", (-1, 30)),), rows=32, form="binary"), count=3)
    head, _, body = requests.parts[2][0].partition(b"\r\n\r\n")
    json_bytes = int(head.partition(b"inference-header-content-length: ")[2].partition(b"\r")[0])
    assert json.loads(body[:json_bytes])["inputs"][0]["parameters"] == {"binary_data_size": 32 * 30 * 4}
    assert body[json_bytes:] == requests.feeds(2)["X"].tobytes()


def test_large_tensors_share_their_tails() -> None:
    """Images differ in their first bytes, share the rest, and are what `feeds` says."""
    requests = Requests(IMAGE, count=20)
    stems = {stem for stem, _ in requests.parts}
    assert len(stems) == 20
    assert len({id(tail) for _, tail in requests.parts}) == 8
    stem, tail = requests.parts[13]
    assert len(tail) == 3 * 80 * 80 * 4 - STEM_BYTES
    assert (stem + tail).endswith(requests.feeds(13)["X"].tobytes())


def test_the_file_for_wrk_holds_them_all(tmp_path: Path) -> None:
    """What the Lua part reads is the same requests, tails once."""
    requests = Requests(IMAGE, count=20)
    requests.write(tmp_path / "r")
    content = (tmp_path / "r").read_bytes()
    at = 0

    def number() -> int:
        nonlocal at
        at += 4
        return struct.unpack_from("<I", content, at - 4)[0]

    def piece() -> bytes:
        nonlocal at
        size = number()
        at += size
        return content[at - size : at]

    tails = [piece() for _ in range(number())]
    found = []
    while at < len(content):
        kind, stem = number(), piece()
        found.append((stem, tails[kind - 1]) if kind else (stem,))
    assert found == requests.parts


@pytest.mark.parametrize(
    "tensor", [Tensor("X", "INT64", (-1, 3)), Tensor("X", "FP32", (-1, -1)), Tensor("X", "BYTES", (1,))]
)
def test_other_inputs_need_bodies_of_a_file(tensor: Tensor, tmp_path: Path) -> None:
    """Where values cannot be made up, the refusal says how to give them; bodies of a file are sent as they are."""
    with pytest.raises(ConfigInvalid, match="--bodies FILE"):
        Requests(Target("m", (tensor,)))
    body = b'{"inputs":[{"name":"X","datatype":"INT64","shape":[1,3],"data":[1,2,3]}]}'
    (tmp_path / "bodies").write_bytes(body + b"\n\n")
    requests = Requests(Target("m", (tensor,)), bodies=read_bodies(tmp_path / "bodies"))
    assert requests.parts[0][0].endswith(body)
    assert requests.feeds(0)["X"].tolist() == [[1, 2, 3]]


def test_bodies_must_be_json(tmp_path: Path) -> None:
    """A line that is not JSON is named; an empty file is refused."""
    (tmp_path / "bad").write_bytes(b'{"inputs":[]}\nnot json\n')
    with pytest.raises(ConfigInvalid, match="line 2"):
        read_bodies(tmp_path / "bad")
    (tmp_path / "none").write_bytes(b"\n")
    with pytest.raises(ConfigInvalid, match="empty"):
        read_bodies(tmp_path / "none")
