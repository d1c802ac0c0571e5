"""Redaction: the model sees what was sent, the log holds what the rules allow."""

from __future__ import annotations

import asyncio
import hashlib
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from path import SIGNATURE, Path_, SumSession, until

from gateway.batching import Inference
from gateway.redaction import Redactor
from gateway.tensors import pack_strings, unpack_strings
from loaders.bundle import BundleSettings, Redaction
from loaders.datatypes import ITEM_BYTES, NUMPY
from loaders.redact import cells
from loaders.signature import Signature, TensorSpec

KEY = bytes(range(32))
SECRET = 123456.75
"""A value that would be found in the log's bytes."""


def redactor(spec: TensorSpec, *rules: Redaction, key: bytes = KEY) -> Redactor:
    """The rules on one input."""
    return Redactor(cells(BundleSettings(redact=rules), Signature((spec,), ()), "m/1"), key)


def rule(feature: str, how: Any = "drop", edges: tuple[float, ...] = (), input_: str = "X") -> Redaction:
    """A rule on X."""
    return Redaction(input=input_, feature=feature, how=how, edges=edges)


def asked(data: bytes, *shape: int) -> Inference:
    """A request with one input."""
    inference = Inference(None, 0)
    inference.inputs, inference.shapes = [data], [shape]
    return inference


NUMBERS = TensorSpec("X", "FP32", (-1, 3))


@given(st.lists(st.tuples(*[st.floats(width=32)] * 3), max_size=20))
def test_only_named_cells_change(rows: list[tuple[float, ...]]) -> None:
    """Whatever the values, the other columns are recorded bit for bit, and named ones are zeros."""
    data = np.array(rows, "<f4").reshape(-1, 3)
    made = redactor(NUMBERS, rule("1"), rule("2", "hash")).made(asked(data.tobytes(), len(rows), 3))
    kept = np.frombuffer(made.inputs[0], "<f4").reshape(-1, 3)
    assert kept[:, 0].tobytes() == data[:, 0].tobytes()
    assert not kept[:, 1:].any()
    assert len(made.said[1]["values"]) == len(rows)


def test_hashes_tell_equal_values_and_nothing_else() -> None:
    """Equal values of a feature have equal hashes; those of another feature, or with another key, have others."""
    rows = np.array([[1, 7, 7], [2, 7, 7], [3, 8, 8]], "<f4").tobytes()
    first = redactor(NUMBERS, rule("1", "hash"), rule("2", "hash")).made(asked(rows, 3, 3)).said
    again = redactor(NUMBERS, rule("1", "hash")).made(asked(rows, 3, 3)).said
    other = redactor(NUMBERS, rule("1", "hash"), key=bytes(32)).made(asked(rows, 3, 3)).said
    values = first[0]["values"]
    assert values[0] == values[1] != values[2]
    assert again[0] == first[0]
    assert not set(values) & set(first[1]["values"])
    assert other[0]["key"] != first[0]["key"]
    assert not set(values) & set(other[0]["values"])


def test_buckets_are_counted_from_below() -> None:
    """Below the first edge is 0, at an edge the bucket above it, NaN is none."""
    rows = np.array([[x, 0, 0] for x in (-1, 18, 17.5, 65, 99, np.nan)], "<f4").tobytes()
    (said,) = redactor(NUMBERS, rule("0", "bucket", (18.0, 65.0))).made(asked(rows, 6, 3)).said
    assert said["values"] == [0, 1, 0, 2, 2, None]


def test_text_becomes_empty() -> None:
    """Of strings the named column is empty, the others stay."""
    spec = TensorSpec("X", "BYTES", (-1, 2))
    made = redactor(spec, rule("0", "hash")).made(
        asked(pack_strings(["anna", "x", "élan", "y", "anna", ""]), 3, 2)
    )
    assert unpack_strings(made.inputs[0], 6, "X") == ["", "x", "", "y", "", ""]
    values = made.said[0]["values"]
    assert values[0] == values[2] != values[1]
    assert b"anna" not in made.inputs[0]


def test_numbers_of_any_datatype_are_zeroed() -> None:
    """From booleans to doubles."""
    for datatype in ITEM_BYTES:
        dtype = NUMPY[datatype]
        spec = TensorSpec("X", datatype, (-1, 2))
        data = np.ones((3, 2), dtype).tobytes()
        made = redactor(spec, rule("1", "hash")).made(asked(data, 3, 2))
        assert np.frombuffer(made.inputs[0], dtype).reshape(3, 2).tolist() == [[1, 0]] * 3


