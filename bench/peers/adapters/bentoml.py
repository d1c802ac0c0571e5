"""BentoML: a service class on uvicorn, adaptive batching, worker processes; one service is one version.

Its service is `served/bentoml_app.py`, copied into the start's directory. Another version is a restart. A model of a
fixed count of rows is not batched, and one of several inputs is taken in raw form alone: a batchable API has one
parameter.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from bench.peers import environment, raw_form
from bench.peers.onnx_file import is_batchable
from bench.peers.peer import Arrays, Begin, Form, Message, Running, Say, Setting, Source
from bench.peers.served_process import APPS, Served

NAME = "bentoml"
_APP = APPS / "bentoml_app.py"
_DOCS = "https://docs.bentoml.com/en/latest"
_EXPORT_S = 120
_QUEUED = 20_000
"""So long an export is tried, and so many records wait; by default 10 s and 2,048: too little for an outage of 30 s."""
_SYNC = {"api": "sync"}
_ASYNC = {"api": "async"}
_ASGI = {"api": "asgi"}
"""JSON, too, on the mounted application, past BentoML's types for tensors; it cannot be batched there."""


class BentoML:
    """See `Peer`."""

    name = NAME
    title = "BentoML"
    forms: frozenset[Form] = frozenset(("json", "binary"))
    audit = (
        "bentoml.monitor: user code logs columns of a prediction as JSON lines, or over OTLP to a collector"
        f" (timeout={_EXPORT_S}, OTEL_BLRP_MAX_QUEUE_SIZE={_QUEUED})"
    )
    receiver_kind = "otlp"
    sources: tuple[Source, ...] = (
        Source(
            "CPU-bound services get as many workers as there are processors; each loads the model",
            "Parallelize requests handling - BentoML", f"{_DOCS}/build-with-bentoml/parallelize-requests.html",
        ),
        Source(
            "adaptive batching is off unless an API is batchable; max_batch_size and max_latency_ms bound it, and"
            " such an API takes one parameter",
            "Adaptive batching - BentoML", f"{_DOCS}/get-started/adaptive-batching.html",
        ),
        Source(
            "asynchronous APIs for throughput, synchronous ones where code blocks",
            "Create online API Services - BentoML", f"{_DOCS}/build-with-bentoml/services.html",
        ),
        Source(
            "tensors are numpy arrays with a declared dtype; a reply can declare its content type",
            "Define input and output types - BentoML", f"{_DOCS}/build-with-bentoml/iotypes.html",
        ),
        Source(
            "an ASGI application can be mounted beside the service's APIs, for what they have no form for",
            "Mount ASGI applications - BentoML", f"{_DOCS}/build-with-bentoml/asgi.html",
        ),
        Source(
            "the monitor writes files by default and sends to a collector with type otlp",
            "Monitoring - BentoML", f"{_DOCS}/build-with-bentoml/observability/monitoring-and-data-collection.html",
        ),
        Source(
            "access logs are switched off by logging.access.enabled, traffic.timeout is 60 s",
            "Configurations - BentoML", f"{_DOCS}/reference/bentoml/configurations.html",
        ),
    )  # fmt: skip
    choices: tuple[Setting, ...] = (
        Setting(1, False, _ASYNC),
        Setting(1, True, _ASYNC),
        Setting(1, False, _SYNC),
        Setting(1, False, _ASGI),
        Setting(1, True, _SYNC),
        Setting(2, False, _ASGI),
        Setting(2, True, _ASYNC),
        Setting(4, False, _ASGI),
        Setting(4, True, _ASYNC),
    )

    def prepare(self, say: Say) -> str:
        """See `Peer`."""
        return environment.made(NAME, say).versions[NAME]

    def begin(self, what: Begin) -> Running:
        """See `Peer`."""
        return _Served(self, what)

    def message(self, model: str, feeds: Arrays, form: Form) -> Message:
        """JSON {"x": rows} of the only input, or raw tensors.

        Raises:
            ValueError: several inputs as JSON.
        """
        if form == "binary":
            return raw_form.message("/predict_raw", feeds, form)
        if len(feeds) != 1:
            msg = f"a batchable API takes one parameter, the model has inputs {sorted(feeds)}: send them raw"
            raise ValueError(msg)
        (rows,) = raw_form.listable(feeds).values()
        body = raw_form.json_bytes({"x": rows})
        return Message("/predict", (("content-type", "application/json"),), body)

    def outputs(self, headers: Mapping[str, str], body: bytes) -> Mapping[str, NDArray[Any]]:
        """A reply's tensors; the only output of a JSON reply has no name there: it is under ""."""
        if raw_form.HEADER in headers:
            return raw_form.outputs(headers, body)
        rows = orjson.loads(body)
        if rows and isinstance(rows[0], dict):
            return {name: raw_form.from_rows([row[name] for row in rows]) for name in rows[0]}
        return {"": np.asarray(raw_form.from_rows(rows))}


class _Served(Served):
    lock = NAME

    def first_form(self) -> Form:
        """Several inputs are taken in raw form alone."""
        return "json" if len(self.signature.inputs) == 1 else "binary"

    def lay_out(self) -> None:
        """Its service."""
        self.metrics_url = f"{self.url}/metrics"
        shutil.copyfile(_APP, self.home / _APP.name)

    def command(self) -> list[str]:
        """What it serves comes by its environment."""
        return [
            str(self.installed.command(NAME)), "serve", f"{_APP.stem}:OnnxModel", "--working-dir", str(self.home),
            "--host", "127.0.0.1", "--port", str(self.port),
        ]  # fmt: skip

    def environ(self) -> dict[str, str]:
        """The service's options; nothing is sent to its makers."""
        setting = self.what.setting
        options = {
            "model_file": str(self.model_file()),
            "workers": setting.workers, "batching": setting.batching and is_batchable(self.signature),
            "api": setting.extra.get("api", "async"),
            "max_batch_size": int(setting.extra.get("max_batch_size", "100")),
            "max_latency_ms": int(setting.extra.get("max_latency_ms", "60000")),
            "audit": self.what.audit, "monitoring": _monitoring(self.what),
        }  # fmt: skip
        return {
            **super().environ(),
            "BENTOML_HOME": str(self.home / "bentoml"), "BENTOML_DO_NOT_TRACK": "True",
            "OTEL_BLRP_MAX_QUEUE_SIZE": str(_QUEUED), "BENCH_OPTIONS": json.dumps(options),
        }  # fmt: skip


def _monitoring(what: Begin) -> dict[str, Any]:
    """Files below its home, or a collector; off without an audit."""
    if not what.audit:
        return {"enabled": False}
    if what.receiver is None:
        return {"enabled": True, "type": "default", "options": {"log_path": str(what.home / "monitoring")}}
    options = {"endpoint": what.receiver, "insecure": True, "timeout": _EXPORT_S}
    return {"enabled": True, "type": "otlp", "options": options}
