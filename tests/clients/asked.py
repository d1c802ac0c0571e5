"""Requests as a client makes them, with tensors as numpy has them: binary out, binary in."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import onnxruntime

from bench.serving import Gateway
from gateway.audit.event import Prediction
from gateway.audit.spool_feed import SpoolFeed
from loaders.datatypes import NUMPY
from tests.e2e.wire import RawReply, Wire

TIMEOUT_US = 30_000_000
HEADER = "inference-header-content-length"
Arrays = dict[str, np.ndarray]


class Answer(NamedTuple):
    """Outputs by name, the version that answered, the prediction's id."""

    outputs: Arrays
    version: str
    prediction_id: str


def ort(path: Path | str) -> Any:
    """A session of ONNX Runtime itself, with the gateway's options."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def direct(session: Any, feeds: Arrays) -> Arrays:
    """What ONNX Runtime answers."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, (np.asarray(v) for v in session.run(names, feeds)), strict=True))


def datatype_of(array: np.ndarray) -> str:
    """OIP's name of an array's datatype."""
    if array.dtype.kind in "OSU":
        return "BYTES"
    return next(name for name, dtype in NUMPY.items() if dtype == array.dtype and name != "BYTES")


def raw_of(array: np.ndarray) -> bytes:
    """An array in OIP's binary form."""
    if datatype_of(array) != "BYTES":
        return np.ascontiguousarray(array).tobytes()
    raws = [str(value).encode() for value in array.ravel()]
    return b"".join(len(raw).to_bytes(4, "little") + raw for raw in raws)


def array_of(datatype: str, shape: Sequence[int], raw: bytes) -> np.ndarray:
    """An array out of OIP's binary form."""
    if datatype != "BYTES":
        return np.frombuffer(raw, NUMPY[datatype]).reshape(shape)
    texts, offset = [], 0
    while offset < len(raw):
        end = offset + 4 + int.from_bytes(raw[offset : offset + 4], "little")
        texts.append(raw[offset + 4 : end].decode())
        offset = end
    made = np.empty(len(texts), dtype=object)
    made[:] = texts
    return made.reshape(shape)


def binary_request(feeds: Arrays, outputs: Sequence[str] | None = None) -> tuple[bytes, dict[str, str]]:
    """Body and header fields."""
    raws = {name: raw_of(array) for name, array in feeds.items()}
    asked: dict[str, Any] = {
        "inputs": [
            {
                "name": name,
                "datatype": datatype_of(array),
                "shape": list(array.shape),
                "parameters": {"binary_data_size": len(raws[name])},
            }
            for name, array in feeds.items()
        ],
        "parameters": {"binary_data_output": True, "timeout": TIMEOUT_US},
    }
    if outputs is not None:
        asked["outputs"] = [{"name": name} for name in outputs]
    head = json.dumps(asked).encode()
    return b"".join((head, *raws.values())), {HEADER: str(len(head))}


def binary_answer(fields: Any, body: bytes) -> Answer:
    """A reply with binary outputs."""
    cut = int(fields.get(HEADER, len(body)))
    head, offset, outputs = json.loads(body[:cut]), cut, {}
    for output in head["outputs"]:
        size = output["parameters"]["binary_data_size"]
        outputs[output["name"]] = array_of(output["datatype"], output["shape"], body[offset : offset + size])
        offset += size
    assert offset == len(body)
    return Answer(outputs, head["model_version"], fields["x-prediction-id"])


def ask(
    client: httpx.Client,
    model: str,
    feeds: Arrays,
    outputs: Sequence[str] | None = None,
    version: str | None = None,
) -> Answer:
    """One request, binary both ways; anything but 200 fails the test."""
    body, fields = binary_request(feeds, outputs)
    pinned = "" if version is None else f"/versions/{version}"
    reply = client.post(f"/v2/models/{model}{pinned}/infer", content=body, headers=fields)
    assert reply.status_code == 200, reply.text
    return binary_answer(reply.headers, reply.content)


def ask_json(client: httpx.Client, model: str, feeds: Arrays) -> dict[str, Any]:
    """One request, JSON both ways, nested: the reply's outputs by name."""
    inputs = [
        {
            "name": name,
            "datatype": datatype_of(array),
            "shape": list(array.shape),
            "data": array.tolist(),
        }
        for name, array in feeds.items()
    ]
    body = {"inputs": inputs, "parameters": {"timeout": TIMEOUT_US}}
    reply = client.post(f"/v2/models/{model}/infer", json=body)
    assert reply.status_code == 200, reply.text
    return {output["name"]: output for output in reply.json()["outputs"]}


def same_bytes(got: Arrays, expected: Arrays) -> bool:
    """Whether names, shapes, datatypes and every byte agree."""
    return list(got) == list(expected) and all(
        got[name].shape == expected[name].shape
        and datatype_of(got[name]) == datatype_of(expected[name])
        and raw_of(got[name]) == raw_of(expected[name])
        for name in expected
    )


def at_once(gateway: Gateway, model: str, version: str, requests: Sequence[Arrays]) -> list[Answer]:
    """Send requests on a connection each while the only worker stands still, so that it reads all in one turn.

    They must fit the sockets' buffers.
    """
    host = f"{gateway.data_url.removeprefix('http://')}"
    pid = gateway.pids("worker")[0]
    wires = [Wire(gateway.data_url) for _ in requests]
    try:
        for wire in wires:
            wire.exchange(f"GET /v2/health/live HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
        os.kill(pid, signal.SIGSTOP)
        try:
            for wire, feeds in zip(wires, requests, strict=True):
                body, fields = binary_request(feeds)
                head = f"POST /v2/models/{model}/versions/{version}/infer HTTP/1.1\r\nhost: {host}\r\n"
                head += "".join(f"{name}: {value}\r\n" for name, value in fields.items())
                wire.send(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        finally:
            os.kill(pid, signal.SIGCONT)
        replies: list[RawReply] = [wire.reply() for wire in wires]
    finally:
        for wire in wires:
            wire.close()
    for reply in replies:
        assert reply.status == 200, reply
    return [binary_answer(reply.fields, reply.body) for reply in replies]


def logged(gateway: Gateway, ids: Sequence[str], timeout_s: float = 60) -> dict[str, Prediction]:
    """The events of these predictions, once all of them stand in the log."""
    feed = SpoolFeed(gateway.state_dir / "spool")
    wanted, found = set(ids), {}
    deadline = time.monotonic() + timeout_s
    while wanted - found.keys():
        assert time.monotonic() < deadline, (
            f"{len(wanted - found.keys())} of {len(wanted)} are not in the log"
        )
        for event in feed.read(10_000, 200).events:
            if isinstance(event, Prediction) and event.id in wanted:
                found[event.id] = event
    return found


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
