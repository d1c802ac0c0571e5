"""Ray Serve: a deployment of replicas behind a proxy, on a Ray cluster of one node.

Its application is `served/ray_serve_app.py`: a driver that starts Ray with its daemons and waits. Another version is an
update in place of the deployment's user_config, which its replicas take up without being restarted.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from bench.peers import environment, raw_form
from bench.peers.peer import Arrays, Begin, Form, Message, Running, Say, Setting, Source
from bench.peers.processes import free_port
from bench.peers.served_process import APPS, Served

NAME = "ray-serve"
_LOCK = "ray_serve"
_APP = APPS / "ray_serve_app.py"
_OPTIONS = "options.json"
_DOCS = "https://docs.ray.io/en/latest"
_OBJECT_STORE_BYTES = 100_000_000
_ONGOING = "200"
"""`max_ongoing_requests`; more than the comparison's connections, as its page asks of asynchronous code."""
_NODE = "127.0.0.2"
"""Of loopback. Ray takes 127.0.0.1 for another name of the machine's outer address, over which its parts would talk."""
_PLACE_BYTES = 27
"""What a socket's path (107 characters) leaves for the temporary directory beside Ray's own names (session, plasma)."""
_FAST = {"haproxy": "1", "throughput_optimized": "1"}


class RayServe:
    """See `Peer`."""

    name = NAME
    title = "Ray Serve"
    forms: frozenset[Form] = frozenset(("json", "binary"))
    audit = (
        "none of its own: user code writes predictions to the logger ray.serve, whose JSON files rotate; line by line"
        " (RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE=1), for of the 1,000 that it would hold back a kill takes the last"
    )
    receiver_kind = ""
    sources: tuple[Source, ...] = (
        Source(
            "RAY_SERVE_THROUGHPUT_OPTIMIZED=1 switches on all its optimizations; batches; asynchronous methods with a"
            " higher max_ongoing_requests than 5",
            "Performance Tuning - Ray Serve", f"{_DOCS}/serve/advanced-guides/performance.html",
        ),
        Source(
            "RAY_SERVE_ENABLE_HA_PROXY=1 puts HAProxy in the place of the proxy in Python",
            "Enable High Throughput on Ray Serve with KubeRay",
            "https://docs.ray.io/en/master/kuberay/user-guides/serve-high-throughput.html",
        ),
        Source(
            "max_batch_size a power of 2, batch_wait_timeout_s well below what the latency goal leaves",
            "Dynamic Request Batching - Ray Serve", f"{_DOCS}/serve/advanced-guides/dyn-req-batch.html",
        ),
        Source(
            "CPU-bound work scales by replicas; blocking code stays off the event loop where a loop must answer",
            "Asyncio and concurrency best practices in Ray Serve",
            f"{_DOCS}/serve/advanced-guides/asyncio-best-practices.html",
        ),
        Source(
            "a change of user_config is an update in place, for which replicas are not restarted",
            "In-Place Updates for Serve", f"{_DOCS}/serve/advanced-guides/inplace-updates.html",
        ),
        Source(
            "what user code writes to the logger ray.serve comes with request and replica; access logs can be"
            " switched off",
            "Monitor Your Application - Ray Serve", f"{_DOCS}/serve/monitoring.html",
        ),
    )  # fmt: skip
    choices: tuple[Setting, ...] = (
        Setting(1, False, _FAST),
        Setting(1, True, {**_FAST, "max_batch_size": "8", "batch_wait_timeout_s": "0.001"}),
        Setting(1, False),
        Setting(1, True, {**_FAST, "max_batch_size": "32", "batch_wait_timeout_s": "0.005"}),
        Setting(2, False, _FAST),
        Setting(2, True, {**_FAST, "max_batch_size": "32", "batch_wait_timeout_s": "0.005"}),
        Setting(4, False, _FAST),
        Setting(4, True, {**_FAST, "max_batch_size": "32", "batch_wait_timeout_s": "0.005"}),
    )

    def prepare(self, say: Say) -> str:
        """See `Peer`."""
        return environment.made(_LOCK, say).versions["ray"]

    def begin(self, what: Begin) -> Running:
        """See `Peer`."""
        return _Served(self, what)

    def message(self, model: str, feeds: Arrays, form: Form) -> Message:
        """See `raw_form`."""
        return raw_form.message("/predict", feeds, form)

    def outputs(self, headers: Mapping[str, str], body: bytes) -> Mapping[str, NDArray[Any]]:
        """See `raw_form`."""
        return raw_form.outputs(headers, body)


