"""Triton 2.51: its own server binary, with ONNX Runtime in its Python backend.

The binary is in the wheel nvidia-pytriton 0.7.0, whose Python interface is not used: what runs is `tritonserver` over
a model repository, as in Triton's own containers. That wheel is the newest with a server and carries no ONNX Runtime
backend in C++; the Python backend is what it has, and the page says so.

NAME/VERSION/model.onnx -> **adapter** -> config.pbtxt, VERSION/{model.onnx, model.py} in a repository of this start.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bench.peers import environment, oip
from bench.peers.environment import Environment
from bench.peers.onnx_file import is_batchable
from bench.peers.peer import Arrays, Begin, Form, Message, Running, Say, Setting, Source, Unavailable
from bench.peers.served_process import APPS, Served
from loaders.signature import Signature, TensorSpec

NAME = "triton"
_BACKENDS = "backends"
_DOCS = "https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs"
MAX_BATCH_ROWS = 2048
TRACES_A_FILE = 50
"""As in the example of the trace page: so many requests are written at once, each time into another file."""
_TIMEOUT_US = 30_000_000
"""In the queue; a request's own timeout counts only where it is shorter than this one."""


class Triton:
    """Triton Inference Server."""

    name = NAME
    title = "Triton, Python backend"
    forms: frozenset[Form] = frozenset(("json", "binary"))
    audit = (
        "trace of tensors and times to files, every request (--trace-config level=TIMESTAMPS, level=TENSORS, rate=1);"
        f" {TRACES_A_FILE} a file (log-frequency) under load, 1 where the log is what is asked: a kill takes the others"
    )
    receiver_kind = ""
    sources: tuple[Source, ...] = (
        Source("the dynamic batcher, without a delay, is what gains most; then instances of the model",
               "Optimization", f"{_DOCS}/user_guide/optimization.html"),
        Source("a batch is what waits when an instance is free; a delay makes larger ones",
               "Batchers", f"{_DOCS}/user_guide/batcher.html"),
        Source("an instance of a Python model is a process; requests of a batch come in one call",
               "Python backend", f"{_DOCS}/python_backend/README.html"),
        Source("tensors are traced to files; rate 1 traces every request",
               "Triton Server Trace", f"{_DOCS}/user_guide/trace.html"),
        Source("polling the repository is not for production: versions are loaded by request",
               "Model Management", f"{_DOCS}/user_guide/model_management.html"),
    )  # fmt: skip
    choices: tuple[Setting, ...] = (
        *(Setting(workers=count, batching=on) for count in (1, 2, 4) for on in (True, False)),
        Setting(workers=1, batching=True, extra={"max_queue_delay_us": "500"}),
        Setting(workers=1, batching=True, extra={"http_threads": "1"}),
    )

    def prepare(self, say: Say) -> str:
        """Install the wheel; returns Triton's version, which is not the wheel's."""
        installed = environment.made(NAME, say)
        wheel = installed.versions.get("nvidia-pytriton", "?")
        _stub(_distribution(installed))
        _python_library()
        return f"2.51.0 (nvidia-pytriton {wheel}, onnxruntime {installed.versions.get('onnxruntime', '?')})"

    def begin(self, what: Begin) -> Running:
        """Start the server with one model; returns once it answers a prediction."""
        return _Served(self, what)

    def message(self, model: str, feeds: Arrays, form: Form) -> Message:
        """The protocol's own."""
        return oip.infer_message(model, feeds, form)

    def outputs(self, headers: Mapping[str, str], body: bytes) -> dict[str, NDArray[Any]]:
        """The protocol's own."""
        return oip.infer_outputs(headers, body)


class _Served(Served):
    lock = NAME

    def lay_out(self) -> None:
        """Its repository with the first version, and its backend."""
        self.metrics_url = f"{self.side_url}/metrics"
        self._place(self.version)
        config = config_text(self.what.model, self.signature, self.what.setting)
        (self.models / self.what.model / "config.pbtxt").write_text(config)
        if not (self.home / _BACKENDS).exists():
            _lay_backend(_distribution(self.installed), self.home / _BACKENDS)

    def environ(self) -> dict[str, str]:
        """Its libraries, and the interpreter's."""
        distribution = _distribution(self.installed)
        libraries = [
            distribution.parent.parent / "nvidia_pytriton.libs", distribution / "lib", _python_library().parent,
        ]  # fmt: skip
        return {**super().environ(), "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}

    def command(self) -> list[str]:
        """The server over its repository."""
        command = [
            str(_distribution(self.installed) / "bin" / "tritonserver"),
            f"--model-repository={self.models}", f"--backend-directory={self.home / _BACKENDS}",
            "--model-control-mode=explicit", f"--load-model={self.what.model}",
            "--disable-auto-complete-config", "--log-info=false", "--log-verbose=0",
            "--http-address=127.0.0.1", f"--http-port={self.port}", "--allow-grpc=false",
            "--metrics-address=127.0.0.1", f"--metrics-port={self.side_port}", "--allow-gpu-metrics=false",
            "--pinned-memory-pool-byte-size=0",
            # Regions in /dev/shm are found by their prefix: two servers must not share one.
            f"--backend-config=python,shm-region-prefix-name=tidegate-{self.port}-",
        ]  # fmt: skip
        if threads := self.what.setting.extra.get("http_threads"):
            command.append(f"--http-thread-count={threads}")
        if self.what.audit:
            traces = self.home / "traces"
            traces.mkdir(exist_ok=True)
            settings = trace_settings(traces / "trace", 1 if self.what.one_by_one else TRACES_A_FILE)
            command += [f"--trace-config={setting}" for setting in settings]
        return command

    def new_version(self, version: str) -> None:
        """By the load API; the old version answers until the new one is up (version policy: the latest)."""
        self._place(version)
        self.ask_to_load(version, Message(f"/v2/repository/models/{self.what.model}/load", (), b"{}"))

    def _place(self, version: str) -> None:
        directory = self.models / self.what.model / version
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.model_file(version), directory / "model.onnx")
        shutil.copyfile(APPS / "triton_model.py", directory / "model.py")


