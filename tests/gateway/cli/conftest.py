"""A listener that answers as a gateway would, and a runner of the command line in-process."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import click.testing
import pytest

from gateway.cli import command


class Seen(NamedTuple):
    """A request that the fake received."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: Any


class FakeGateway:
    """Canned replies by (method, path); what was asked stands in `seen`."""

    def __init__(self) -> None:
        self.replies: dict[tuple[str, str], tuple[int, dict[str, str], Any]] = {}
        self.seen: list[Seen] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def _handle(self) -> None:
                length = int(self.headers.get("content-length", 0))
                content = self.rfile.read(length)
                at = urlsplit(self.path)
                headers = {k.lower(): v for k, v in self.headers.items()}
                body = json.loads(content) if content else None
                fake.seen.append(Seen(self.command, at.path, at.query, headers, body))
                status, extra, reply = fake.replies.get(
                    (self.command, at.path),
                    (404, {}, {"error": f"no {at.path}", "code": "not_found"}),
                )
                if callable(reply):
                    reply = reply(fake.seen[-1])
                if reply is None:
                    # As a process that dies: the connection ends, and no answer comes.
                    self.close_connection = True
                    self.connection.close()
                    return
                out = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(status)
                for name, value in extra.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(out)))
                self.end_headers()
                self.wfile.write(out)

            do_GET = do_POST = do_PUT = do_DELETE = _handle

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def on(
        self,
        method: str,
        path: str,
        body: Any,
        status: int = 200,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Answer `method path` so; a function is asked for the body at each request, and None ends the connection."""
        self.replies[method, path] = (status, headers or {}, body)

    def stop(self) -> None:
        """Close the listener."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def fake() -> Iterator[FakeGateway]:
    """A fake gateway; data and admin listener in one."""
    server = FakeGateway()
    yield server
    server.stop()


@pytest.fixture
def state_dir(tmp_path: Path, fake: FakeGateway) -> Path:
    """A state directory as a running gateway leaves it."""
    path = tmp_path / "state"
    path.mkdir()
    (path / "admin.token").write_text("secret-token\n")
    endpoints = {"data_url": fake.url, "admin_url": fake.url, "pid": 1}
    (path / "endpoints.json").write_text(json.dumps(endpoints))
    return path


Run = Callable[..., click.testing.Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call `tidegate ARGS...` in an empty directory; errors that are no answers are raised."""
    monkeypatch.chdir(tmp_path)
    # Tables are as wide as the terminal; a narrow one folds what tests look for.
    monkeypatch.setenv("COLUMNS", "200")

    def call(*args: str, stdin: str | None = None) -> click.testing.Result:
        result = click.testing.CliRunner().invoke(command, args, input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert "Traceback" not in result.output
        return result

    return call
