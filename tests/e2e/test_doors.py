"""The two doors: what the fast one answers, the Starlette one answers byte for byte."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from bench.serving import Gateway
from gateway.audit.event import Feedback
from gateway.audit.spool_feed import SpoolFeed
from tests.e2e.onnx_models import linear_weights
from tests.e2e.wire import Wire, get, infer, post

ROW = [1.0, -2.5, 0.125, 3.0]
OTHER = [0.5, 0.25, -0.75, 1e-3]
LINEAR = "/v2/models/linear/infer"
FEEDBACK = "/v2/models/linear/feedback"


def _tensor(**changes: object) -> dict[str, object]:
    return {"name": "X", "datatype": "FP32", "shape": [1, 4], "data": ROW, **changes}


def _binary(output_binary: bool) -> bytes:
    """A request whose tensor stands as raw bytes behind the JSON."""
    head: dict[str, object] = {
        "id": "b-1",
        "inputs": [
            {
                "name": "X",
                "datatype": "FP32",
                "shape": [1, 4],
                "parameters": {"binary_data_size": 16},
            }
        ],
    }
    if output_binary:
        head["parameters"] = {"binary_data_output": True}
    text = json.dumps(head).encode()
    return post(
        LINEAR,
        text + struct.pack("<4f", *ROW),
        inference_header_content_length=str(len(text)),
        content_type="application/octet-stream",
    )


def _chunked() -> bytes:
    body = json.dumps({"inputs": [_tensor()]}).encode()
    half = len(body) // 2
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (body[:half], body[half:]))
    head = f"POST {LINEAR} HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n\r\n"
    return head.encode() + chunks + b"0\r\n\r\n"


CASES: dict[str, tuple[int, bytes]] = {
    "plain": (200, infer("linear", [ROW])),
    "with an id": (200, infer("linear", [ROW], "r-81")),
    "an id to escape": (200, infer("linear", [ROW], 'r"\\\u00e9')),
    "rows": (200, infer("linear", [ROW, OTHER, ROW])),
    "nested data": (200, post(LINEAR, {"inputs": [_tensor(data=[ROW])]})),
    "a version": (200, post("/v2/models/linear/versions/1/infer", {"inputs": [_tensor()]})),
    "two outputs": (200, infer("twin", [ROW, OTHER], "t-1")),
    "one output asked": (
        200,
        post(
            "/v2/models/twin/infer",
            {"inputs": [_tensor()], "outputs": [{"name": "scores"}]},
        ),
    ),
    "not finite": (200, infer("linear", [[1e38, 1e38, 1e38, 1e38]], "inf")),
    "binary in": (200, _binary(output_binary=False)),
    "binary in and out": (200, _binary(output_binary=True)),
    "chunked": (200, _chunked()),
    "unknown model": (404, infer("nobody", [ROW])),
    "unknown version": (404, post("/v2/models/linear/versions/9/infer", {"inputs": [_tensor()]})),
    "bad JSON": (400, post(LINEAR, b'{"inputs": [')),
    "no inputs": (400, post(LINEAR, {"inputs": []})),
    "missing input": (400, post(LINEAR, {"inputs": [_tensor(name="Z")]})),
    "wrong shape": (400, post(LINEAR, {"inputs": [_tensor(shape=[1, 5], data=[*ROW, 0.0])]})),
    "too few values": (400, post(LINEAR, {"inputs": [_tensor(data=ROW[:3])]})),
    "wrong datatype": (400, post(LINEAR, {"inputs": [_tensor(datatype="INT64", data=[1] * 4)]})),
    "unknown output": (400, post(LINEAR, {"inputs": [_tensor()], "outputs": [{"name": "nope"}]})),
    "labels": (202, post(FEEDBACK, {"labels": [{"id": f"{7:016x}-{9:08x}-{1:016x}", "value": 1}]})),
    "labels of another form": (400, post(FEEDBACK, {"labels": [{"id": "7", "value": 1}]})),
}  # fmt: skip
"""Name -> the status that both doors must give, and the request."""


@pytest.fixture
def spools(both_doors: dict[str, Gateway]) -> dict[str, Path]:
    """Each gateway's log."""
    return {door: gateway.state_dir / "spool" for door, gateway in both_doors.items()}


@pytest.fixture
def doors(both_doors: dict[str, Gateway]) -> dict[str, str]:
    """Data addresses of two gateways over one repository, one for each door."""
    return {door: gateway.data_url for door, gateway in both_doors.items()}


@pytest.mark.parametrize("case", CASES)
def test_doors_give_equal_bytes(doors: dict[str, str], case: str) -> None:
    """Both doors answer a request with equal bytes once ids and date are masked."""
    status, request = CASES[case]
    replies = {}
    for door, url in doors.items():
        with Wire(url) as wire:
            # Twice on one connection: the second may take what was kept of the first's head.
            first, second = wire.exchange(request), wire.exchange(request)
            assert first.masked() == second.masked(), door
            replies[door] = first
    assert replies["fast"].masked() == replies["starlette"].masked()
    assert replies["fast"].status == status, replies["fast"].body


@pytest.mark.parametrize("door", ["fast", "starlette"])
def test_answers_are_the_models(doors: dict[str, str], door: str) -> None:
    """The answer is the model's, and names the model, the version and the request."""
    with Wire(doors[door]) as wire:
        reply = wire.exchange(infer("linear", [ROW, OTHER], "r-1"))
    content = json.loads(reply.body)
    assert (content["model_name"], content["model_version"], content["id"]) == (
        "linear",
        "1",
        "r-1",
    )
    (output,) = content["outputs"]
    expected = np.array([ROW, OTHER], np.float32) @ linear_weights(0.25)
    assert output["shape"] == [2, 3]
    np.testing.assert_allclose(np.reshape(output["data"], (2, 3)), expected, rtol=1e-5)
    assert len(reply.fields["x-prediction-id"]) == 16 + 1 + 8 + 1 + 16
    assert reply.fields["x-tidegate-audit"] == "spool"


