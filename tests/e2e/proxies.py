"""nginx and HAProxy as an operator starts them: the very files of deploy/, with addresses and paths put in.

Between proxy and gateway stands a `Tap`, which passes on every byte, keeps what it saw, and counts the gateway's
answers: what a proxy says it forwarded is held against what the gateway took for requests.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
PROXIES = ("nginx", "haproxy")
_MAIN = """
user root; pid {home}/pid; daemon off; worker_processes 1; error_log {home}/error.log;
events {{ worker_connections 1024; }}
http {{
  client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
  include {config};
}}
"""


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class Proxy:
    """One proxy in front of `upstream`, in a directory of its own.

    Args:
        kind: of PROXIES.
        upstream: the gateway's URL, or a tap's.
        changes: texts of the file that are replaced, for tests that do not wait for its time-outs. Each must be there.
    """

    def __init__(
        self, kind: str, home: Path, upstream: str, changes: Mapping[str, str] | None = None
    ) -> None:
        where = shutil.which(kind) or shutil.which(kind, path="/usr/sbin:/usr/local/sbin")
        if where is None:
            pytest.skip(f"{kind} is not installed")
        home.mkdir(parents=True)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = home / "access.log"
        text = (DEPLOY / {"nginx": "nginx.conf", "haproxy": "haproxy.cfg"}[kind]).read_text()
        put = {
            "127.0.0.1:8080": urlsplit(upstream).netloc,
            "0.0.0.0:80": f"127.0.0.1:{port}",
            **({"/var/log/nginx/tidegate.log": str(self._log)} if kind == "nginx" else {}),
            **(changes or {}),
        }
        for found, instead in put.items():
            assert found in text, f"deploy/ has no {found!r} for {kind}"
            text = text.replace(found, instead)
        config = home / "proxy.conf"
        config.write_text(text)
        command = [where, "-db", "-f", str(config)]
        if kind == "nginx":
            main = home / "main.conf"
            main.write_text(_MAIN.format(home=home, config=config))
            command = [where, "-p", str(home), "-c", str(main), "-e", str(home / "error.log")]
        self._said = home / "said"
        with self._log.open("wb") as out, self._said.open("wb") as said:
            self._process = subprocess.Popen(command, stdout=out, stderr=said)  # noqa: S603
        deadline = time.monotonic() + 10
        while not self._listens(port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{kind} did not start: {self._said.read_text()}")
            time.sleep(0.02)

    @staticmethod
    def _listens(port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def forwarded(self) -> int:
        """Requests that went on to the gateway, as the proxy's own log says."""
        lines = re.findall(r" upstream=(\S+) ", self._log.read_text(errors="replace"))
        return sum(said not in {"-", "<NOSRV>"} for said in lines)

    def logged(self) -> int:
        """Requests that the proxy logged."""
        return self._log.read_text(errors="replace").count(" upstream=")

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Tap:
    """Passes connections on to `url`, byte by byte, and counts the answers that come back.

    Threading: two threads a connection; counters are read by tests once nothing moves.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._to = (parts.hostname or "", parts.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self.asked: list[bytearray] = []
        """What the proxy sent, by connection."""
        self.ended_by: list[list[str]] = []
        """Who closed first, `proxy` or `gateway`, by connection; empty while it is open."""
        self._answers: list[_Answers] = []
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def answered(self) -> int:
        """Whole heads of answers that the gateway wrote, interim ones apart, and those to a proxy's own checks."""
        return sum(
            answers.count
            for asked, answers in zip(self.asked, self._answers, strict=False)
            if not asked.startswith(b"GET /v2/health/ready")
        )

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._to, 10)
            except OSError:
                return
            far.settimeout(None)
            self.connections += 1
            asked, answers, ended = bytearray(), _Answers(), []
            self.asked.append(asked)
            self.ended_by.append(ended)
            self._answers.append(answers)
            self._open += [near, far]
            ways = ((near, far, asked.extend, "proxy"), (far, near, answers.read, "gateway"))
            for source, sink, seen, name in ways:
                threading.Thread(
                    target=_pass_on, args=(source, sink, seen, (ended, name)), daemon=True
                ).start()

    def idle_ends(self) -> list[str | None]:
        """Who closed first each connection that was not a proxy's own check; None: nobody yet."""
        return [
            ended[0] if ended else None
            for asked, ended in zip(self.asked, self.ended_by, strict=False)
            if not asked.startswith(b"GET /v2/health/ready")
        ]

    def close(self) -> None:
        """Cut everything."""
        self._listener.close()
        for sock in self._open:
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _pass_on(
    source: socket.socket, sink: socket.socket, seen: Callable[[bytes], None], end: tuple[list[str], str]
) -> None:
    ended, name = end
    try:
        while data := source.recv(65536):
            seen(data)
            sink.sendall(data)
        ended.append(name)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for sock in (source, sink):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


class _Answers:
    """Counts answers in the gateway's bytes: all of ours have a Content-Length."""

    def __init__(self) -> None:
        self.count = 0
        self._buffer = bytearray()
        self._left = 0

    def read(self, data: bytes) -> None:
        """More of them."""
        self._buffer += data
        while True:
            taken = min(self._left, len(self._buffer))
            del self._buffer[:taken]
            self._left -= taken
            end = self._buffer.find(b"\r\n\r\n")
            if self._left or end < 0:
                return
            head = bytes(self._buffer[: end + 4])
            del self._buffer[: end + 4]
            if b" 100 " not in head[:13]:
                self.count += 1
                found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
                self._left = int(found[1]) if found else 0
