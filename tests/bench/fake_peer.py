"""A product that does what a test says: an HTTP server in this process, behind the contract of a peer."""

from __future__ import annotations

import http.client
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from bench.peers.oip import infer_message, infer_outputs
from bench.peers.peer import Arrays, Begin, Form, Message, Running, Say, Setting, Source, Unavailable

_MOST_READ_BYTES = 1 << 24


@dataclass
class Ways:
    """How it behaves; the defaults are without fault."""

    speaks: bool = True
    """The protocol's addresses; else an address of its own."""
    status_of_bad: int = 400
    mixes: bool = False
    """Every seventh request is given the answer before its own."""
    mixes_batches: bool = False
    """That, but not with batching off."""
    counts_refusals: bool = False
    """In its metrics, with a sample of their own."""
    exposes: str = ""
    """A further sample of its metrics."""
    gap_s: float = 0.0
    """Without answers while it takes up a version."""
    lies: bool = False
    """It says that it is ready in that gap."""
    takes_up: bool = True
    dies_of_broken: bool = False
    log: str = ""
    """"" no log; "file"; "http": dropped when it cannot be sent; "http-kept": sent again until it is taken."""
    loses_every: int = 0
    """That prediction is not logged."""
    before_record: Callable[[int], None] = lambda _number: None
    """Called before the log's record of that number is sent, on a thread of its own."""
    metrics: bool = True
    unavailable: str = ""
    does_not_start_with: str = ""
    hangs_up_s: float = 0.0
    most_bytes: int = 0
    """It hangs up on a larger body; 0: it waits for the end of any."""


@dataclass
class FakePeer:
    """See `Peer`."""

    ways: Ways = field(default_factory=Ways)
    name: str = "fake"
    title: str = "Fake"
    forms: frozenset[Form] = frozenset(("json",))
    sources: tuple[Source, ...] = ()
    choices: tuple[Setting, ...] = (Setting(),)
    running: list[FakeRunning] = field(default_factory=list)

    @property
    def audit(self) -> str:
        """As the ways say."""
        return self.ways.log

    @property
    def receiver_kind(self) -> str:
        """As the ways say."""
        return "http" if self.ways.log.startswith("http") else ""

    def prepare(self, say: Say) -> str:
        """See `Peer`."""
        if self.ways.unavailable:
            raise Unavailable(self.name, self.ways.unavailable, "the installer's\nlast words")
        return "1.0"

    def begin(self, what: Begin) -> Running:
        """See `Peer`."""
        if what.model == self.ways.does_not_start_with:
            raise Unavailable(self.name, "ended with status 1", "first\nModelError: no")
        made = FakeRunning(self, what)
        self.running.append(made)
        return made

    def message(self, model: str, feeds: Arrays, form: Form) -> Message:
        """See `Peer`."""
        message = infer_message(model, feeds, form)
        return message if self.ways.speaks else message._replace(path="/predict")

    def outputs(self, headers: Mapping[str, str], body: bytes) -> dict[str, NDArray[Any]]:
        """See `Peer`."""
        return infer_outputs(headers, body)

    def end(self) -> None:
        """End what a test left running."""
        for one in self.running:
            one.stop()


