"""onnxruntime-server: ONNX Runtime behind HTTP in C++, where its binary is given.

It comes as source and as container images, neither of which an index of Python packages has: the variable
TIDEGATE_ONNXRUNTIME_SERVER (the bench's option --onnxruntime-server sets it) names a binary that was built as its
README says. Without one the tables say so. It speaks a JSON of its own, batches nothing and logs no predictions.

Its clients name the version of a model in the address; here all ask for the version `current`, a copy of the one that
was asked for, and `new_version` puts another file there and makes its session anew, which is how it takes up a file.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from bench.peers.asking import post
from bench.peers.onnx_file import ones, signature_of
from bench.peers.peer import Arrays, Begin, Form, Message, Running, Say, Setting, Source, Unavailable
from bench.peers.processes import Tree

NAME = "onnxruntime-server"
VARIABLE = "TIDEGATE_ONNXRUNTIME_SERVER"
CURRENT = "current"
_README = "https://github.com/kibae/onnxruntime-server/blob/main/README.md"
_PORTS = (16_384, 32_000)
"""It keeps ports in a signed 16-bit number."""
_LOAD_S = 60.0


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
        Source("how it is built", "README, Compile and Install", f"{_README}#compile-and-install"),
    )  # fmt: skip
    choices: tuple[Setting, ...] = (
        *(Setting(workers=count, batching=False, extra={"intra_op_threads": "1"}) for count in (1, 2, 4)),
        Setting(workers=4, batching=False),
    )

    def prepare(self, say: Say) -> str:
        """Find the binary; returns what it says of itself."""
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
        return "as built"

    def begin(self, what: Begin) -> Running:
        """Start it and make the model's session; returns once it answers a prediction."""
        served = _Served(what)
        try:
            feeds = ones(signature_of(served.file))
        except (OSError, ValueError, KeyError, RuntimeError) as exc:
            raise Unavailable(NAME, f"the model {what.model} cannot be read: {exc}") from exc
        served.start(self.message(what.model, feeds, "json"))
        return served

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


class _Served:
    """A started server."""

    def __init__(self, what: Begin) -> None:
        self._what = what
        self.home = what.home
        self._tree: Tree | None = None
        self._port = _low_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.file = what.home / "models" / what.model / CURRENT / "model.onnx"
        self.file.parent.mkdir(parents=True)
        found = [path.parent.name for path in (what.repository / what.model).glob("*/model.onnx")]
        if not found:
            raise Unavailable(NAME, f"the repository has no version of {what.model}")
        self._place(min(found, key=int))

    def _place(self, version: str) -> None:
        shutil.copyfile(self._what.repository / self._what.model / version / "model.onnx", self.file)

    def start(self, first: Message) -> None:
        """Start the tree, make the session, wait for an answer."""
        command = [
            _binary(), f"--model-dir={self._what.home / 'models'}", f"--http-port={self._port}",
            f"--workers={self._what.setting.workers}", "--log-level=warn", "--access-log-file=/dev/null",
        ]  # fmt: skip
        self._tree = Tree(NAME, command, home=self._what.home, cpus=self._what.cpus)

        def answers() -> bool:
            if post(self.url, first, 5).status == 200:
                return True
            post(self.url, self._creation(), _LOAD_S)
            return False

        self._tree.await_answer(answers)

    def _creation(self) -> Message:
        options: dict[str, Any] = {}
        if threads := self._what.setting.extra.get("intra_op_threads"):
            options["session_options"] = {"intra_op_num_threads": int(threads)}
        content = {"model": self._what.model, "version": CURRENT, "option": options}
        return Message("/api/sessions", (("content-type", "application/json"),), orjson.dumps(content))

    def pids(self) -> list[int]:
        """The whole tree."""
        return [] if self._tree is None else self._tree.pids()

    def said(self) -> str:
        """The end of its output."""
        return "" if self._tree is None else self._tree.said()

    def new_version(self, version: str) -> None:
        """Put the file in place, end the session and make it again: it has no way that leaves no gap."""
        self._place(version)
        _delete(self.url, f"/api/sessions/{self._what.model}/{CURRENT}")
        answer = post(self.url, self._creation(), _LOAD_S)
        if answer.status != 200:
            why = f"version {version} of {self._what.model} was not loaded ({answer.status})"
            raise Unavailable(NAME, why, answer.body.decode(errors="replace")[-2000:])

    def stop(self) -> None:
        """End it."""
        if self._tree is not None:
            self._tree.stop()


def _binary() -> str:
    given = os.environ.get(VARIABLE, "")
    if not given:
        why = f"no binary was given: build it as its README says and name it by --onnxruntime-server or {VARIABLE}"
        raise Unavailable(NAME, why)
    found = shutil.which(given)
    if found is None:
        raise Unavailable(NAME, f"{given} is no program that can be run (from {VARIABLE})")
    return str(Path(found).resolve())


def _low_port() -> int:
    """A free port that fits its option."""
    for _ in range(1000):
        port = random.randrange(*_PORTS)
        with contextlib.suppress(OSError), socket.create_server(("0.0.0.0", port)):
            return port
    raise Unavailable(NAME, f"no free port between {_PORTS[0]} and {_PORTS[1]}")


def _delete(url: str, path: str) -> None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_LOAD_S)
    with contextlib.closing(connection):
        connection.request("DELETE", path)
        connection.getresponse().read()
