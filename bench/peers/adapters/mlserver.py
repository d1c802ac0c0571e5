"""MLServer: the Open Inference Protocol in JSON, batches of a fixed size and wait, workers in a pool of processes.

NAME/VERSION/model.onnx -> **adapter** -> NAME/VERSION/{model-settings.json, mlserver_app.py} in a repository of this
start. The runtime is `served/mlserver_app.py`, for MLServer brings none for ONNX. Another version is another folder
and a load by its repository API; versions stay side by side.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bench.peers import environment, oip
from bench.peers.asking import model_file_of, post
from bench.peers.environment import Environment
from bench.peers.onnx_file import is_batchable, ones, signature_of
from bench.peers.peer import Arrays, Begin, Form, Message, Running, Say, Setting, Source, Unavailable
from bench.peers.processes import Tree, free_port

NAME = "mlserver"
_APP = Path(__file__).resolve().parent.parent / "served" / "mlserver_app.py"
_DOCS = "https://docs.seldon.ai/mlserver"
_LOAD_S = 60.0


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
            "MLServer Settings - MLServer", f"{_DOCS}/reference/settings",
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
        made = environment.made(NAME, lambda _: None)
        try:
            return _Served(what, made)
        except Unavailable as exc:
            # Its ports are chosen before it takes them: somebody else was quicker.
            if "already in use" not in exc.last_lines.lower():
                raise
        return _Served(what, made)

    def message(self, model: str, feeds: Arrays, form: Form) -> Message:
        """The protocol's own."""
        if form not in self.forms:
            msg = f"MLServer takes no {form} tensors over HTTP: its REST interface has JSON alone"
            raise ValueError(msg)
        return oip.infer_message(model, feeds, form)

    def outputs(self, headers: Mapping[str, str], body: bytes) -> Mapping[str, NDArray[Any]]:
        """The protocol's own."""
        return oip.infer_outputs(headers, body)


class _Served:
    """See `Running`."""

    def __init__(self, what: Begin, environ: Environment) -> None:
        self._what = what
        self.home = what.home
        self._models = what.home / "models"
        port, metrics_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"
        first = _newest(what)
        signature = signature_of(model_file_of(what.repository, what.model, first))
        self._is_batchable = is_batchable(signature)
        for version in _versions(what):
            self._place(version)
        (self._models / "settings.json").write_text(json.dumps({
            "debug": False, "host": "127.0.0.1", "http_port": port, "grpc_port": free_port(),
            "metrics_port": metrics_port, "parallel_workers": _parallel_workers(what.setting),
            "gzip_enabled": False, "metrics_dir": str(what.home / "metrics"),
            "environments_dir": str(what.home / "environments"),
        }))  # fmt: skip
        self._tree = Tree(
            NAME, [str(environ.command("mlserver")), "start", str(self._models)], home=what.home,
            environ=environ.environ, cpus=what.cpus,
        )  # fmt: skip
        asked = oip.infer_message(what.model, ones(signature), "json")
        self._tree.await_answer(lambda: post(self.url, asked, 10.0).status == 200)

    def pids(self) -> list[int]:
        """See `Running`."""
        return self._tree.pids()

    def said(self) -> str:
        """See `Running`."""
        return self._tree.said()

    def new_version(self, version: str) -> None:
        """Place it beside the others and ask the repository API for the model, which loads every version of it."""
        self._place(version)
        answer = post(self.url, Message(f"/v2/repository/models/{self._what.model}/load", (), b""), _LOAD_S)
        if answer.status != 200:
            why = f"version {version} of {self._what.model} was not loaded ({answer.status})"
            raise Unavailable(NAME, why, answer.body.decode(errors="replace")[-2000:])

    def stop(self) -> None:
        """See `Running`."""
        self._tree.stop()

    def _place(self, version: str) -> None:
        what, extra = self._what, self._what.setting.extra
        folder = self._models / what.model / version
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_APP, folder / _APP.name)
        settings: dict[str, Any] = {
            "name": what.model, "implementation": f"{_APP.stem}.OnnxModel", "platform": "onnx",
            "parameters": {"uri": str(model_file_of(what.repository, what.model, version)), "version": version},
        }  # fmt: skip
        # Requests are merged row-wise: a model of a fixed count of rows cannot be batched.
        if what.setting.batching and self._is_batchable:
            settings["max_batch_size"] = int(extra.get("max_batch_size", "32"))
            settings["max_batch_time"] = float(extra.get("max_batch_time_s", "0.005"))
        (folder / "model-settings.json").write_text(json.dumps(settings))


def _parallel_workers(setting: Setting) -> int:
    return int(setting.extra.get("parallel_workers", str(setting.workers)))


def _versions(what: Begin) -> list[str]:
    found = [path.parent.name for path in (what.repository / what.model).glob("*/model.onnx")]
    if not found:
        raise Unavailable(NAME, f"the repository has no version of {what.model}")
    return sorted(found, key=int)


def _newest(what: Begin) -> str:
    return _versions(what)[-1]
