"""Serving: the processes under measurement, started and found as an operator would.

A `Gateway` is `tidegate serve` with a state directory of its own; its children are found by their
command lines, as in `ps`, and their processor time is the kernel's. `Nginx` is the partner whose
static reply is the unit.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from gateway.errors import ConfigInvalid

ROLES = {
    "worker": "gateway.worker",
    "recorder": "gateway.audit.recorder",
    "forwarder": "gateway.audit.forwarder",
    "control": "gateway.control",
    "sidecar": "shadow.sidecar",
    "mirror": "shadow.mirror",
}
"""Module names as they stand in children's command lines."""
QUICK = "data.lame_duck_s=0.2"
"""Whoever starts gateways by the hundred keeps connections that nobody would miss."""
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Reply(NamedTuple):
    """An HTTP reply: status, headers by lower-case name, JSON content (or None)."""

    status: int
    headers: dict[str, str]
    content: Any


def call(
    url: str, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
) -> Reply:
    """One HTTP request on a connection of its own; raises OSError when there is no answer."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    try:
        content = None if body is None else json.dumps(body)
        sent = {"content-type": "application/json"} if content is not None else {}
        connection.request(method, path, content, {**sent, **(headers or {})})
        reply = connection.getresponse()
        raw = reply.read()
        named = {name.lower(): value for name, value in reply.getheaders()}
        is_json = "json" in named.get("content-type", "")
        return Reply(reply.status, named, json.loads(raw) if is_json and raw else None)
    except http.client.HTTPException as exc:
        raise ConnectionError(str(exc)) from exc
    finally:
        connection.close()


def cpu_s(pid: int) -> float:
    """User and system time of a process, all its threads, ended ones too. Grain: 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def busy_s() -> float:
    """Processor time that was spent on anything, all processors together, stolen time included."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = (int(field) for field in fields)
    return (user + nice + system + irq + softirq + steal) * _TICK_S


def child_pids(parent: int) -> dict[int, str]:
    """The live children of a process and their command lines."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            if int(fields[1]) == parent and fields[0] != b"Z":
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(entry.name)] = command.decode(errors="replace").strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


