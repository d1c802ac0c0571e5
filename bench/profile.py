"""Where the microseconds of one request go, in one process and without a socket: `bench profile`.

Drives the real door, core, codec, session and ring with a transport that throws bytes away; 32 connections send one
row each per turn, as under load. Each part is timed alone over many turns, the whole path too; what the kernel and the
event loop add is `bench limits` less the whole.
"""

from __future__ import annotations

import asyncio
import mmap
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from uvicorn.server import ServerState

from bench import report
from bench.models import write_mlp
from bench.paired import Watch
from gateway import config as configuration
from gateway.api.codec import Codec
from gateway.api.encode import RunEncoder
from gateway.api.fast import FastProtocol
from gateway.api.problems import reply_of, status_of
from gateway.append import Appender
from gateway.audit.ring import HEADER_PAGE_BYTES, Ring, RingFacts
from gateway.audit.source import Source
from gateway.audit.writer import Writer
from gateway.batching import Batch, Inference
from gateway.control import snapshot
from gateway.core import Core
from gateway.fleet import Fleet
from gateway.recording import RunFacts
from gateway.routing import Change, first_route
from gateway.serving import Models
from loaders.session import Session, load

CONNECTIONS = 32
ROUNDS = 11
TURNS = 200
ARRIVING = ("admit", "decode", "route")
"""Stages that are passed as a request arrives; the others once a turn."""


class Part(msgspec.Struct, frozen=True):
    """One line of the profile, microseconds of processor time per request."""

    stage: str
    what: str
    us: float
    interval: report.Interval | None = None
    """Of the median over the rounds; None of the rest."""


class Profile(msgspec.Struct, frozen=True):
    """Parts in the order of the path; the last three are the rests and the whole."""

    parts: list[Part]
    foreign_cpus: float
    machine: report.Machine


class _Transport:
    """Takes replies and throws them away."""

    def write(self, data: bytes) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def is_closing(self) -> bool:
        """Never."""
        return False

    def get_extra_info(self, name: str) -> Any:
        """No facts."""
        return None

    def pause_reading(self) -> None:
        """Nothing."""

    def resume_reading(self) -> None:
        """Nothing."""


class _Registry:
    def __init__(self, session: Session) -> None:
        self._session = session

    def want(self, desired: Any) -> None:
        """All is loaded."""

    def get(self, model: str, version: str) -> Session:
        """The one session."""
        return self._session


class _Loop:
    """Stands for the event loop: turns are called by hand."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def call_soon(self, callback: Callable[[], None]) -> None:
        """The bench calls the turn itself."""

    def call_later(self, delay: float, callback: Callable[..., None]) -> Any:
        """Nothing waits here."""

    def time(self) -> float:
        """The clock of idle connections."""
        return self._loop.time()


class Rig:
    """The composed path of one worker in this process."""

    def __init__(self, directory: Path, loop: asyncio.AbstractEventLoop) -> None:
        write_mlp(directory)
        session = load(directory, "mlp", "1")
        config, _ = configuration.load(environ={}, overrides=["batch.inline_us=5000"])
        fleet = Fleet.create(directory / "fleet", 1)
        route = first_route("mlp", "1", "00" * 16, Change(by="bench", reason="bench"))
        version = snapshot.DesiredVersion(model="mlp", version="1", slot=0)
        serving = snapshot.Serving(
            gateway_id="00" * 8, generation=1, routes={"mlp": route}, versions=(version,)
        )
        snapshot.write(directory / "snapshot", snapshot.encode(serving, snapshot.Ledger()))
        fleet.publish_generation(1)
        memory = memoryview(mmap.mmap(-1, HEADER_PAGE_BYTES + (32 << 20)))
        self.ring = Ring.create(memory, RingFacts(1, 1, None, 0, 0))
        writer = Writer(Source(1, "worker", 0, 1, None, self.ring, directory, (-1, -1)), "00" * 8)
        stand_in: Any = _Loop(loop)
        makers = (
            lambda model, s: Codec(model, s.signature, batchable=s.batchable),
            lambda model, v, s: RunEncoder(model, v, s.signature, batchable=s.batchable),
            status_of,
        )
        models = Models(0, fleet, directory / "snapshot", config.batch, makers)
        models.registry = _Registry(session)
        appender = Appender(stand_in, writer, config.audit)
        self.core = Core(stand_in, config, models, appender, reply_of, writer.prefix)
        models.start()
        models.on_change("mlp", "1", "ready", None)
        self.version = models.get("mlp").version("1")  # type: ignore[union-attr]
        settings = uvicorn.Config(app=_no_app, log_config=None, access_log=False, server_header=False)
        settings.load()
        state = ServerState()
        state.default_headers = [(b"date", b"Mon, 01 Jan 2024 00:00:00 GMT")]
        door = FastProtocol.bind(self.core, takes_fast=True, connections_max=CONNECTIONS)
        self.doors = [door(settings, state, {}, _loop=stand_in) for _ in range(CONNECTIONS)]
        for one in self.doors:
            transport: Any = _Transport()
            one.connection_made(transport)
        self.requests = requests(random.Random(7), CONNECTIONS)  # noqa: S311

    def arrive(self) -> None:
        """One request on each connection."""
        for door, request in zip(self.doors, self.requests, strict=True):
            door.data_received(request)

    def turn(self) -> None:
        """What the loop calls once all have arrived; then the recorder's part."""
        self.core.turn()
        self.ring.set_synced(self.ring.committed)


async def _no_app(scope: Any, receive: Any, send: Any) -> None:
    """Never called: all requests are of the fast door's shape."""


