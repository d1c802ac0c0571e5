"""Marks: a request is found again in whatever was written about it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bench.peers.probes.marks import MARKS, found, found_below, marked


def rows(*numbers: int) -> list[list[float]]:
    """Inputs as lists."""
    return [[float(value) for value in row] for row in marked(numbers)]


WRITTEN = {
    "JSON lists": json.dumps(rows(0, 17, 9999)).encode(),
    "JSON by feature": b"".join(
        json.dumps({f"feature_{i}": value for i, value in enumerate(row)}).encode() + b"\n"
        for row in rows(0, 17, 9999)
    ),
    "%g, as C++ streams write": b"".join(
        b'"data":"' + ",".join(f"{value:g}" for value in row).encode() + b'"' for row in rows(0, 17, 9999)
    ),
    "text of whole numbers": b"; ".join(f"{int(a)}, {int(b)}".encode() for a, b, *_ in rows(0, 17, 9999)),
    "FP32": b"abc" + marked([0, 17, 9999]).tobytes() + b"de",
    "FP64": b"abcde" + marked([0, 17, 9999]).astype("<f8").tobytes(),
    "doubles with a tag before each, as protobuf lists have them": b"".join(
        b"\x0a\x09\x21" + struct.pack("<d", value) for row in rows(0, 17, 9999) for value in row
    ),
    "msgpack with raw tensors": msgspec.msgpack.encode(
        {"inputs": marked([0, 17, 9999]).tobytes(), "id": "r-1"}
    ),
}


@pytest.mark.parametrize("raw", WRITTEN.values(), ids=WRITTEN.keys())
def test_marks_are_found_in_every_form(raw: bytes) -> None:
    """Text or raw floats, at any offset: first, middle and last number."""
    assert sorted(found(raw)) == [0, 17, 9999]


def test_each_time_counts() -> None:
    """A record that came twice is found twice."""
    assert sorted(found(json.dumps(rows(5, 5, 6)).encode())) == [5, 5, 6]


def test_outputs_are_marks_too() -> None:
    """Multiplied values are found by their factor, and not as inputs."""
    raw = (marked([3, 4]) * np.float32(3)).tobytes()
    assert sorted(found(raw, 3)) == [3, 4]
    assert found(raw) == []


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"x", b"[100005.0, 200006.0]", b"[100005.5, 200005.5]", b"100005" + b" " * 200 + b"200005",
        b"1000050, 2000050", struct.pack("<2f", 100005, 200006), struct.pack("<2f", 110000, 210000),
        struct.pack("<3f", float("nan"), float("inf"), 200005),
    ],
)  # fmt: skip
def test_what_is_no_mark_is_not_found(raw: bytes) -> None:
    """Unlike pairs, fractions, values far apart, longer numbers, and numbers beyond the last."""
    assert found(raw) == []


def test_files_below_are_read_but_for_models(tmp_path: Path) -> None:
    """Any file at any depth; models and code are left out."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "log.0").write_bytes(marked([1]).tobytes())
    (tmp_path / "trace.json").write_text(json.dumps(rows(2)))
    (tmp_path / "model.onnx").write_bytes(marked([3]).tobytes())
    hits = found_below(tmp_path)
    assert {path.name: numbers for path, numbers in hits.items()} == {"log.0": [1], "trace.json": [2]}


def test_every_mark_is_exact_in_fp32() -> None:
    """No two numbers share a value, and none is rounded, times a version's factor too."""
    for factor in (1, 3, 4, 5):
        values = marked(range(MARKS)) * np.float32(factor)
        assert len(np.unique(values[:, 0])) == MARKS
        assert np.array_equal(values[:, 1].astype(int), (200_000 + np.arange(MARKS)) * factor)
