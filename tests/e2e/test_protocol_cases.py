"""Every exchange of tests/contracts/protocol_cases.jsonl, over both doors, in the file's order.

What an `expect` holds: `status`; `json` (exact, "*" stands for any value) or `has` (at least that); of errors `code`,
`begins` and `names` (of the text); `fields` of the reply, `absent` fields; `body` (exact text); `tail_base64` (what
stands behind the JSON).
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from bench.serving import Gateway
from tests.e2e.onnx_models import IDENTITIES, write_protocol_models
from tests.e2e.wire import RawReply, Wire, get, post

CASES = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "contracts" / "protocol_cases.jsonl").read_text().splitlines()
]
DOORS = ("fast", "starlette")


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Data addresses of two gateways over one repository, one for each door; models may be loaded and unloaded."""
    base = tmp_path_factory.mktemp("cases")
    write_protocol_models(base / "models")
    gateways = [
        Gateway(base / "models", base / door, settings=(f"data.door={door}", "data.model_control=true"))
        for door in DOORS
    ]
    with ThreadPoolExecutor(len(gateways)) as beside:
        try:
            started = list(beside.map(lambda gateway: gateway.start(120), gateways))
            yield {door: gateway.data_url for door, gateway in zip(DOORS, started, strict=True)}
        finally:
            list(beside.map(Gateway.stop, gateways))


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


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
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


SIXTEEN = list(range(16))
SUM = [2 * i for i in SIXTEEN]
MORE_CASES: dict[str, tuple[str, str, object, int, object]] = {
    "a version's readiness": ("GET", "/v2/models/nan/versions/1/ready", None, 200, {"name": "nan", "ready": True}),
    "a version's configuration": ("GET", "/v2/models/nan/versions/1/config", None, 200, "*"),
    "a version's counters": ("GET", "/v2/models/id_int8/versions/1/stats", None, 200, {"model_stats": ["*"]}),
    "counters of no version": ("GET", "/v2/models/nan/versions/2/stats", None, 404,
                               {"error": "Request for unknown model: 'nan' version 2 is not found",
                                "code": "unknown_model"}),
    "a name in percent": ("GET", "/v2/models/id%5Ffp32/ready", None, 200, {"name": "id_fp32", "ready": True}),
    "index by GET": ("GET", "/v2/repository/index", None, 405, {"error": "*", "code": "method_not_allowed"}),
    "models": ("GET", "/v1/models", None, 200, {"models": "*"}),
    "status": ("GET", "/v1/models/nan", None, 200, {
        "name": "nan", "ready": True, "model_version_status": [
            {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}],
    }),
    "status of a version": ("GET", "/v1/models/nan/versions/1", None, 200, {
        "name": "nan", "ready": True, "model_version_status": "*"}),
    "status of no version": ("GET", "/v1/models/nan/versions/2", None, 404, {"error": "*", "code": "unknown_model"}),
    "status of no model": ("GET", "/v1/models/nope", None, 404, {"error": "*", "code": "unknown_model"}),
    "predict by GET": ("GET", "/v1/models/nan:predict", None, 405, {"error": "*", "code": "method_not_allowed"}),
    "no such verb": ("POST", "/v1/models/nan:explain", {}, 404, {"error": "*", "code": "not_found"}),
    "rows": ("POST", "/v1/models/id_fp32:predict", {"instances": [[1, 2], [3, 4]]}, 200,
             {"predictions": [[1, 2], [3, 4]]}),
    "a version": ("POST", "/v1/models/id_fp32/versions/1:predict", {"instances": [[1, 2]]}, 200,
                  {"predictions": [[1, 2]]}),
    "named rows": ("POST", "/v1/models/simple:predict", {"instances": [{"INPUT0": SIXTEEN, "INPUT1": SIXTEEN}]}, 200,
                   {"predictions": [{"OUTPUT0": SUM, "OUTPUT1": [0] * 16}]}),
    "named columns": ("POST", "/v1/models/simple:predict", {"inputs": {"INPUT0": [SIXTEEN], "INPUT1": [SIXTEEN]}}, 200,
                      {"outputs": {"OUTPUT0": [SUM], "OUTPUT1": [[0] * 16]}}),
    "strings": ("POST", "/v1/models/id_string:predict", {"instances": [[{"b64": "YQ=="}, "b"]]}, 200,
                {"predictions": [["a", "b"]]}),
    "not finite": ("POST", "/v1/models/nan:predict", {"instances": [[1]]}, 200,
                   {"predictions": [[None, None, None, 1, 0.1]]}),
    "without a batch": ("POST", "/v1/models/nobatch:predict", {"instances": [[1], [2]]}, 200,
                        {"predictions": [[1], [2]]}),
    "both": ("POST", "/v1/models/id_fp32:predict", {"instances": [], "inputs": []}, 400,
             {"error": "*", "code": "invalid_request"}),
    "unknown model": ("POST", "/v1/models/nope:predict", {"instances": [[1]]}, 404,
                      {"error": "Request for unknown model: 'nope' is not found", "code": "unknown_model"}),
}  # fmt: skip
"""Name -> method, path, body, status, and the answer as in `expect.json`."""


