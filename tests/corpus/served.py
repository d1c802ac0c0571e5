"""Cases of the backend suite against a running gateway: into the repository, asked three ways, out again.

backend_cases -> **served** -> test_backend_corpus. What a case says wrong is a sentence in the tally.
"""

from __future__ import annotations

import http.client
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from bench.serving import Gateway
from loaders.datatypes import NUMPY
from tests.corpus.backend_cases import Case, DataSet, Tensor, similar

WAYS = ("json_flat", "json_nested", "binary")
LOADED_WITHIN_S = 120
_HEADER = "inference-header-content-length"


@dataclass
class Tally:
    """What was asked and what came back wrong, by way."""

    cases: int = 0
    right: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WAYS, 0))
    wrong: list[str] = field(default_factory=list)
    requests: int = 0

    def count(self, name: str, way: str, found: str | None) -> None:
        """One case asked one way."""
        if found is None:
            self.right[way] += 1
        else:
            self.wrong.append(f"{name} ({way}): {found}")


class Asker:
    """One keep-alive connection to the data listener. Not thread-safe."""

    def __init__(self, data_url: str) -> None:
        self._address = urlsplit(data_url)
        self._connection = self._connect()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._address.hostname or "", self._address.port, timeout=60)

    def ask(self, method: str, path: str, body: bytes | None = None, fields: dict[str, str] | None = None):
        """Status, fields by lower-case name, body; one new connection when the old one is gone."""
        for attempt in range(2):
            try:
                self._connection.request(method, path, body, fields or {})
                reply = self._connection.getresponse()
                raw = reply.read()
                return reply.status, {k.lower(): v for k, v in reply.getheaders()}, raw
            except (OSError, http.client.HTTPException):
                self._connection.close()
                self._connection = self._connect()
                if attempt:
                    raise
        raise AssertionError

    def close(self) -> None:
        """Let the connection go."""
        self._connection.close()


def as_json(given: Tensor, *, nested: bool) -> dict[str, Any]:
    """An input with its data as JSON; numbers that are not finite as the tokens that clients send."""
    array = given.array()
    data = array.tolist() if nested else array.ravel().tolist()
    return {"name": given.name, "datatype": given.datatype, "shape": list(given.shape), "data": data}


def request_of(inputs: Sequence[Tensor], way: str) -> tuple[bytes, dict[str, str]]:
    """Body and header fields of a request."""
    timeout = {"timeout": 30_000_000}
    if way != "binary":
        described = [as_json(given, nested=way == "json_nested") for given in inputs]
        return json.dumps({"inputs": described, "parameters": timeout}).encode(), {}
    described = [
        {
            "name": given.name,
            "datatype": given.datatype,
            "shape": list(given.shape),
            "parameters": {"binary_data_size": len(given.data)},
        }
        for given in inputs
    ]
    head = json.dumps({"inputs": described, "parameters": {"binary_data_output": True, **timeout}}).encode()
    blobs = b"".join(given.data for given in inputs)
    return head + blobs, {_HEADER: str(len(head))}


def _from_json(output: dict[str, Any]) -> np.ndarray:
    """A reply's tensor; null is NaN."""
    dtype = NUMPY[output["datatype"]]
    data = output["data"]
    if dtype.kind == "f":
        data = [np.nan if value is None else value for value in data]
    made = np.empty(len(data), dtype=dtype)
    made[:] = data
    return made.reshape(output["shape"])


def _json_problem(reply: dict[str, Any], wanted: DataSet, case: Case) -> str | None:
    for output, answered, expected in zip(reply["outputs"], wanted.answered, wanted.expected, strict=True):
        found = (output["name"], output["datatype"], tuple(output["shape"]))
        if found != (answered.name, answered.datatype, answered.shape):
            return f"{found} instead of {(answered.name, answered.datatype, answered.shape)}"
        got = _from_json(output)
        if expected.dtype.kind == "f":
            nulls, finite = np.isnan(got), np.isfinite(expected)
            if not np.array_equal(nulls, ~finite):
                return f"{answered.name}: null does not stand where a number is not finite"
            got, expected = got[finite], expected[finite]
        if not similar(got, expected, case.rtol, case.atol):
            return f"{answered.name}: values differ"
    return None