def trace_settings(file: Path, traces_a_file: int) -> tuple[str, ...]:
    """Values of --trace-config: tensors and times of every request.

    Args:
        traces_a_file: Triton's log-frequency; it holds so many back until it writes them.
    """
    return (
        f"triton,file={file}", f"triton,log-frequency={traces_a_file}", "rate=1",
        "level=TIMESTAMPS", "level=TENSORS", "count=-1",
    )  # fmt: skip


def config_text(model: str, signature: Signature, setting: Setting) -> str:
    """A model's config.pbtxt.

    A model without rows of its own count takes no batching: Triton's `max_batch_size` is 0 then.
    """
    rows = is_batchable(signature)
    lines = [
        f'name: "{model}"', 'backend: "python"', f"max_batch_size: {MAX_BATCH_ROWS if rows else 0}",
        *(_tensor_text("input", spec, rows) for spec in signature.inputs),
        *(_tensor_text("output", spec, rows) for spec in signature.outputs),
        f"instance_group [ {{ count: {setting.workers} kind: KIND_CPU }} ]",
        # The version before the latest stays loaded; a request without a version goes to the latest.
        "version_policy: { latest { num_versions: 2 } }",
    ]  # fmt: skip
    if rows and setting.batching:
        delay = setting.extra.get("max_queue_delay_us", "0")
        lines.append(
            f"dynamic_batching {{ max_queue_delay_microseconds: {delay}"
            f" default_queue_policy {{ timeout_action: REJECT default_timeout_microseconds: {_TIMEOUT_US}"
            " allow_timeout_override: true } }"
        )
    return "\n".join(lines) + "\n"


def _tensor_text(kind: str, spec: TensorSpec, rows: bool) -> str:
    datatype = "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"
    # With max_batch_size the first dimension is not written down. Of a tensor of nothing but rows one must stand there
    # all the same: an input is sent with it then (reshape), an output comes in the shape that the model gave it.
    shape = spec.shape[1:] if rows else spec.shape
    dims = ", ".join(map(str, shape)) if shape else "1"
    reshape = " reshape: { shape: [ ] }" if kind == "input" and not shape else ""
    return f'{kind} [ {{ name: "{spec.name}" data_type: {datatype} dims: [ {dims} ]{reshape} }} ]'


def _distribution(installed: Environment) -> Path:
    for found in installed.place.glob("lib/python3*/site-packages/pytriton/tritonserver"):
        if (found / "bin" / "tritonserver").is_file():
            return found
    raise Unavailable(
        NAME, "its wheel holds no tritonserver: expected pytriton/tritonserver/bin/tritonserver"
    )


def _stub(distribution: Path) -> Path:
    """The Python backend's program for the interpreter that runs here."""
    version = sysconfig.get_python_version()
    stub = distribution / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise Unavailable(NAME, f"its wheel holds no Python backend for Python {version}")
    return stub


def _lay_backend(distribution: Path, backends: Path) -> None:
    """Put together a backend directory whose stub is of the interpreter that runs here."""
    place = backends / "python"
    place.mkdir(parents=True)
    for file in (distribution / "backends" / "python").iterdir():
        (place / file.name).symlink_to(file)
    stub = _stub(distribution)
    own = place / stub.name
    own.unlink(missing_ok=True)
    shutil.copyfile(stub, own)
    own.chmod(0o755)


def _python_library() -> Path:
    """The interpreter as a library, which the backend's stub is linked to: this interpreter's own."""
    name = f"libpython{sysconfig.get_python_version()}.so.1.0"
    for place in (sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LIBPL")):
        if place and (Path(place) / name).exists():
            return Path(place) / name
    multiarch = sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu"
    if (Path("/usr/lib") / multiarch / name).exists():
        return Path("/usr/lib") / multiarch / name
    msg = (
        f"{name} is not on this machine, and its Python backend needs it (Debian: {name.partition('.so')[0]})"
    )
    raise Unavailable(NAME, msg)
