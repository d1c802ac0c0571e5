"""onnxruntime-server: ONNX Runtime behind HTTP in C++, where its binary is given.

It comes as source and as container images, neither of which an index of Python packages has: the variable
BENCH_ONNXRUNTIME_SERVER (the bench's option --onnxruntime-server sets it) names a binary that was built as its
README says. Without one the tables say so. It speaks a JSON of its own, batches nothing and logs no predictions.

Its clients name the version of a model in the address; here all ask for the version `current`, a copy of the one that
was asked for. A session cannot be replaced: `new_version` tries the other file at an address of its own, which leaves
alone what is served, then ends the session and makes it anew. Its access log cannot be switched off: /dev/null gets it.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from bench.peers.peer import Arrays, Begin, Form, Message, Running, Say, Setting, Source, Unavailable
from bench.peers.processes import Tree, free_port
from bench.peers.served_process import Served

NAME = "onnxruntime-server"
VARIABLE = "BENCH_ONNXRUNTIME_SERVER"
CURRENT = "current"
_README = "https://github.com/kibae/onnxruntime-server/blob/main/README.md"
_LOAD_S = 60.0
_START_S = 20.0


class OnnxruntimeServer:
    """kibae/onnxruntime-server."""

    name = NAME
    title = "onnxruntime-server (C++)"
    forms: frozenset[Form] = frozenset(("json",))
    audit = ""
    receiver_kind = ""
    sources: tuple[Source, ...] = (
        Source("--workers is the pool of threads that run models", "README, Options", f"{_README}#options"),
        Source("session_options of a session are ONNX Runtime's own, threads within a run among them",
               "README, Session-level options", f"{_README}#session-level-options"),
        Source("--prepare-model makes sessions before it listens", "README, Options", f"{_README}#options"),
        Source("how it is built", "README, Compile and Install", f"{_README}#compile-and-install"),
    )  # fmt: skip
    choices: tuple[Setting, ...] = (
        *(Setting(workers=count, batching=False, extra={"intra_op_threads": "1"}) for count in (1, 2, 4)),
        Setting(workers=4, batching=False),
    )

    def prepare(self, say: Say) -> str:
        """Find the binary; returns the version of the ONNX Runtime in it, as it says itself, and whose build it is."""
        binary = _binary()
        try:
            done = subprocess.run(  # noqa: S603
                [binary, "--help"], capture_output=True, text=True, timeout=20, check=False,
                env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise Unavailable(NAME, f"{binary} does not run: {exc}") from exc
        if "--model-dir" not in done.stdout + done.stderr:
            raise Unavailable(NAME, f"{binary} is something else", (done.stdout + done.stderr)[-2000:])
        say(f"{NAME}: {binary}")
        digest = hashlib.sha256(Path(binary).read_bytes()).hexdigest()[:8]
        return f"with ONNX Runtime {_version(binary)} (build {digest})"

    def begin(self, what: Begin) -> Running:
        """Start it and make the model's session; returns once it answers a prediction."""
        return _Served(self, what)

    def message(self, model: str, feeds: Arrays, form: Form) -> Message:
        """Inputs by name, nested by shape."""
        content = {
            name: array.tolist() if array.dtype == object else np.ascontiguousarray(array)
            for name, array in feeds.items()
        }
        body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
        return Message(f"/api/sessions/{model}/{CURRENT}", (("content-type", "application/json"),), body)

    def outputs(self, headers: Mapping[str, str], body: bytes) -> dict[str, NDArray[Any]]:
        """Outputs by name, nested by shape; their datatype is not said."""
        return {name: np.array(values) for name, values in msgspec.json.decode(body).items()}


class _Served(Served):
    def lay_out(self) -> None:
        """The version that it is to serve, under the name that is asked for."""
        self._put(CURRENT, self.version)

    def _put(self, name: str, version: str) -> None:
        file = self.models / self.what.model / name / "model.onnx"
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.model_file(version), file)

    def command(self) -> list[str]:
        """The server, which makes the session before it listens."""
        threads = self.what.setting.extra.get("intra_op_threads")
        options = f"(session_options.intra_op_num_threads={threads})" if threads else ""
        return [
            *_command(_binary(), self.models, self.port), f"--workers={self.what.setting.workers}",
            f"--prepare-model={self.what.model}:{CURRENT}{options}",
        ]  # fmt: skip

    def _creation(self, name: str) -> Message:
        options: dict[str, Any] = {}
        if threads := self.what.setting.extra.get("intra_op_threads"):
            options["session_options"] = {"intra_op_num_threads": int(threads)}
        content = {"model": self.what.model, "version": name, "option": options}
        return Message("/api/sessions", (("content-type", "application/json"),), orjson.dumps(content))

    def new_version(self, version: str) -> None:
        """Try the file beside, then end the session and make it again with it: it has no way that leaves no gap."""
        self._put(version, version)
        self.ask_to_load(version, self._creation(version))
        self.lay_out()
        self._end_session(CURRENT)
        self.ask_to_load(version, self._creation(CURRENT))
        self._end_session(version)

    def _end_session(self, name: str) -> None:
        _said(self.url, "DELETE", f"/api/sessions/{self.what.model}/{name}")


def _binary() -> str:
    given = os.environ.get(VARIABLE, "")
    if not given:
        why = f"no binary was given: build it as its README says and name it by --onnxruntime-server or {VARIABLE}"
        raise Unavailable(NAME, why)
    found = shutil.which(given)
    if found is None:
        raise Unavailable(NAME, f"{given} is no program that can be run (from {VARIABLE})")
    return str(Path(found).resolve())


def _command(binary: str, models: Path, port: int) -> list[str]:
    return [
        binary, f"--model-dir={models}", f"--http-port={port}", "--log-level=warn", "--access-log-file=/dev/null"
    ]  # fmt: skip


def _version(binary: str) -> str:
    """Of the ONNX Runtime that it runs models with: only a server that runs says so."""
    with tempfile.TemporaryDirectory() as directory:
        home, port, said = Path(directory), free_port(), ""

        def is_there() -> bool:
            nonlocal said
            said = _said(f"http://127.0.0.1:{port}", "GET", "/api/version").decode()
            return True

        tree = Tree(NAME, _command(binary, home, port), home=home)
        tree.await_answer(is_there, _START_S)
        tree.stop()
        return said


def _said(url: str, method: str, path: str) -> bytes:
    """What it says to a request without a body; OSError when nothing answers."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_LOAD_S)
    with contextlib.closing(connection):
        connection.request(method, path)
        return connection.getresponse().read()
