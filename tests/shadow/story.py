"""Stories told to a sidecar: routes, predictions and labels, appended to a real log as the gateway would."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gateway.audit.drained import sources_of
from gateway.audit.event import Control, Event, Feedback, ModelFacts, Prediction, RouteFacts, Tensor, Verdict
from gateway.audit.feed import Feed, Positions
from gateway.audit.recorder import Recorder
from gateway.audit.spool_feed import SpoolFeed
from gateway.audit.writer import Writer
from shadow.act import Acted, Actor, Pending
from shadow.bundles import Bundles
from shadow.replay import Replayed, Source, replay, stored_of
from shadow.sidecar import Parts, Sidecar
from shadow.state import Settings
from shadow.store import Store
from shadow.verdicts import spool_verdicts, stored_after
from tests.gateway.audit.sim import GATEWAY_ID, Log, forget_owner, settle

SECOND_NS = 1_000_000_000
DAY_NS = 86_400 * SECOND_NS
MODEL = "flights"


def route(revision: int, *, primary: str = "1", canary: str | None = None, **more: Any) -> Control:
    """A route's control event: all to the primary, or `weight_bp` to a canary; `others` are further ones."""
    weight_bp = more.get("weight_bp", 1000) if canary is not None else 0
    others = more.get("others", {})
    left_bp = 10_000 - weight_bp - sum(bp for _, bp in others.values())
    variants: list[dict[str, Any]] = [
        {"name": "primary", "version": primary, "role": "primary", "weight_bp": left_bp}
    ]
    for name, (version, bp) in others.items():
        variants.append({"name": name, "version": version, "role": "canary", "weight_bp": bp})
    if canary is not None:
        variants.append({"name": "canary", "version": canary, "role": "canary", "weight_bp": weight_bp})
    after: dict[str, Any] = {"model": MODEL, "revision": revision, "variants": variants}
    if "latched" in more:
        after["latched"] = more["latched"]
    return Control(
        kind=more.get("kind", "shift"),
        at_ns=revision * SECOND_NS,
        gateway_id=GATEWAY_ID,
        model=MODEL,
        revision=revision,
        after=after,
        by="admin",
        reason="a test",
    )


def prediction(revision: int, assigned: str, weight_bp: int, version: str, **more: Any) -> Prediction:
    """An answered (or failed) request of one row, or of as many as `scores` has."""
    scores = more.get("scores", [0.3])
    at_ns = more.get("at_ns", SECOND_NS)
    kind = more.get("kind", "done")
    pairs = [value for score in scores for value in (1 - score, score)]
    outputs = []
    if kind == "done":
        data = struct.pack(f"<{len(pairs)}f", *pairs)
        outputs = [Tensor("probabilities", "FP32", (len(scores), 2), data)]
    return Prediction(
        kind=kind,
        received_ns=at_ns,
        done_ns=at_ns,
        rows=len(scores),
        route=RouteFacts(
            revision=revision,
            generation=revision,
            assigned=assigned,
            served=assigned,
            weight_bp=weight_bp,
            reason=more.get("reason", "weight"),
            unit_hash=more.get("unit"),
        ),
        model=ModelFacts(name=MODEL, version=version, tree_sha256=more.get("tree_sha256", "")),
        outputs=outputs,
        status=200 if kind == "done" else 500,
        degraded=more.get("degraded", ()),
        parameters={"event_time_ns": more["event_ns"]} if "event_ns" in more else None,
        first_try=more.get("first_try"),
        code=more.get("code"),
    )


def labels(*given: tuple[str, int, Any], at_ns: int = SECOND_NS, model: str = MODEL) -> Feedback:
    """Labels: (prediction id, row, value), received at that time."""
    return Feedback(
        kind="label",
        at_ns=at_ns,
        model=model,
        labels=[{"id": of, "row": row, "value": value, "at_ns": SECOND_NS} for of, row, value in given],
    )


