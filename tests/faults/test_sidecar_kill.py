"""The sidecar's own process, killed -9 at random points while a log is written: no tick twice, nothing lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from gateway import config as configuration
from gateway.audit.drained import sources_of
from gateway.audit.event import Event
from gateway.audit.spool_feed import SpoolFeed
from gateway.audit.writer import Writer
from gateway.process import Context
from loaders.bundle import tree_sha256
from shadow.bundles import Bundles
from shadow.replay import Source, replay, stored_of
from shadow.store import Store
from shadow.verdicts import spool_verdicts
from tests.gateway.audit.sim import GATEWAY_ID, ROOT, Log, until
from tests.shadow.story import MODEL, labels, prediction, route

KILLS = 20
BUNDLE = """
[outputs.probabilities]
kind = "probability"
decision = { column = 1, threshold = 0.5 }
[labels]
kind = "class"
maturity_s = 1
"""


class Gateway(Log):
    """A log with a real recorder, and the sidecar as the supervisor would start it; its admin is never there."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory / "state")
        self.models = directory / "models"
        self.trees = {version: self._version(version) for version in ("1", "2")}

    def _version(self, version: str) -> str:
        directory = self.models / MODEL / version
        directory.mkdir(parents=True)
        (directory / "model.onnx").write_bytes(b"graph " + version.encode())
        (directory / "bundle.toml").write_text(BUNDLE)
        return tree_sha256(directory)

    def context(self) -> dict[str, str]:
        """Ticks ten times a second."""
        settings = [f"state_dir={self.state_dir}", "audit.segment_bytes=65536", "sidecar.tick_s=0.1"]
        loaded, _ = configuration.load(None, settings, {})
        context = Context(
            config=configuration.encode(loaded),
            models=str(self.models),
            state_dir=str(self.state_dir),
            gateway_id=GATEWAY_ID,
            ring_dir=str(self.ring_dir),
            admin_url="http://127.0.0.1:1",
        )
        return {"TG_CONTEXT": context.to_env()["TG_CONTEXT"], "ORT_DISABLE_TELEMETRY": "1"}

    @contextmanager
    def lives(self) -> Iterator[Lives]:
        """A process that makes sidecars."""
        with (self.state_dir / "lives").open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tests.faults.sidecar_lives"],
                env={**os.environ, "PYTHONPATH": str(ROOT), **self.context()},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            with process:
                try:
                    yield Lives(process)
                finally:
                    process.kill()


class Lives:
    """Sidecars that begin at once, see `tests.faults.sidecar_lives`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def begin(self) -> int:
        """The pid of a new one."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self.said())

    def said(self) -> str:
        """The next line of what they say."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


class Traffic:
    """What workers and control append: a canary that fails more often, labels, changes of weight."""

    def __init__(self, log: Gateway, rng: random.Random) -> None:
        self._trees = log.trees
        self._rng = rng
        self._control: Writer = log.owner("control", 1 << 22)
        self._workers: list[Writer] = [log.owner("worker", 1 << 22) for _ in range(2)]
        self._ids: list[str] = []
        self.revision, self.weight_bp = 1, 0
        self.said = 0
        self._append(self._control, route(1))
        self.shift()

    def shift(self) -> None:
        """Another weight; the trial goes on."""
        self.revision += 1
        self.weight_bp = self._rng.choice([1000, 2000, 3000])
        self._append(self._control, route(self.revision, canary="2", weight_bp=self.weight_bp))

    def some(self, count: int) -> None:
        """Requests, and labels for a third of them."""
        for _ in range(count):
            is_canary = self._rng.randrange(10_000) < self.weight_bp
            name, version = ("canary", "2") if is_canary else ("primary", "1")
            weight_bp = self.weight_bp if is_canary else 10_000 - self.weight_bp
            failed = self._rng.random() < (0.08 if is_canary else 0.02)
            event = prediction(
                self.revision,
                name,
                weight_bp,
                version,
                kind="failed" if failed else "done",
                scores=[self._rng.random()],
                at_ns=time.time_ns(),
                tree_sha256=self._trees[version],
            )
            self._ids.append(self._append(self._rng.choice(self._workers), event))
            if self._rng.random() < 0.3:
                of = self._rng.choice(self._ids[-50:])
                given = labels((of, 0, self._rng.randrange(2)))
                given.at_ns = time.time_ns()  # a label is received after its prediction
                self._append(self._rng.choice(self._workers), given)

    def _append(self, writer: Writer, event: Event) -> str:
        seq = writer.append_events([event])
        assert seq is not None
        self.said += 1
        return writer.event_id(seq)

    @property
    def ends(self) -> dict[str, int]:
        """Behind all that was appended, by epoch."""
        return {writer.prefix[:-1]: writer.ring.assigned for writer in (self._control, *self._workers)}

    def close(self) -> None:
        """The epochs end."""
        for writer in (self._control, *self._workers):
            writer.close()


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    """Children end with the test."""
    gateway = Gateway(tmp_path)
    yield gateway
    gateway.end_children()


def committed(gateway: Gateway) -> dict[str, int]:
    """Where the sidecar's database stands."""
    store = Store(gateway.state_dir / "sidecar" / "state.db")
    store.close()
    return store.saved.cut


def test_killed_at_random_points(gateway: Gateway) -> None:
    """Twenty deaths; then its state is what a fresh fold of the log gives, ticks are 1, 2, 3..., decisions once."""
    rng = random.Random(20)
    gateway.real_recorder()
    traffic = Traffic(gateway, rng)
    with gateway.lives() as lives:
        for _ in range(KILLS):
            pid = lives.begin()
            end_s = time.monotonic() + rng.uniform(0.1, 0.9)
            while time.monotonic() < end_s:
                traffic.some(20)
                time.sleep(0.02)
            if rng.random() < 0.2:
                traffic.shift()
            os.kill(pid, signal.SIGKILL)
            assert lives.said() == "dead"
    sidecar = gateway.child("-m", "shadow.sidecar")
    ends = traffic.ends
    until(lambda: all(committed(gateway).get(key, 0) >= end for key, end in ends.items()), 90)
    sidecar.send_signal(signal.SIGTERM)
    assert sidecar.wait(30) == 0, gateway.output(sidecar)
    traffic.close()

    verdicts = spool_verdicts(gateway.spool, sources_of(GATEWAY_ID, "sidecar"), {})
    ticks = [event.body["tick"] for event in verdicts if event.kind == "tick"]
    assert sorted(ticks) == list(range(1, len(ticks) + 1))
    assert len(ticks) > KILLS / 4
    causes = Counter((e.body["rollout"], e.body["cause"]) for e in verdicts if e.kind == "decision")
    assert set(causes.values()) == {1}

    store = Store(gateway.state_dir / "sidecar" / "state.db")
    stored = stored_of(verdicts)
    anew = replay(Source(lambda: SpoolFeed(gateway.spool), 0), GATEWAY_ID, stored, Bundles(gateway.models))
    assert [one.differs for one in anew.decisions] == [None] * len(causes)
    assert msgspec.msgpack.encode(store.saved.state) == msgspec.msgpack.encode(anew.state)
    assert sum(store.saved.state.counts.values()) == traffic.said - traffic.revision
    assert store.saved.state.labels["kept"] > 100
    store.close()