class Gateway:
    """`tidegate serve` as a child process, on free loopback ports.

    Args:
        models: the repository.
        state_dir: where its state goes; the same one again continues it.
        settings: texts of `--set`, after QUICK.
        cpus: processors that the whole tree may use, as taskset takes them; None: all.
    """

    def __init__(
        self,
        models: Path,
        state_dir: Path,
        *,
        workers: int = 1,
        settings: Sequence[str] = (),
        cpus: str | None = None,
    ) -> None:
        self.models = models
        self.state_dir = state_dir
        self.workers = workers
        self.log = state_dir.with_name(state_dir.name + ".log")
        self.data_url = self.admin_url = ""
        self.pid = 0
        self._settings = settings
        self._cpus = cpus
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[str]:
        """The command line that is run."""
        pinned = [] if self._cpus is None else ["taskset", "-c", self._cpus]
        options = [part for text in (QUICK, *self._settings) for part in ("--set", text)]
        return [*pinned, sys.executable, "-m", "gateway.cli", "serve", str(self.models),
                "--port", "0", "--admin-port", "0", "--workers", str(self.workers),
                "--state-dir", str(self.state_dir), *options]  # fmt: skip

    def start(
        self,
        timeout_s: float = 60,
        *,
        prefix: Sequence[str] = (),
        environ: dict[str, str] | None = None,
    ) -> Gateway:
        """Start and wait until every worker serves and nothing is loading.

        Args:
            prefix: a command to run it under (a tracer).

        Raises:
            TimeoutError, ChildProcessError: with the end of what it said.
        """
        env = dict(os.environ if environ is None else environ)
        env["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
        self.state_dir.parent.mkdir(parents=True, exist_ok=True)
        (self.state_dir / "endpoints.json").unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                [*prefix, *self.command], stdout=log, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, env=env,
            )  # fmt: skip
        try:
            self._await_ready(time.monotonic() + timeout_s)
        except BaseException:
            self.kill9_all()
            raise
        return self

    def _await_ready(self, deadline: float) -> None:
        process = self._process
        while not self._ready():
            if process is not None and process.poll() is not None:
                msg = f"serve ended with {process.returncode}: {self.said()}"
                raise ChildProcessError(msg)
            if time.monotonic() > deadline:
                msg = f"serve was not ready in time: {self.said()}"
                raise TimeoutError(msg)
            time.sleep(0.05)

    def _ready(self) -> bool:
        try:
            endpoints = json.loads((self.state_dir / "endpoints.json").read_text())
            self.data_url, self.admin_url = endpoints["data_url"], endpoints["admin_url"]
            self.pid = endpoints["pid"]
            if call(self.data_url, "GET", "/v2/health/ready").status != 200:
                return False
            return self._settled()
        except (OSError, ValueError, KeyError):
            return False

    def _settled(self) -> bool:
        """Whether every worker serves what control last published, and nothing is loading.

        The listener is shared: one worker that is ready answers for all.
        """
        fleet, models = self.admin("GET", "fleet"), self.admin("GET", "models")
        routes = self.admin("GET", "routes")
        if {fleet.status, models.status, routes.status} != {200}:
            return False
        workers = fleet.content["workers"]
        versions = [v for model in models.content["models"] for v in model["versions"]]
        none_expected = not any(self.models.glob("*/*/model.onnx"))
        return (
            len(workers) == self.workers
            and all(w["state"] == "serving" for w in workers)
            and all(w["generation"] == fleet.content["generation"] for w in workers)
            and all(v["state"] != "loading" for v in versions)
            and (none_expected or bool(versions and routes.content["routes"]))
        )

    def admin(self, method: str, path: str, body: object = None, *, revision: int | None = None) -> Reply:
        """An admin request under /admin/v1/, with the first start's token."""
        headers = {"authorization": f"Bearer {(self.state_dir / 'admin.token').read_text().strip()}"}
        if revision is not None:
            headers["if-match"] = f'"{revision}"'
        return call(self.admin_url, method, f"/admin/v1/{path}", body, headers)

    def pids(self, role: str) -> list[int]:
        """Pids of the live children of a role, lowest first."""
        module = ROLES[role]
        return sorted(pid for pid, command in child_pids(self.pid).items() if module in command.split())

    def kill9(self, role: str) -> int:
        """Kill the oldest child of a role; returns its pid."""
        pid = self.pids(role)[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    def await_successor(self, role: str, killed: int, timeout_s: float = 30) -> None:
        """Wait until the role is complete again without the killed pid.

        Raises:
            TimeoutError: when nobody took its place.
        """
        expected = self.workers if role == "worker" else 1
        deadline = time.monotonic() + timeout_s
        while True:
            alive = self.pids(role)
            if killed not in alive and len(alive) == expected:
                return
            if time.monotonic() > deadline:
                msg = f"no successor of the killed {role} within {timeout_s:g} s: {self.said()}"
                raise TimeoutError(msg)
            time.sleep(0.02)

    def terminate(self) -> None:
        """Ask it to drain and end."""
        os.kill(self.pid, signal.SIGTERM)

    def stop(self, timeout_s: float = 30) -> int:
        """Drain, wait, return the exit status; killed when it does not end in time (status -9)."""
        if self._process is None or self._process.poll() is not None:
            return 0 if self._process is None else self._process.returncode
        if self.pid:
            self.terminate()
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill9_all()
            return -9

    def wait(self, timeout_s: float) -> int:
        """The exit status, once it ended; raises subprocess.TimeoutExpired."""
        if self._process is None:
            return 0
        return self._process.wait(timeout_s)

    def kill9_all(self) -> None:
        """Kill the supervisor; its children go with it."""
        if self._process is None:
            return
        if self.pid and self.pid != self._process.pid and self._process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait(10)

    def said(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else "(nothing)"

    def __enter__(self) -> Gateway:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()


_NGINX = """
worker_processes 1; daemon off; pid {prefix}/pid; error_log {prefix}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 75s;
  client_body_temp_path {prefix}/body; proxy_temp_path {prefix}/proxy;
  fastcgi_temp_path {prefix}/fastcgi; uwsgi_temp_path {prefix}/uwsgi; scgi_temp_path {prefix}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location / {{ default_type application/json; return 200 '{reply}'; }}
  }}
}}
"""


class Nginx:
    """One nginx worker that answers everything with one JSON text, in a prefix of its own."""

    def __init__(self, prefix: Path, reply: str, cpus: str | None = None) -> None:
        binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
        if binary is None:
            msg = "nginx is not on this machine: install it to measure against its static reply"
            raise ConfigInvalid(msg)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        prefix.mkdir(parents=True)
        config = prefix / "nginx.conf"
        config.write_text(_NGINX.format(prefix=prefix, port=port, reply=reply))
        pinned = [] if cpus is None else ["taskset", "-c", cpus]
        self.url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(  # noqa: S603
            [*pinned, binary, "-p", str(prefix), "-c", str(config),
             "-e", str(prefix / "error.log")],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 5
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                msg = "nginx did not start"
                raise ChildProcessError(msg)
            time.sleep(0.02)
        self.worker_pid = next(iter(child_pids(self._process.pid)))

    def _answers(self) -> bool:
        try:
            return call(self.url, "GET", "/").status == 200
        except OSError:
            return False

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(10)
