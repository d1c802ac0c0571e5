"""Protocol: what of the Open Inference Protocol a product speaks, and the other dialect.

Cases are a sample of the gateway's own contract cases (`oip_cases.jsonl`, kept equal by a test). They are judged by
what the protocol says, not by our words: a prediction must have the right tensors, a refusal must be a 4xx
(a 5xx is half of one).
"""

from __future__ import annotations

import base64
import functools
import json
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench.peers import oip
from bench.peers.peer import Message
from bench.peers.probes.line import Line, Reply
from bench.peers.probes.small_models import scale_of, write_scale
from bench.peers.probes.started import Probe, Started
from bench.peers.probes.table import Seen, refused_as

GROUP = "Open Inference Protocol"
_TAKEN_UP_S = 5.0
_NO_ADDRESS = frozenset((404, 405))
"""To a right request: nothing of the kind is there."""
CASES_FILE = Path(__file__).parent / "oip_cases.jsonl"
_ROWS: dict[str, tuple[str, str]] = {
    "GET /v2/health/live": ("live", "GET /v2/health/live answers 200"),
    "GET /v2/health/ready": ("ready", "GET /v2/health/ready answers 200"),
    "GET /v2": ("server metadata", "GET /v2 names the server, its version and its extensions"),
    "GET /v2/models/nope": ("refuses an unknown model", "its metadata are refused"),
    "ok": ("inference", "a row of FP32 comes back from an identity model"),
    "id echo": ("request id", "the reply carries the id that the request gave"),
    "nested data": ("nested data", "data nested by shape is taken as flat data is"),
    "no content-type": ("no Content-Type", "a request without that field is answered"),
    "null elem": (
        "NaN in JSON",
        "null in FP32 data is NaN, and comes back as null (the protocol leaves NaN open)",
    ),
    "flat missing": ("refuses too few values", "fewer values than the shape says are refused"),
    "wrong dtype": ("refuses another datatype", "FP64 for an FP32 input is refused"),
    "unknown input": ("refuses an unknown input", "an input that the model has not is refused"),
    "dup input": ("refuses an input given twice", "it is refused"),
    "trailing comma": ("refuses broken JSON", "a comma too many is refused"),
    "i64 big": ("exact INT64", "2^53 + 1 and the smallest INT64 come back to the last digit"),
    "i64 1.5": ("refuses 1.5 as INT64", "it is refused"),
    "bin in": ("binary tensors", "an input as raw bytes (the extension binary_tensor_data) is answered"),
    "raw batched model": ("raw binary request", "a body that is nothing but one tensor is answered"),
    "trailing bytes": ("refuses bytes too many", "bytes behind the last tensor are refused"),
    "gzip req": ("gzip", "a request with Content-Encoding gzip is answered"),
    "gzip corrupt": ("refuses broken gzip", "what is no gzip is refused"),
}
"""Of a case: the row's name and what is asked."""


@functools.cache
def cases() -> dict[str, dict[str, Any]]:
    """The sample, by the case's name."""
    lines = (json.loads(line) for line in CASES_FILE.read_text().splitlines())
    return {line["case"]: line for line in lines}


def exchange(started: Started, case: dict[str, Any]) -> Reply:
    """Send a case."""
    raw = case.get("body", "").encode()
    if "body_base64" in case:
        raw = base64.b64decode(case["body_base64"])
    with Line(started.url) as line:
        return line.request(
            case["method"], case["path"], raw if case["method"] == "POST" else None, case["headers"]
        )


def speaks(started: Started) -> Seen:
    """Whether it answers a right request: who does not speak the protocol refuses nothing of it."""
    kept: Seen | None = started.kept.get("speaks")
    if kept is None:
        case = cases()["i64 big" if started.what.model == "id_int64" else "ok"]
        kept = started.kept["speaks"] = judge(case, exchange(started, case))
    return kept


def ask_case(started: Started, case: dict[str, Any]) -> Seen:
    """Send a case and hold the reply against what the protocol says of it."""
    if case["expect"]["status"] >= 400 and speaks(started).answer != "yes":
        said = f"a right request is not answered: {speaks(started).seen}"
        return Seen("no", said, is_absent=speaks(started).is_absent)
    seen = judge(case, exchange(started, case))
    if seen.answer == "no" and case["expect"]["status"] < 400 and _is_binary(case):
        return msgspec.structs.replace(seen, is_absent=seen.is_absent or "binary" not in started.peer.forms)
    return seen


def _is_binary(case: dict[str, Any]) -> bool:
    """Whether it is asked in a form that not every product has."""
    headers = {name.lower(): value for name, value in case["headers"].items()}
    return "inference-header-content-length" in headers or "octet-stream" in headers.get("content-type", "")


def _unanswered(reply: Reply, where: str = "") -> Seen:
    """A right request without a prediction."""
    return Seen("no", f"{where}{reply.text()}", is_absent=reply.status in _NO_ADDRESS)


