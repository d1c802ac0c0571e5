"""Control in one process: a real writer over a real ring, with stand-ins for the recorder and the workers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from gateway import fleet as words_of
from gateway.audit.recorder import Places, Recorder
from gateway.audit.source import SMALL_RING_BYTES, claim_source
from gateway.audit.writer import Writer
from gateway.control import snapshot
from gateway.control.engine import Engine
from gateway.control.recovery import recover
from gateway.control.state import State
from gateway.fleet import LOAD_FAILED, LOADING, READY, SERVING, Fleet
from gateway.routing import Change, first_route
from tests.gateway.audit.sim import owning, recording

GATEWAY_ID = "00112233aabbccdd"
MODEL = "m"
WHY = Change(by="test", reason="because", at_ns=1)


class Plane:
    """One state directory with an engine on it.

    Attributes:
        synced: whether the recorder's stand-in puts on disk what is appended.
        absent: workers that take up nothing.
        failed: (worker, version) pairs that fail to load, with the reason; "loading" stays loading.
    """

    def __init__(self, state_dir: Path, *, workers: int = 2) -> None:
        self.state_dir = state_dir
        self.ring_dir = state_dir / "ring"
        self.spool = state_dir / "spool"
        self.path = state_dir / "control" / "snapshot"
        self.ring_dir.mkdir(parents=True)
        self.path.parent.mkdir()
        self.fleet = Fleet.create(self.ring_dir / "fleet", workers)
        for index in range(workers):
            self.fleet.worker(index)[words_of.STATE] = SERVING
        source = claim_source(state_dir, GATEWAY_ID, "control", self.ring_dir, SMALL_RING_BYTES)
        self.writer = owning(Writer(source, GATEWAY_ID))
        empty = State(snapshot.Serving(gateway_id=GATEWAY_ID, generation=0), snapshot.Ledger())
        self.engine = Engine(empty, self.writer, self.fleet, self.path)
        self.synced = True
        self.absent: set[int] = set()
        self.failed: dict[tuple[int, str], str] = {}
        self.recorder: Recorder | None = None

    def record(self) -> None:
        """From now on a real recorder drains to the spool."""
        self.recorder = recording(Recorder(Places(self.state_dir, self.ring_dir), GATEWAY_ID, 1 << 20))

    def step(self) -> None:
        """What recorder and workers do between two looks of the engine."""
        ring = self.writer.ring
        if self.recorder is not None:
            if self.synced:
                self.recorder.step()
        elif self.synced:
            ring.set_synced(ring.committed)
        for index in range(self.fleet.workers):
            if index in self.absent:
                continue
            for desired in self.engine.state.serving.versions:
                slot = self.fleet.slot(index, desired.slot)
                reason = self.failed.get((index, desired.version))
                self.fleet.set_reason(index, desired.slot, reason or "")
                state = READY if reason is None else LOADING if reason == "loading" else LOAD_FAILED
                slot[words_of.LOAD_STATE] = state
            self.fleet.worker(index)[words_of.GENERATION] = self.fleet.generation

    @contextlib.asynccontextmanager
    async def alive(self) -> AsyncIterator[Engine]:
        """Recorder and workers run beside the body."""

        async def live() -> None:
            while True:
                self.step()
                await asyncio.sleep(0.0005)

        task = asyncio.create_task(live())
        try:
            yield self.engine
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def begin(self, *versions: str, primary: str = "1") -> None:
        """A model with these versions on disk, its first route, and all of it loaded."""
        await self.engine.place({MODEL: versions})
        self.step()
        await self.engine.first_route(first_route(MODEL, primary, "ab" * 16, WHY))
        self.step()

    def recovered(self) -> State:
        """What the next control process begins with."""
        return recover(self.path, self.spool, GATEWAY_ID)