@pytest.mark.parametrize("door", ["fast", "starlette"])
@pytest.mark.parametrize(
    ("path", "body", "status", "reached"),
    [
        (LINEAR, {"inputs": [_tensor()]}, 200, "fsync"),
        ("/v2/models/linear/versions/1/infer", {"inputs": [_tensor()]}, 200, "fsync"),
        ("/v1/models/linear:predict", {"instances": [ROW]}, 200, "fsync"),
        (LINEAR, {"inputs": []}, 400, "none"),
        ("/v2/models/nobody/infer", {"inputs": [_tensor()]}, 404, "none"),
        ("/v1/models/linear:predict", {"instances": []}, 400, "none"),
        (FEEDBACK, {"labels": [{"id": f"{7:016x}-{9:08x}-{1:016x}", "value": 1}]}, 202, "fsync"),
    ],
)
def test_every_reply_says_which_level_was_reached(  # noqa: PLR0913, PLR0917
    doors: dict[str, str], door: str, path: str, body: dict[str, object], status: int, reached: str
) -> None:
    """On every way through either door: an answer waited for what it asked for, a refusal for nothing."""
    with Wire(doors[door]) as wire:
        reply = wire.exchange(post(path, body, x_tidegate_audit_level="fsync"))
    assert (reply.status, reply.fields["x-tidegate-audit"]) == (status, reached)
    assert ("x-prediction-id" in reply.fields) == (status == 200)


@pytest.mark.parametrize("door", ["fast", "starlette"])
def test_a_record_may_be_asked_for_whole(doors: dict[str, str], spools: dict[str, Path], door: str) -> None:
    """By header, 70 KB on disk as they were sent; without, the record has the digest."""
    rows = [[float(n), *ROW[1:]] for n in range(3000)]
    sent = np.array(rows, np.float32).tobytes()
    with Wire(doors[door]) as wire:
        body = {"inputs": [_tensor(shape=[3000, 4], data=rows)]}
        level = {"x_tidegate_audit_level": "fsync"}
        asked = wire.exchange(post(LINEAR, body, x_tidegate_audit_capture="full", **level))
        plain = wire.exchange(post(LINEAR, body, **level))
    assert (asked.status, asked.fields["x-tidegate-audit-capture"]) == (200, "full")
    assert "x-tidegate-audit-capture" not in plain.fields
    found = {event.id: event for event in SpoolFeed(spools[door]).read(100_000, 0).events}
    assert found[asked.fields["x-prediction-id"]].inputs[0].data == sent
    assert found[plain.fields["x-prediction-id"]].inputs[0].sha256 == hashlib.sha256(sent).hexdigest()


@pytest.mark.parametrize("door", ["fast", "starlette"])
def test_labels_of_an_answer_are_in_the_log(
    doors: dict[str, str], spools: dict[str, Path], door: str
) -> None:
    """A client's label of its own prediction, sent on the same connection, stands on disk once `fsync` is reached."""
    with Wire(doors[door]) as wire:
        answered = wire.exchange(infer("linear", [ROW, OTHER])).fields["x-prediction-id"]
        label = {"id": answered, "row": 1, "value": True, "at_ns": 1_700_000_000_000_000_000}
        reply = wire.exchange(post(FEEDBACK, {"labels": [label]}, x_tidegate_audit_level="fsync"))
        assert wire.exchange(infer("linear", [ROW])).status == 200
    assert (reply.status, json.loads(reply.body)) == (202, {"accepted": 1})
    assert reply.fields["x-tidegate-audit"] == "fsync"
    events = SpoolFeed(spools[door]).read(100_000, 0).events
    assert [label] in [event.labels for event in events if isinstance(event, Feedback)]
    assert answered in [event.id for event in events]


@pytest.mark.parametrize("door", ["fast", "starlette"])
def test_pipelined_requests_are_answered_in_order(doors: dict[str, str], door: str) -> None:
    """POST, GET and POST sent at once on one connection come back in that order."""
    with Wire(doors[door]) as wire:
        wire.send(
            infer("linear", [ROW], "first") + get("/v2/models/linear") + infer("twin", [OTHER], "third")
        )
        first, second, third = wire.reply(), wire.reply(), wire.reply()
    assert json.loads(first.body)["id"] == "first"
    assert json.loads(second.body)["name"] == "linear"
    assert json.loads(third.body)["id"] == "third"


@pytest.mark.parametrize("door", ["fast", "starlette"])
def test_a_refusal_leaves_the_connection_usable(doors: dict[str, str], door: str) -> None:
    """After a 400 the same connection answers the next request."""
    with Wire(doors[door]) as wire:
        assert wire.exchange(CASES["bad JSON"][1]).status == 400
        assert wire.exchange(infer("linear", [ROW])).status == 200


@pytest.mark.parametrize("door", ["fast", "starlette"])
def test_each_request_has_an_id_of_its_own(doors: dict[str, str], door: str) -> None:
    """Prediction ids of one connection ascend, each given once."""
    with Wire(doors[door]) as wire:
        ids = [wire.exchange(infer("linear", [ROW])).fields["x-prediction-id"] for _ in range(20)]
    assert ids == sorted(set(ids))