class FakeActor(Actor):
    """Says what it is told to say, and remembers what was asked."""

    def __init__(self, outcome: str = "done") -> None:
        self.outcome = outcome
        self.lease = Acted("done")
        self.rolled_back: list[Pending] = []
        self.at_ns: list[int] = []
        self.read_revisions: list[int] = []
        self.renewed: list[dict[str, frozenset[str]]] = []

    def roll_back(self, pending: Pending, at_ns: int, read_revision: int) -> Acted:
        self.rolled_back.append(pending)
        self.at_ns.append(at_ns)
        self.read_revisions.append(read_revision)
        return Acted(self.outcome, "as the test has it")

    def renew_leases(self, models: dict[str, frozenset[str]]) -> dict[str, Acted]:
        self.renewed.append(models)
        return dict.fromkeys(models, self.lease)


class Stage:
    """A log with a recorder, a worker, control and a sidecar in this process."""

    def __init__(self, log: Log, models: Path, settings: Settings | None = None) -> None:
        self.log = log
        self.models = models
        self.settings = settings or Settings()
        self.recorder: Recorder = log.recorder(segment_bytes=1 << 20)
        self.control: Writer = log.owner("control", 1 << 20)
        self.workers: list[Writer] = [log.owner("worker", 1 << 22) for _ in range(2)]
        self.actor = FakeActor()
        self.sidecar = self.start()

    def start(self) -> Sidecar:
        """A sidecar that goes on where the last one was committed; it has adopted nothing yet."""
        home = self.log.state_dir / "sidecar"
        home.mkdir(exist_ok=True)
        return Sidecar(
            Parts(
                gateway_id=GATEWAY_ID,
                writer=self.log.owner("sidecar", 1 << 20),
                store=Store(home / "state.db"),
                bundles=Bundles(self.models),
                actor=self.actor,
                feed=self.feed,
                settings=self.settings,
                tick_s=1.0,
            )
        )

    def die(self) -> None:
        """The sidecar is killed: locks go, what was not committed goes, its ring stays for the recorder."""
        forget_owner(self.sidecar._writer)
        self.sidecar._parts.store.close()

    def succeed(self) -> Sidecar:
        """The next sidecar, once the recorder is done with the ring of the last one; it has adopted its ticks."""
        settle(self.recorder)
        self.sidecar = self.start()
        own = sources_of(GATEWAY_ID, "sidecar")
        settle(self.recorder)
        self.sidecar.adopt(stored_after(self.log.spool, own, self.sidecar._saved.cut))
        return self.sidecar

    def verdicts(self) -> list[Verdict]:
        """What sidecars wrote, as it lies on disk."""
        return spool_verdicts(self.log.spool, sources_of(GATEWAY_ID, "sidecar"), {})

    def replayed(self) -> Replayed:
        """The log folded again."""
        source = Source(lambda: self.feed({}), 0)
        return replay(source, GATEWAY_ID, stored_of(self.verdicts()), Bundles(self.models))

    def feed(self, positions: Positions) -> Feed:
        return SpoolFeed(self.log.spool, positions)

    def say(self, *events: Event, worker: int = 0) -> list[str]:
        """Append; control events by control, all else by a worker. Returns the ids."""
        ids = []
        for event in events:
            writer = self.control if isinstance(event, Control) else self.workers[worker]
            seq = writer.append_events([event])
            while seq is None:
                settle(self.recorder)
                seq = writer.append_events([event])
            ids.append(writer.event_id(seq))
        settle(self.recorder)
        return ids

    def tick(self) -> None:
        """The sidecar reads all there is and closes a tick; the recorder runs beside it."""
        settle(self.recorder)
        while self.sidecar.runner.read():
            pass
        with recording(self.recorder):
            self.sidecar.tick()


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """The recorder at work on a thread, as its own process would be."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            recorder.step()
            time.sleep(0.001)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
