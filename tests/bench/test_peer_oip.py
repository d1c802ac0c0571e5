"""Requests and replies of the Open Inference Protocol as peers take and give them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from bench.peers.oip import HEADER, infer_message, infer_outputs
from bench.peers.peer import Message

FEEDS: dict[str, Any] = {
    "a": np.array([[0.1, 2.5]], np.float32),
    "b": np.array([[2**53 + 1]], np.int64),
    "c": np.array(["x", "zwölf"], object),
    "d": np.array([[True], [False]]),
}


def as_reply(message: Message) -> tuple[dict[str, str], bytes]:
    """What a server would answer that gives back what it was given."""
    named = dict(message.headers)
    size = int(named.get(HEADER, len(message.body)))
    head = json.loads(message.body[:size])
    answer = json.dumps({"outputs": head["inputs"]}).encode()
    headers = {HEADER: str(len(answer))} if HEADER in named else {}
    return headers, answer + message.body[size:]


@pytest.mark.parametrize("form", ["json", "binary"])
def test_every_datatype_comes_back_as_it_went(form: Any) -> None:
    """Values, shapes and datatypes survive both forms."""
    found = infer_outputs(*as_reply(infer_message("m", FEEDS, form)))
    assert list(found) == list(FEEDS)
    for name, array in FEEDS.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


def test_a_float_is_written_with_its_own_digits() -> None:
    """FP32 0.1 is sent as 0.1, not with seventeen digits."""
    assert b"[0.1,2.5]" in infer_message("m", FEEDS, "json").body


def test_a_version_stands_in_the_path() -> None:
    """A pinned request goes to the version's address."""
    assert infer_message("m", FEEDS, "json", version="2").path == "/v2/models/m/versions/2/infer"
    assert infer_message("m", FEEDS, "json").path == "/v2/models/m/infer"


def test_null_and_nested_data_are_read() -> None:
    """Servers write NaN as null, and data nested by shape."""
    body = {"outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 1], "data": [[None], [1]]}]}
    found = infer_outputs({}, json.dumps(body).encode())
    assert np.array_equal(found["y"], np.array([[np.nan], [1]], np.float32), equal_nan=True)
