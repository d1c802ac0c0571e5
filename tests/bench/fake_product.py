"""A product that nobody makes: the standard library's HTTP server over ONNX Runtime, with a peer's face.

It forks a helper that leaves its session and its parent, as daemons of some products do; FAKE_DIES makes it end at
once, FAKE_REFUSES makes it answer 503, FAKE_LIES adds one to what it predicts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from bench.peers.asking import session
from bench.peers.peer import Arrays, Begin, Form, Message, Say, Setting, Source
from bench.peers.served_process import Served


class Fake:
    """See `Peer`."""

    title = "Fake"
    forms: frozenset[Form] = frozenset(("json",))
    audit = ""
    receiver_kind = ""
    sources = (Source("nothing", "Fake", "https://example.org/"),)

    def __init__(self, name: str = "fake", **environ: str) -> None:
        self.name = name
        self.environ = environ
        self.choices = (Setting(1, False), Setting(1, True, {"environ": "FAKE_SLOW"}))
        self.begun = 0

    def prepare(self, say: Say) -> str:
        return "1.0"

    def begin(self, what: Begin) -> FakeRunning:
        self.begun += 1
        return FakeRunning(self, what)

    def message(self, model: str, feeds: Arrays, form: Form) -> Message:
        body = json.dumps({name: array.tolist() for name, array in feeds.items()}).encode()
        return Message(f"/{model}", (("content-type", "application/json"),), body)

    def outputs(self, headers: Mapping[str, str], body: bytes) -> dict[str, np.ndarray]:
        return {name: np.array(values, np.float32) for name, values in json.loads(body).items()}


class FakeRunning(Served):
    """See `Running`."""

    start_s = 30.0

    def __init__(self, peer: Fake, what: Begin) -> None:
        self._environ = peer.environ
        super().__init__(peer, what)

    def command(self) -> list[str]:
        return [sys.executable, __file__, str(self.model_file()), str(self.port)]

    def environ(self) -> dict[str, str]:
        slow = dict.fromkeys(self.what.setting.extra.values(), "1")
        return {"PYTHONPATH": str(Path(__file__).parents[2]), **self._environ, **slow}


def serve(model_file: str, port: int) -> None:
    """Answer every POST with what the model says."""
    ran = session(Path(model_file))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if "FAKE_SLOW" in os.environ:
                until = time.thread_time() + 0.003
                while time.thread_time() < until:
                    pass
            feeds = {name: np.array(values, np.float32) for name, values in asked.items()}
            names = [output.name for output in ran.get_outputs()]
            found = dict(zip(names, ran.run(names, feeds), strict=True)) if feeds else {}
            off = 1.0 if "FAKE_LIES" in os.environ else 0.0
            body = json.dumps({name: (array + off).tolist() for name, array in found.items()}).encode()
            head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            status = b"503 No" if "FAKE_REFUSES" in os.environ else b"200 OK"
            self.wfile.write(b"HTTP/1.1 " + status + b"\r\n" + head + body)

        def log_message(self, *_: object) -> None:
            pass

    ThreadingHTTPServer.request_queue_size = 128
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


def leave_a_daemon() -> None:
    """A grandchild with a session of its own and no parent."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    os.wait()


if __name__ == "__main__":
    print("fake: starting", flush=True)
    if "FAKE_DIES" in os.environ:
        print("fake: cannot open the frobnicator", flush=True)
        sys.exit(7)
    leave_a_daemon()
    serve(sys.argv[1], int(sys.argv[2]))