def judge(case: dict[str, Any], reply: Reply) -> Seen:
    """Hold a reply against what the protocol says of a case."""
    expect = case["expect"]
    if expect["status"] >= 400:
        return Seen(refused_as(reply.status), reply.text())
    if reply.status != 200:
        return _unanswered(reply)
    wanted = expect.get("json", {})
    try:
        if "outputs" in wanted:
            return _judge_outputs(expect, reply)
        said = json.loads(reply.body) if reply.body else {}
    except (ValueError, KeyError, TypeError, msgspec.DecodeError) as exc:
        return Seen("no", f"{reply.text()} ({exc})")
    missing = [key for key in ("name", "version", "extensions") if "extensions" in wanted and key not in said]
    return (
        Seen("no", f"without {', '.join(missing)}: {reply.text()}") if missing else Seen("yes", reply.text())
    )


def _judge_outputs(expect: dict[str, Any], reply: Reply) -> Seen:
    content = dict(expect["json"])
    head = json.dumps(content).encode()
    tail = base64.b64decode(expect.get("tail_base64", ""))
    wanted = oip.infer_outputs(
        {"inference-header-content-length": str(len(head))} if tail else {}, head + tail
    )
    found = oip.infer_outputs(reply.headers, reply.body)
    for name, array in wanted.items():
        mine = found.get(name)
        if mine is None or mine.dtype != array.dtype or mine.shape != array.shape:
            return Seen("no", f"not {name} of {array.dtype} {list(array.shape)}: {reply.text()}")
        if not np.array_equal(mine, array, equal_nan=array.dtype.kind == "f"):
            return Seen("no", f"{name} is {mine.tolist()}, not {array.tolist()}")
    given = content.get("id", "*")
    if given != "*":
        size = int(reply.headers.get("inference-header-content-length", len(reply.body)))
        if json.loads(reply.body[:size]).get("id") != given:
            return Seen("no", f"without the id {given}: {reply.text()}")
    return Seen("yes", reply.text())


def _case(name: str) -> Probe:
    row, asks = _ROWS[name]
    case = cases()[name]
    if case["expect"]["status"] >= 400:
        asks += "; yes is a 4xx, partly a 5xx"
    model = "id_int64" if "id_int64" in case["path"] else "id_fp32"
    return Probe(GROUP, row, asks, lambda started: ask_case(started, case), model)


def pinned(started: Started) -> Seen:
    """A version that the client names, after a second one was taken up."""
    x = np.ones((1, 4), np.float32)
    message = started.message(x)
    at = f"/v2/models/{started.what.model}/"
    if not message.path.startswith(at):
        message = oip.infer_message(started.what.model, {"X": x}, "json")

    def of(version: int) -> Message:
        return message._replace(path=message.path.replace(at, f"{at}versions/{version}/"))

    found = []
    with Line(started.url) as line:
        alone = line.send(of(1))
        if alone.status != 200:
            return _unanswered(alone, "version 1: ")
        write_scale(started.what.repository, 2)
        started.running.new_version("2")
        for version in (1, 2):
            reply = _awaited(line, of(version))
            if reply.status != 200:
                return Seen("no", f"version {version}: {reply.text()}")
            outputs = oip.infer_outputs(reply.headers, reply.body)
            found.append(float(next(iter(outputs.values())).ravel()[0]))
    wanted = [scale_of(1), scale_of(2)]
    return Seen(
        "yes" if found == wanted else "no", f"asked for versions 1 and 2, answered {found}; right: {wanted}"
    )


def _awaited(line: Line, message: Message) -> Reply:
    """Ask until it is answered with 200, for a few seconds: a version is being taken up."""
    deadline = time.monotonic() + _TAKEN_UP_S
    while (reply := line.send(message)).status != 200 and time.monotonic() < deadline:
        time.sleep(0.2)
    return reply


def instances(started: Started) -> Seen:
    """The dialect of TensorFlow Serving and KServe's v1."""
    body = json.dumps({"instances": [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]}).encode()
    with Line(started.url) as line:
        reply = line.request("POST", f"/v1/models/{started.what.model}:predict", body,
                             {"content-type": "application/json"})  # fmt: skip
    if reply.status != 200:
        return _unanswered(reply)
    expected = np.arange(1, 9).reshape(2, 4) * scale_of(1)
    said = json.loads(reply.body).get("predictions")
    try:
        is_right = np.allclose(np.array(said, np.float64), expected)
    except (ValueError, TypeError):
        is_right = False
    return Seen("yes" if is_right else "no", reply.text())


PROBES = (
    *(_case(name) for name in _ROWS),
    Probe(GROUP, "a version by its address", "/v2/models/M/versions/V/infer is answered by version V, for two versions"
          " that are served at once", pinned, alone=True),
    Probe(GROUP, "v1 :predict", "rows under `instances` at /v1/models/M:predict come back as `predictions`", instances),
)  # fmt: skip
