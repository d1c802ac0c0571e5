"""Every exchange of tests/contracts/protocol_cases.jsonl, over both doors, in the file's order.

What an `expect` holds: `status`; `json` (exact, "*" stands for any value) or `has` (at least that); of errors `code`,
`begins` and `names` (of the text); `fields` of the reply, `absent` fields; `body` (exact text); `tail_base64` (what
stands behind the JSON).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.serving import Gateway
from tests.e2e.onnx_models import write_protocol_models
from tests.e2e.wire import RawReply, Wire

CASES = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "contracts" / "protocol_cases.jsonl").read_text().splitlines()
]
DOORS = ("fast", "starlette")
NOT_YET = {
    "batch 9>8", "param triton_", "priority str", "raw IHCL 0", "raw batched model",
}  # fmt: skip
"""Cases whose expectation stands before what meets it."""


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Data addresses of two gateways over one repository, one for each door; models may be loaded and unloaded."""
    base = tmp_path_factory.mktemp("cases")
    write_protocol_models(base / "models")
    gateways = [
        Gateway(base / "models", base / door, settings=(f"data.door={door}", "data.model_control=true"))
        for door in DOORS
    ]
    try:
        yield {door: gateway.start().data_url for door, gateway in zip(DOORS, gateways, strict=True)}
    finally:
        for gateway in gateways:
            gateway.stop()


def request_of(case: dict[str, Any]) -> bytes:
    """A case's request as bytes."""
    body = base64.b64decode(case["body_base64"]) if "body_base64" in case else case.get("body", "").encode()
    fields = {"host": "127.0.0.1", **case["headers"]}
    if body or case["method"] != "GET":
        fields["content-length"] = str(len(body))
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{case['method']} {case['path']} HTTP/1.1\r\n{lines}\r\n".encode() + body


def matches(expected: Any, found: Any, *, exactly: bool) -> bool:
    """Whether a JSON value is as expected: "*" is anything, without `exactly` objects and lists may hold more."""
    if expected == "*":
        return True
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and (set(expected) == set(found) if exactly else set(expected) <= set(found))
            and all(matches(value, found[name], exactly=exactly) for name, value in expected.items())
        )
    if isinstance(expected, list):
        if not isinstance(found, list) or (exactly and len(expected) != len(found)):
            return False
        if exactly:
            return all(matches(*pair, exactly=True) for pair in zip(expected, found, strict=True))
        return all(any(matches(value, one, exactly=False) for one in found) for value in expected)
    # True is not 1 here.
    return isinstance(expected, bool) == isinstance(found, bool) and bool(expected == found)


def check(expect: dict[str, Any], reply: RawReply) -> None:
    """Hold a reply against what a case expects."""
    said = reply.masked().decode("latin-1")
    assert reply.status == expect["status"], said
    for name, value in expect["fields"].items():
        assert matches(value, reply.fields.get(name, None if value != "*" else name), exactly=True), said
        assert name in reply.fields, said
    assert [name for name in expect.get("absent", ()) if name in reply.fields] == [], said
    if "body" in expect:
        assert reply.body.decode() == expect["body"]
        return
    size = int(reply.fields.get("inference-header-content-length", len(reply.body)))
    assert reply.body[size:] == base64.b64decode(expect.get("tail_base64", "")), said
    content = json.loads(reply.body[:size])
    if "json" in expect:
        assert matches(expect["json"], content, exactly=True), said
    elif "has" in expect:
        assert matches(expect["has"], content, exactly=False), said
    else:
        assert content["code"] == expect.get("code", content["code"]), said
        assert content["error"].startswith(expect.get("begins", "")), said
        assert [name for name in expect.get("names", ()) if name not in content["error"]] == [], said


def _parameter(case: dict[str, Any]) -> Any:
    marks = [pytest.mark.xfail(reason="not built yet")] if case["case"] in NOT_YET else []
    return pytest.param(case, marks=marks, id=case["case"])


@pytest.mark.parametrize("case", [_parameter(case) for case in CASES])
def test_protocol_case(doors: dict[str, str], case: dict[str, Any]) -> None:
    """Both doors answer as expected, with equal bytes once ids and date are masked."""
    replies = {}
    for door, url in doors.items():
        with Wire(url) as wire:
            replies[door] = wire.exchange(request_of(case))
            check(case["expect"], replies[door])
    # A refusal's jitter, and times that passed.
    if not {"retry-after", "model_stats"} & {*replies["fast"].fields, *case["expect"].get("has", ())}:
        assert replies["fast"].masked() == replies["starlette"].masked()
