"""MLServer: the Open Inference Protocol in JSON, batches of a fixed size and wait, workers in a pool of processes.

NAME/VERSION/model.onnx -> **adapter** -> NAME/VERSION/{model-settings.json, mlserver_app.py} in a repository of this
start. The runtime is `served/mlserver_app.py`, for MLServer brings none for ONNX. Another version is another folder
and a load by its repository API; versions stay side by side.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from bench.peers import environment, oip
from bench.peers.onnx_file import is_batchable
from bench.peers.peer import Arrays, Begin, Form, Message, Running, Say, Setting, Source
from bench.peers.processes import free_port
from bench.peers.served_process import APPS, Served

NAME = "mlserver"
_APP = APPS / "mlserver_app.py"
_DOCS = "https://docs.seldon.ai/mlserver"


class MLServer:
    """See `Peer`."""

    name = NAME
    title = "MLServer"
    forms: frozenset[Form] = frozenset(("json",))
    audit = ""
    receiver_kind = ""
    sources: tuple[Source, ...] = (
        Source(
            "the pool of inference processes costs inter-process communication, which shows with light models:"
            " parallel_workers=0 runs inference in the main process, N > 0 in N processes",
            "Parallel Inference - MLServer", f"{_DOCS}/user-guide/parallel-inference",
        ),
        Source(
            "parallel_workers in line with the processors that the server has, small batches where latency allows",
            "Inference - Performance tuning - Seldon Core 2",
            "https://docs.seldon.ai/seldon-core-2/user-guide/performance-tuning/models/inference",
        ),
        Source(
            "adaptive batching is off unless max_batch_size (requests) and max_batch_time (seconds) are set;"
            " their values are found by trying",
            "Adaptive Batching - MLServer", f"{_DOCS}/user-guide/adaptive-batching",
        ),
        Source(
            "a model of a kind that has no runtime gets a custom one: load and predict of MLModel, with the codecs",
            "Custom Inference Runtimes - MLServer", f"{_DOCS}/user-guide/custom",
        ),
        Source(
            "debug=false turns access logs off; gzip_enabled=false leaves the compressing middleware out",
            "MLServer Settings - MLServer", f"{_DOCS}/api-reference/settings",
        ),
    )  # fmt: skip
    choices: tuple[Setting, ...] = (
        # In the main process; then in a pool of one, which is its default, and of more.
        Setting(1, False, {"parallel_workers": "0"}),
        Setting(1, True, {"parallel_workers": "0", "max_batch_size": "8", "max_batch_time_s": "0.001"}),
        Setting(1, True, {"parallel_workers": "0", "max_batch_size": "32", "max_batch_time_s": "0.005"}),
        Setting(1, False, {"parallel_workers": "1"}),
        Setting(1, True, {"parallel_workers": "1", "max_batch_size": "32", "max_batch_time_s": "0.005"}),
        Setting(2, False, {"parallel_workers": "2"}),
        Setting(2, True, {"parallel_workers": "2", "max_batch_size": "32", "max_batch_time_s": "0.005"}),
        Setting(4, False, {"parallel_workers": "4"}),
        Setting(4, True, {"parallel_workers": "4", "max_batch_size": "32", "max_batch_time_s": "0.005"}),
    )

    def prepare(self, say: Say) -> str:
        """See `Peer`."""
        return environment.made(NAME, say).versions[NAME]

    def begin(self, what: Begin) -> Running:
        """See `Peer`."""
        return _Served(self, what)

    def message(self, model: str, feeds: Arrays, form: Form) -> Message:
        """The protocol's own."""
        if form not in self.forms:
            msg = f"MLServer takes no {form} tensors over HTTP: its REST interface has JSON alone"
            raise ValueError(msg)
        return oip.infer_message(model, feeds, form)

    def outputs(self, headers: Mapping[str, str], body: bytes) -> Mapping[str, NDArray[Any]]:
        """The protocol's own."""
        return oip.infer_outputs(headers, body)


class _Served(Served):
    lock = NAME

    def lay_out(self) -> None:
        """Its repository, all versions side by side, and its settings."""
        self.metrics_url = f"{self.side_url}/metrics"
        for version in self.versions:
            self._place(version)
        setting = self.what.setting
        (self.models / "settings.json").write_text(json.dumps({
            "debug": False, "host": "127.0.0.1", "http_port": self.port, "grpc_port": free_port(),
            "metrics_port": self.side_port,
            "parallel_workers": int(setting.extra.get("parallel_workers", str(setting.workers))),
            "gzip_enabled": False, "metrics_dir": str(self.home / "metrics"),
            "environments_dir": str(self.home / "environments"),
        }))  # fmt: skip

    def command(self) -> list[str]:
        """Everything else is in its repository."""
        return [str(self.installed.command(NAME)), "start", str(self.models)]

    def new_version(self, version: str) -> None:
        """Place it beside the others and ask the repository API for the model, which loads every version of it."""
        self._place(version)
        self.ask_to_load(version, Message(f"/v2/repository/models/{self.what.model}/load", (), b""))

    def _place(self, version: str) -> None:
        what, extra = self.what, self.what.setting.extra
        folder = self.models / what.model / version
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_APP, folder / _APP.name)
        settings: dict[str, Any] = {
            "name": what.model, "implementation": f"{_APP.stem}.OnnxModel", "platform": "onnx",
            "parameters": {"uri": str(self.model_file(version)), "version": version},
        }  # fmt: skip
        # Requests are merged row-wise: a model of a fixed count of rows cannot be batched.
        if what.setting.batching and is_batchable(self.signature):
            settings["max_batch_size"] = int(extra.get("max_batch_size", "32"))
            settings["max_batch_time"] = float(extra.get("max_batch_time_s", "0.005"))
        (folder / "model-settings.json").write_text(json.dumps(settings))