def requests(rng: random.Random, count: int) -> list[bytes]:
    """Requests of one row each, as they come over a connection."""
    out = []
    for _ in range(count):
        row = [round(rng.uniform(-5, 5), 4) for _ in range(30)]
        tensor = {"name": "X", "datatype": "FP32", "shape": [1, 30], "data": row}
        body = msgspec.json.encode({"inputs": [tensor]})
        head = f"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        out.append(head.encode() + body)
    return out


def _us(work: Callable[[], object], turns: int) -> float:
    """Processor time of `work` per request; a thread's own, so that neighbours do not count."""
    started = time.thread_time_ns()
    for _ in range(turns):
        work()
    return (time.thread_time_ns() - started) / turns / CONNECTIONS / 1000


def _halves_us(rig: Rig, turns: int) -> tuple[float, float]:
    """The whole path per request, in its two halves: what is done as requests arrive, and what once a turn."""
    arriving = turning = 0
    for _ in range(turns):
        first = time.thread_time_ns()
        rig.arrive()
        second = time.thread_time_ns()
        rig.turn()
        arriving += second - first
        turning += time.thread_time_ns() - second
    return arriving / turns / CONNECTIONS / 1000, turning / turns / CONNECTIONS / 1000


def profile(turns: int = TURNS, rounds: int = ROUNDS) -> Profile:
    """Measure every part, interleaved: each round times each of them once. Takes some seconds."""
    watch = Watch({})
    with tempfile.TemporaryDirectory(prefix="tidegate-profile-") as name:
        rig = Rig(Path(name), asyncio.new_event_loop())
        for _ in range(50):
            rig.arrive()
            rig.turn()
        works = _works(rig)
        took: list[list[float]] = [[] for _ in works]
        halves = []
        for _ in range(rounds):
            for (_, _, work), values in zip(works, took, strict=True):
                values.append(_us(work, turns))
            halves.append(_halves_us(rig, turns))
    parts = [
        Part(stage, what, found.median, found)
        for (stage, what, _), found in zip(works, map(report.interval, took), strict=True)
    ]
    return Profile([*parts, *_rests(parts, halves)], watch.stop()[1], report.machine())


def _rests(parts: list[Part], halves: list[tuple[float, float]]) -> list[Part]:
    """What the parts leave of each half, and the whole."""
    whole = report.interval([arriving + turning for arriving, turning in halves])
    arriving = report.interval([half[0] for half in halves]).median
    early = sum(part.us for part in parts if part.stage in ARRIVING)
    late = sum(part.us for part in parts) - early
    return [
        Part("", "admission and queue (the rest of what is done on arrival)", arriving - early),
        Part("", "cutting the batch, replies (the rest of the turn)", whole.median - arriving - late),
        Part("", "whole path without kernel and loop", whole.median, whole),
    ]


def _works(rig: Rig) -> list[tuple[str, str, Callable[[], object]]]:
    """Each part alone, over the same 32 requests."""

    def whole() -> None:
        rig.arrive()
        rig.turn()

    batch = one_batch(rig, whole)
    core, version = rig.core, rig.version
    receive = core.receive

    def door() -> None:
        core.receive = lambda *a: None  # type: ignore[method-assign]
        rig.arrive()
        core.receive = receive  # type: ignore[method-assign]
        for one in rig.doors:
            one.cycle.response_complete = True

    head: Any = rig.doors[0]._kept_cycle.head
    entry: Any = core.models.get("mlp")
    bodies = [request.partition(b"\r\n\r\n")[2] for request in rig.requests]
    codec, outputs, sink = version.codec, batch.outputs, batch.inferences[0].sink
    limits = (core.appender.max_frame_bytes, 65_536)
    feeds = Batch(batch.inferences, batch.rows, "turn")

    def record() -> list[Any]:
        return RunFacts(version, batch, 1, None, time.perf_counter_ns()).frames(limits)

    payload = record()[0][0]
    return [
        ("admit", "door: kept head, connection, reply bytes aside", door),
        (
            "decode",
            "JSON to packed floats",
            lambda: [codec.decode(b, None, Inference(sink, 0)) for b in bodies],
        ),
        ("route", "bucket, deadline", lambda: [core._route(entry, head, i) for i in batch.inferences]),
        ("infer", "join, ONNX Runtime, one run of 32", lambda: _run(core, version, feeds)),
        ("encode", "rows to JSON", lambda: version.encoder.rows_json(outputs, batch.rows)),
        ("append", "columnar frame", record),
        ("append", "ring: copy and CRC", lambda: _append(rig.ring, payload)),
        ("append", "metrics, once a run", lambda: version.count(batch, time.perf_counter_ns(), failed=False)),
    ]


def one_batch(rig: Rig, whole: Callable[[], None]) -> Batch:
    """A run of 32 as the core cuts it, with its outputs."""
    batches: list[Batch] = []
    delivery = rig.core.delivery
    deliver = delivery.deliver

    def keep(v: Any, batch: Batch) -> None:
        batches.append(batch)
        deliver(v, batch)

    delivery.deliver = keep  # type: ignore[method-assign,assignment]
    whole()
    delivery.deliver = deliver  # type: ignore[method-assign]
    return batches[-1]


def _append(ring: Ring, payload: bytes) -> None:
    ring.append(payload, CONNECTIONS)
    ring.set_synced(ring.committed)


def _run(core: Core, version: Any, batch: Batch) -> None:
    batch.joined.clear()
    core.runs.run(version, batch)