def _binary_problem(status_fields: dict[str, str], body: bytes, wanted: DataSet) -> str | None:
    cut = int(status_fields.get(_HEADER, len(body)))
    outputs, blobs, offset = json.loads(body[:cut])["outputs"], body[cut:], 0
    for output, answered in zip(outputs, wanted.answered, strict=True):
        found = (output["name"], output["datatype"], tuple(output["shape"]))
        if found != answered[:3]:
            return f"{found} instead of {answered[:3]}"
        size = output["parameters"]["binary_data_size"]
        if blobs[offset : offset + size] != answered.data:
            return f"{answered.name}: bytes differ from ONNX Runtime's"
        offset += size
    return None if offset == len(blobs) else f"{len(blobs) - offset} bytes too many"


def problem(asker: Asker, model: str, case: Case, way: str) -> str | None:
    """What is wrong with the answers to a case, asked one way."""
    for wanted in case.sets:
        body, fields = request_of(wanted.inputs, way)
        status, got, raw = asker.ask("POST", f"/v2/models/{model}/infer", body, fields)
        if status != 200:
            return f"status {status}: {raw[:300]!r}"
        try:
            if way == "binary":
                found = _binary_problem(got, raw, wanted)
            else:
                found = _json_problem(json.loads(raw, parse_constant=_no_token), wanted, case)
        except (KeyError, ValueError, TypeError) as exc:
            found = f"the reply cannot be read: {type(exc).__name__}: {exc}"
        if found is not None:
            return found
    return None


def _no_token(token: str) -> float:
    msg = f"the reply holds {token}, which is no JSON"
    raise ValueError(msg)


def put(repository: Path, case: Case) -> None:
    """A case's model into the repository."""
    directory = repository / case.name / "1"
    directory.mkdir(parents=True)
    (directory / "model.onnx").write_bytes(case.model)


def await_ready(gateway: Gateway, names: Sequence[str]) -> dict[str, str]:
    """Have the repository read, wait until all of them can answer or failed; the failed and their reasons."""
    gateway.admin("POST", "models/refresh", {"reason": "corpus"})
    deadline = time.monotonic() + LOADED_WITHIN_S
    while True:
        listed = {m["name"]: m["versions"] for m in gateway.admin("GET", "models").content["models"]}
        routed = {r["model"] for r in gateway.admin("GET", "routes").content["routes"]}
        states = {
            name: (listed[name][0]["state"], listed[name][0]["reason"]) for name in names if name in listed
        }
        failed = {name: str(why) for name, (state, why) in states.items() if state == "failed"}
        if all(
            name in failed or (states.get(name, ("",))[0] == "ready" and name in routed) for name in names
        ):
            return failed
        if time.monotonic() > deadline:
            waiting = [name for name in names if name not in failed and name not in routed]
            msg = f"{len(waiting)} of {len(names)} models are not ready, as {waiting[:3]}: {gateway.said()}"
            raise TimeoutError(msg)
        time.sleep(0.1)


def run_group(gateway: Gateway, cases: Sequence[Case], tally: Tally) -> None:
    """Put a group's models there, ask each three ways, take their files away."""
    for case in cases:
        put(gateway.models, case)
    failed = await_ready(gateway, [case.name for case in cases])
    asker = Asker(gateway.data_url)
    for case in cases:
        tally.cases += 1
        for way in WAYS:
            tally.requests += len(case.sets)
            why = failed.get(case.name)
            tally.count(case.name, way, why or problem(asker, case.name, case, way))
    asker.close()
    for case in cases:
        shutil.rmtree(gateway.models / case.name)
