"""LitServe: FastAPI in front of worker processes, batches of a fixed size and wait.

Its own server is `served/litserve_app.py`. It has no repository of models and no reload: another version is a restart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from bench.peers import environment
from bench.peers.peer import Arrays, Begin, Form, Message, Running, Say, Setting, Source
from bench.peers.served_process import APPS, Served

_BOUNDARY = "tidegate-bench-boundary"
WAITS_S = ("0.001", "0.01")
"""`batch_timeout`; with 0 its workers spin."""


class LitServe:
    """See `Peer`."""

    name = "litserve"
    title = "LitServe"
    forms: frozenset[Form] = frozenset(("json", "binary"))
    audit = (
        "a Logger: predictions go through a queue to a process, unacknowledged; there user code writes them as JSON"
        " lines, or posts them to a receiver until it takes them"
    )
    receiver_kind = "http"
    sources: tuple[Source, ...] = (
        Source(
            "requests are batched with max_batch_size and batch_timeout; batch and unbatch stack and split them",
            "Batching - LitServe", "https://lightning.ai/docs/litserve/features/batching",
        ),
        Source(
            "workers_per_device up to the processors of a CPU host, as many API servers as workers, ZeroMQ"
            " (fast_queue) above 100 requests a second",
            "LitServer - LitServe", "https://lightning.ai/docs/litserve/api-reference/litserver",
        ),
        Source(
            "decode_request and encode_response take and give what the model needs; binary data comes as a form",
            "LitAPI - LitServe", "https://lightning.ai/docs/litserve/api-reference/litapi",
        ),
        Source(
            "a worker that dies is started again with restart_workers, and takes the server with it otherwise",
            "LitServer - LitServe", "https://lightning.ai/docs/litserve/api-reference/litserver",
        ),
    )  # fmt: skip
    choices = tuple(
        setting
        for workers in (1, 2, 4)
        for setting in (
            Setting(workers, False),
            *(Setting(workers, True, {"batch_timeout_s": wait}) for wait in WAITS_S),
        )
    )

    def prepare(self, say: Say) -> str:
        """See `Peer`."""
        return environment.made(self.name, say).versions["litserve"]

    def begin(self, what: Begin) -> Running:
        """See `Peer`."""
        return _Served(self, what)

    def message(self, model: str, feeds: Arrays, form: Form) -> Message:
        """See `Peer`."""
        if form == "json":
            plain = {
                name: array.tolist() if array.dtype == object else array for name, array in feeds.items()
            }
            body = orjson.dumps({"inputs": plain}, option=orjson.OPT_SERIALIZE_NUMPY)
            return Message("/predict", (("content-type", "application/json"),), body)
        parts = [
            f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"; filename="{name}"\r\n'
            f"content-type: application/octet-stream; shape={','.join(map(str, array.shape))}\r\n\r\n".encode()
            + array.tobytes()
            + b"\r\n"
            for name, array in feeds.items()
        ]
        kind = (("content-type", f"multipart/form-data; boundary={_BOUNDARY}"),)
        return Message("/predict", kind, b"".join(parts) + f"--{_BOUNDARY}--\r\n".encode())

    def outputs(self, headers: Mapping[str, str], body: bytes) -> Mapping[str, NDArray[Any]]:
        """See `Peer`."""
        if "x-tensors" not in headers:
            return {name: np.asarray(rows) for name, rows in orjson.loads(body)["outputs"].items()}
        found, at = {}, 0
        for name, dtype, shape in json.loads(headers["x-tensors"]):
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            found[name] = np.frombuffer(body[at : at + size], dtype).reshape(shape)
            at += size
        return found


class _Served(Served):
    lock = LitServe.name

    def command(self) -> list[str]:
        """Its options are those of the app."""
        setting = self.what.setting
        command = [
            str(self.installed.python), str(APPS / "litserve_app.py"), "--model-file", str(self.model_file()),
            "--port", str(self.port), "--workers", str(setting.workers),
        ]  # fmt: skip
        if setting.batching:
            command.append("--batching")
        for name, value in setting.extra.items():
            command += [f"--{name.replace('_', '-')}", value]
        if self.what.audit:
            command += ["--audit", self.what.receiver or str(self.home / "predictions.jsonl")]
        return command
