"""A request path without processes: the real core, codec, writer and ring, a session that tests choose."""

from __future__ import annotations

import asyncio
import mmap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson

from gateway import config as configuration
from gateway.api.codec import Codec
from gateway.api.encode import RunEncoder
from gateway.api.problems import reply_of, status_of
from gateway.append import Appender
from gateway.audit.frame import expand
from gateway.audit.ring import HEADER_PAGE_BYTES, Ring, RingFacts
from gateway.audit.source import Source
from gateway.audit.writer import Writer
from gateway.control import snapshot
from gateway.core import Core
from gateway.fleet import Fleet
from gateway.head import Head
from gateway.routing import Change, first_route
from gateway.serving import Models
from loaders.bundle import BundleSettings
from loaders.signature import Signature, TensorSpec

SIGNATURE = Signature(
    (TensorSpec("X", "FP32", (-1, 4)),),
    (TensorSpec("Y", "FP32", (-1, 1)),),
)


class SumSession:
    """Y = sum of the row; fails on rows that hold 666, is as slow as told."""

    def __init__(self, signature: Signature = SIGNATURE, *, batchable: bool = True) -> None:
        self.model, self.version = "sum", "1"
        self.signature = signature
        self.batchable = batchable
        self.inline_allowed = True
        self.runtime = "test"
        self.load_ms = 1
        self.max_batch_rows: int | None = None
        self.queue_delay_us: int | None = None
        self.warm_cost_ns = {1: 1000, 32: 1000}
        self.bundle = SimpleNamespace(
            settings=BundleSettings(), tree_sha256="aa", config_sha256="bb", reference_sha256=None
        )
        self.profile: Any = None
        self.redacted: Any = ()
        self.label_names: dict[str, list[str]] = {}
        self.config: dict[str, Any] = {}
        self.runs: list[int] = []

    def run(self, feeds: dict[str, Any], names: Any = None, options: Any = None) -> list[Any]:
        x = feeds["X"]
        self.runs.append(len(x))
        if (x == 666).any():
            msg = "a row is bad"
            raise ValueError(msg)
        return [x.sum(axis=1, keepdims=True).astype(np.float32)]

    def new_run_options(self) -> Any:
        return SimpleNamespace(terminate=False)


class Untimed(Models):
    """Versions whose runs are what the session says they cost: one that met a pause of the interpreter or of the
    machine would else be learnt as dear, and the next ones go to a lane."""

    def _make_version(self, *args: Any) -> Any:
        version = super()._make_version(*args)
        version.times = lambda: False  # type: ignore[method-assign]
        return version


class Sink:
    """Keeps the reply."""

    def __init__(self) -> None:
        self.disconnected = False
        self.status = 0
        self.fields: dict[str, str] = {}
        self.body: Any = None

    def reply(self, status: int, fields: bytes, body: bytes) -> None:
        assert not self.status, "answered twice"
        self.status = status
        lines = (line.partition(b": ") for line in fields.split(b"\r\n") if line)
        self.fields = {name.decode(): value.decode() for name, _, value in lines}
        self.body = orjson.loads(body)


class Path_:
    """The composed path; drain by hand with `events`. Its runs are timed and learnt where `timed`."""

    def __init__(
        self,
        tmp_path: Path,
        *settings: str,
        session: Any = None,
        ring_bytes: int = 1 << 20,
        timed: bool = False,
    ) -> None:
        self.config, _ = configuration.load(overrides=settings, environ={})
        self.fleet = Fleet.create(tmp_path / "fleet", 1)
        change = Change(by="test", reason="test")
        serving = snapshot.Serving(
            gateway_id="00" * 8,
            generation=1,
            routes={"sum": first_route("sum", "1", "aa" * 16, change)},
            versions=(snapshot.DesiredVersion(model="sum", version="1", slot=0),),
        )
        self.snapshot_path = tmp_path / "snapshot"
        snapshot.write(self.snapshot_path, snapshot.encode(serving, snapshot.Ledger()))
        self.fleet.publish_generation(1)
        self.session = session or SumSession()
        memory = memoryview(mmap.mmap(-1, HEADER_PAGE_BYTES + ring_bytes))
        self.ring = Ring.create(memory, RingFacts(7, 9, None, 0, 0))
        source = Source(7, "worker", 0, 9, None, self.ring, tmp_path / "ring", (-1, -1))
        self.writer = Writer(source, "00" * 8)
        loop = asyncio.get_running_loop()
        self.appender = Appender(loop, self.writer, self.config.audit)
        self.models = (Models if timed else Untimed)(
            0,
            self.fleet,
            self.snapshot_path,
            self.config.batch,
            (
                lambda model, s: Codec(model, s.signature, batchable=s.batchable),
                lambda model, version, s: RunEncoder(model, version, s.signature, batchable=s.batchable),
                status_of,
            ),
        )
        self.models.registry = SimpleNamespace(
            want=lambda desired: None, get=lambda model, version: self.session
        )
        self.core = Core(loop, self.config, self.models, self.appender, reply_of, self.writer.prefix)
        self.models.poll()
        self.models.on_change("sum", "1", "ready", None)
        self._position = 0

    def head(self, **changes: Any) -> Head:
        facts = {
            "model": "sum",
            "version": None,
            "caller": self.core.caller("/v2/models/sum/infer", "oip-json", "anonymous"),
            "endpoint": "/v2/models/sum/infer",
        }
        return Head(**{**facts, **changes})

    def send(self, values: list[float] | list[list[float]], **head: Any) -> Sink:
        sink = Sink()
        rows = values if isinstance(values[0], list) else [values]
        flat = [v for row in rows for v in row]
        body = orjson.dumps(
            {"inputs": [{"name": "X", "datatype": "FP32", "shape": [len(rows), 4], "data": flat}]}
        )
        self.send_body(body, sink, **head)
        return sink

    def send_body(self, body: bytes, sink: Sink, **head: Any) -> None:
        import time

        self.core.receive(self.head(**head), body, sink, time.perf_counter_ns())

    def events(self) -> list[Any]:
        """Everything appended since the last call, drained."""
        out: list[Any] = []
        frames, _, self._position = self.ring.read(self._position, 1 << 30)
        for frame in frames:
            out.extend(expand(7, 9, frame))
        self.ring.set_synced(self._position)
        return out

    def predictions(self) -> list[Any]:
        """Only the prediction events."""
        return [e for e in self.events() if type(e).__name__ == "Prediction"]

    def close(self) -> None:
        self.core.close()


async def until(condition: Any, timeout_s: float = 60.0) -> None:
    """Turn the loop until a condition holds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not condition():
        assert loop.time() < deadline, "did not happen in time"
        await asyncio.sleep(0)