@pytest.mark.parametrize("name", MORE_CASES)
def test_more_cases(doors: dict[str, str], name: str) -> None:
    """Both doors answer these as well, v1 among them, with equal bytes once ids and date are masked."""
    method, path, body, status, answer = MORE_CASES[name]
    case = {
        "method": method,
        "path": path,
        "headers": {},
        **({} if body is None else {"body": json.dumps(body)}),
    }
    replies = {}
    for door, url in doors.items():
        with Wire(url) as wire:
            replies[door] = reply = wire.exchange(request_of(case))
        assert reply.status == status, reply.body
        assert reply.fields["content-type"] == "application/json"
        assert matches(answer, json.loads(reply.body), exactly=True), reply.body
        assert ("x-prediction-id" in reply.fields) == (status == 200 and ":predict" in path)
    assert replies["fast"].masked() == replies["starlette"].masked()


def test_examples_of_the_openapi_document_answer(doors: dict[str, str]) -> None:
    """Of all models: every example is of its own schema, and gets 200; so does every GET."""
    with Wire(doors["fast"]) as wire:
        described = json.loads(wire.exchange(get("/v2/openapi.json")).body)
        assert {f"/v2/models/id_{kind}/infer" for kind in IDENTITIES} < set(described["paths"])
        for path, methods in described["paths"].items():
            if "get" in methods:
                assert wire.exchange(get(path)).status == 200, path
            if "post" in methods:
                content = methods["post"]["requestBody"]["content"]["application/json"]
                Draft202012Validator(content["schema"]).validate(content["example"])
                reply = wire.exchange(post(path, content["example"]))
                assert reply.status == 200, (path, content["example"], reply.body)


def test_openapi_document_of_a_model(doors: dict[str, str]) -> None:
    """It holds against the standard and speaks of that model alone; an unknown one has none."""
    with Wire(doors["fast"]) as wire:
        described = json.loads(wire.exchange(get("/v2/models/simple/openapi.json")).body)
        assert wire.exchange(get("/v2/models/nope/openapi.json")).status == 404
    validate(described)
    assert "/v2/models/simple/infer" in described["paths"]
    assert [path for path in described["paths"] if "id_" in path] == []


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_large_replies_are_compressed_when_asked(doors: dict[str, str], coding: str) -> None:
    """Above some KB a reply comes in the coding asked for, the same by both doors; the connection goes on."""
    tensor = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 20_000], "data": [0.5] * 20_000}
    plain = post("/v2/models/id_fp32/infer", {"id": "big", "inputs": [tensor]})
    asked = post("/v2/models/id_fp32/infer", {"id": "big", "inputs": [tensor]}, accept_encoding=coding)
    replies = {}
    for door, url in doors.items():
        with Wire(url) as wire:
            replies[door] = wire.exchange(asked)
            again = wire.exchange(plain)
        assert "content-encoding" not in again.fields
        assert replies[door].fields["content-encoding"] == coding
        assert zlib.decompress(replies[door].body, 47) == again.body
    assert replies["fast"].masked() == replies["starlette"].masked()
