"""Tensors as plain JSON and raw bytes, for products that leave the form to user code."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from bench.peers import raw_form

FEEDS: dict[str, Any] = {
    "a": np.array([[0.1, 2.5], [3, -4]], np.float32),
    "b": np.array([[2**53 + 1]], np.int64),
}


def test_json_holds_the_shortest_texts() -> None:
    """FP32 is not written with the digits of FP64."""
    assert raw_form.message("/p", FEEDS, "json").body == (
        b'{"inputs":{"a":[[0.1,2.5],[3.0,-4.0]],"b":[[9007199254740993]]}}'
    )


def test_raw_tensors_come_back_as_they_went() -> None:
    """Names, types, shapes and values survive, whatever order of bytes the arrays had."""
    feeds = {**FEEDS, "c": np.arange(6, dtype=">f4").reshape(2, 3).T}
    sent = raw_form.message("/p", feeds, "binary")
    found = raw_form.outputs(dict(sent.headers), sent.body)
    assert list(found) == list(feeds)
    for name, array in feeds.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype.newbyteorder("<")
        assert np.array_equal(found[name], array)


def test_texts_have_no_raw_form() -> None:
    """They are refused, and what to do is said."""
    with pytest.raises(ValueError, match=r"input t holds texts.*send it as JSON"):
        raw_form.message("/p", {"t": np.array(["x"], object)}, "binary")


def test_null_is_nan_and_texts_are_objects() -> None:
    """JSON has no NaN; a text's array is what ONNX Runtime gives."""
    found = raw_form.outputs({}, json.dumps({"outputs": {"y": [1, None], "t": [["ü"]]}}).encode())
    assert np.array_equal(found["y"], [1, np.nan], equal_nan=True)
    assert found["t"].dtype == object
    assert found["t"].tolist() == [["ü"]]
