"""The repository over the data listener: who may load and unload, and what a worker asks of control."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.api.crowd import Limits
from gateway.api.guarding import Guard
from gateway.api.infer import DataApi
from gateway.api.repository import ControlClient
from gateway.control.tokens import CLIENTS, PUBLISH, WORKER, Tokens, ensure_token
from tests.gateway.path import Path_

LOAD, UNLOAD = "/v2/repository/models/sum/load", "/v2/repository/models/sum/unload"


class Control(http.server.BaseHTTPRequestHandler):
    """Stands for the admin listener: keeps what it is asked, answers what the test says."""

    asked: list[tuple[str, str | None, Any]]
    answer: tuple[int, Any]

    def do_POST(self) -> None:
        """Any change."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append((self.path, self.headers["authorization"], body))
        content = json.dumps(self.answer[1]).encode()
        self.send_response(self.answer[0])
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@pytest.fixture
def control() -> Iterator[tuple[type[Control], str]]:
    """A control that answers, and where."""
    kept = type("Kept", (Control,), {"asked": [], "answer": (200, {"model": "sum"})})
    server = http.server.HTTPServer(("127.0.0.1", 0), kept)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield kept, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def send(
    tmp_path: Path,
    method: str,
    path: str,
    body: Any = None,
    *,
    client: Any = None,
    guard: Guard | None = None,
    **fields: str,
) -> httpx.Response:
    """One request to the data listener's application; `client` makes what asks control."""

    async def run() -> httpx.Response:
        path_ = Path_(tmp_path)
        api = DataApi(path_.core, Limits(), "spool", guard, control=client() if client else None)
        transport = httpx.ASGITransport(api.app())
        named = {name.replace("_", "-"): value for name, value in fields.items()}
        try:
            async with httpx.AsyncClient(
                transport=transport, base_url="http://127.0.0.1:8080"
            ) as http_client:
                return await http_client.request(method, path, json=body, headers=named)
        finally:
            path_.close()

    return asyncio.run(run())


def error(reply: httpx.Response, status: int, code: str) -> str:
    """The text of a refusal."""
    assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text
    return str(reply.json()["error"])


@pytest.mark.parametrize("path", [LOAD, UNLOAD])
def test_off_by_default(tmp_path: Path, path: str) -> None:
    """The addresses say how to switch them on, and the extension is not advertised."""
    assert "data.model_control" in error(send(tmp_path, "POST", path), 403, "forbidden")
    assert "model_repository" not in send(tmp_path, "GET", "/v2").json()["extensions"]


def test_control_is_asked_with_the_workers_token(tmp_path: Path, control: tuple[type[Control], str]) -> None:
    """By name, for all of the model, with a reason that says where it came from; the answer is the protocol's."""
    kept, url = control
    token = ensure_token(tmp_path, WORKER)
    reply = send(tmp_path, "POST", LOAD, client=lambda: ControlClient(url, tmp_path))
    assert (reply.status_code, reply.json()) == (200, {"name": "sum", "load": True})
    reason = "load asked over the data listener by anonymous"
    assert kept.asked == [("/admin/v1/models/sum/load", f"Bearer {token}", {"whole": True, "reason": reason})]
    body = {"parameters": {"unload_dependents": True}}
    client = lambda: ControlClient(url, tmp_path)  # noqa: E731
    assert send(tmp_path, "POST", UNLOAD, body, client=client).json() == {"name": "sum", "unload": True}


def test_refusals_of_control_are_told_as_they_are(tmp_path: Path, control: tuple[type[Control], str]) -> None:
    """Its status, text and code."""
    kept, url = control
    ensure_token(tmp_path, WORKER)
    kept.answer = 422, {"error": "failed to load 'sum' version 1: why", "code": "load_failed"}
    reply = send(tmp_path, "POST", LOAD, client=lambda: ControlClient(url, tmp_path))
    assert error(reply, 422, "load_failed") == "failed to load 'sum' version 1: why"


def test_control_that_is_away(tmp_path: Path) -> None:
    """503, to be tried again; nothing of where it should have been."""
    url = "http://127.0.0.1:9"
    reply = send(tmp_path, "POST", LOAD, client=lambda: ControlClient(url, tmp_path))
    assert "127.0.0.1" not in error(reply, 503, "control_unavailable")
    assert "retry-after" in reply.headers


@pytest.mark.parametrize("name", ["config", "file:1/model.onnx", "other"])
def test_uploads_and_overrides_are_refused(
    tmp_path: Path, control: tuple[type[Control], str], name: str
) -> None:
    """A clear word; control is not asked."""
    kept, url = control
    body = {"parameters": {name: "x"}}
    reply = send(tmp_path, "POST", LOAD, body, client=lambda: ControlClient(url, tmp_path))
    assert name in error(reply, 400, "invalid_request")
    assert kept.asked == []


@pytest.mark.parametrize("fields", [{"origin": "http://evil.example"}, {"host": "rebound.example"}])
def test_web_pages_are_refused(
    tmp_path: Path, control: tuple[type[Control], str], fields: dict[str, str]
) -> None:
    """A page of another origin, or one that came through a rebound name, unloads nothing on loopback."""
    kept, url = control
    reply = send(tmp_path, "POST", UNLOAD, client=lambda: ControlClient(url, tmp_path), **fields)
    error(reply, 403, "forbidden")
    assert kept.asked == []


def test_beyond_loopback_a_token_is_needed(tmp_path: Path, control: tuple[type[Control], str]) -> None:
    """publish.token, and no other; the log then says whose it was."""
    kept, url = control
    ensure_token(tmp_path, WORKER)
    token = ensure_token(tmp_path, PUBLISH)
    client = lambda: ControlClient(url, tmp_path)  # noqa: E731
    guard = Guard(Tokens(tmp_path, CLIENTS), on_loopback=False)
    reply = send(tmp_path, "POST", LOAD, client=client, guard=guard)
    assert "publish.token" in error(reply, 401, "unauthorized")
    sent = {"authorization": f"Bearer {token}", "host": "gateway.example"}
    reply = send(tmp_path, "POST", LOAD, client=client, guard=guard, **sent)
    assert reply.status_code == 200
    assert kept.asked[0][2]["reason"].endswith("by publish")


def test_index_tells_what_lies_there_and_what_is_loaded(tmp_path: Path) -> None:
    """On disk and not loaded is UNAVAILABLE; a body that is no index request is refused."""
    root = tmp_path / "models"
    for name in ("other", "sum"):
        (root / name / "1").mkdir(parents=True)
        (root / name / "1" / "model.onnx").write_bytes(b"")

    async def run() -> tuple[Any, Any]:
        path_ = Path_(tmp_path)
        transport = httpx.ASGITransport(DataApi(path_.core, Limits(), "spool", root=root).app())
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http_client:
            listed = await http_client.post("/v2/repository/index")
            only = await http_client.post("/v2/repository/index", json={"ready": True})
            wrong = await http_client.post("/v2/repository/index", json={"ready": "yes"})
        path_.close()
        error(wrong, 400, "invalid_request")
        return listed.json(), only.json()

    listed, only = asyncio.run(run())
    ready = {"name": "sum", "version": "1", "state": "READY", "reason": ""}
    assert listed == [{"name": "other", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}, ready]
    assert only == [ready]
