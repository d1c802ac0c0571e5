"""Load: the requests that are thrown are whole, distinct, and of the shape asked for."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from bench.load import Target, write_requests

TARGET = Target(model="m", input_name="X", width=30)


def _requests(path: Path) -> list[bytes]:
    content, at, found = path.read_bytes(), 0, []
    while at < len(content):
        (length,) = struct.unpack_from("<I", content, at)
        found.append(content[at + 4 : at + 4 + length])
        at += 4 + length
    return found


def test_requests_are_whole_and_distinct(tmp_path: Path) -> None:
    """Each is one POST with its length, one row, an id and values of its own."""
    write_requests(tmp_path / "r", TARGET, count=500)
    requests = _requests(tmp_path / "r")
    assert len(set(requests)) == 500
    for request in requests:
        head, _, body = request.partition(b"\r\n\r\n")
        assert head.startswith(b"POST /v2/models/m/infer HTTP/1.1\r\n")
        assert int(head.rpartition(b": ")[2]) == len(body)
        (tensor,) = json.loads(body)["inputs"]
        assert tensor["shape"] == [1, 30]
        assert len(tensor["data"]) == 30


def test_heads_vary_only_when_asked(tmp_path: Path) -> None:
    """Heads differ in nothing but their length unless every request is to have ids of its own."""
    write_requests(tmp_path / "same", TARGET, count=200)
    write_requests(tmp_path / "varied", TARGET, count=200, varying_heads=True)
    heads = {
        name: {r.partition(b"\r\n\r\n")[0].rpartition(b"\r\n")[0] for r in _requests(tmp_path / name)}
        for name in ("same", "varied")
    }
    assert len(heads["same"]) == 1
    assert len(heads["varied"]) == 200
