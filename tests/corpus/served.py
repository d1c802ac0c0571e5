"""Cases of the backend suite against a running gateway: into the repository, asked three ways, out again.

backend_cases -> **served** -> test_backend_corpus. What a case says wrong is a sentence in the tally.
"""

from __future__ import annotations

import http.client
import json
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from bench.serving import Gateway
from loaders.datatypes import NUMPY
from tests.corpus.backend_cases import Case, DataSet, Tensor, similar

WAYS = ("json_flat", "json_nested", "binary")
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

    def add(self, other: Tally) -> None:
        """Another's counts too."""
        self.cases += other.cases
        self.requests += other.requests
        self.wrong += other.wrong
        self.right = {way: self.right[way] + other.right[way] for way in WAYS}


class Asker:
    """One keep-alive connection to the data listener. Not thread-safe."""

    def __init__(self, data_url: str) -> None:
        self._address = urlsplit(data_url)
        self._connection = self._connect()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._address.hostname or "", self._address.port, timeout=300)

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
    """A case's model into the repository, whole before it is seen."""
    part = repository / f".{case.name}"
    (part / "1").mkdir(parents=True)
    (part / "1" / "model.onnx").write_bytes(case.model)
    part.rename(repository / case.name)


def cycle(gateway: Gateway, cases: Iterable[Case]) -> Tally:
    """Each case: into the repository, loaded over the data listener, asked three ways, unloaded, deleted."""
    tally, asker = Tally(), Asker(gateway.data_url)
    for case in cases:
        tally.cases += 1
        put(gateway.models, case)
        status, _, raw = asker.ask("POST", f"/v2/repository/models/{case.name}/load")
        why = None if status == 200 else f"load: status {status}: {raw[:300]!r}"
        for way in WAYS:
            tally.requests += len(case.sets)
            tally.count(case.name, way, why or problem(asker, case.name, case, way))
        status, _, raw = asker.ask("POST", f"/v2/repository/models/{case.name}/unload")
        if status != 200:
            tally.wrong.append(f"{case.name}: unload: status {status}: {raw[:300]!r}")
        shutil.rmtree(gateway.models / case.name)
    asker.close()
    return tally


def cycle_all(gateway: Gateway, cases: Sequence[Case], at_a_time: int) -> Tally:
    """Cycles of so many clients at a time, which between them take every case."""
    waiting: SimpleQueue[Case | None] = SimpleQueue()
    for case in [*cases, *[None] * at_a_time]:
        waiting.put(case)
    with ThreadPoolExecutor(at_a_time) as clients:
        tallies = list(clients.map(lambda _: cycle(gateway, iter(waiting.get, None)), range(at_a_time)))
    whole = Tally()
    for tally in tallies:
        whole.add(tally)
    return whole
