"""BentoML: a service class on uvicorn, adaptive batching, worker processes; one service is one version.

Its service is `served/bentoml_app.py`, copied into the start's directory. Another version is a restart. A model of a
fixed count of rows is not batched, and one of several inputs is taken in raw form alone: a batchable API has one
parameter.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from bench.peers import environment, raw_form
from bench.peers.asking import model_file_of, post
from bench.peers.environment import Environment
from bench.peers.onnx_file import is_batchable, ones, signature_of
from bench.peers.peer import Arrays, Begin, Form, Message, Running, Say, Setting, Source
from bench.peers.processes import Tree, free_port

NAME = "bentoml"
_APP = Path(__file__).resolve().parent.parent / "served" / "bentoml_app.py"
_DOCS = "https://docs.bentoml.com/en/latest"
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
        return _Served(self, what, environment.made(NAME, lambda _: None))

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


class _Served:
    """See `Running`."""

    def __init__(self, peer: BentoML, what: Begin, environ: Environment) -> None:
        self._what, self._environ = what, environ
        self.home = what.home
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.metrics_url = f"{self.url}/metrics"
        signature = signature_of(model_file_of(what.repository, what.model))
        self._is_batchable = is_batchable(signature)
        shutil.copyfile(_APP, what.home / _APP.name)
        form: Form = "json" if len(signature.inputs) == 1 else "binary"
        asked = peer.message(what.model, ones(signature), form)
        self._tree = self._start("1")
        self._tree.await_answer(lambda: post(self.url, asked, 10.0).status == 200)

    def pids(self) -> list[int]:
        """See `Running`."""
        return self._tree.pids()

    def said(self) -> str:
        """See `Running`."""
        return self._tree.said()

    def new_version(self, version: str) -> None:
        """Restart it with the other file."""
        self._tree.stop()
        self._tree = self._start(version)

    def stop(self) -> None:
        """See `Running`."""
        self._tree.stop()

    def _start(self, version: str) -> Tree:
        what, setting = self._what, self._what.setting
        options = {
            "model_file": str(model_file_of(what.repository, what.model, version)),
            "workers": setting.workers, "batching": setting.batching and self._is_batchable,
            "api": setting.extra.get("api", "async"),
            "max_batch_size": int(setting.extra.get("max_batch_size", "100")),
            "max_latency_ms": int(setting.extra.get("max_latency_ms", "60000")),
            "audit": what.audit, "monitoring": _monitoring(what),
        }  # fmt: skip
        command = [
            str(self._environ.command(NAME)), "serve", f"{_APP.stem}:OnnxModel", "--working-dir", str(what.home),
            "--host", "127.0.0.1", "--port", str(self._port),
        ]  # fmt: skip
        told = {
            "BENTOML_HOME": str(what.home / "bentoml"), "BENTOML_DO_NOT_TRACK": "True",
            "BENCH_OPTIONS": json.dumps(options),
        }  # fmt: skip
        return Tree(NAME, command, home=what.home, environ={**self._environ.environ, **told}, cpus=what.cpus)


def _monitoring(what: Begin) -> dict[str, Any]:
    """Files below its home, or a collector; off without an audit."""
    if not what.audit:
        return {"enabled": False}
    if what.receiver is None:
        return {"enabled": True, "type": "default", "options": {"log_path": str(what.home / "monitoring")}}
    return {"enabled": True, "type": "otlp", "options": {"endpoint": what.receiver, "insecure": True}}
