"""A watch in this process without ring, spool or clock: events are said, ticks are closed, decisions come back."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from gateway.audit.event import Control, Event, Heartbeat, Prediction
from gateway.audit.feed import Delivery, HighWater, Positions
from gateway.audit.identity import id_prefix, parse_event_id, source_of
from gateway.settings import Policy
from loaders.bundle import BundleSettings
from shadow.bundles import Reference
from shadow.decide import Decision
from shadow.runner import Runner
from shadow.state import Settings, Tick
from shadow.store import Store
from shadow.verdicts import gateway_sources
from shadow.watch import Watch
from tests.gateway.audit.sim import GATEWAY_ID
from tests.shadow.story import MODEL, SECOND_NS, prediction

SOURCES = gateway_sources(GATEWAY_ID)
CONTROL = source_of(GATEWAY_ID, "control", 0)
WORKERS = [source_of(GATEWAY_ID, "worker", index) for index in range(3)]
LABELLED = msgspec.convert(
    {
        "outputs": {
            "probabilities": {"kind": "probability", "decision": {"column": 1, "threshold": 0.5}},
        },
        "labels": {"kind": "class", "maturity_s": 60},
    },
    BundleSettings,
)


TRUSTING = Settings(policies={MODEL: Policy(trust_routing_keys=True)})
PLAIN = msgspec.convert({"outputs": {"probabilities": {"kind": "probability"}}}, BundleSettings)


class Shelf:
    """Bundles by version; all others are not there."""

    def __init__(self, default: BundleSettings | None = LABELLED, **settings: BundleSettings | None) -> None:
        self.default = default
        self.of_version = settings
        self.references: dict[str, Reference] = {}

    def settings(self, model: str, version: str, tree_sha256: str) -> BundleSettings | None:
        """As told."""
        return self.of_version.get(f"v{version}", self.default)

    def reference(self, model: str, version: str, tree_sha256: str) -> Reference | None:
        """As told."""
        return self.references.get(version)


def reference(scores: Sequence[float]) -> Reference:
    """A reference of these scores."""
    rows = len(scores)
    return Reference(np.array(scores, dtype=np.float64), np.zeros(rows, np.int64), np.zeros(rows, np.int64))


class ListFeed:
    """A feed of deliveries that are made by hand."""

    def __init__(self, deliveries: Sequence[list[Event]] = ()) -> None:
        self.deliveries = list(deliveries)
        self._marks = HighWater()

    @property
    def positions(self) -> Positions:
        """Behind what was read."""
        return dict(self._marks.positions)

    def read(self, max_events: int, wait_ms: int) -> Delivery:
        """The next one."""
        delivery = Delivery([], [])
        for event in self.deliveries.pop(0) if self.deliveries else []:
            is_new, hole = self._marks.admit(*parse_event_id(event.id))
            if hole is not None:
                delivery.holes.append(hole)
            if is_new:
                delivery.events.append(event)
        return delivery

    def close(self) -> None:
        """Nothing is open."""


class Numbers:
    """Ids as writers draw them."""

    def __init__(self) -> None:
        self.next: dict[int, int] = {}

    def draw(self, event: Event, source: int, epoch: int = 1) -> Event:
        """The event with the source's next id."""
        seq = self.next.get(source, 0)
        self.next[source] = seq + 1
        return msgspec.structs.replace(event, id=f"{id_prefix(source, epoch)}{seq:016x}")


class Play:
    """A watch and its log.

    Attributes:
        decisions: all so far.
        at_ns: time of the next tick; each takes a second.
    """

    def __init__(self, shelf: Shelf | None = None, settings: Settings | None = None) -> None:
        self.shelf = shelf or Shelf()
        self.store = Store()
        self.watch = Watch(self.shelf, self.store.join)
        self.watch.use(settings or Settings())
        self.feed = ListFeed()
        self.runner = Runner(self.feed, self.watch, {}, SOURCES)
        self.numbers = Numbers()
        self.decisions: list[Decision] = []
        self.at_ns = SECOND_NS

    def say(self, *events: Event, worker: int = 0) -> list[str]:
        """Append; control events by control, all else by a worker. Returns the ids."""
        made = [
            self.numbers.draw(event, CONTROL if isinstance(event, Control) else WORKERS[worker])
            for event in events
        ]
        self.feed.deliveries.append(list(made))
        return [event.id for event in made]

    def lose(self, count: int, worker: int = 0) -> None:
        """Numbers that have no record; seen when the worker's next event is read."""
        self.numbers.next[WORKERS[worker]] = self.numbers.next.get(WORKERS[worker], 0) + count

    def pass_time(self, at_ns: int) -> None:
        """Idle sources live at that time: the clock goes there with the next tick."""
        self.say(*(Heartbeat(at_ns=at_ns) for _ in range(9)), worker=2)

    def tick(self) -> list[Decision]:
        """Read all there is and close a tick."""
        while self.feed.deliveries:
            self.runner.read()
        tick = Tick(self.watch.state.tick + 1, self.at_ns, self.runner.close())
        self.at_ns += SECOND_NS
        made = self.watch.close(tick, self.runner.fate)
        self.decisions += made
        return made

    @property
    def causes(self) -> list[str]:
        """What was decided so far."""
        return [decision.cause for decision in self.decisions]


class Arm(NamedTuple):
    """How a version behaves: chance to fail, to give values that are not finite, mean and spread of its score."""

    version: str
    failing: float = 0.0
    nonfinite: float = 0.0
    mean: float = 0.4
    spread: float = 0.1


def traffic(
    count: int, revision: int, arms: dict[str, tuple[int, Arm]], seed: int, **more: object
) -> Iterator[Prediction]:
    """Requests as a gateway draws them: variants by weight, each answered as its version does."""
    rng = random.Random(seed)
    names = list(arms)
    for _ in range(count):
        name = rng.choices(names, [arms[each][0] for each in names])[0]
        weight_bp, arm = arms[name]
        score = min(max(rng.gauss(arm.mean, arm.spread), 0.0), 1.0)
        kind = "failed" if rng.random() < arm.failing else "done"
        degraded = ("nonfinite",) if kind == "done" and rng.random() < arm.nonfinite else ()
        scores = [float("nan")] if degraded else [score]
        yield prediction(
            revision, name, weight_bp, arm.version, kind=kind, degraded=degraded, scores=scores, **more
        )