def place_of_sockets() -> str:
    """Below what Ray's session is kept: the machine's temporary directory where sockets' paths fit, else /tmp."""
    place = tempfile.gettempdir()
    return place if len(os.fsencode(place)) <= _PLACE_BYTES else "/tmp"


class _Served(Served):
    lock = _LOCK
    _ray_dir = ""

    def lay_out(self) -> None:
        """Its driver and what that reads."""
        self._ray_dir = tempfile.mkdtemp(prefix="ray-", dir=place_of_sockets())
        self.metrics_url = f"{self.side_url}/metrics"
        shutil.copyfile(_APP, self.home / _APP.name)
        self._write_options()

    def command(self) -> list[str]:
        """The driver, which starts Ray's daemons."""
        return [str(self.installed.python), str(self.home / _APP.name), str(self.home / _OPTIONS)]

    def new_version(self, version: str) -> None:
        """The driver deploys the config again, in which user_config alone has changed."""
        self.version = version
        self._write_options()
        os.kill(self.pid, signal.SIGUSR1)

    def clear(self) -> None:
        """Its sockets and its logs."""
        shutil.rmtree(self._ray_dir, ignore_errors=True)

    def environ(self) -> dict[str, str]:
        """Nothing is sent to its makers; its optimizations as the setting has them; places and ports of this start."""
        extra, place = self.what.setting.extra, f"{self._ray_dir}/haproxy"
        # Optimized, it holds 1,000 lines back, and loses them when it ends: no log of predictions.
        lines = {"RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1"} if self.what.audit else {}
        return {
            **super().environ(),
            **lines,
            "RAY_USAGE_STATS_ENABLED": "0",
            # Its daemons listen on all addresses and ask for it. Given none, it writes one into the user's home.
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_SERVE_ENABLE_HA_PROXY": extra.get("haproxy", "0"),
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": extra.get("throughput_optimized", "0"),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{place}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{place}/admin.sock",
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{place}/metrics.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": place,
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{place}/server-state",
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
            # Nobody has to be told before a server of this comparison ends.
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
            # After 3 checks of 5 s it would give up a proxy that a busy machine is still starting, and start another.
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        }

    def _write_options(self) -> None:
        what, setting = self.what, self.what.setting
        extra = setting.extra
        quiet = {"enable_access_log": False, "encoding": "JSON", "logs_dir": str(what.home / "logs")}
        deployment = {
            "name": "OnnxModel", "num_replicas": setting.workers, "ray_actor_options": {"num_cpus": 1},
            "max_ongoing_requests": int(extra.get("max_ongoing_requests", _ONGOING)),
            "logging_config": quiet,
            "user_config": {"model_file": str(self.model_file())},
        }  # fmt: skip
        application = {
            "name": "onnx", "route_prefix": "/predict", "import_path": f"{_APP.stem}:build",
            "args": {
                "batching": setting.batching, "audit": what.audit,
                "max_batch_size": int(extra.get("max_batch_size", "32")),
                "batch_wait_timeout_s": float(extra.get("batch_wait_timeout_s", "0.005")),
            },
            "deployments": [deployment],
        }  # fmt: skip
        options = {
            "node": _NODE,
            "ray": {
                "num_cpus": setting.workers, "object_store_memory": _OBJECT_STORE_BYTES, "_temp_dir": self._ray_dir,
                "_metrics_export_port": self.side_port,
            },
            "serve": {
                "proxy_location": "HeadOnly", "http_options": {"host": "127.0.0.1", "port": self.port},
                "logging_config": quiet, "applications": [application],
            },
        }  # fmt: skip
        (self.home / _OPTIONS).write_text(json.dumps(options))