class FakeRunning:
    """See `Running`."""

    def __init__(self, peer: FakePeer, what: Begin) -> None:
        self.peer, self.what, self.ways = peer, what, peer.ways
        self.version = 1
        self.served = self.asked = self.logged = 0
        self.last: list[float] = [0.0]
        self.is_gone = False
        self.guard = threading.Lock()
        self.forwarded = 0
        """Records that were sent, or dropped."""
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        handler = type("Handler", (_Handler,), {"running": self, "timeout": peer.ways.hangs_up_s or None})
        ThreadingHTTPServer.request_queue_size = 128
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._threads = [threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)]
        if self.ways.log.startswith("http"):
            self._threads.append(threading.Thread(target=self._forward, daemon=True))
        for thread in self._threads:
            thread.start()

    def pids(self) -> list[int]:
        """None that a test may kill."""
        return []

    def said(self) -> str:
        """Nothing."""
        return ""

    def new_version(self, version: str) -> None:
        """See `Running`."""
        if b"no model" in (self.what.repository / self.what.model / version / "model.onnx").read_bytes():
            if self.ways.dies_of_broken:
                self.is_gone = True
            raise Unavailable(self.peer.name, "is no model")
        if self.ways.gap_s:
            self.is_gone = True
            time.sleep(self.ways.gap_s)
            self.is_gone = False
        if self.ways.takes_up:
            self.version = int(version)

    def metrics(self) -> str:
        """Its page of them."""
        refused = self.asked - self.served
        lines = [
            f'served_total{{model="scale"}} {self.served}',
            f"asked_total {self.asked}",
            self.ways.exposes,
        ]
        return "\n".join([*lines, *([f"refused_total {refused}"] if self.ways.counts_refusals else []), ""])

    def stop(self) -> None:
        """See `Running`."""
        self._server.shutdown()
        self._server.server_close()
        self._queue.put(None)
        for thread in self._threads:
            thread.join(10)

    def log(self, x: list[float]) -> None:
        """Log an answered prediction."""
        with self.guard:
            self.logged += 1
            if self.ways.loses_every and self.logged % self.ways.loses_every == 0:
                return
            line = json.dumps({"x": x, "y": [value * (self.version + 2) for value in x]}).encode() + b"\n"
            if self.ways.log == "file" or self.what.receiver is None:
                with (self.what.home / "predictions.jsonl").open("ab") as file:
                    file.write(line)
            else:
                self._queue.put(line)

    def _forward(self) -> None:
        parts = urlsplit(self.what.receiver or "http://127.0.0.1:1")
        while (line := self._queue.get()) is not None:
            self.ways.before_record(self.forwarded)
            while True:
                connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=2)
                try:
                    connection.request("POST", "/", line)
                    connection.getresponse().read()
                except OSError:
                    if self.ways.log == "http-kept":
                        time.sleep(0.02)
                        continue
                finally:
                    connection.close()
                break
            self.forwarded += 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    running: FakeRunning

    def do_GET(self) -> None:
        running = self.running
        if self.path == "/v2/health/ready":
            self._reply(503 if running.is_gone and not running.ways.lies else 200, b"{}")
        elif self.path == "/metrics" and running.ways.metrics:
            self._reply(200, running.metrics().encode(), "text/plain")
        else:
            self._reply(404, b"{}")

    def do_POST(self) -> None:
        running = self.running
        announced_bytes = int(self.headers.get("content-length", 0))
        if 0 < running.ways.most_bytes < announced_bytes:
            self.close_connection = True
            return
        body = self.rfile.read(min(announced_bytes, _MOST_READ_BYTES))
        own = f"/v2/models/{running.what.model}/infer" if running.ways.speaks else "/predict"
        if self.path != own:
            self._reply(404, b"{}")
            return
        if running.is_gone:
            self._reply(503, b"{}")
            return
        with running.guard:
            running.asked += 1
        try:
            tensor = json.loads(body)["inputs"][0]
            dtype = {"FP32": np.float32, "INT64": np.int64}[tensor["datatype"]]
            x = np.array(tensor["data"], dtype).reshape(tensor["shape"])
            if running.what.model == "scale" and x.shape[1:] != (4,):
                raise ValueError("the shape")
        except (ValueError, KeyError, TypeError, RecursionError):
            self._reply(running.ways.status_of_bad, b'{"error": "no"}')
            return
        self._answer(x)

    def _answer(self, x: NDArray[Any]) -> None:
        running = self.running
        with running.guard:
            running.served += 1
            number = running.served
        values = x.ravel() if x.dtype == np.int64 else x.astype(np.float64).ravel()
        if running.what.audit and running.ways.log:
            running.log(values.tolist())
        scale = running.version + 2 if running.what.model == "scale" else 1
        answer = (values * scale).tolist()
        mixes = running.ways.mixes or (running.ways.mixes_batches and running.what.setting.batching)
        if mixes and number % 7 == 0:
            answer = running.last
        running.last = answer
        datatype = "INT64" if x.dtype == np.int64 else "FP32"
        name = "OUTPUT0" if running.what.model.startswith("id_") else "Y"
        output = {"name": name, "datatype": datatype, "shape": list(x.shape), "data": answer}
        if len(answer) != x.size:
            output["shape"] = [len(answer)]
        self._reply(200, json.dumps({"outputs": [output]}).encode())

    def _reply(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing."""
