"""What people read when the gateway is up."""

from __future__ import annotations

import json
import shlex
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gateway import announce
from gateway.process import Context

META = {
    "name": "flights",
    "versions": ["1", "2"],
    "inputs": [
        {"name": "it's", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "n", "datatype": "INT64", "shape": [-1]},
        {"name": "s", "datatype": "BYTES", "shape": [-1, 1]},
        {"name": "b", "datatype": "BOOL", "shape": [2]},
    ],
    "outputs": [],
    "properties": {"version": "2"},
}


@pytest.fixture
def replies() -> dict[str, tuple[int, Any]]:
    """Path to status and content; tests change it."""
    return {}


@pytest.fixture
def url(replies: dict[str, tuple[int, Any]]) -> Iterator[str]:
    """A data listener that answers from `replies`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, content = replies.get(self.path, (404, {"error": "no such address"}))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def context(url: str) -> Context:
    """What the supervisor hands over."""
    return Context(config="{}", models="/m", state_dir="/s", data_url=url, admin_url="http://127.0.0.1:1")


def serve(replies: dict[str, tuple[int, Any]], **models: int) -> None:
    """Answer as a gateway with these models, each with the status of its ready address."""
    replies["/v2/health/ready"] = (200, {"ready": True})
    replies["/v2/models"] = (200, {"models": list(models)})
    for name, status in models.items():
        replies[f"/v2/models/{name}/ready"] = (status, {})
        replies[f"/v2/models/{name}"] = (status, META if status == 200 else {"error": "broken graph"})


def test_example_fits_the_signature() -> None:
    """Free dimensions become one row; each datatype gets values of its kind, as many as the shape says."""
    tensors = json.loads(announce.example_body(META))["inputs"]
    assert [t["shape"] for t in tensors] == [[1, 3], [1], [1, 1], [2]]
    assert [t["data"] for t in tensors] == [[0.5, 1.2, 1.9], [1], ["text"], [True, True]]


def test_line_survives_the_shell() -> None:
    """The line can be pasted whatever the tensors are called."""
    words = shlex.split(announce.curl_line("http://h:1", META))
    assert words[:3] == ["curl", "-s", "http://h:1/v2/models/flights/infer"]
    assert json.loads(words[-1])["inputs"][0]["name"] == "it's"


def test_bodies_that_nobody_would_paste() -> None:
    """A picture is not pasted into a terminal."""
    big = {**META, "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 64, 64]}]}
    assert announce.curl_line("http://h:1", big) == "tidegate predict flights"


def test_serving_names_everything(replies: dict[str, tuple[int, Any]], url: str) -> None:
    """Version, addresses, where predictions are kept, models with versions, a line to paste."""
    serve(replies, flights=200, other=503)
    text = "\n".join(announce.lines(context(url), has_models=True))
    assert "is serving." in text
    assert "inputs included, in /s/spool (README: Privacy)" in text
    assert "flights: version 2 answers (loaded: 1, 2)" in text
    assert "other: broken graph" in text
    assert text.splitlines()[-1].startswith(f"  curl -s {url}/v2/models/flights/infer")


def test_room_for_records_is_said_at_start(tmp_path: Path) -> None:
    """Hours by the recorder's own figures; without a rate what is free; nothing that is missing is an error."""
    assert announce.spool_room(tmp_path).startswith("no rate yet; ")
    assert announce.spool_room(tmp_path / "gone") == "not known: No such file or directory"
    (tmp_path / "recorder").mkdir()
    status = {"spool_bytes": 3 << 30, "max_bytes": 10 << 30, "hours_left": 41.5, "free_bytes": 80 << 30}
    path = tmp_path / "recorder" / "status.json"
    path.write_text(json.dumps(status))
    assert announce.spool_room(tmp_path) == (
        "spool 3.0 GiB of 10.0 GiB used, 41.5 h left at the rate of late; 80.0 GiB free on the disk"
    )
    path.write_text(json.dumps({**status, "hours_left": None}))
    assert "used, no rate yet; 80.0 GiB free" in announce.spool_room(tmp_path)
    path.write_text("{")
    assert announce.spool_room(tmp_path).startswith("no rate yet; ")


def test_empty_repository_says_what_to_put_where(replies: dict[str, tuple[int, Any]], url: str) -> None:
    """No model is no error."""
    serve(replies)
    announce.wait_up(url, has_models=False)
    text = "\n".join(announce.lines(context(url), has_models=False))
    assert "none yet: put one at /m/NAME/1/model.onnx" in text
    assert "Try it" not in text


def test_nobody_answers() -> None:
    """After the wait it says so, instead of claiming to serve."""
    nobody = "http://127.0.0.1:1"
    announce.wait_up(nobody, has_models=True, wait_s=0.01)
    text = "\n".join(announce.lines(context(nobody), has_models=True))
    assert "is not ready yet" in text
    assert "no worker answers yet" in text


def test_broken_model_does_not_keep_people_waiting(replies: dict[str, tuple[int, Any]], url: str) -> None:
    """Once one model answers, the others get a short while."""
    serve(replies, flights=200, other=503)
    replies["/v2/health/ready"] = (503, {"ready": False})
    started = time.monotonic()
    announce.wait_up(url, has_models=True, wait_s=30, patience_s=0.1)
    assert time.monotonic() - started < 5
    text = announce.lines(context(url), has_models=True)
    assert text[0].endswith("is serving, but not every model.")
    assert text[-1].startswith("  curl")