def test_the_reckoning_covers_what_is_said() -> None:
    """A frame is sized before it is made: what the rules add must not be more than was reckoned."""
    from gateway.audit.frame import encoder

    rows = np.zeros((50, 3), "<f4").tobytes()
    made = redactor(NUMBERS, rule("0", "hash"), rule("1", "bucket", (1.0,)), rule("2")).made(
        asked(rows, 50, 3)
    )
    assert len(encoder.encode(made.said)) <= made.log_bytes


def session(how: str = "hash") -> SumSession:
    """Y = sum of X, whose second feature is not to be recorded."""
    made = SumSession()
    made.redacted = cells(BundleSettings(redact=(rule("1", how),)), SIGNATURE, "sum/1")
    return made


@pytest.mark.parametrize("settings", [(), ("batch.inline_us=0",), ("audit.capture_max_bytes=1",)])
def test_the_answer_is_of_what_was_sent_and_the_log_of_what_is_allowed(
    tmp_path: Path, settings: tuple[str, ...]
) -> None:
    """On the loop, on a lane, in full and by hash: no byte of the value is in the ring, and digests are behind it."""

    async def main() -> None:
        path = Path_(tmp_path, *settings, session=session())
        sink = path.send([1, SECRET, 3, 4])
        await until(lambda: sink.status)
        assert sink.body["outputs"][0]["data"] == [SECRET + 8]
        assert struct.pack("<f", SECRET) not in bytes(path.ring.memory)
        (event,) = path.predictions()
        shown = np.array([[1, 0, 3, 4]], "<f4").tobytes()
        if event.capture == "full":
            assert event.inputs[0].data == shown
        else:
            assert event.inputs[0].sha256 == hashlib.sha256(shown).hexdigest()
        assert event.redacted[0]["feature"] == "1"
        assert len(event.redacted[0]["values"]) == 1
        path.close()

    asyncio.run(main())


def test_a_run_that_fails_is_redacted_too(tmp_path: Path) -> None:
    """A bad row makes each of its batch run alone: each is recorded once, without the value."""

    async def main() -> None:
        path = Path_(tmp_path, session=session())
        good, bad = path.send([1, SECRET, 0, 0]), path.send([666, SECRET, 0, 0])
        await until(lambda: good.status and bad.status)
        assert (good.status, bad.status) == (200, 500)
        assert good.body["outputs"][0]["data"] == [SECRET + 1]
        assert struct.pack("<f", SECRET) not in bytes(path.ring.memory)
        events = path.predictions()
        assert {event.kind for event in events} == {"done", "failed"}
        assert all(event.redacted for event in events)
        path.close()

    asyncio.run(main())


def test_more_values_than_a_record_takes_are_refused_before_the_run(tmp_path: Path) -> None:
    """Each hash stands in the record: a request that has too many is told so, and the model does not see it."""

    async def main() -> None:
        path = Path_(tmp_path, session=session(), ring_bytes=1 << 18)
        few, many = path.send([[1, 2, 3, 4]] * 100), path.send([[1, 2, 3, 4]] * 1000)
        await until(lambda: few.status and many.status)
        assert (few.status, many.status) == (200, 400)
        assert "send fewer rows" in many.body["error"]
        assert path.session.runs == [100]
        path.close()

    asyncio.run(main())


def test_a_failed_run_is_redacted_on_its_lane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run's record costs is not for the loop, whatever became of the run."""

    async def main() -> None:
        path = Path_(tmp_path, "batch.inline_us=0", "batch.lanes=1", session=session())
        threads: list[str] = []
        redactor = path.models.get("sum").versions["1"].redactor
        made = redactor.made

        def seen(inference: Inference) -> Any:
            threads.append(threading.current_thread().name)
            return made(inference)

        monkeypatch.setattr(redactor, "made", seen)
        sink = path.send([666, SECRET, 3, 4])
        await until(lambda: sink.status)
        assert sink.status == 500
        assert set(threads) == {"lane-0"}
        path.close()

    asyncio.run(main())


def test_a_dropped_feature_leaves_no_trace(tmp_path: Path) -> None:
    """Two requests that differ in it alone are the same in the log."""

    async def main() -> None:
        path = Path_(tmp_path, session=session("drop"))
        sinks = [path.send([1, value, 3, 4]) for value in (SECRET, -SECRET)]
        await until(lambda: all(sink.status for sink in sinks))
        first, second = path.predictions()
        assert first.inputs == second.inputs
        assert first.redacted == second.redacted == [{"input": "X", "feature": "1", "how": "drop"}]
        path.close()

    asyncio.run(main())
