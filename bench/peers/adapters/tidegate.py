"""Tidegate: this product, measured through the same contract as every other.

`tidegate serve` with everything on and no setting that a reader of the docs would not find: what the calibration may
choose is workers and batching, as for the others. Batching off is runs of one request (`batch.max_rows=1`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

import gateway
from bench.peers.oip import infer_message, infer_outputs
from bench.peers.peer import Arrays, Begin, Form, Message, Running, Say, Setting, Source, Unavailable
from bench.peers.served_process import Served
from bench.serving import Reply, call

_ROOT = Path(__file__).resolve().parents[3]
_LOADS_S = 120.0
_POLL_S = 0.01
_DOCS = "docs/config.md of this repository"


class Tidegate:
    """See `Peer`."""

    name = "tidegate"
    title = "Tidegate"
    forms: frozenset[Form] = frozenset(("json", "binary"))
    audit = "every prediction in the log on this host before it is answered (audit.level=spool, the default)"
    receiver_kind = "kafka"
    sources: tuple[Source, ...] = (
        Source(
            "defaults are the production settings; given are ports, workers, the state directory and a deadline of 30 s"
            " (data.request_timeout_ms); under load also sidecar.enabled=false (it watches the log for drift, which"
            " no other product does), without the log audit.level=none",
            "Configuration", _DOCS,
        ),
    )  # fmt: skip
    choices = tuple(Setting(workers, batching) for workers in (1, 2, 4) for batching in (True, False))

    def prepare(self, say: Say) -> str:
        """The version; it runs from this interpreter's environment."""
        return gateway.__version__

    def begin(self, what: Begin) -> Running:
        """Start it; see `Peer.begin`."""
        return _Served(self, what)

    def message(self, model: str, feeds: Arrays, form: Form) -> Message:
        """The request for a prediction, in the Open Inference Protocol."""
        return infer_message(model, feeds, form)

    def outputs(self, headers: Mapping[str, str], body: bytes) -> Mapping[str, NDArray[Any]]:
        """A reply's tensors."""
        return infer_outputs(headers, body)


class _Served(Served):
    def command(self) -> list[str]:
        """As a user starts it."""
        options = [part for text in _settings(self.what) for part in ("--set", text)]
        return [
            sys.executable, "-m", "gateway.cli", "serve", str(self.what.repository),
            "--port", str(self.port), "--admin-port", str(self.side_port),
            "--workers", str(self.what.setting.workers), "--state-dir", str(self.home / "state"), *options,
        ]  # fmt: skip

    def environ(self) -> dict[str, str]:
        """From this source tree."""
        return {"PYTHONPATH": str(_ROOT)}

    def new_version(self, version: str) -> None:
        """Have the repository looked at, wait until it is loaded, and give it the traffic."""
        self._admin("POST", "models/refresh", {"reason": "bench"})
        deadline = time.monotonic() + _LOADS_S
        while self._state(version) != "ready":
            self._demand_time(deadline, version)
        variants = [{"name": "primary", "version": version, "role": "primary", "weight_bp": 10_000}]
        body = {"variants": variants, "reason": "bench"}
        route = f"routes/{self.what.model}"
        while self._admin("PUT", route, body, self._revision()).status not in (200, 202):
            self._demand_time(deadline, version)

    def _demand_time(self, deadline: float, version: str) -> None:
        if time.monotonic() > deadline:
            why = f"version {version} of {self.what.model} did not become ready in {_LOADS_S:g} s"
            raise Unavailable(Tidegate.name, why, self.said())
        time.sleep(_POLL_S)

    def _state(self, version: str) -> str:
        content = self._admin("GET", f"models/{self.what.model}").content
        return next((one["state"] for one in content["versions"] if one["version"] == version), "absent")

    def _revision(self) -> int:
        return int(self._admin("GET", f"routes/{self.what.model}").content["revision"])

    def _admin(self, method: str, path: str, body: object = None, revision: int | None = None) -> Reply:
        headers = {"authorization": f"Bearer {(self.home / 'state' / 'admin.token').read_text().strip()}"}
        if revision is not None:
            headers["if-match"] = f'"{revision}"'
        return call(self.side_url, method, f"/admin/v1/{path}", body, headers)


def _settings(what: Begin) -> list[str]:
    """Texts of --set."""
    texts = [f"{name}={value}" for name, value in what.setting.extra.items()]
    # A slow peer's deadline is 30 s or more: ours must not expire what theirs may take its time with.
    texts += ["data.request_timeout_ms=30000"]
    if not what.setting.batching:
        texts += ["batch.max_rows=1"]
    if not what.audit:
        texts += ["audit.level=none"]
    if not (what.audit and what.monitor):
        texts += ["sidecar.enabled=false"]
    if what.receiver is not None:
        texts += [f"kafka.bootstrap_servers={what.receiver}"]
    return texts
